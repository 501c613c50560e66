"""The transformer: a token table, a stack of blocks, a head; its configuration, initialisation, size and cost.

Chapter: model.

Choices: the Llama family's architecture (pre-norm RMSNorm, rotary positions, SwiGLU, grouped heads, no biases) with
QK-norm as in Qwen3, so that what is trained here can be handed to engines that people run. Projections that write to
the residual stream begin at zero, so that every block begins as the identity and the first loss is ln V.

Sources: Touvron et al. 2023 (arXiv:2302.13971), section 2.2; Qwen3 (arXiv:2505.09388), section 2; zero-initialised
outputs, Zhang et al. 2019 (Fixup, arXiv:1901.09321), section 3, and Yang et al. 2022 (arXiv:2203.03466), appendix D.2.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minillm.attention import Attention, Cache
from minillm.blocks import Block, RMSNorm, SwiGLU
from minillm.embeddings import TokenEmbedding, rotary_angles, rotary_frequencies


PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"n_layers": 4, "n_heads": 4, "d_model": 128, "max_seq_len": 128},
    "micro": {"n_layers": 6, "n_heads": 6, "d_model": 192, "max_seq_len": 256},
    "mini": {"n_layers": 6, "n_heads": 6, "n_kv_heads": 2, "d_model": 384, "max_seq_len": 256},
    "gpt2": {"vocab_size": 50_257, "n_layers": 12, "n_heads": 12, "d_model": 768, "max_seq_len": 1024},
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; a 0 means: derive it.

    `n_kv_heads` 0 is as many as query heads, `head_dim` 0 is d_model / n_heads, `d_ff` 0 is 8/3 d_model rounded up to a
    multiple of 8, which gives SwiGLU's three matrices the parameters of a plain network's two (Shazeer 2020, section
    3). `max_seq_len` is how many tokens the model learns to look back at. ValueError names a value that cannot be.
    """

    vocab_size: int
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 0
    head_dim: int = 0
    d_model: int = 128
    d_ff: int = 0
    max_seq_len: int = 128
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qk_norm: bool = True

    def __post_init__(self) -> None:
        """Derive what is 0, refuse what cannot be."""
        derived = {
            "n_kv_heads": self.n_kv_heads or self.n_heads,
            "head_dim": self.head_dim or self.d_model // max(self.n_heads, 1),
            "d_ff": self.d_ff or -(-8 * self.d_model // 24) * 8,
        }
        if not self.head_dim and self.n_heads > 0 and self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; give head_dim")
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        for name, value in {"d_model": self.d_model, **asdict(self)}.items():  # what others derive from comes first
            if value <= 0 and not isinstance(value, bool):
                raise ValueError(f"{name} must be positive, not {value}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs of coordinates")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """A named shape with some fields changed, e.g. `ModelConfig.preset("nano", vocab_size=1024)`."""
        if name not in PRESETS:
            raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})


def make_block(config: ModelConfig, window: int) -> Block:
    """Assemble one layer from its parts."""
    norms = {n: RMSNorm(config.head_dim, config.norm_eps) for n in ("query_norm", "key_norm") if config.qk_norm}
    attention = Attention(config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, window=window, **norms)
    feed_forward = SwiGLU(config.d_model, config.d_ff)
    attention_norm, ff_norm = (RMSNorm(config.d_model, config.norm_eps) for _ in range(2))
    return Block(attention, feed_forward, attention_norm, ff_norm)


@torch.no_grad()
def initialise(model: "Transformer") -> None:
    """Draw the weights so that activations keep their size through the depth and the first guess is "anything".

    A matrix with n inputs gets uniform noise of variance 1/n, so that unit variance in gives unit variance out (LeCun
    et al. 1998, "Efficient BackProp", section 4.6). Matrices that write to the residual stream begin at zero and so
    does the head: every block begins as the identity, every token is equally likely, the first loss is ln V. A tied
    head cannot be zero; there the table gets GPT-2's deviation of 0.02 and the loss begins near ln V.
    """
    for name, parameter in model.named_parameters():
        if name == "embedding.weight":
            parameter.normal_(std=0.02 if model.config.tie_embeddings else 1.0)
        elif name.endswith(("attention.output.weight", "feed_forward.down.weight")) or name == "head.weight":
            parameter.zero_()
        elif parameter.ndim == 2:
            bound = (3 / parameter.shape[1]) ** 0.5  # the variance of uniform noise in ±b is b²/3
            parameter.uniform_(-bound, bound)


class Transformer(nn.Module):
    """Ids in, one score for each token of the vocabulary out, at every position.

    `window` is how many tokens back a token can look, itself included: `max_seq_len` unless given.
    """

    def __init__(self, config: ModelConfig, *, window: int | None = None) -> None:
        super().__init__()
        self.config = config
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 token, not {window}")
        self.window = config.max_seq_len if window is None else window
        self.embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(make_block(config, self.window) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        initialise(self)

    def forward(
        self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits at every position; positions say who sees whom (see `visible`), a cache brings what came before."""
        start = 0 if cache is None else cache.length
        places = torch.arange(start, start + ids.shape[1], device=ids.device) if positions is None else positions
        frequencies = rotary_frequencies(self.config.head_dim, self.config.rope_theta)  # always float32
        angles = rotary_angles(places, frequencies.to(ids.device))
        x = self.embedding(ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, positions, cache, layer)
        return self.head(self.norm(x))


def count_parameters(model: nn.Module) -> int:
    """Learned numbers in the model; a tied head counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(config: ModelConfig, seq_len: int | None = None, training: bool = False) -> float:
    """Floating-point operations a token costs, averaged over `seq_len` tokens (if not given, the context).

    A matrix of n weights costs 2n (a multiplication and an addition each). Attention adds 2D for the score and 2D for
    the average, for each head and each key seen, of which there are (T + 1) / 2 on average. A backward pass costs twice
    the forward pass, so training costs three times as much (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    """
    T = config.max_seq_len if seq_len is None else seq_len
    projections = config.d_model * config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads)
    matrices = config.n_layers * (projections + 3 * config.d_model * config.d_ff) + config.vocab_size * config.d_model
    attention = config.n_layers * config.n_heads * 4 * config.head_dim * (T + 1) / 2
    return (2 * matrices + attention) * (3 if training else 1)
