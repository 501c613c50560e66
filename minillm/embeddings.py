"""Tokens and places as vectors: the token table, learned positions, and rotary positions.

A model must know which tokens it sees and in which order. The token table turns an id into a vector.
Order comes either from a second table, one learned vector a position, or from rotating queries and keys by an
angle that grows with the position, so that their product depends only on how far apart they are.
Chapter: embeddings.

Choices: the two halves of a head are the two coordinates that rotate (as in Llama), angles are computed from the
positions when they are needed, so there is no table that could be too short.

Sources: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; learned positions, Radford et al. 2018 (GPT), section 4.1;
rotary positions, Su et al. 2021 (arXiv:2104.09864), section 3.4.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """A table with one learned vector of width C for each of V tokens."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, d_model) * 0.02)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Look up the rows of the table."""
        return nn.functional.embedding(ids, self.weight)


class LearnedPositions(nn.Module):
    """A table with one learned vector of width C for each of the first `max_seq_len` positions."""

    def __init__(self, max_seq_len: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_seq_len, d_model) * 0.02)

    def forward(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T C"]:
        """Look up the rows; ValueError for a position past the table, which has no vector that was ever trained."""
        if positions.numel() and int(positions.max()) >= len(self.weight):
            raise ValueError(
                f"position {int(positions.max())} is past the {len(self.weight)} learned positions; "
                "shorten the sequence or use rotary positions"
            )
        return nn.functional.embedding(positions.clamp(min=0), self.weight)


def rotary_frequencies(head_dim: int, theta: float = 10_000.0) -> Float[Tensor, " D_half"]:
    """Radians a token by which each of the D/2 coordinate pairs turns, from 1 down to about 1/theta.

    Su et al. 2021, equation 15. ValueError for an odd head width, which leaves a coordinate without a partner.

    >>> [round(f, 4) for f in rotary_frequencies(8).tolist()]
    [1.0, 0.1, 0.01, 0.001]
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions turn pairs of coordinates, so head_dim must be even, not {head_dim}")
    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rotary_angles(
    positions: Int[Tensor, "*B T"], frequencies: Float[Tensor, " D_half"]
) -> tuple[Float[Tensor, "*B 1 T D"], Float[Tensor, "*B 1 T D"]]:
    """Cosine and signed sine of each coordinate's angle at each position, with an axis of one for the heads.

    Both halves of a head turn by the same angles; the sine is negative for the first half, as `rotate` wants it.
    """
    angles = (positions[..., None] * frequencies).unsqueeze(-3)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(
    x: Float[Tensor, "B H T D"], angles: tuple[Float[Tensor, "*B 1 T D"], Float[Tensor, "*B 1 T D"]]
) -> Float[Tensor, "B H T D"]:
    """Turn the pair (x[i], x[i + D/2]) of every head by its angle: (a, b) becomes (a cos - b sin, b cos + a sin).

    A rotation keeps lengths; the product of a rotated query and a rotated key depends on the distance of their
    positions alone. Su et al. 2021, equation 34.
    """
    cos, sin = (a.to(x.dtype) for a in angles)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)  # roll exchanges the two halves
