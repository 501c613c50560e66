"""Run a part's mechanisms in order and name the first that is broken, whatever the candidate does."""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minillm.course.chapters import COURSE, Chapter, Course, module_name
from minillm.course.compare import Mistake as Mistake
from minillm.course.compare import same as same
from minillm.course.compare import when as when
from minillm.course.limits import run_limited, same_randomness
from minillm.course.signature import signature_mistake
from minillm.course.source import YOUR_TURN
from minillm.course.watch import watched


SECONDS = 10.0  # a mechanism takes milliseconds; what takes this long never ends
NOT_WRITTEN = "not written yet"


@dataclass(frozen=True)
class Mechanism:
    """One thing that must be right; it raises if it is not, and `seconds` is how long it may take."""

    name: str
    run: Callable[[Any], None]
    seconds: float


@dataclass(frozen=True)
class Result:
    """What became of a part: right, or the first mistake."""

    part: str
    mistake: str | None = None
    mechanism: str | None = None

    @property
    def right(self) -> bool:
        """True if no mistake was found."""
        return self.mistake is None

    def __str__(self) -> str:
        """One line for the reader."""
        return f"{self.part}: {self.mistake or 'right'}"


_REGISTRY: dict[str, dict[str, list[Mechanism]]] = {}


def checks(
    part: str, *, seconds: float = SECONDS, chapter: str | None = None
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as the next mechanism of a part of the chapter that its module is named after.

    A chapter whose checks fill several modules imports them in the one that bears its name; they say `chapter`.
    """

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        module = function.__module__ if chapter is None else f"{function.__module__.rpartition('.')[0]}.{chapter}"
        listed = _REGISTRY.setdefault(module, {}).setdefault(part, [])
        new = Mechanism(function.__name__, function, seconds)
        if (again := [i for i, old in enumerate(listed) if old.name == new.name]) != []:
            listed[again[0]] = new  # the module was loaded again
        else:
            listed.append(new)
        return function

    return register


def parts_of(chapter: Chapter, course: Course = COURSE) -> dict[str, list[Mechanism]]:
    """The parts of a chapter that have a check, in order; empty for a chapter without checks."""
    name = f"{course.name}.course.checks.{chapter.slug}"
    if importlib.util.find_spec(name) is None:
        return {}
    importlib.import_module(name)
    return _REGISTRY.get(name, {})


def find_part(
    name: str, chapter: str | None = None, course: Course = COURSE, candidate: Any = None
) -> tuple[Chapter, str]:
    """The chapter and part that a function is meant for: `attend`, or a name such as `my_attend` or `attend_fast`.

    Where the name says nothing, a candidate's parameters do, if just one part has the same. ValueError if there is
    none, or more than one chapter has it.
    """
    slugs = [each.slug for each in course.chapters]
    if chapter is not None and chapter not in slugs:
        raise ValueError(f"There is no chapter {chapter!r}: choose one of {', '.join(slugs)}.")
    parts = [(c, part) for c in course.chapters if chapter in (None, c.slug) for part in parts_of(c, course)]
    found = [(c, part) for c, part in parts if part == name]
    if not found:
        alike = [(c, part) for c, part in parts if name.endswith(f"_{part}") or name.startswith(f"{part}_")]
        longest = max((len(part) for _, part in alike), default=0)
        found = [(c, part) for c, part in alike if len(part) == longest]
    if not found and candidate is not None:
        fitting = [(c, part) for c, part in parts if _takes_the_same(candidate, original(c, part, course))]
        found = fitting if len(fitting) == 1 else []
    if not found:
        known = ", ".join(part for _, part in parts) or "nothing yet"
        raise ValueError(f"No check is called {name!r}; say which is meant, as part=…: {known}.")
    if len({c for c, _ in found}) > 1:
        raise ValueError(f"{name!r} is checked in {' and '.join(c.slug for c, _ in found)}: say chapter=….")
    return found[0]


def _takes_the_same(candidate: Any, ours: Any) -> bool:
    """True if the candidate's parameters are called like ours; some at the end may be missing."""
    try:
        theirs, expected = (list(inspect.signature(f).parameters) for f in (candidate, ours))
    except (TypeError, ValueError):
        return False
    return len(theirs) > 1 and theirs == expected[: len(theirs)]


def original(chapter: Chapter, part: str, course: Course = COURSE) -> Any:
    """The package's own function or class of that name."""
    for module in chapter.modules:
        loaded = importlib.import_module(module_name(course.name, module))
        if hasattr(loaded, part):
            return getattr(loaded, part)
    raise ValueError(f"There is a check for {part!r}, but {course.name} has no {part} in {', '.join(chapter.modules)}.")


def run_part(candidate: Any, chapter: Chapter, part: str, course: Course = COURSE) -> Result:
    """The first broken mechanism of a part, or that all is right."""
    ours = original(chapter, part, course)
    if (mistake := signature_mistake(candidate, ours)) is not None:
        return Result(part, mistake, "signature")
    seen = watched(candidate, ours)
    for mechanism in parts_of(chapter, course)[part]:
        with same_randomness():
            error = run_limited(functools.partial(mechanism.run, seen), mechanism.seconds)
        if error is not None:
            return Result(part, explain(error, candidate, mechanism.seconds), mechanism.name)
    return Result(part)


def first_mistake(
    candidate: Any, part: str | None = None, chapter: str | None = None, course: Course = COURSE
) -> str | None:
    """The first mistake of a candidate, or None: for tests that plant one."""
    found, name = find_part(part or name_of(candidate), chapter, course)
    return run_part(candidate, found, name, course).mistake


def name_of(candidate: Any) -> str:
    """What a function or class is called; ValueError for something without a name."""
    name = getattr(candidate, "__name__", None)
    if not isinstance(name, str) or not callable(candidate) or isinstance(candidate, ModuleType):
        raise ValueError(f"A check takes a function or a class, not {candidate!r}.")
    return name


def explain(error: BaseException, candidate: Any, seconds: float = SECONDS) -> str:
    """One line about what went wrong, for someone who did not write the check."""
    case = "".join(f"{note}: " for note in reversed(getattr(error, "__notes__", [])))
    if isinstance(error, Mistake):
        return case + " ".join(str(error).split())
    if isinstance(error, NotImplementedError) and (not str(error) or str(error).startswith(YOUR_TURN)):
        return NOT_WRITTEN
    if isinstance(error, TimeoutError):
        return f"it did not end within {seconds:g} seconds; is there a loop that never ends?"
    if isinstance(error, RecursionError):
        return "it calls itself without end"
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return f"it ended the program ({type(error).__name__})"
    message = (str(error).strip().split("\n") or [""])[0]
    words = f"{type(error).__name__}: {message}" if message else type(error).__name__
    line = _line_in(error, candidate)
    return case + (f"it raised {words} (line {line})" if line else f"what it returned cannot be used ({words})")


def _line_in(error: BaseException, candidate: Any) -> int | None:
    """The last line of the candidate's own file that the error passed through."""
    functions = vars(candidate).values() if inspect.isclass(candidate) else [inspect.unwrap(candidate)]
    files = {function.__code__.co_filename for function in functions if inspect.isfunction(function)}
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in files:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
