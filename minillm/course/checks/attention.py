"""The check of chapter attention.

One trick serves most of it: if the values are the rows of the identity matrix, the average of the values *is* the row
of weights. So every mechanism of `attend` can be read off what it returns, one after the other, in an order in which each
stands on those before: one key, the sum of the weights, who is seen, the scores, their scale, heads, groups.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minillm import attention
from minillm.course.checks.harness import Mistake, checks, same
from minillm.embeddings import rotary_angles, rotary_frequencies


Attend = Callable[..., Tensor]
FAINT = 1e-6  # a weight below this is no weight


def well_formed(found: Any, like: Tensor) -> None:
    """Raise Mistake unless it is a tensor of this shape and dtype, without NaN; its numbers are not looked at."""
    if not isinstance(found, Tensor) or found.shape != like.shape or found.dtype != like.dtype:
        same(found, torch.zeros_like(like), "")
    same(found, found.nan_to_num(), "")


def example(H: int, K: int, T: int, S: int, D: int, B: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values that are random but always the same."""
    random = torch.Generator().manual_seed(7)
    return tuple(torch.randn(B, heads, n, D, generator=random) for heads, n in ((H, T), (K, S), (K, S)))  # type: ignore[return-value]


def weights_of(attend: Attend, q: Tensor, k: Tensor, *mask: Tensor) -> Tensor:
    """The weights (B, H, T, S) that a function gives the keys, read off with one-hot values; needs D = S."""
    S = k.shape[2]
    found = attend(q, k, torch.eye(S).expand(*k.shape[:2], S, S).contiguous(), *mask)
    well_formed(found, torch.full((*q.shape[:3], S), torch.nan))  # a tensor of this shape and dtype
    return found


def name_visibility(seen: Tensor, expected: Tensor, what: str = "position t") -> None:
    """Raise Mistake, in words, if the pattern of seen keys (T, S) is not what is expected."""
    if torch.equal(seen, expected):
        return
    T, S = seen.shape
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    own = torch.ones(T, S, dtype=torch.bool).triu(S - T).tril(S - T)
    if torch.equal(seen[:-1] & ~own[:-1], ~expected[:-1]):
        raise Mistake(f"the mask is the wrong way round: {what} sees the future and not the past")
    if torch.equal(seen[1:], (expected & ~own)[1:]):
        raise Mistake(f"{what} does not see itself: the mask is off by one")
    if seen.all():
        raise Mistake(f"nothing is hidden: {what} sees all keys, the future included")
    if (seen & future).any():
        far = (seen & future.triu(S - T + 2)).any()
        raise Mistake(f"{what} sees the future" if far else f"{what} sees t+1: the mask is off by one")
    if torch.equal(seen, own):
        raise Mistake(f"{what} sees itself alone, nothing of the past")
    if (own & expected & ~seen).any():
        raise Mistake(f"{what} does not see itself: the mask is off by one")
    raise Mistake(f"{what} does not see all of the past")


@checks("causal_mask")
def is_boolean(causal_mask: Callable[..., Tensor]) -> None:
    """True and False, in the right shape, for a sequence and for the end of one."""
    for T, S in ((4, 4), (1, 1), (2, 5)):
        mask = causal_mask(T, S)
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            raise Mistake(f"its dtype is {mask.dtype}, expected torch.bool: True where a key may be seen")
        well_formed(mask, torch.ones(T, S, dtype=torch.bool))


@checks("causal_mask")
def hides_the_future(causal_mask: Callable[..., Tensor]) -> None:
    """As many queries as keys."""
    name_visibility(causal_mask(5, 5), torch.ones(5, 5, dtype=torch.bool).tril())


@checks("causal_mask")
def aligns_the_ends(causal_mask: Callable[..., Tensor]) -> None:
    """Fewer queries than keys: the queries are the last."""
    mask = causal_mask(2, 5)
    if torch.equal(mask, torch.ones(2, 5, dtype=torch.bool).tril()):
        raise Mistake("the T queries are taken for the first of the S keys; they are the last")
    name_visibility(mask, torch.ones(2, 5, dtype=torch.bool).tril(3))


