"""Exercises at the end of a chapter: the reader's answer beside the solution, on examples."""

import functools
from collections.abc import Callable
from typing import Any

from minillm.course.checks.harness import SECONDS, Mistake, explain, same
from minillm.course.limits import run_limited, same_randomness


def exercise(answer: Callable[..., Any], solution: Callable[..., Any], *examples: Any, tolerance: float = 1e-5) -> None:
    """Report in one line whether the answer gives what the solution gives; a tuple is several arguments.

    Whatever the answer does, the notebook goes on.
    """
    name = solution.__name__.removeprefix("solution_")
    for number, example in enumerate(examples, 1):
        arguments = example if isinstance(example, tuple) else (example,)
        with same_randomness():
            expected = solution(*arguments)

        def compare(arguments: tuple[Any, ...] = arguments, expected: Any = expected, number: int = number) -> None:
            found = answer(*arguments)
            if found is None:
                raise Mistake("it returned None; is the return missing?")
            same(
                found,
                expected,
                f"example {number} of {len(examples)} gives something else than the solution",
                tolerance,
            )

        with same_randomness():
            error = run_limited(functools.partial(compare), 3 * SECONDS)
        if error is not None:
            print(f"{name}: {explain(error, answer, 3 * SECONDS)}", flush=True)
            return
    print(f"{name}: right", flush=True)
