"""The check of chapter attention: the weights, and the average of the values.

One trick serves most of it: if the values are the rows of the identity matrix, the average of the values *is* the row
of weights. So every mechanism of `attend` can be read off what it returns, one after the other, in an order in which
each stands on those before: one key, the sum of the weights, who is seen, the scores, their scale.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minillm import attention
from minillm.course.checks.attention_words import CAUSAL_WAYS, FAINT, causal_rule, deviation, well_formed
from minillm.course.checks.harness import Mistake, checks, same


Attend = Callable[..., Tensor]
BEFORE = "hide keys before the softmax (score -inf), not after it"


def example(H: int, K: int, T: int, S: int, D: int, B: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values that are random but always the same."""
    random = torch.Generator().manual_seed(7)
    return tuple(torch.randn(B, heads, n, D, generator=random) for heads, n in ((H, T), (K, S), (K, S)))  # type: ignore[return-value]


def weights_of(attend: Attend, q: Tensor, k: Tensor, *mask: Tensor) -> Tensor:
    """The weights (B, H, T, S) that a function gives the keys, read off with one-hot values; needs D = S."""
    S = k.shape[2]
    found = attend(q, k, torch.eye(S, dtype=k.dtype).expand(*k.shape[:2], S, S).contiguous(), *mask)
    like = q.new_zeros(*q.shape[:3], S)
    well_formed(found.nan_to_num() if isinstance(found, Tensor) else found, like)
    return found


def by_weights(mechanism: Callable[[Attend], None]) -> Callable[[Attend], None]:
    """Register a mechanism of attend, and of attention_weights too."""

    def on_weights(attention_weights: Callable[..., Tensor]) -> None:
        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            mask = attention.causal_mask(q.shape[2], k.shape[2]) if mask is None else mask
            weights = attention_weights(q, attention.share_heads(k, q.shape[1]), mask)
            like = q.new_zeros(*q.shape[:3], k.shape[2])
            well_formed(weights.nan_to_num() if isinstance(weights, Tensor) else weights, like)
            return weights @ attention.share_heads(v, q.shape[1])

        mechanism(attend)

    on_weights.__name__, on_weights.__module__ = mechanism.__name__, mechanism.__module__
    checks("attention_weights", chapter="attention")(on_weights)
    return checks("attend", chapter="attention")(mechanism)


@by_weights
def has_the_shape(attend: Attend) -> None:
    """A shape in which no two axes are alike, so that a slip in the axes shows."""
    q, k, v = example(4, 4, 3, 7, 6, B=2)
    mask = attention.causal_mask(3, 7)
    found = attend(q, k, v, mask)
    well_formed(found.nan_to_num() if isinstance(found, Tensor) else found, torch.zeros_like(q))


@checks("attend", chapter="attention")
def one_key(attend: Attend) -> None:
    """With one key all weight is on it, so the value comes back."""
    D = 6
    q, k, v = example(1, 1, 1, 1, D)
    found = attend(q, k, v)
    for other, name in ((k, "keys"), (q, "queries")):
        if torch.allclose(found, other, atol=1e-4):
            raise Mistake(f"it averages the {name}, not the values (are they swapped?)")
    for other, name in ((k, "keys are"), (q, "queries are")):
        if torch.allclose(found, v + other, atol=1e-4):
            raise Mistake(f"the {name} added to the average of the values (a residual); it is the average alone")
    ratio = (found / v).flatten()
    if torch.allclose(ratio, ratio[0].expand(D), atol=1e-3) and abs(ratio[0] - 1) > 1e-3:
        if abs(ratio[0] - 1 / math.sqrt(D)) < 1e-3:
            raise Mistake("the weights were divided by sqrt(head_dim) after the softmax; divide the scores before it")
        raise Mistake("the weight of a single key is not 1: is the softmax missing?")
    if not found.isnan().any():  # then it sees nothing at all, which the next mechanisms find words for
        same(found, v, "with one key the output must be its value", tolerance=1e-4)


