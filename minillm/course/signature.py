"""Does a function take what the course's own takes?"""

import inspect
from inspect import Parameter
from typing import Any


STARS = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


def signature_mistake(candidate: Any, ours: Any) -> str | None:
    """What is wrong with the parameters, or None; more of them are welcome if they have defaults.

    `*args` and `**kwargs` take what ours takes by position and by keyword; of a layer, `forward` is looked at too.

    >>> signature_mistake(lambda q, k: 0, lambda q, k, mask=None: 0)
    'it takes (q, k), expected (q, k, mask=…)'
    >>> signature_mistake(lambda q, k, mask=None, scale=1: 0, lambda q, k, mask=None: 0)
    """
    if inspect.isclass(ours) != inspect.isclass(candidate):
        return f"it should be a {'class' if inspect.isclass(ours) else 'function'}"
    mistake = _parameter_mistake(candidate, ours)
    forwards = [getattr(cls, "forward", None) for cls in (candidate, ours) if inspect.isclass(ours)]
    if mistake is None and forwards and all(forwards):
        mistake = _parameter_mistake(*forwards)
        return f"forward: {mistake}" if mistake else None
    return mistake


def _parameter_mistake(candidate: Any, ours: Any) -> str | None:
    try:
        theirs, expected = (list(inspect.signature(f).parameters.values()) for f in (candidate, ours))
    except (ValueError, TypeError):  # something written in C
        return None
    got, known = {p.name: p for p in theirs}, {p.name: p for p in expected}
    kinds = {p.kind for p in theirs}
    keyword_only = {p.name for p in expected if p.kind is Parameter.KEYWORD_ONLY}
    lacking = [
        p for p in expected if not (_optional(got[p.name]) or not _optional(p) if p.name in got else _starred(p, kinds))
    ]
    surplus = [p for p in theirs if p.name not in known and not _optional(p)]
    order = [p.name for p in theirs if p.name in known and p.name not in keyword_only and p.kind not in STARS]
    by_keyword = {p.name for p in theirs if p.kind is Parameter.KEYWORD_ONLY} - keyword_only
    positional = [p.name for p in expected if p.name not in keyword_only]
    if lacking or surplus or by_keyword & set(known) or order != positional[: len(order)]:
        return f"it takes ({_in_words(theirs)}), expected ({_in_words(expected)})"
    return None


def _starred(parameter: Parameter, kinds: set[Any]) -> bool:
    """True if *args or **kwargs takes it."""
    by_keyword = parameter.kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)
    return (Parameter.VAR_KEYWORD if by_keyword else Parameter.VAR_POSITIONAL) in kinds


def _optional(parameter: Parameter) -> bool:
    return parameter.default is not Parameter.empty or parameter.kind in STARS


def _in_words(parameters: list[Parameter]) -> str:
    """Names, with =… for those that have a default."""
    return ", ".join(
        STARS.get(p.kind, "") + p.name + ("" if p.default is Parameter.empty else "=…") for p in parameters
    )
