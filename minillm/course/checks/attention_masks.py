"""The check of chapter attention, on from attention_inner: heads, groups, masks, and numbers that are large."""

import torch
from torch import Tensor

from minillm import attention
from minillm.course.checks.attention_heads import name_sharing
from minillm.course.checks.attention_inner import Attend, by_weights, example, same_pattern, seen_keys, weights_of
from minillm.course.checks.attention_words import LAST, close, well_formed
from minillm.course.checks.harness import Mistake, checks, same, when


@by_weights
def keeps_heads_apart(attend: Attend) -> None:
    """Every head, and every row of the batch, gets what it would get alone."""
    q, k, v = example(3, 3, 5, 5, 4, B=2)
    found = attend(q, k, v)
    well_formed(found, torch.zeros_like(q))
    alone = torch.cat([attend(q[:, h : h + 1], k[:, h : h + 1], v[:, h : h + 1]) for h in range(3)], dim=1)
    if not close(found, alone):
        name_groups(attend, q, k, v, "a head's result depends on the other heads")
    rows = torch.cat([attend(q[b : b + 1], k[b : b + 1], v[b : b + 1]) for b in range(2)])
    same(found, rows, "a row's result depends on the other rows of the batch", tolerance=1e-4)


@checks("attend", chapter="attention")
def shares_groups(attend: Attend) -> None:
    """Fewer key-value heads than query heads: neighbours share; keys and values are looked at one without the other."""
    for H, K in ((4, 2), (6, 3), (4, 1)):
        q, k, v = example(H, K, 5, 5, 4, B=2)
        try:
            found = attend(q, k, v)
        except Mistake:
            raise
        except Exception as error:
            words = f"it cannot handle fewer key-value heads than query heads ({H} and {K}): share_heads repeats them"
            raise Mistake(f"{words}, keys and values alike") from error
        well_formed(found, torch.zeros_like(q))
        if not close(found, attention.attend(q, k, v)):
            with when(f"with {H} query heads and {K} key-value heads"):
                name_groups(attend, q, k, v, "the key-value heads are shared wrongly: each query head uses one")


def name_groups(attend: Attend, q: Tensor, k: Tensor, v: Tensor, otherwise: str) -> None:
    """Raise Mistake: which key and which value head does every query head use?"""
    H, K = q.shape[1], k.shape[1]
    found = attend(q, k, v)
    used: dict[str, list[int]] = {"key": [], "value": []}
    for h in range(H):
        pairs = [(i, j) for i in range(K) for j in range(K)]
        alone = [attention.attend(q[:, h : h + 1], k[:, i : i + 1], v[:, j : j + 1]) for i, j in pairs]
        fits = [pair for pair, one in zip(pairs, alone) if close(found[:, h : h + 1], one)]
        if not fits:
            raise Mistake(otherwise)
        used["key"].append(fits[0][0])
        used["value"].append(fits[0][1])
    if used["key"] == used["value"]:
        name_sharing(used["key"], K)
    for name, heads in used.items():
        name_sharing(heads, K, name)
    raise Mistake(otherwise)


@checks("attend", chapter="attention")
def aligns_the_last_queries(attend: Attend) -> None:
    """Fewer queries than keys: the queries are the last."""
    for T, S in ((2, 5), (1, 4)):
        q, k, _ = example(1, 1, T, S, S)
        with when(f"without a mask, with T={T} and S={S}"):
            seen = seen_keys(weights_of(attend, q / 10, k)[0, 0])
            if torch.equal(seen, torch.ones(T, S, dtype=torch.bool).tril()):
                raise Mistake(LAST)
            same_pattern(seen, T, S)


