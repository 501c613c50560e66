"""The check of chapter attention: who sees whom by place, and the heads that are split, merged and shared."""

from collections.abc import Callable

import torch
from torch import Tensor

from minillm import attention
from minillm.course.checks.attention_words import (
    CAUSAL_WAYS,
    causal_rule,
    deviation,
    name_layout,
    origins,
    well_formed,
)
from minillm.course.checks.harness import Mistake, checks, same, when


MIX = "the heads mix positions: a view or reshape that crosses the axes does not move them"


@checks("causal_mask", chapter="attention")
def is_boolean(causal_mask: Callable[..., Tensor]) -> None:
    """True and False, in the right shape, for a sequence and for the end of one."""
    for T, S in ((4, 4), (1, 1), (2, 5)):
        mask = causal_mask(T, S)
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            raise Mistake(f"its dtype is {mask.dtype}, expected torch.bool: True where a key may be seen")
        with when(f"with T={T} and S={S}"):
            well_formed(mask, torch.ones(T, S, dtype=torch.bool))


@checks("causal_mask", chapter="attention")
def hides_the_right_keys(causal_mask: Callable[..., Tensor]) -> None:
    """As many queries as keys, then fewer, then windows: what is found is compared with what known slips give."""
    cases = ((5, 5, None), (1, 4, None), (2, 5, None), (6, 6, 3), (2, 6, 3), (3, 5, 2), (1, 5, 2), (5, 5, 1), (3, 3, 7))
    found = []
    for T, S, window in cases:
        with when(f"with T={T}, S={S} and window={window}"):
            found.append(causal_mask(T, S, window=window))
            well_formed(found[-1], torch.ones(T, S, dtype=torch.bool))
    right = [attention.causal_mask(*case) for case in cases]
    wrong = [i for i, (one, two) in enumerate(zip(found, right)) if not torch.equal(one, two)]
    if not wrong:
        return
    words = deviation(found, lambda ways: (causal_rule(*case, ways) for case in cases), CAUSAL_WAYS)
    if words:
        raise Mistake(words)
    T, S, window = cases[wrong[0]]
    t, s = (found[wrong[0]] != right[wrong[0]]).nonzero()[0].tolist()
    what = "the mask is wrong" if window is None else f"the window is wrong with window={window}"
    hidden = "must not see" if s <= t + S - T else "sees the future:"
    did = hidden if found[wrong[0]][t, s] else "should see, and does not,"
    raise Mistake(f"{what}: with T={T} and S={S} query {t}, the token at place {t + S - T}, {did} key {s}")


