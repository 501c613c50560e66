"""Compare what a candidate returned with what is right; every difference that a reader can act on has its own words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Mistake(Exception):
    """Raised by a mechanism that is broken; the message names the likely mistake."""


def same(actual: Any, expected: Any, mistake: str, tolerance: float = 1e-5) -> None:
    """Raise Mistake unless a value is the expected one; of a tensor, kind, shape, dtype and NaN are looked at first."""
    import torch

    if isinstance(expected, tuple | list):
        if not isinstance(actual, tuple | list) or len(actual) != len(expected):
            raise Mistake(f"it returned {describe(actual)}, expected {len(expected)} values")
        for one, other in zip(actual, expected):
            same(one, other, mistake, tolerance)
        return
    if not isinstance(expected, torch.Tensor):
        number = isinstance(expected, float) and isinstance(actual, int | float)
        if type(actual) is not type(expected) and not number:
            raise Mistake(f"it returned {describe(actual)}, expected {describe(expected)}")
        if not (abs(actual - expected) <= tolerance if number else actual == expected):
            raise Mistake(mistake)
        return
    if not isinstance(actual, torch.Tensor):
        raise Mistake(f"it returned {describe(actual)}, expected a tensor")
    if actual.shape != expected.shape:
        raise Mistake(f"its shape is {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if actual.dtype != expected.dtype:
        raise Mistake(f"its dtype is {actual.dtype}, expected {expected.dtype}")
    if actual.is_floating_point() and bool((actual.isnan() & ~expected.isnan()).any()):
        raise Mistake("it returned NaN")
    if not torch.allclose(actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
        raise Mistake(mistake)


def describe(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "None (is the return missing?)"
    return f"{value!r}" if isinstance(value, int | float | str) else f"a {type(value).__name__}"


@contextmanager
def when(case: str) -> Iterator[None]:
    """Say with which input it was, in front of whatever is raised inside: "with a cache it raised ..."."""
    try:
        yield
    except Exception as error:
        if case not in getattr(error, "__notes__", []):
            error.add_note(case)
        raise
