"""Words for what went wrong in attention: found numbers are compared with what known slips would give.

A family of right and wrong versions is written down once, as deviations from the rule. The deviation, or the two, that
give exactly what the candidate gives are what it did, in whatever way it was written.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm import attention
from minillm.course.checks.harness import Mistake, same


FAINT = 1e-6  # a weight below this is no weight
Ways = dict[str, dict[str, str]]  # what may deviate, how, and in which words
Make = Callable[[dict[str, str]], Iterable[Tensor]]

ORDER = {
    "all": "nothing is hidden: position t sees the future",
    "next": "position t sees t+1: the mask is off by one",
    "strict": "position t does not see itself: the mask is off by one",
    "reversed": "the mask is the wrong way round: position t sees the future and not the past",
    "own": "position t sees itself alone, nothing of the past",
}
SIGN = {"inverted": "the mask is inverted: True means that the key may be seen"}
WINDOW = {
    "none": "the window is ignored: at most `window` keys are seen, the query's own included",
    "longer": "the window is one key too long: it is `window` keys, the query's own included",
    "shorter": "the window is one key too short: it is `window` keys, the query's own included",
    "far": "the window hides the nearest keys and shows those far away",
    "alone": "with a window the future is seen: the window comes on top of the causal rule",
    "both": "with a window the future is seen: the window reaches to both sides of the query",
}
LAST = "the T queries are taken for the first of the S keys; they are the last"
CAUSAL_WAYS: Ways = {
    "order": ORDER,
    "align": {
        "first": LAST,
        "recent": "the keys before the last T are hidden; they are the past of all queries",
    },
    "window": WINDOW
    | {
        "wide": "the window is ignored where it is T or more: what limits it is the number of keys, S, not of queries",
        "first": f"the window is wrong where T is less than S: {LAST}",
    },
    "sign": SIGN,
}
VISIBLE_WAYS: Ways = {
    "order": ORDER,
    "place": {"place": "it goes by place, as if the positions were 0, 1, 2, ...; compare the positions given"},
    "documents": {
        "none": "a document sees another one: position 0 begins a new document",
        "earlier": "a document sees those before it: position 0 begins a new document",
        "one": "a document begins at position 1 here; it begins where a position is 0",
        "batch": "documents are counted down the batch, not along each row: cumsum over the keys, dim=1",
        "first": f"the documents of the queries are wrong: {LAST}",
        "queries": "the documents of the queries are counted from the queries alone; the keys before them count too",
    },
    "padding": {
        "none": "padding (position -1) is seen by the text: k <= q alone does not hide a key at -1",
        "never": "padding sees nothing at all, which makes its softmax NaN; let padding see padding",
    },
    "window": WINDOW,
    "rows": {"first": "all rows of the batch get the mask of the first row; each row has its own positions"},
    "sign": SIGN,
}


def well_formed(found: Any, like: Tensor) -> None:
    """Raise Mistake unless it is a tensor of this shape and dtype, without NaN; its numbers are not looked at."""
    if not isinstance(found, Tensor) or found.shape != like.shape or found.dtype != like.dtype:
        same(found, torch.zeros_like(like), "")
    same(found, found.nan_to_num(), "")


def deviation(found: Sequence[Tensor], make: Make, ways: Ways, most: int = 2) -> str | None:
    """The fewest deviations that give all that was found, in words; None if there are none."""
    for size in range(1, most + 1):
        for names in itertools.combinations(ways, size):
            for choice in itertools.product(*(ways[name] for name in names)):
                guess = make(dict(zip(names, choice)))
                if all(close(one, two) for one, two in zip(found, guess)):
                    return ", and ".join(ways[name][way] for name, way in zip(names, choice))
    return None


def close(one: Tensor, other: Tensor) -> bool:
    """True if two tensors are the same but for rounding."""
    return one.shape == other.shape and torch.allclose(one.to(other.dtype), other, rtol=1e-4, atol=1e-4)


def seen_by_order(q: Tensor, k: Tensor, way: str | None) -> Tensor:
    """Which keys a query sees by the order of their positions."""
    return {
        None: k <= q,
        "all": torch.ones_like(k <= q),
        "next": k <= q + 1,
        "strict": k < q,
        "reversed": k >= q,
        "own": k == q,
    }[way]


def within(seen: Tensor, distance: Tensor, window: int | None, way: str | None) -> Tensor:
    """What a window leaves of what is seen."""
    if window is None or way == "none":
        return seen
    near = distance < window + {"longer": 1, "shorter": -1}.get(way or "", 0)
    return {"far": seen & ~near, "alone": near, "both": near & (distance > -window)}.get(way or "", seen & near)


def causal_rule(T: int, S: int, window: int | None, ways: dict[str, str]) -> Tensor:
    """The causal mask (T, S), with deviations."""
    last, keys = torch.arange(S - T, S)[:, None], torch.arange(S)[None]
    queries = last - (S - T) if ways.get("align") == "first" else last
    way = ways.get("window")
    window = None if way == "wide" and window is not None and window >= T else window
    seen = seen_by_order(queries, keys, ways.get("order"))
    if ways.get("align") == "recent":
        seen = seen & (keys >= S - T)
    distance = (queries - (S - T) if way == "first" else queries) - keys
    seen = within(seen, distance, window, None if way == "first" else way)
    return ~seen if "sign" in ways else seen


def visible_rule(positions: Tensor, key_positions: Tensor, window: int | None, ways: dict[str, str]) -> Tensor:
    """The mask by positions (B, 1, T, S), with deviations."""
    T, S = positions.shape[1], key_positions.shape[1]
    if "place" in ways:
        return causal_rule(T, S, window, ways).expand(len(positions), 1, T, S)
    begins = key_positions == (1 if ways.get("documents") == "one" else 0)
    numbers = begins.cumsum(dim=0 if ways.get("documents") == "batch" else 1)
    of_queries = numbers[:, :T] if ways.get("documents") == "first" else numbers[:, S - T :]
    if ways.get("documents") == "queries":
        of_queries = (positions == 0).cumsum(dim=1)
    q, k, document, of_keys = positions[:, :, None], key_positions[:, None], of_queries[:, :, None], numbers[:, None]
    seen = within(seen_by_order(q, k, ways.get("order")), q - k, window, ways.get("window"))
    if ways.get("documents") != "none":
        seen = seen & (of_keys <= document if ways.get("documents") == "earlier" else of_keys == document)
    if ways.get("padding") != "none":
        seen = seen & (((k < 0) == (q < 0)) if ways.get("padding") is None else k >= 0)
    seen = (~seen if "sign" in ways else seen)[:, None]
    return seen[:1].expand(len(positions), -1, -1, -1) if "rows" in ways else seen


def first_wrong(seen: Tensor, positions: Tensor, key_positions: Tensor, window: int | None) -> str | None:
    """What is wrong with the first wrong entry of a mask (B, 1, T, S), or None; padding may see any padding."""
    right = attention.visible(positions, key_positions, window)
    padding = (
        (positions < 0)[:, None, :, None] & seen.any(dim=-1, keepdim=True) & ~(seen & ~right).any(-1, keepdim=True)
    )
    wrong = ((seen != right) & ~padding).nonzero().tolist()
    if not wrong:
        return None
    b, _, t, s = wrong[0]
    q, k = int(positions[b, t]), int(key_positions[b, s])
    pair = f"in {positions[b].tolist()} position {q} at place {t}"
    if q < 0:
        return f"{pair} is padding, which sees padding and nothing else"
    if not seen[b, 0, t, s]:
        return f"{pair} does not see {'itself' if q == k else f'the key at position {k}, and should'}"
    if k < 0:
        return f"{pair} sees padding (-1)"
    if k > q:
        return f"{pair} sees the future: the key at position {k}"
    if window is not None and q - k >= window:
        return f"{pair} sees the key at position {k}, out of its window of {window}"
    return f"{pair} sees a key at position {k} of another document"


def origins(found: Any, x: Tensor, right: Tensor) -> list[Tensor]:
    """Where the numbers of a result came from, an index per axis of x, whose numbers must all differ."""
    well_formed(found, torch.zeros_like(right))
    order = x.flatten().argsort()
    place = torch.searchsorted(x.flatten()[order], found.flatten().contiguous()).clamp(max=x.numel() - 1)
    if not torch.equal(x.flatten()[order][place], found.flatten()):
        raise Mistake("its numbers are not those of x: they should be moved, not changed")
    return list(torch.unravel_index(order[place].view(found.shape), x.shape))


def name_layout(found: Any, right: Tensor, axes: str) -> None:
    """Raise Mistake if a result has the right axes in another order; the sizes of the axes must all differ."""
    if isinstance(found, Tensor) and found.shape != right.shape and sorted(found.shape) == sorted(right.shape):
        size = dict(zip(right.shape, axes.split()))
        got = ", ".join(size[n] for n in found.shape)
        raise Mistake(f"its shape is {tuple(found.shape)}, which is ({got}), expected ({', '.join(axes.split())})")