@checks("causal_mask")
def keeps_to_the_window(causal_mask: Callable[..., Tensor]) -> None:
    """At most `window` keys, the own one included."""
    n = int(causal_mask(6, 6, window=3)[5].sum())
    if n != 3:
        said = "the window is ignored" if n == 6 else f"a window of 3 lets {n} keys be seen"
        raise Mistake(f"{said}; it is 3 keys, the query's own included")
    same(causal_mask(6, 6, window=3), attention.causal_mask(6, 6, 3), "the window hides the wrong keys")
    same(causal_mask(2, 6, window=3), attention.causal_mask(2, 6, 3), "the window is wrong where T is less than S")


@checks("split_heads")
def splits_the_width(split_heads: Callable[..., Tensor]) -> None:
    """Each head gets neighbouring coordinates of the same position."""
    x = torch.arange(24.0).view(1, 3, 8)
    found, right = split_heads(x, 2), x.view(1, 3, 4, 2).transpose(1, 2)
    if isinstance(found, Tensor) and found.shape == (1, 2, 3, 4):
        raise Mistake("head_dim is the width of one head, not the number of heads")
    well_formed(found, right.new_zeros(right.shape))
    if torch.equal(found, x.reshape(1, 4, 3, 2)):
        raise Mistake("the heads mix positions: split the width first, (B, T, H, D), then move the heads before T")
    if torch.equal(found, x.view(1, 3, 2, 4).permute(0, 3, 1, 2)):
        raise Mistake("a head must be neighbouring coordinates: the width is (H D), not (D H)")
    same(found, right, "the numbers ended up in the wrong places")


@checks("merge_heads")
def undoes_the_split(merge_heads: Callable[..., Tensor]) -> None:
    """Heads side by side, head 0 first."""
    x = torch.arange(24.0).view(1, 4, 3, 2)
    found, right = merge_heads(x), x.transpose(1, 2).reshape(1, 3, 8)
    well_formed(found, torch.zeros_like(right))
    if torch.equal(found, x.reshape(1, 3, 8)):
        raise Mistake("the heads mix positions: move T before the heads first, then merge")
    same(found, right, "merging does not undo splitting")


@checks("share_heads")
def serves_neighbours(share_heads: Callable[..., Tensor]) -> None:
    """Query heads 0, 1 use key-value head 0; 2, 3 use 1."""
    x = torch.arange(2.0).view(1, 2, 1, 1)
    found = share_heads(x, 4)
    well_formed(found, torch.zeros(1, 4, 1, 1))
    if found.flatten().tolist() == [0, 1, 0, 1]:
        raise Mistake("query head h uses head h % K; neighbours share, so it should be h // (H / K)")
    same(found.flatten(), torch.tensor([0.0, 0, 1, 1]), "the heads are shared in the wrong order")


