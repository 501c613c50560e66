"""Watch a candidate while it is checked: what goes wrong in every call alike is named here, before any number is.

A missing return, arguments that are changed in place, and results that differ from call to call. None of them is a
mistake where our own function does the same.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from minillm.course.compare import Mistake


REPEATS = 20  # calls of a part that are made twice


def watched(candidate: Any, ours: Any) -> Any:
    """The candidate, watched in every call; of a class, `forward` is watched."""
    import torch

    if not inspect.isclass(candidate):
        return watched_function(candidate, ours, lambda _: ours, method=False)
    if not (issubclass(candidate, torch.nn.Module) and issubclass(ours, torch.nn.Module)):
        return candidate

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_made_with", (args, kwargs))
        candidate.__init__(self, *args, **kwargs)

    def twin(self: Any) -> Callable[..., Any]:
        args, kwargs = self._made_with
        return ours(*args, **kwargs).train(self.training).forward

    members = {
        "__init__": functools.wraps(candidate.__init__)(start),
        "forward": watched_function(candidate.forward, ours.forward, twin, method=True),
        "__module__": candidate.__module__,
        "__qualname__": candidate.__qualname__,
    }
    return type(candidate.__name__, (candidate,), members)


def watched_function(
    function: Callable[..., Any], ours: Callable[..., Any], twin: Callable[[Any], Callable[..., Any]], method: bool
) -> Callable[..., Any]:
    """A function that raises Mistake for what it does wrong in any call.

    `twin` makes ours to compare with; of a method, whose first argument is the object itself, it is given the object.
    """
    returns_something = _returns_something(ours)
    left = [REPEATS]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (args[1:] if method else args, kwargs)
        before = _copied(given)
        result = function(*args, **kwargs)
        if result is None and returns_something:
            raise Mistake("it returned None; is the return missing?")
        changed = not _alike(given, before)
        if changed and (names := _changed(function, args, kwargs, method, before)):
            again = _copied(before)
            twin(args[0] if args else None)(*again[0], **again[1])
            if _alike(again, before):
                raise Mistake(f"it changes {' and '.join(names)} in place; leave the caller's tensors alone")
        if left[0] > 0 and not changed and _plain(given):
            left[0] -= 1
            _expect_the_same(functools.partial(function, *args, **kwargs), result, given, twin, args)
        return result

    return call


def _expect_the_same(
    function: Callable[[], Any], result: Any, given: Any, twin: Callable[[Any], Callable[..., Any]], args: Any
) -> None:
    """Raise Mistake if a second call gives something else and ours would not."""
    import torch

    if _alike(function(), result):
        return
    ours = twin(args[0] if args else None)
    if not _alike(ours(*given[0], **given[1]), ours(*given[0], **given[1])):
        return
    seeded = []
    for _ in range(2):
        torch.manual_seed(0)
        seeded.append(function())
    if _alike(*seeded):
        raise Mistake("it is random: the same input gives different results (is there a dropout?)")
    raise Mistake("the same input gives different results: something is kept from one call to the next, or changed")


def _returns_something(ours: Any) -> bool:
    import typing

    annotation = getattr(inspect.unwrap(ours), "__annotations__", {}).get("return", None)
    return annotation not in (None, "None", Any) and type(None) not in typing.get_args(annotation)


def _changed(function: Any, args: Any, kwargs: Any, method: bool, before: Any) -> list[str]:
    """The names of the arguments that are not as they were."""
    known = inspect.signature(function)
    now = known.bind(*args, **kwargs).arguments
    old = known.bind(*args[:method], *before[0], **before[1]).arguments
    return [name for i, name in enumerate(now) if not (method and i == 0) and not _alike(now[name], old[name])]


def _copied(value: Any) -> Any:
    """The same value with tensors of its own; what is neither a tensor nor a container is shared."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)(_copied(each) for each in value)
    return {key: _copied(each) for key, each in value.items()} if type(value) is dict else value


def _plain(value: Any) -> bool:
    """True for tensors, numbers, words and containers of them, which a call can be repeated with."""
    import torch

    if type(value) in (tuple, list):
        return all(_plain(each) for each in value)
    if type(value) is dict:
        return all(_plain(each) for each in value.values())
    return value is None or isinstance(value, torch.Tensor | int | float | str | bytes | torch.dtype | torch.device)


def _alike(one: Any, other: Any) -> bool:
    """True unless tensors in there differ; what cannot be compared counts as alike."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        one, other = one.detach(), other.detach()
        return torch.allclose(one, other, equal_nan=True) if one.is_floating_point() else torch.equal(one, other)
    if type(one) in (tuple, list) and type(other) is type(one):
        return len(one) == len(other) and all(map(_alike, one, other))
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return True