@by_weights
def weights_sum_to_one(attend: Attend) -> None:
    """Whatever is seen, the weights are not negative and add up to 1 over the keys."""
    q, k, _ = example(1, 1, 5, 5, 5)
    q, k = q / 5, k / 5
    weights, past = weights_of(attend, q, k)[0, 0], torch.ones(5, 5).tril()
    if weights.isnan().any(dim=-1).all():
        raise Mistake("it returned NaN in every row: 0 times -inf is NaN; use masked_fill, which needs no product")
    sums, columns = weights.sum(dim=-1), weights.sum(dim=-2)
    known = sums[~sums.isnan()]
    if torch.allclose(weights, torch.ones(5, 5)) or torch.allclose(weights, past):
        raise Mistake(
            "every weight is 1: the softmax runs over an axis of size 1 (heads or batch); it must run over the keys"
        )
    if torch.allclose(known, torch.ones_like(known), atol=1e-4) and (weights.nan_to_num() > -FAINT).all():
        return
    if torch.allclose(known, torch.ones_like(known), atol=1e-4):
        raise Mistake("some weights are negative: softmax takes exp of the scores, so that none is")
    if torch.allclose(columns, torch.ones(5), atol=1e-4):
        if torch.equal(weights > FAINT, past.mT.bool()):
            raise Mistake("the weights are used transposed: row t belongs to query t")
        raise Mistake(
            "the weights add up to 1 over the queries, not over the keys: the softmax runs over the wrong axis"
        )
    if (known < -1).any() and torch.allclose(weights.exp().sum(dim=-1), torch.ones(5), atol=1e-3):
        raise Mistake("these are the logarithms of the weights (log_softmax): weights are not negative and sum to 1")
    if torch.allclose(known, known[0].expand(len(known)), atol=1e-4) and known[0] > FAINT and (weights > -FAINT).all():
        factor = float(known[0])
        if abs(factor - 1 / math.sqrt(5)) < 1e-3 or abs(factor - 1 / 5) < 1e-3:
            raise Mistake("the weights were scaled after the softmax; divide the scores by sqrt(head_dim) before it")
        raise Mistake(f"the weights add up to {factor:.3g}, not to 1: nothing may be multiplied after the softmax")
    everything = weights_of(attend, q, k, torch.ones(5, 5, dtype=torch.bool))[0, 0]
    for before in (everything, (q @ k.mT / math.sqrt(5))[0, 0].softmax(dim=-1)):
        if torch.allclose(weights, before * past, atol=1e-5):
            raise Mistake(f"the weights add up to less than 1: {BEFORE}")
    if abs(float(weights.nansum()) - 1) < 1e-3:
        raise Mistake("all weights together add up to 1: the softmax must run over the keys alone, dim=-1")
    raise Mistake("the weights do not add up to 1 over the keys: softmax them along the last axis")


@by_weights
def sees_the_past_only(attend: Attend) -> None:
    """The first query sees the first key; nobody sees what comes after. Small scores keep every weight visible."""
    q, k, _ = example(1, 1, 5, 5, 5)
    q = q / 10
    weights, past = weights_of(attend, q, k)[0, 0], torch.ones(5, 5).tril()
    for divisor in (1.0, math.sqrt(5), 5.0):
        scores = (q @ k.mT / divisor)[0, 0]
        right = scores.masked_fill(past == 0, -torch.inf).softmax(dim=-1)
        if torch.allclose(weights, right.softmax(dim=-1), atol=1e-5):
            raise Mistake("the softmax is applied twice: weights are softmaxed again")
        if torch.allclose(weights, (scores * past).softmax(dim=-1), atol=1e-5):
            raise Mistake("hidden keys still get some weight: their score must be -inf, not 0")
        if torch.allclose(weights, (scores + past).softmax(dim=-1), atol=1e-5):
            raise Mistake("the mask is added to the scores; instead the score of hidden keys must be -inf")
    seen = seen_keys(weights)
    hidden, some = weights[past == 0], weights[past == 1]
    if FAINT < hidden.max() < 0.7 * some.min():
        raise Mistake("hidden keys still get some weight: their score must be -inf, not a small number")
    same_pattern(seen, 5, 5)


