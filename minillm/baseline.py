"""How good is a model? Cross-entropy, and bits per byte on held-out text.

Chapter: baseline.

Sources: cross-entropy, Shannon 1951 ("Prediction and entropy of printed English"); bits per byte, Gao et al. 2020 (The
Pile, arXiv:2101.00027), section 3.1.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn


Batch = tuple[Tensor, ...]  # inputs and targets, each (B, T) int64, and positions where documents are packed


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor, *positions: Tensor) -> Float[Tensor, ""]:
    """Nats of surprise at the targets, summed over those that are not -100."""
    logits = model(inputs, *positions)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode; afterwards, in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
    """Nats summed over all targets that count, and their number, without training."""
    nats, tokens = 0.0, 0
    with evaluating(model):
        for inputs, targets, *positions in batches:
            nats += cross_entropy(model, inputs, targets, *positions).item()
            tokens += int((targets != -100).sum())
    return nats, tokens


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Surprise in bits for each byte of text, comparable between tokenizers.

    >>> bits_per_byte(nats=8 * math.log(2), n_bytes=1)
    8.0
    """
    return nats / math.log(2) / n_bytes
