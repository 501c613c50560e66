"""What the presets of `minillm train` are: plain numbers, so that the command line can show them without PyTorch.

`model` names a shape of minillm.model.PRESETS; the other keys are fields of a Recipe, its model or its training.
"""

from typing import Any


COMMON = {
    "accumulation": 1, "lr": 0.004, "matrix_lr": 0.02, "seed": 0, "keep": 2, "save_seconds": 30.0,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        **COMMON, "corpus": "shakespeare", "model": "nano",
        "vocab_size": 1024, "seq_len": 128, "batch_size": 16, "max_seconds": 150.0,
    },
    "micro": {
        **COMMON, "corpus": "shakespeare", "model": "micro",
        "vocab_size": 2048, "seq_len": 256, "batch_size": 16, "max_seconds": 1800.0,
    },
    "tiny": {
        **COMMON, "corpus": "python", "model": "nano", "n_layers": 2, "n_heads": 2, "d_model": 32,
        "vocab_size": 300, "seq_len": 32, "batch_size": 4, "steps": 20, "warmup_steps": 2, "validate_every": 10,
    },
}  # fmt: skip