def seen_keys(weights: Tensor) -> Tensor:
    """Which keys get some weight; a row that sees nothing is NaN, or all alike if keys are hidden by a large number."""
    known = weights.nan_to_num()
    seen = known > FAINT
    spread = (known.amax(-1) - known.masked_fill(~seen, 9.0).amin(-1)).abs()
    uneven = (spread > 1e-5) & (seen.sum(dim=-1) > 1)
    nothing = seen.all(dim=-1) & ~uneven & uneven.any(dim=-1, keepdim=True)
    return seen & ~nothing[..., None]


def same_pattern(seen: Tensor, T: int, S: int) -> None:
    """Raise Mistake, in words, if the keys that get some weight are not those of the causal mask."""
    right = attention.causal_mask(T, S)
    if not torch.equal(seen, right):
        words = deviation([seen], lambda ways: [causal_rule(T, S, None, ways)], CAUSAL_WAYS)
        future = (seen & ~right).any()
        raise Mistake(words or ("the future is seen" if future else "position t does not see all of the past"))


@by_weights
def multiplies_queries_and_keys(attend: Attend) -> None:
    """The logarithms of two weights differ by the difference of the scores, times one number for all."""
    q, k, _ = example(1, 1, 6, 6, 6)
    weights = weights_of(attend, q, k)[0, 0]
    unit_q, unit_k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
    guesses = {
        "": (q @ k.mT),
        "the scores are key times query, the wrong way round: row t belongs to query t, q @ k.mT": (k @ q.mT),
        "the scores are queries times queries; the keys are not used": (q @ q.mT),
        "the scores are keys times keys; the queries are not used": (k @ k.mT),
        "the scores are queries times values, not keys: keys and values are swapped": q @ torch.eye(6)[None, None].mT,
        "queries and keys are normalised to length 1; the scores are plain products": unit_q @ unit_k.mT,
        "the scores are distances; they should be products, q @ k.mT": torch.cdist(q, k),
        "the scores are squared distances; they should be products, q @ k.mT": torch.cdist(q, k) ** 2,
        "the scores have lost their sign": (q @ k.mT).abs(),
        "the negative scores are cut off": (q @ k.mT).relu(),
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


@by_weights
def scales(attend: Attend) -> None:
    """Scores are divided by the root of the head width: tried on widths that tell the wrong roots apart."""
    B, H, T, D = 2, 3, 16, 16
    q, k, _ = example(H, H, T, T, D, B)
    scale = scale_of(weights_of(attend, q / 4, k)[0, 0], (q @ k.mT)[0, 0])
    if scale is None:
        return  # heads are mixed; the mechanism for that will say so
    scale, wide = 4 * scale, wide_scale(attend)
    if abs(wide - 1 / math.sqrt(4)) < 1e-2 and abs(scale - 1 / 4) < 1e-2:
        return
    divisors = {
        "scores were not divided by sqrt(head_dim)": (1.0, 1.0),
        "scores were divided by head_dim instead of its square root": (16.0, 4.0),
        "scores were multiplied by sqrt(head_dim) instead of divided": (1 / 4, 1 / 2),
        "scores were multiplied by head_dim instead of divided by its square root": (1 / 16, 1 / 4),
        "scores were divided by the root of the whole width H * D; each head has its own, sqrt(head_dim)": (
            math.sqrt(H * 16),
            2.0,
        ),
        "scores were divided by the whole width H * D, not by sqrt(head_dim)": (H * 16.0, 4.0),
        "scores were divided by the root of the number of keys, not of head_dim": (4.0, math.sqrt(6)),
        "scores were divided by the number of keys, not by sqrt(head_dim)": (16.0, 6.0),
        "scores were divided by the root of the number of heads, not of head_dim": (math.sqrt(H), 1.0),
        "scores were divided by the number of heads, not by sqrt(head_dim)": (float(H), 1.0),
        "scores were divided by the root of the batch, not of head_dim": (math.sqrt(B), 1.0),
        "scores were divided by the fourth root of head_dim, not by sqrt(head_dim)": (2.0, math.sqrt(2)),
        "scores were divided by head_dim squared, not by sqrt(head_dim)": (256.0, 16.0),
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
