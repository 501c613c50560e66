"""Checks for notebooks: `check.attention(f)` reports, `check.use(f)` reports and returns the function to go on with."""

from collections.abc import Callable
from typing import Any

from minillm.course.chapters import COURSE
from minillm.course.checks.harness import Result, find_part, name_of, original, run_part
from minillm.course.exercises import exercise as exercise


class Report(list[Result]):
    """Results that have been printed; true if all are right."""

    def __bool__(self) -> bool:
        """True if every part is right."""
        return all(result.right for result in self)

    def _ipython_display_(self) -> None:
        """Stay silent as the last value of a cell: it has been printed."""


def use(candidate: Any, *, part: str | None = None, chapter: str | None = None) -> Any:
    """The reader's function if it passes its check, else minillm's own; a line says which.

    The check is found by the function's name; `part` and `chapter` say it where the name does not.
    """
    found, name = find_part(part or name_of(candidate), chapter, candidate=None if part else candidate)
    result = run_part(candidate, found, name)
    if result.right:
        print(result, flush=True)
        return candidate
    print(f"{result}. Until it is right, minillm's own {name} stands in.", flush=True)
    return original(found, name)


def run(chapter: str, *candidates: Any, part: str | None = None) -> Report:
    """Run a chapter's check on functions or classes, found by their names; a line each."""
    if not candidates:
        raise ValueError(f"Give check.{chapter} what it should check, such as check.{chapter}(f).")
    report = Report()
    for candidate in candidates:
        found, name = find_part(part or name_of(candidate), chapter, candidate=None if part else candidate)
        report.append(run_part(candidate, found, name))
        print(report[-1], flush=True)
    return report


def __getattr__(name: str) -> Callable[..., Report]:
    """`check.attention` and so on: the check of a chapter."""
    if name.startswith("_") or name not in [chapter.slug for chapter in COURSE.chapters]:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and no chapter is called so")

    def check_chapter(*candidates: Any, part: str | None = None) -> Report:
        return run(name, *candidates, part=part)

    return check_chapter