@checks("attention_weights")
def weights_are_right(attention_weights: Callable[..., Tensor]) -> None:
    """The same mechanisms as in attend, on the weights themselves."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = attention.causal_mask(q.shape[2], k.shape[2]) if mask is None else mask
        weights = attention_weights(q, attention.share_heads(k, q.shape[1]), mask)
        well_formed(weights, torch.zeros(*q.shape[:3], k.shape[2]))
        return weights @ attention.share_heads(v, q.shape[1])

    for mechanism in (
        weights_sum_to_one,
        sees_the_past_only,
        multiplies_queries_and_keys,
        scales,
        uses_the_mask,
        is_stable,
    ):
        mechanism(attend)


@checks("attend")
def one_key(attend: Attend) -> None:
    """With one key all weight is on it, so the value comes back."""
    q, k, v = example(1, 1, 1, 1, 4)
    found = attend(q, k, v)
    well_formed(found, torch.zeros_like(v))
    for other, name in ((k, "keys"), (q, "queries")):
        if torch.allclose(found, other, atol=1e-4):
            raise Mistake(f"it averages the {name}, not the values")
    ratio = (found / v).flatten()
    if torch.allclose(ratio, ratio[0].expand(4), atol=1e-3) and abs(ratio[0] - 1) > 1e-3:
        if abs(ratio[0] - 1 / 2) < 1e-3:
            raise Mistake("the weights were divided by sqrt(head_dim) after the softmax; divide the scores before it")
        raise Mistake("the weight of a single key is not 1: is the softmax missing?")
    same(found, v, "with one key the output must be its value", tolerance=1e-4)


@checks("attend")
def weights_sum_to_one(attend: Attend) -> None:
    """Whatever is seen, the weights are not negative and add up to 1 over the keys."""
    q, k, _ = example(1, 1, 5, 5, 5)
    weights = weights_of(attend, q, k)[0, 0]
    sums, columns = weights.sum(dim=-1), weights.sum(dim=-2)
    if torch.allclose(sums, torch.ones(5), atol=1e-4) and (weights > -FAINT).all():
        return
    if torch.allclose(columns, torch.ones(5), atol=1e-4):
        raise Mistake(
            "the weights add up to 1 over the queries, not over the keys: the softmax runs over the wrong axis"
        )
    everything = weights_of(attend, q, k, torch.ones(5, 5, dtype=torch.bool))[0, 0].sum(dim=-1)
    if (sums < 1 + 1e-4).all() and torch.allclose(everything, torch.ones(5), atol=1e-4):
        raise Mistake("the weights add up to less than 1: hide keys before the softmax (score -inf), not after it")
    if (sums < 1 + 1e-4).all() and abs(sums[-1] - 1) < 1e-4:
        raise Mistake("the weights add up to less than 1: hide keys before the softmax (score -inf), not after it")
    raise Mistake("the weights do not add up to 1 over the keys: softmax them along the last axis")


@checks("attend")
def sees_the_past_only(attend: Attend) -> None:
    """The first query sees the first key; nobody sees what comes after. Small scores keep every weight visible."""
    q, k, _ = example(1, 1, 5, 5, 5)
    q = q / 10
    weights, past = weights_of(attend, q, k)[0, 0], torch.ones(5, 5).tril()
    for divisor in (1.0, math.sqrt(5), 5.0):
        zeroed = (q @ k.mT / divisor * past).softmax(dim=-1)[0, 0]
        if torch.allclose(weights, zeroed, atol=1e-5):
            raise Mistake("hidden keys still get some weight: their score must be -inf, not 0")
    hidden, seen = weights[past == 0], weights[past == 1]
    if FAINT < hidden.max() < 0.7 * seen.min():
        raise Mistake("hidden keys still get some weight: their score must be -inf, not a small number")
    name_visibility(weights > FAINT, past.bool())


@checks("attend")
def multiplies_queries_and_keys(attend: Attend) -> None:
    """The logarithms of two weights differ by the difference of the scores, times one number for all."""
    q, k, _ = example(1, 1, 6, 6, 6)
    weights = weights_of(attend, q, k)[0, 0]
    guesses = {
        "": (q @ k.mT),
        "the scores are key times query, the wrong way round: row t belongs to query t": (k @ q.mT),
        "the scores are queries times queries; the keys are not used": (q @ q.mT),
        "the scores are keys times keys; the queries are not used": (k @ k.mT),
    }
    if torch.allclose(weights, torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None], atol=1e-4):
        raise Mistake("all keys get the same weight: the scores q @ k.mT are not used")
    for mistake, scores in guesses.items():
        if scale_of(weights, scores[0, 0]) is not None:
            if mistake:
                raise Mistake(mistake)
            return
    raise Mistake("the weights are not the softmax of the scores q @ k.mT")


def scale_of(weights: Tensor, scores: Tensor) -> float | None:
    """The number by which the scores were multiplied before the softmax, or None if there is no such number."""
    last, products = weights[-1].clamp(min=1e-30).log(), scores[-1]
    before, products_before = weights[-2, :-1].clamp(min=1e-30).log(), scores[-2, :-1]
    logs = torch.cat((last - last.mean(), before - before.mean())).double()
    raw = torch.cat((products - products.mean(), products_before - products_before.mean())).double()
    scale = float((logs @ raw) / (raw @ raw))
    fits = torch.allclose(logs, scale * raw, atol=2e-2 * float(logs.abs().max()) + 1e-4)
    return scale if fits and abs(scale) > 1e-4 else None


@checks("attend")
def scales(attend: Attend) -> None:
    """Scores are divided by the root of the head width: tried on widths that tell the wrong roots apart."""
    B, H, T, D = 2, 3, 16, 16
    q, k, _ = example(H, H, T, T, D, B)
    scale = scale_of(weights_of(attend, q, k)[0, 0], (q @ k.mT)[0, 0])
    if scale is None:
        return  # heads are mixed; the mechanism for that will say so
    wide = wide_scale(attend)
    if abs(wide - 1 / math.sqrt(4)) < 1e-2 and abs(scale - 1 / 4) < 1e-2:
        return
    divisors = {
        "scores were not divided by sqrt(head_dim)": (1.0, 1.0),
        "scores were divided by head_dim instead of its square root": (16.0, 4.0),
        "scores were multiplied by sqrt(head_dim) instead of divided": (1 / 4, 1 / 2),
        "scores were multiplied by head_dim instead of divided by its square root": (1 / 16, 1 / 4),
        "scores were divided by sqrt(head_dim) twice, in all by head_dim": (16.0, 4.0),
        "scores were divided by the root of the whole width H * D; each head has its own, sqrt(head_dim)": (
            math.sqrt(H * 16),
            2.0,
        ),
        "scores were divided by the root of the number of keys, not of head_dim": (4.0, math.sqrt(6)),
        "scores were divided by the number of keys, not by sqrt(head_dim)": (16.0, 6.0),
        "scores were divided by the root of the number of heads, not of head_dim": (math.sqrt(H), 1.0),
        "scores were divided by the number of heads, not by sqrt(head_dim)": (float(H), 1.0),
        "scores were divided by the fourth root of head_dim, not by sqrt(head_dim)": (2.0, math.sqrt(2)),
        "scores were divided by a fixed number, not by sqrt(head_dim)": (1 / scale, 1 / scale),
    }
    for mistake, (first, second) in divisors.items():
        if abs(scale * first - 1) < 2e-2 and abs(wide * second - 1) < 2e-2:
            raise Mistake(mistake)
    if scale < 0:
        raise Mistake("the scores have the wrong sign: keys that answer a query worst get the most weight")
    raise Mistake(f"scores were divided by {1 / scale:.3g}, expected sqrt(head_dim) = sqrt({D}) = {math.sqrt(D):.3g}")


def wide_scale(attend: Attend) -> float:
    """The scale where head_dim is 4 and there are 6 keys and one head; the weights are read off in two halves."""
    q, k, _ = example(1, 1, 6, 6, 4)
    eye = torch.eye(6)
    halves = [
        attend(q, k, half[None, None].contiguous()) for half in (eye[:, :4], nn.functional.pad(eye[:, 4:], (0, 2)))
    ]
    weights = torch.cat((halves[0], halves[1][..., :2]), dim=-1)[0, 0]
    return scale_of(weights, (q @ k.mT)[0, 0]) or math.nan


@checks("attend")
def keeps_heads_apart(attend: Attend) -> None:
    """Every head, and every row of the batch, gets what it would get alone."""
    q, k, v = example(3, 3, 5, 5, 4, B=2)
    found = attend(q, k, v)
    well_formed(found, torch.zeros_like(q))
    alone = torch.cat([attend(q[:, h : h + 1], k[:, h : h + 1], v[:, h : h + 1]) for h in range(3)], dim=1)
    same(found, alone, "a head's result depends on the other heads", tolerance=1e-4)
    rows = torch.cat([attend(q[b : b + 1], k[b : b + 1], v[b : b + 1]) for b in range(2)])
    same(found, rows, "a row's result depends on the other rows of the batch", tolerance=1e-4)


@checks("attend")
def shares_groups(attend: Attend) -> None:
    """Fewer key-value heads than query heads: neighbours share."""
    q, k, v = example(4, 2, 5, 5, 4)
    try:
        found = attend(q, k, v)
    except RuntimeError as error:
        raise Mistake(
            "it cannot handle fewer key-value heads than query heads (4 and 2): share_heads repeats them"
        ) from error
    well_formed(found, torch.zeros_like(q))
    k_wrong, v_wrong = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
    if torch.allclose(found, attention.attend(q, k_wrong, v_wrong), atol=1e-4):
        raise Mistake("query head h uses key-value head h % K; neighbours share, so it should be h // (H / K)")
    same(found, attention.attend(q, k, v), "the key-value heads are shared wrongly", tolerance=1e-4)


@checks("attend")
def aligns_the_last_queries(attend: Attend) -> None:
    """Fewer queries than keys: the queries are the last."""
    q, k, _ = example(1, 1, 2, 5, 5)
    seen = weights_of(attend, q, k)[0, 0] > FAINT
    if torch.equal(seen, torch.ones(2, 5, dtype=torch.bool).tril()):
        raise Mistake("the T queries are taken for the first of the S keys; they are the last")
    name_visibility(seen, torch.ones(2, 5, dtype=torch.bool).tril(3), "with T < S, position t")


@checks("attend")
def uses_the_mask(attend: Attend) -> None:
    """A mask that is passed in replaces the causal one."""
    q, k, _ = example(1, 1, 4, 4, 4)
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    seen = weights_of(attend, q, k, mask)[0, 0] > FAINT
    if torch.equal(seen, ~mask):
        raise Mistake("the mask is used the wrong way round: True means that the key may be seen")
    if torch.equal(seen, torch.ones(4, 4, dtype=torch.bool).tril()):
        raise Mistake("the mask that is passed in is ignored")
    if torch.equal(seen, mask.mT):
        raise Mistake("the mask is transposed: its rows are the queries")
    if torch.equal(seen, mask.tril()):
        raise Mistake("the causal mask is applied on top of the mask that is passed in")
    same(seen, mask, "the mask that is passed in hides the wrong keys")


@checks("attend")
def is_stable(attend: Attend) -> None:
    """Large scores do not overflow, and a mistake in the arithmetic shows in the values."""
    q, k, v = example(1, 1, 4, 4, 4)
    found = attend(100 * q, 100 * k, v)
    if found.isnan().any():
        raise Mistake("large scores give NaN: subtract the largest before exp, or use softmax")
    q, k, v = example(4, 2, 5, 7, 4, B=2)
    kept = [x.clone() for x in (q, k, v)]
    same(attend(q, k, v), attention.attend(q, k, v), "the result is not what attention gives", tolerance=1e-4)
    for name, before, after in zip("qkv", kept, (q, k, v)):
        same(after, before, f"it changes {name} in place; leave the caller's tensors alone")
    v.requires_grad_()
    if not attend(q, k, v).requires_grad:
        raise Mistake("no gradient flows back to the values: something was detached")


@checks("visible")
def sees_by_position(visible: Callable[..., Tensor]) -> None:
    """Plain positions are causal."""
    positions = torch.arange(5)[None]
    found = visible(positions, positions)
    well_formed(found, torch.ones(1, 1, 5, 5, dtype=torch.bool))
    name_visibility(found[0, 0], torch.ones(5, 5, dtype=torch.bool).tril())
    late = visible(positions[:, 3:], positions)
    well_formed(late, torch.ones(1, 1, 2, 5, dtype=torch.bool))
    name_visibility(late[0, 0], torch.ones(2, 5, dtype=torch.bool).tril(3), "with T < S, position t")


@checks("visible")
def hides_padding(visible: Callable[..., Tensor]) -> None:
    """Position -1 is padding."""
    positions = torch.tensor([[-1, -1, 0, 1]])
    found = visible(positions, positions)[0, 0]
    if found[2:, :2].any():
        raise Mistake("padding (position -1) is seen")
    if not found[:2].any(dim=-1).all():
        raise Mistake("padding sees nothing at all, which makes its softmax NaN; let padding see padding")
    same(found, attention.visible(positions, positions)[0, 0], "padding is treated wrongly")


@checks("visible")
def separates_documents(visible: Callable[..., Tensor]) -> None:
    """A position of 0 begins a document."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    found = visible(positions, positions)[0, 0]
    if found[3, 0] or found[4, 1]:
        raise Mistake("a document sees the one before it: position 0 begins a new document")
    same(found, attention.visible(positions, positions)[0, 0], "documents are separated wrongly")


