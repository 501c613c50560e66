"""Where a whole attention layer went wrong: what it hands on at each step is compared with what known slips give.

A spy in the place of `attend` and a cache that keeps notes show every step from outside, however the layer is written.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minillm import attention
from minillm.course.checks.attention_heads import name_sharing
from minillm.course.checks.attention_words import (
    CAUSAL_WAYS,
    VISIBLE_WAYS,
    causal_rule,
    close,
    deviation,
    first_wrong,
    visible_rule,
)
from minillm.course.checks.harness import Mistake
from minillm.embeddings import rotary_angles, rotary_frequencies, rotate


@dataclass
class Spy:
    """Stands in for `attend` and remembers what it is given and what it gives back."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend as usual, if the mask fits."""
        if mask is not None and (mask.ndim < 2 or mask.shape[-2:] != (q.shape[2], k.shape[2])):
            there = f"there are {q.shape[2]} queries and {k.shape[2]} keys"
            raise Mistake(f"the mask that attend gets has the shape {tuple(mask.shape)}, but {there}")
        if mask is not None and mask.dtype != torch.bool:
            raise Mistake(f"the mask that attend gets has the dtype {mask.dtype}, expected torch.bool")
        self.calls.append({"q": q, "k": k, "v": v, "mask": mask})
        self.calls[-1]["result"] = attention.attend_torch(q, k, v, mask)
        return self.calls[-1]["result"]


@dataclass
class Notes:
    """A cache that takes notes; with `keep`, what is older than that many keys is dropped."""

    keep: int | None = None
    length: int = 0
    kept: dict[int, tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """Put what is new behind what is kept."""
        new = (k, v, positions)
        if layer in self.kept:
            start = 0 if self.keep is None else -self.keep
            keys, values, places = self.kept[layer]
            both = None if positions is None or places is None else torch.cat((places[:, start:], positions), dim=1)
            new = (torch.cat((keys[:, :, start:], k), dim=2), torch.cat((values[:, :, start:], v), dim=2), both)
        self.kept[layer] = new
        self.length += k.shape[2]
        self.calls.append({"layer": layer, "k": k, "v": v, "positions": positions, "returned": new})
        return new


SPLITS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "": attention.split_heads,
    "the heads are split by a view that mixes positions: first (B, T, H, D), then transpose T and H": lambda x, D: (
        x.reshape(x.shape[0], -1, x.shape[1], D)
    ),
    "a head must be neighbouring coordinates: the width is (H D), not (D H)": lambda x, D: rearrange(
        x, "B T (D H) -> B H T D", D=D
    ),
}
STEPS = {"q": ("query_norm", "rotate"), "k": ("key_norm", "rotate"), "v": ()}
NAMES = {"q": ("queries", "query"), "k": ("keys", "key"), "v": ("values", "value")}


