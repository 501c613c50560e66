"""Causal self-attention with grouped key-value heads.

Every token looks back at the tokens before it and takes a weighted average of what they offer.
Chapter: attention.

Choices: positions decide who sees whom, so unequal prompts, packed documents, windows and caches need no code of their
own; the inner product of attention is a function passed in; queries and keys can be normalised by parts passed in.

Sources: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; grouped heads, Ainslie et al. 2023 (arXiv:2305.13245);
sliding window, Beltagy et al. 2020 (arXiv:2004.05150), section 3.1.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillm.embeddings import rotate


def causal_mask(T: int, S: int, window: int | None = None) -> Bool[Tensor, "T S"]:
    """True where query t may see key s: not the future, and at most `window` keys, its own included.

    The T queries are the last of the S keys.

    >>> causal_mask(2, 3).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    >>> causal_mask(3, 3, window=2).int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    return mask if window is None else mask.triu(S - T - window + 1)


def attention_weights(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H S D"], mask: Bool[Tensor, "*M T S"]
) -> Float[Tensor, "B H T S"]:
    """How much each query looks at each key: not negative, and adding up to 1 over the keys."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # variance 1 where q and k have it and are independent
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def split_heads(x: Float[Tensor, "B T HD"], head_dim: int) -> Float[Tensor, "B H T D"]:
    """Cut the width into heads and put them beside the batch, so that `@` treats each head by itself."""
    return rearrange(x, "B T (H D) -> B H T D", D=head_dim)


def merge_heads(x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B T HD"]:
    """Put the heads side by side again."""
    return rearrange(x, "B H T D -> B T (H D)")


def share_heads(x: Float[Tensor, "B K S D"], n_heads: int) -> Float[Tensor, "B H S D"]:
    """Repeat each of the K key-value heads for the H/K neighbouring query heads that it serves."""
    return x.repeat_interleave(n_heads // x.shape[1], dim=1)


def attend(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Bool[Tensor, "*M T S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Average the values, weighted by how well each key answers the query.

    Without a mask the T queries are the last of the S keys, and none sees the future.
    """
    if mask is None:
        mask = causal_mask(q.shape[2], k.shape[2]).to(q.device)
    k, v = share_heads(k, q.shape[1]), share_heads(v, q.shape[1])
    return attention_weights(q, k, mask) @ v


def attend_torch(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Bool[Tensor, "*M T S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """The same as `attend` by PyTorch, whose fused kernels never write the (T, S) scores to memory."""
    T, S = q.shape[2], k.shape[2]
    if mask is None and 1 < T < S:
        mask = causal_mask(T, S).to(q.device)
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=q.shape[1] != k.shape[1]
    )


def visible(
    positions: Int[Tensor, "B T"], key_positions: Int[Tensor, "B S"], window: int | None = None
) -> Bool[Tensor, "B 1 T S"]:
    """True where a query may see a key, by their positions alone; the T queries are the last of the S keys.

    A key is seen if it is not after the query, less than `window` away, and of the same document: a new document begins
    wherever a position is 0. Padding has position -1; it is seen by padding only.

    >>> visible(torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 1, 0, 1]])).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    T = positions.shape[1]
    document = (key_positions == 0).cumsum(dim=1)
    at, key_at = positions[:, :, None], key_positions[:, None, :]
    seen = (key_at <= at) & ((key_at < 0) == (at < 0)) & (document[:, -T:, None] == document[:, None, :])
    if window is not None:
        seen &= at - key_at < window
    return seen[:, None]


def mask_for(
    T: int, S: int, positions: Int[Tensor, "B T"] | None, key_positions: Int[Tensor, "B S"] | None, window: int | None
) -> Bool[Tensor, "*M T S"] | None:
    """The mask that attention needs, or None where plain causal attention says it all."""
    if positions is not None and key_positions is not None:
        return visible(positions, key_positions, window)
    if window is not None and S > window:
        return causal_mask(T, S, window)
    return None


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a store of earlier keys and values; chapter cache brings one."""

    @property
    def length(self) -> int:
        """Tokens seen so far, those that a window has dropped included."""
        ...

    def update(
        self,
        layer: int,
        k: Float[Tensor, "B K T D"],
        v: Float[Tensor, "B K T D"],
        positions: Int[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"], Int[Tensor, "B S"] | None]:
        """Store the newest T keys and values of a layer, return all kept, oldest first, with their positions."""
        ...


class Attention(nn.Module):
    """H query heads that share K key-value heads, each of width D, rotary positions, and an output projection.

    `attend` is the inner product; `query_norm` and `key_norm` are applied over D before the rotation (QK-norm, Henry et
    al. 2020, arXiv:2010.04245). ValueError if the query heads do not share the key-value heads evenly.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        window: int | None = None,
        attend: Callable[..., Tensor] = attend_torch,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} query heads cannot share {n_kv_heads} key-value heads evenly")
        self.head_dim, self.window, self.attend = head_dim, window, attend
        self.query = nn.Linear(d_model, n_heads * head_dim, bias=False)
        self.key = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.value = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.output = nn.Linear(n_heads * head_dim, d_model, bias=False)
        self.query_norm = query_norm or nn.Identity()
        self.key_norm = key_norm or nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        angles: tuple[Tensor, Tensor],
        positions: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "B T C"]:
        """Let every token look back; without positions it is plain causal attention and no mask is built."""
        q, k, v = (split_heads(f(x), self.head_dim) for f in (self.query, self.key, self.value))
        q, k = rotate(self.query_norm(q), angles), rotate(self.key_norm(k), angles)
        key_positions = positions
        if cache is not None:
            k, v, key_positions = cache.update(layer, k, v, positions)
        mask = mask_for(q.shape[2], k.shape[2], positions, key_positions, self.window)
        return self.output(merge_heads(self.attend(q, k, v, mask if mask is None else mask.to(x.device))))
