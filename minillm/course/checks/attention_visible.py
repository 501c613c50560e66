"""The check of chapter attention: who sees whom by position."""

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.course.checks.attention_words import VISIBLE_WAYS, deviation, first_wrong, visible_rule, well_formed
from minillm.course.checks.harness import Mistake, checks, when


PADDED = [[0, 1, 2, 3, 4, 5], [-1, -1, 0, 1, 2, 3], [0, 1, 2, 3, -1, -1]]
PACKED = [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3], [-1, 0, 1, 0, 1, -1]]
CASES: dict[str, tuple[list[list[int]], int, int | None]] = {  # key positions, how many are queries, window
    "with the positions 0 to 4": ([[0, 1, 2, 3, 4]], 5, None),
    "with fewer queries than keys": ([[0, 1, 2, 3, 4]], 2, None),
    "with positions that do not begin at 0": ([[3, 4, 5, 6, 7]], 3, None),
    "with several documents": (PACKED[:2], 6, None),
    "with several documents and fewer queries than keys": (PACKED[:2], 3, None),
    "with padding on the left": (PADDED[:2], 6, None),
    "with padding on the right": (PADDED[::2], 6, None),
    "with several documents, padding on both sides and fewer queries": (PACKED, 4, None),
    "with two rows, padding in the last, and fewer queries": (PADDED, 2, None),
    "with window=3": ([[0, 1, 2, 3, 4, 5]], 6, 3),
    "with window=3 and fewer queries than keys": ([[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]], 2, 3),
    "with window=2, documents and padding": (PACKED + PADDED, 6, 2),
    "with window=1": (PACKED, 6, 1),
}


@checks("visible", chapter="attention")
def has_the_shape(visible: Callable[..., Tensor]) -> None:
    """True and False, (B, 1, T, S), for a batch of two and fewer queries than keys."""
    keys = torch.tensor(PADDED[:2])
    found = visible(keys[:, -3:], keys)
    if isinstance(found, Tensor) and found.dtype != torch.bool:
        raise Mistake(f"its dtype is {found.dtype}, expected torch.bool: True where a key may be seen")
    well_formed(found, torch.ones(2, 1, 3, 6, dtype=torch.bool))


@checks("visible", chapter="attention")
def goes_by_positions(visible: Callable[..., Tensor]) -> None:
    """Order, padding, documents and windows, each alone and together: compared with what known slips give."""
    asked: list[tuple[Tensor, Tensor, int | None]] = []
    found: list[Tensor] = []
    first = None
    for i, (case, (rows, T, window)) in enumerate(CASES.items()):
        keys = torch.tensor(rows)
        asked.append((keys[:, -T:], keys, window))
        with when(case):
            found.append(visible(keys[:, -T:].clone(), keys.clone(), window))
            well_formed(found[-1], torch.ones(len(keys), 1, T, keys.shape[1], dtype=torch.bool))
        first = i if first is None and first_wrong(found[-1], *asked[-1]) else first
    if first is None:
        return
    words = deviation(found, lambda ways: (visible_rule(*each, ways) for each in asked), VISIBLE_WAYS)
    if words:
        raise Mistake(words)
    with when(list(CASES)[first]):
        raise Mistake(first_wrong(found[first], *asked[first]) or "")