@checks("visible")
def keeps_the_window(visible: Callable[..., Tensor]) -> None:
    """Less than `window` away."""
    positions = torch.arange(6)[None]
    n = int(visible(positions, positions, window=3)[0, 0, 5].sum())
    if n != 3:
        said = "the window is ignored" if n == 6 else f"a window of 3 lets {n} keys be seen"
        raise Mistake(f"{said}; it is 3 keys, the query's own included")
    same(
        visible(positions, positions, window=3),
        attention.visible(positions, positions, window=3),
        "the window hides the wrong keys",
    )


def layers(cls: Any, norms: bool = False, heads: tuple[int, int] = (4, 4)) -> tuple[nn.Module, nn.Module]:
    """A reader's layer and ours with the same weights."""
    torch.manual_seed(3)
    made = []
    for each in (cls, attention.Attention):
        parts = {"query_norm": nn.RMSNorm(4), "key_norm": nn.RMSNorm(4)} if norms else {}
        made.append(each(16, *heads, 4, **parts))
    theirs, ours = made
    if not isinstance(theirs, nn.Module):
        raise Mistake("it must be an nn.Module")
    if norms:
        for name in ("query_norm", "key_norm"):
            getattr(ours, name).weight.data.uniform_(0.5, 2.0)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    if missing or unexpected:
        raise Mistake(f"its parameters are {sorted(theirs.state_dict())}, expected {sorted(ours.state_dict())}")
    return theirs, ours