@checks("split_heads", chapter="attention")
def splits_the_width(split_heads: Callable[..., Tensor]) -> None:
    """Each head gets neighbouring coordinates of the same position: every number is followed to where it came from."""
    B, T, H, D = 2, 5, 3, 4
    x = torch.arange(float(B * T * H * D)).view(B, T, H * D)
    found, right = split_heads(x, D), x.view(B, T, H, D).transpose(1, 2)
    if isinstance(found, Tensor) and found.shape == (B, D, T, H):
        raise Mistake("its shape is that of head_dim heads; head_dim is the width of one head, not the number of heads")
    name_layout(found, right, "B H T D")
    b, t, c = origins(found, x, right)
    _, heads, places, coordinates = torch.meshgrid(*map(torch.arange, right.shape), indexing="ij")
    if not torch.equal(b, torch.arange(B).view(B, 1, 1, 1).expand(right.shape)):
        raise Mistake("the rows of the batch are mixed")
    if not torch.equal(t, places):
        raise Mistake(f"{MIX}: split the width first, (B, T, H, D), then transpose T and H")
    if torch.equal(c, coordinates * H + heads):
        raise Mistake("a head must be neighbouring coordinates: the width is (H D), not (D H)")
    if (c // D == c[:, :, :, :1] // D).all():
        order = (c // D)[0, :, 0, 0].tolist()
        if order != list(range(H)):
            raise Mistake(f"the heads are in the order {order}; the first head is the first head_dim coordinates")
        same(c % D, coordinates, "the coordinates inside a head are in the wrong order")
    same(c, heads * D + coordinates, "a head must be neighbouring coordinates: head 0 the first head_dim, and so on")


@checks("merge_heads", chapter="attention")
def undoes_the_split(merge_heads: Callable[..., Tensor]) -> None:
    """Heads side by side, head 0 first: every number is followed to where it came from."""
    B, T, H, D = 2, 5, 3, 4
    x = torch.arange(float(B * H * T * D)).view(B, H, T, D)
    right = x.transpose(1, 2).reshape(B, T, H * D)
    found = merge_heads(x)
    name_layout(found, right, "B T H*D")
    b, h, t, d = origins(found, x, right)
    _, places, width = torch.meshgrid(*map(torch.arange, right.shape), indexing="ij")
    if not torch.equal(b, torch.arange(B).view(B, 1, 1).expand(right.shape)):
        raise Mistake("the rows of the batch are mixed")
    if not torch.equal(t, places):
        raise Mistake(f"{MIX}: transpose T and H first, then merge")
    if torch.equal(h, width % H):
        raise Mistake("the heads are interleaved; they belong side by side, one after the other: (H D), not (D H)")
    if torch.equal(d, width % D) and not torch.equal(h, width // D):
        raise Mistake(
            f"the heads are in the order {h[0, 0, ::D].tolist()}; head 0 comes first, side by side with head 1"
        )
    same(d, width % D, "merging does not undo splitting: the coordinates of a head are in the wrong order")
    same(h, width // D, "merging does not undo splitting: the heads are not side by side, in order")


@checks("share_heads", chapter="attention")
def serves_neighbours(share_heads: Callable[..., Tensor]) -> None:
    """Query heads 0, 1, 2 use key-value head 0; 3, 4, 5 use 1; tried on one head for all and one for each, too."""
    for H, K in ((6, 2), (6, 3), (4, 1), (3, 3)):
        with when(f"with {H} query heads and {K} key-value heads"):
            serves(share_heads, H, K)


def serves(share_heads: Callable[..., Tensor], H: int, K: int) -> None:
    """Follow every number of the shared heads to where it came from."""
    B, S, D = 2, 5, 7
    x = torch.arange(float(B * K * S * D)).view(B, K, S, D)
    right = x[:, torch.arange(H) // (H // K)]
    found = share_heads(x, H)
    name_layout(found, right, "B H S D") if len({B, H, S, D}) == 4 else None
    b, k, s, d = origins(found, x, right)
    index = torch.meshgrid(*map(torch.arange, right.shape), indexing="ij")
    if not (torch.equal(b, index[0]) and torch.equal(s, index[2]) and torch.equal(d, index[3])):
        raise Mistake("rows, positions or coordinates are moved; the key-value heads alone are repeated, along dim=1")
    name_sharing(k[0, :, 0, 0].tolist(), K)


def name_sharing(used: list[int], K: int, what: str = "key-value") -> None:
    """Raise Mistake, in words, if the query heads do not use the right key-value heads."""
    H = len(used)
    if used == [h // (H // K) for h in range(H)]:
        return
    neighbours = (
        f"neighbours share: it should be h // (H / K), as repeat_interleave does, here {[h * K // H for h in range(H)]}"
    )
    if used == [h % K for h in range(H)]:
        raise Mistake(f"query head h uses {what} head h % K; {neighbours}")
    if len(set(used)) == 1:
        raise Mistake(f"all query heads use the same {what} head, {used[0]}; each serves H / K of them, {neighbours}")
    if used == [(H - 1 - h) // (H // K) for h in range(H)]:
        raise Mistake(f"the {what} heads are in reverse order; {neighbours}")
    raise Mistake(f"the query heads use the {what} heads {used}; {neighbours}")
