"""Does a function take what the course's own takes?"""

import inspect
from inspect import Parameter
from typing import Any


STARS = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


def signature_mistake(candidate: Any, ours: Any) -> str | None:
    """What is wrong with the parameters, or None; more of them are welcome if they have defaults.

    >>> signature_mistake(lambda q, k: 0, lambda q, k, mask=None: 0)
    'it takes (q, k), expected (q, k, mask=…)'
    >>> signature_mistake(lambda q, k, mask=None, scale=1: 0, lambda q, k, mask=None: 0)
    """
    if inspect.isclass(ours) != inspect.isclass(candidate):
        return f"it should be a {'class' if inspect.isclass(ours) else 'function'}"
    try:
        theirs, expected = (list(inspect.signature(f).parameters.values()) for f in (candidate, ours))
    except (ValueError, TypeError):  # something written in C
        return None
    got, known = {p.name: p for p in theirs}, {p.name: p for p in expected}
    lacking = [p for p in expected if p.name not in got or (_optional(p) and not _optional(got[p.name]))]
    surplus = [p for p in theirs if p.name not in known and not _optional(p)]
    order = [p.name for p in theirs if p.name in known and p.kind is not Parameter.KEYWORD_ONLY]
    positional = [p.name for p in expected if p.kind is not Parameter.KEYWORD_ONLY]
    keyword_only = [p for p in expected if p.kind is Parameter.KEYWORD_ONLY]
    order = [name for name in order if known[name] not in keyword_only]
    if lacking or surplus or order != positional:
        return f"it takes ({_in_words(theirs)}), expected ({_in_words(expected)})"
    return None


def _optional(parameter: Parameter) -> bool:
    return parameter.default is not Parameter.empty or parameter.kind in STARS


def _in_words(parameters: list[Parameter]) -> str:
    """Names, with =… for those that have a default."""
    return ", ".join(
        STARS.get(p.kind, "") + p.name + ("" if p.default is Parameter.empty else "=…") for p in parameters
    )
