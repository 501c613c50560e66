"""Our model beside Hugging Face's Llama of the same shape: training steps, and writing with a cache.

    python benchmarks/model.py [--repeats 15] [--json PATH]

The model is small (4 layers, width 128, 65 characters, 64 of context). Before anything is timed, both get the same
weights, and logits and greedily written tokens are shown to be the same. Then one training step of 16 x 64 tokens
(loss, gradients, clipping, optimizer) and 200 new tokens are timed, in turns.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import alternate, arguments, show, summarise, write_json
from transformers import LlamaConfig, LlamaForCausalLM

from minillm.cache import KVCache
from minillm.generate import generate
from minillm.model import ModelConfig, Transformer
from minillm.optim import AdamW
from minillm.train import TrainConfig, train


B, T, V, NEW_TOKENS = 16, 64, 65, 200
NAMES = {
    "embedding.": "model.embed_tokens.",
    "norm.": "model.norm.",
    "head.": "lm_head.",
    "blocks.": "model.layers.",
    "attention.query.": "self_attn.q_proj.",
    "attention.key.": "self_attn.k_proj.",
    "attention.value.": "self_attn.v_proj.",
    "attention.output.": "self_attn.o_proj.",
    "feed_forward.": "mlp.",
    "gate.": "gate_proj.",
    "up.": "up_proj.",
    "down.": "down_proj.",
    "attention_norm.": "input_layernorm.",
    "ff_norm.": "post_attention_layernorm.",
}


def our_model(context: int = T, **changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=V, n_layers=4, n_heads=4, d_model=128, max_seq_len=context, **changes))


def their_model(config: ModelConfig) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
        )
    )


def their_name(name: str) -> str:
    """Hugging Face's name of one of our parameters."""
    for ours, theirs in NAMES.items():
        if name.startswith(ours) or f".{ours}" in name:
            name = name.replace(ours, theirs, 1)
    return name


def prove_equal() -> None:
    """The same weights give the same logits and the same text, so that the same work is timed."""
    ours = our_model(context=512, qk_norm=False).eval()
    for p in ours.parameters():
        p.data = torch.randn_like(p) * 0.1
    theirs = their_model(ours.config).eval()
    theirs.load_state_dict({their_name(name): p for name, p in ours.state_dict().items()})
    ids = torch.randint(V, (2, T))
    torch.testing.assert_close(ours(ids), theirs(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert write_ours(ours) == write_theirs(theirs), "the models write different tokens"


def write_ours(model: Transformer) -> list[int]:
    return list(generate(model, [1, 2, 3], NEW_TOKENS, cache=KVCache()))


def write_theirs(model: LlamaForCausalLM) -> list[int]:
    prompt = torch.tensor([[1, 2, 3]])
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, 3:].tolist()  # pyright: ignore


def our_step(batch: tuple[torch.Tensor, torch.Tensor], optimizer: Any = None) -> Callable[[], object]:
    model = our_model()
    steps = train(model, itertools.repeat(batch), TrainConfig(steps=10**9), optimizer=optimizer and optimizer(model))
    return lambda: next(steps)


def their_step(batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], object]:
    model = their_model(our_model().config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> float:
        logits = model(input_ids=batch[0]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    options = arguments(__doc__, repeats=15).parse_args()
    prove_equal()
    batch = (torch.randint(V, (B, T)), torch.randint(V, (B, T)))
    training = {
        "minillm, defaults (Muon + AdamW)": our_step(batch),
        "minillm, AdamW for all": our_step(batch, lambda model: AdamW(model.parameters())),
        "transformers, torch's AdamW": their_step(batch),
    }
    ours, theirs = our_model(context=512).eval(), their_model(our_model(context=512).config).eval()
    writing = {
        "minillm, KVCache": lambda: write_ours(ours),
        "transformers, generate": lambda: write_theirs(theirs),
    }
    results = {}
    for title, contestants, amount in (
        (f"a training step of {B} x {T}", training, B * T),
        (f"writing {NEW_TOKENS} tokens", writing, NEW_TOKENS),
    ):
        alternate(contestants, 3)  # the first calls are slower
        results[title] = summarise(alternate(contestants, options.repeats), amount)
        show(title, results[title], "tokens")
    write_json(options.json, results, ("torch", "transformers"), repeats=options.repeats)


if __name__ == "__main__":
    main()
