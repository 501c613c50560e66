"""The transformer block: normalise, look back, normalise, think.

Chapter: blocks.

Choices: the norm stands before each part (pre-norm), so the residual stream runs from the embeddings to the head
untouched; RMSNorm without a bias; a gated feed-forward network.

Sources: residual stream, He et al. 2015 (arXiv:1512.03385); pre-norm, Xiong et al. 2020 (arXiv:2002.04745); RMSNorm,
Zhang and Sennrich 2019 (arXiv:1910.07467), section 4; SwiGLU, Shazeer 2020 (arXiv:2002.05202), section 2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minillm.attention import Attention, Cache


class RMSNorm(nn.Module):
    """Divide a vector by the root of its mean square, then scale each coordinate by a learned weight."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Zhang and Sennrich 2019, equation 4; `eps` keeps a vector of zeros from dividing by zero."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """A feed-forward network of F hidden units, each let through by a gate: down(silu(gate(x)) * up(x))."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Shazeer 2020, equation 6."""
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer: two updates added to the residual stream, the first from other tokens, the second from within."""

    def __init__(self, attention: Attention, feed_forward: nn.Module, attention_norm: nn.Module, ff_norm: nn.Module):
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.ff_norm, self.feed_forward = ff_norm, feed_forward

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        angles: tuple[Tensor, Tensor],
        positions: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "B T C"]:
        """Read the stream, add to it, twice."""
        x = x + self.attention(self.attention_norm(x), angles, positions, cache, layer)
        return x + self.feed_forward(self.ff_norm(x))