def sentence(T: int, head_dim: int = 4) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Inputs of width 16 and the rotation of their positions."""
    random = torch.Generator().manual_seed(11)
    return torch.randn(2, T, 16, generator=random), rotary_angles(torch.arange(T), rotary_frequencies(head_dim))


@checks("Attention")
def one_position(cls: Any) -> None:
    """One token attends to itself: values and output projection alone."""
    theirs, ours = layers(cls)
    x, angles = sentence(1)
    found, right = theirs(x, angles), ours.output(ours.value(x))  # type: ignore[operator]
    well_formed(found, torch.zeros_like(right))
    if torch.allclose(found, ours.value(x), atol=1e-5):  # type: ignore[operator]
        raise Mistake("the output projection is not applied")
    if torch.allclose(found, right + x, atol=1e-5):
        raise Mistake("the input is added; that is the block's business, not attention's")
    same(found, right, "with one position the result must be output(value(x))", tolerance=1e-4)


@checks("Attention")
def first_query(cls: Any) -> None:
    """The first position sees itself alone, and the past does not move when the future does."""
    theirs, ours = layers(cls)
    x, angles = sentence(6)
    found = theirs(x, angles)
    changed = x.clone()
    changed[:, 4:] += 1
    if not torch.allclose(theirs(changed, angles)[:, :4], found[:, :4], atol=1e-5):
        raise Mistake("the future leaks: positions before a changed token change")
    same(found[:, 0], ours.output(ours.value(x[:, 0])), "the first position must see itself alone", tolerance=1e-4)  # type: ignore[operator]


@checks("Attention")
def rotates(cls: Any) -> None:
    """Queries and keys are rotated, values are not."""
    theirs, ours = layers(cls, heads=(1, 1))
    theirs.load_state_dict(ours.state_dict())
    x, angles = sentence(6)
    still = (torch.ones_like(angles[0]), torch.zeros_like(angles[1]))
    same(
        theirs(x, still), ours(x, still), "without any rotation it is not attention yet: look at attend", tolerance=1e-4
    )
    if torch.allclose(theirs(x, angles), theirs(x, still), atol=1e-5):
        raise Mistake("queries and keys are not rotated: word order is lost")
    same(theirs(x, angles), ours(x, angles), "rotate queries and keys by their angles, not the values", tolerance=1e-4)


@checks("Attention")
def several_heads(cls: Any) -> None:
    """Heads, groups and the norms of queries and keys."""
    x, angles = sentence(6)
    for heads, mistake in (((4, 4), "the heads are split or merged wrongly"), ((4, 2), "grouped heads are wrong")):
        theirs, ours = layers(cls, heads=heads)
        same(theirs(x, angles), ours(x, angles), mistake, tolerance=1e-4)
    theirs, ours = layers(cls, norms=True)
    mistake = "query_norm and key_norm must be applied to the heads before they are rotated"
    same(theirs(x, angles), ours(x, angles), mistake, tolerance=1e-4)


@checks("Attention")
def follows_positions(cls: Any) -> None:
    """Positions decide who is seen."""
    theirs, ours = layers(cls)
    x, _ = sentence(6)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [-1, -1, 0, 1, 2, 3]])
    angles = rotary_angles(positions, rotary_frequencies(4))
    found, right = theirs(x, angles, positions), ours(x, angles, positions)
    same(found[positions >= 0], right[positions >= 0], "positions are ignored or used wrongly: see visibility", 1e-4)


class Recorder:
    """A cache that keeps what it is given and adds one key before it."""

    length = 1

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, None]:
        """One key and value more than was given, the oldest."""
        self.layer = layer
        return torch.cat((k[:, :, :1], k), dim=2), torch.cat((v[:, :, :1], v), dim=2), None


@checks("Attention")
def asks_the_cache(cls: Any) -> None:
    """What the cache returns is what is attended to."""
    theirs, ours = layers(cls)
    x, angles = sentence(3)
    mistake = "keys and values must go through cache.update, and what it returns is attended to"
    recorder = Recorder()
    same(theirs(x, angles, None, recorder, 5), ours(x, angles, None, Recorder(), 5), mistake, tolerance=1e-4)
    if getattr(recorder, "layer", None) != 5:
        raise Mistake("the cache must be told which layer asks")