def orders(right: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Sequences of steps that a slip may give, the shortest first."""
    steps = ("query_norm", "key_norm", "rotate", "back", "plain")
    short = [order for n in range(3) for order in itertools.product(steps, repeat=n)]
    return [right, *short, (*right, "rotate"), (*right, "query_norm"), (*right, "key_norm")]


def stepped(x: Tensor, order: tuple[str, ...], layer: nn.Module, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Heads that are normalised and rotated in some order."""
    for step in order:
        if step == "rotate":
            x = rotate(x, angles)
        elif step == "back":
            x = rotate(x, (angles[0], -angles[1]))
        elif step == "plain":
            x = rotate(x, rotary_angles(torch.arange(x.shape[2]), rotary_frequencies(x.shape[3])))
        else:
            x = getattr(layer, step)(x)
    return x


def name_heads(which: str, found: Tensor, x: Tensor, layer: Any, angles: tuple[Tensor, Tensor], where: str) -> None:
    """Raise Mistake unless found are the queries, keys or values (`which`) that the layer should have."""
    plural, own = NAMES[which]
    right = STEPS[which]
    D = layer.head_dim
    expected = stepped(attention.split_heads(getattr(layer, own)(x), D), right, layer, angles)
    if found.shape[1] != expected.shape[1] and found.shape[1] == layer.query.weight.shape[0] // D:
        found = unshared(found, expected, plural)
    if close(found, expected):
        return
    inputs = {
        "": x,
        "the input is normalised; that is the block's business": nn.functional.layer_norm(x, x.shape[-1:]),
        "the input is normalised by its root mean square; that is the block's business": nn.functional.rms_norm(
            x, x.shape[-1:]
        ),
    }
    for (more, given), (mixed, split), source in itertools.product(
        inputs.items(), SPLITS.items(), (own, "query", "key", "value", None)
    ):
        projected = given if source is None else getattr(layer, source)(given)
        if projected.shape[-1] % D:
            continue
        heads = split(projected, D)
        if heads.shape != found.shape:
            continue
        for order in orders(right):
            if close(found, stepped(heads, order, layer, angles)):
                told = of_order(plural, own, order, right, isinstance(getattr(layer, f"{own}_norm", None), nn.Identity))
                from_other = of_source(plural, own, source)
                moved = from_other and order in ((), STEPS.get((source or "-")[0], right))
                words = [more, mixed, from_other, "" if moved else told]
                raise Mistake("; ".join(word for word in words if word))
    factor = factor_of(found, expected)
    if factor is not None:
        raise Mistake(f"the {plural} are multiplied by {factor:.3g} before attend, which scales the scores by itself")
    if found.shape != expected.shape:
        shapes = f"{tuple(found.shape)}, expected {tuple(expected.shape)}, (B, heads, T, head_dim)"
        raise Mistake(f"the {plural} that {where} gets have the shape {shapes}")
    used = heads_of(found, expected)
    if None not in used:
        raise Mistake(f"the heads of the {plural} are in the order {used}")
    steps = f"rotate({own}_norm({own}(x)), angles)" if right else "value(x), neither rotated nor normalised"
    raise Mistake(f"the {plural} that {where} gets are wrong; they should be {steps}, split into heads")


def factor_of(found: Tensor, expected: Tensor) -> float | None:
    """The number that makes one of the other, or None."""
    if found.shape != expected.shape:
        return None
    factor = ((found * expected).sum() / expected.square().sum()).item()
    return factor if close(found, factor * expected) else None


def name_all_heads(found: dict[str, Tensor], x: Tensor, layer: Any, angles: tuple[Tensor, Tensor], where: str) -> None:
    """Raise one Mistake for all that is wrong with queries, keys and values."""
    words: dict[str, list[str]] = {}
    for which, heads in found.items():
        try:
            name_heads(which, heads, x, layer, angles, where)
        except Mistake as mistake:
            words.setdefault(str(mistake), []).append(NAMES[which][0])
    said = [text if len(of) == len(found) or of[0] in text else f"of the {of[0]}, {text}" for text, of in words.items()]
    if said:
        raise Mistake("; ".join(said))


def heads_of(found: Tensor, expected: Tensor) -> list[int | None]:
    """Which of the expected heads each found head is."""
    numbers = range(expected.shape[1])
    return [next((i for i in numbers if close(head, expected[:, i])), None) for head in found.unbind(dim=1)]


def unshared(found: Tensor, expected: Tensor, plural: str) -> Tensor:
    """The K heads of which H were made by repeating them; Mistake if not neighbours share."""
    H, K = found.shape[1], expected.shape[1]
    used = heads_of(found, expected)
    if None not in used:
        name_sharing([i for i in used if i is not None], K, plural.removesuffix("s"))
    return found[:, :: H // K]


def of_source(plural: str, own: str, source: str | None) -> str:
    """Where the numbers come from, if it is the wrong place."""
    if source == own:
        return ""
    return (
        f"the {plural} come from the {source} projection, not from {own} (swapped?)"
        if source
        else (f"the {own} projection is not applied")
    )


def of_order(plural: str, own: str, order: tuple[str, ...], right: tuple[str, ...], plain: bool) -> str:
    """What was done to the heads, if it is not what should be done; `plain` if there are no norms."""
    if order == right:
        return ""
    norms = [step for step in order if step.endswith("_norm")]
    turns = [step for step in order if not step.endswith("_norm")]
    words = []
    if own == "value":
        words += ["the values are rotated; only queries and keys are"] * bool(turns)
        words += ["the values are normalised by a norm; only queries and keys are"] * bool(norms)
        return " and ".join(words)
    if not turns:
        words.append(f"the {plural} are not rotated")
    elif "back" in turns:
        words.append(f"the {plural} are rotated the wrong way round")
    elif "plain" in turns:
        words.append(f"the {plural} are rotated by angles of their own, not by the angles that are given")
    elif len(turns) > 1:
        words.append(f"the {plural} are rotated twice")
    if plain and words:
        return " and ".join(words)
    if not norms:
        words.append(f"{own}_norm is not applied to the {plural}")
    elif len(norms) > 1:
        words.append(f"the {plural} are normalised more than once, by {' and '.join(norms)}")
    elif norms != [f"{own}_norm"]:
        words.append(f"the {plural} are normalised by {norms[0]}, not by {own}_norm")
    elif turns and order.index(norms[0]) > 0:
        words.append(f"{own}_norm is applied to the {plural} after the rotation; it comes before")
    return " and ".join(words) or f"the {plural} are not rotate({own}_norm({own}(x)), angles)"


def name_mask(call: dict[str, Any], positions: Tensor | None, key_positions: Tensor | None, window: int | None) -> None:
    """Raise Mistake unless the mask that attend got is the right one; padding may see whatever it likes."""
    (B, _, T, _), S = call["q"].shape, call["k"].shape[2]
    mask = attention.causal_mask(T, S) if call["mask"] is None else call["mask"]
    given = positions is not None and key_positions is not None
    keys = torch.arange(1, S + 1).expand(B, S)  # none is 0: there are no documents
    queries, keys = (positions, key_positions) if given else (keys[:, S - T :], keys)
    assert queries is not None and keys is not None  # noqa: PT018
    text, right = (queries >= 0)[:, None, :, None], attention.visible(queries, keys, window)
    try:
        seen = mask.expand(B, -1 if mask.ndim == 4 else 1, T, S)[:, :1]
    except RuntimeError:
        raise Mistake(f"the mask that attend gets has the shape {tuple(mask.shape)}, expected {(B, 1, T, S)}") from None
    if torch.equal(seen & text, right & text):
        return
    if given:
        words = deviation([seen & text], lambda ways: [visible_rule(queries, keys, window, ways) & text], VISIBLE_WAYS)
    else:
        words = deviation([seen], lambda ways: [causal_rule(T, S, window, ways).expand_as(seen)], CAUSAL_WAYS)
    if given and torch.equal(seen, attention.causal_mask(T, S, window).expand_as(seen)):
        words = "the positions are ignored: the mask is plain causal; use visible(positions, key_positions, window)"
    words = words or first_wrong(torch.where(text, seen, right), queries, keys, window)
    raise Mistake(f"{words} (in the mask that attend gets)")


def name_ending(result: Tensor, call: dict[str, Any], x: Tensor, layer: Any) -> None:
    """Raise Mistake unless the layer's result follows from what attend gave back."""
    given = call["result"]
    B, _, T, _ = given.shape
    layer_norm, rms_norm = nn.functional.layer_norm, nn.functional.rms_norm
    merges = {
        "": attention.merge_heads(given),
        "the heads are merged by a reshape that mixes positions; transpose T and H first": given.reshape(B, T, -1),
        "the heads are merged after T and D change places, which mixes positions; transpose T and H first": (
            given.mT.reshape(B, T, -1)
        ),
        "the heads are merged interleaved, (D H); they belong side by side, (H D)": rearrange(
            given, "B H T D -> B T (D H)"
        ),
        "the order of the heads is reversed when they are merged": attention.merge_heads(given.flip(1)),
    }
    width = layer.output.weight.shape
    for words, merged in merges.items():
        ends = {"": layer.output(merged), "the output projection is not applied": merged}
        if width[0] == width[1]:
            ends["the output projection is applied twice"] = layer.output(layer.output(merged))
        for end, last in ends.items():
            if last.shape != x.shape:
                continue
            more = {
                "": last,
                "the input is added (a residual); that is the block's business, not attention's": last + x,
                "the result is normalised; that is the block's business": layer_norm(last, x.shape[-1:]),
                "the result is divided by its root mean square; that is the block's business": (
                    rms_norm(last, x.shape[-1:])
                ),
                "a nonlinearity follows the output projection": last.relu(),
                "a nonlinearity (gelu) follows the output projection": nn.functional.gelu(last),
            }
            for extra, value in more.items():
                if close(result, value):
                    said = [word for word in (words, end, extra) if word]
                    if said:
                        raise Mistake("; ".join(said))
                    return
    right = layer.output(merges[""])
    factor = factor_of(result, right)
    if factor is not None:
        raise Mistake(f"the result is multiplied by {factor:.3g}; it should be output(merge_heads(...)) as it is")
    raise Mistake("what follows attend is wrong: it should be output(merge_heads(...)) and nothing else")