@by_weights
def uses_the_mask(attend: Attend) -> None:
    """A mask that is passed in replaces the causal one, with as many queries as keys and with fewer."""
    square = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
    for mask in (square, torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]], dtype=torch.bool)):
        T, S = mask.shape
        q, k, _ = example(1, 1, T, S, S)
        causal = attention.causal_mask(T, S)
        with when(f"with a mask of {T} queries and {S} keys"):
            seen = seen_keys(weights_of(attend, q / 10, k, mask.clone())[0, 0])
        if torch.equal(seen, ~mask):
            raise Mistake("the mask is used the wrong way round: True means that the key may be seen")
        if torch.equal(seen, causal) or seen.all():
            raise Mistake("the mask that is passed in is ignored")
        if T == S and torch.equal(seen, mask.mT):
            raise Mistake("the mask is transposed: its rows are the queries")
        if torch.equal(seen, mask & causal):
            raise Mistake("the causal mask is applied on top of the mask that is passed in; that one alone decides")
        if torch.equal(seen, mask | causal):
            raise Mistake("the mask that is passed in can only add to the causal mask; it alone decides")
        same(seen, mask, "the mask that is passed in hides the wrong keys")


@by_weights
def takes_a_mask_for_each_row(attend: Attend) -> None:
    """A mask (B, 1, T, S): each row of the batch has its own, all heads of a row have the same."""
    B, H, T, S = 2, 3, 4, 6
    random = torch.Generator().manual_seed(3)
    mask = torch.rand(B, 1, T, S, generator=random) < 0.5
    mask[..., 0, :] |= torch.arange(S) == 1
    mask |= ~mask.any(dim=-1, keepdim=True)
    q, k, _ = example(H, H, T, S, S, B)
    with when(f"with a mask for each row of the batch, {(B, 1, T, S)}"):
        seen = seen_keys(weights_of(attend, q / 10, k, mask.clone()))
        right = mask.expand(B, H, T, S)
        if torch.equal(seen, mask[:1].expand(B, H, T, S)):
            raise Mistake("the mask of the first row is used for all")
        if not torch.equal(seen[:, :1].expand(B, H, T, S), seen):
            raise Mistake("the heads of a row do not all get the mask of that row")
        if torch.equal(seen, mask.any(dim=0).expand(B, H, T, S)) or torch.equal(seen, mask.all(dim=0).expand_as(seen)):
            raise Mistake("the masks of the rows are joined into one")
        same(seen, right, "it hides the wrong keys")


@by_weights
def is_stable(attend: Attend) -> None:
    """Large scores do not overflow and hidden keys stay hidden; other kinds of numbers come back as they are."""
    q, k, v = example(1, 1, 4, 4, 4)
    for sign in (1, -1):  # large, and then large and negative
        large = 100 * sign * q.abs(), 100 * k.abs()
        found, right = attend(*large, v), attention.attend(*large, v)
        if not found.isfinite().all():
            raise Mistake("large scores overflow to NaN: subtract the largest before exp, or use softmax")
        words = "hidden keys get weight where the scores are large and negative: their score must be -inf"
        same(found, right, words if sign < 0 else "with large scores it is not what attention gives", 1e-3)
    with when("with float64"):
        found = attend(*(x.double() for x in example(4, 4, 5, 7, 4, B=2)))
        well_formed(found, torch.zeros(2, 4, 5, 4, dtype=torch.float64))


@by_weights
def gives_what_attention_gives(attend: Attend) -> None:
    """Everything at once, and the gradients."""
    for H, K, T, S in ((4, 4, 5, 7), (4, 4, 1, 9), (4, 2, 6, 6)):
        given = [x.requires_grad_() for x in example(H, K, T, S, 6, B=2)]
        ours = [x.detach().clone().requires_grad_() for x in given]
        with when(f"with T={T} and S={S}"):
            found, right = attend(*given), attention.attend(*ours)
            same(found, right, "the result is not what attention gives", tolerance=1e-4)
        for x in (found, right):
            if x.requires_grad:
                x.square().sum().backward()
        for name, one, other in zip(("queries", "keys", "values"), given, ours):
            if one.grad is None or not close(one.grad, other.grad if other.grad is not None else one.grad):
                raise Mistake(f"no gradient, or a wrong one, flows back to the {name}: something was detached")
