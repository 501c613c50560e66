"""The harness of the checks: whatever a candidate does, there is one line about it, and the next one is checked."""

import math
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_course import make_course

from minillm.course import check
from minillm.course.chapters import Course
from minillm.course.checks import harness
from minillm.course.checks.harness import Mistake, explain, find_part, first_mistake, run_part, same
from minillm.course.limits import run_limited, same_randomness
from minillm.course.signature import signature_mistake


CHECKS = """import time

import torch

from minillm.course.checks.harness import Mistake, checks, same


@checks("center", seconds=0.5)
def right_on_zeros(center):
    same(center(torch.zeros(2, 3)), torch.zeros(2, 3), "zeros should stay zeros")


@checks("center", seconds=0.5)
def mean_is_zero(center):
    x = torch.randn(4, 5)
    same(center(x), x - x.mean(dim=-1, keepdim=True), "the mean was not taken away")


@checks("center", seconds=0.5)
def weighted(center):
    same(center(torch.ones(2, 3), scale=2.0), torch.zeros(2, 3), "scale is ignored")


@checks("Layer")
def layer(Layer):
    if Layer(2).go() != 2:
        raise Mistake("go does not\\n give the width")
"""
ALPHA = '''import torch
from torch import Tensor


def center(x: Tensor, scale: float = 1.0) -> Tensor:
    """Take the mean away."""
    return (x - x.mean(dim=-1, keepdim=True)) * scale


class Layer:
    """Holds a width."""

    def __init__(self, width: int) -> None:
        self.width = width

    def go(self) -> int:
        """The width."""
        return self.width
'''


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    course, _ = make_course(tmp_path, monkeypatch)
    course.file("alpha").write_text(ALPHA)
    (course.package / "course" / "checks" / "alpha.py").write_text(CHECKS)
    monkeypatch.setattr(check, "COURSE", course)
    for name in ("find_part", "run_part", "original"):
        real = getattr(harness, name)
        monkeypatch.setattr(check, name, lambda *given, real=real, **named: real(*given, course=course, **named))
    return course


def mistake(course: Course, body: str, signature: str = "x, scale=1.0") -> str | None:
    """What the check says of a function with this body."""
    namespace = {"torch": torch, "time": time}
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    exec(compile(f"def center({signature}):\n{lines}", "<candidate>", "exec"), namespace)
    return first_mistake(namespace["center"], course=course)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return (x - x.mean(dim=-1, keepdim=True)) * scale", None),
        ('raise NotImplementedError("Your turn: Take the mean away.")', "not written yet"),
        ("raise NotImplementedError", "not written yet"),
        ('raise NotImplementedError("Your turn")', "not written yet"),
        ("raise NotImplementedError('no kernel')", "it raised NotImplementedError: no kernel (line 2)"),
        ("return x", "the mean was not taken away"),
        ("return None", "it returned None; is the return missing?"),
        ("x - x.mean()", "it returned None; is the return missing?"),
        ("return x / x.sum()", "it returned NaN"),
        ("return x[0]", "its shape is (3,), expected (2, 3)"),
        ("return x.double()", "its dtype is torch.float64, expected torch.float32"),
        ("return 3", "it returned 3, expected a tensor"),
        ("return [x]", "it returned a list, expected a tensor"),
        ("y = x\nreturn y.nothing", "it raised AttributeError: 'Tensor' object has no attribute 'nothing' (line 3)"),
        ("return 1 / 0", "it raised ZeroDivisionError: division by zero (line 2)"),
        ("return center(x)", "it calls itself without end"),
        ("raise SystemExit", "it ended the program (SystemExit)"),
        ("raise KeyboardInterrupt", "it ended the program (KeyboardInterrupt)"),
        ("raise ValueError('two\\nlines')", "it raised ValueError: two (line 2)"),
        ("while True:\n    pass", "it did not end within 0.5 seconds; is there a loop that never ends?"),
        ("while True:\n    try:\n        None\n    except Exception:\n        pass", "it did not end within 0.5 "),
    ],
)  # fmt: skip
def test_whatever_a_candidate_does_there_is_one_line(course, body, expected):
    found = mistake(course, body)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(expected)
        assert "\n" not in found


def test_the_rest_is_still_checked_after_an_endless_one(course, capsys):
    def center(x, scale=1.0):
        while True:
            pass

    class Layer:
        def __init__(self, width):
            self.width = width

        def go(self):
            return 0

    before = threading.active_count()
    report = check.alpha(center, Layer)
    assert not report
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("center: it did not end within 0.5 seconds")
    assert lines[1] == "Layer: go does not give the width"
    assert threading.active_count() == before, "the endless thread is still running"


@pytest.mark.parametrize(
    ("signature", "takes"),
    [
        ("x", "(x)"),
        ("x, scale", "(x, scale)"),
        ("", "()"),
        ("scale, x=1", "(scale, x=…)"),
        ("x, y, scale=1", "(x, y, scale=…)"),
    ],
)
def test_a_wrong_signature_is_named(course, signature, takes):
    assert mistake(course, "return x", signature) == f"it takes {takes}, expected (x, scale=…)"


@pytest.mark.parametrize(
    "signature", ["x, scale=1.0, eps=0.0", "x, scale=1, *more, **others", "x: int, scale: float=1"]
)
def test_more_parameters_are_welcome(course, signature):
    assert mistake(course, "return (x - x.mean(dim=-1, keepdim=True)) * scale", signature) is None


def test_a_function_where_a_class_should_be(course):
    assert first_mistake(lambda width: 1, "Layer", course=course) == "it should be a class"


def test_parameters_by_keyword_keep_their_kind():
    def ours(x, *, scale=1.0):
        return x

    assert signature_mistake(lambda x, scale=1.0: x, ours) is None
    assert signature_mistake(lambda x, *, scale=1.0, y=2: x, ours) is None


def test_the_first_broken_mechanism_is_named(course):
    chapter, part = find_part("center", course=course)
    result = run_part(lambda x, scale=1.0: x - 1, chapter, part, course)
    assert (result.mechanism, result.mistake) == ("right_on_zeros", "zeros should stay zeros")
    result = run_part(lambda x, scale=1.0: x, chapter, part, course)
    assert (result.mechanism, result.mistake) == ("mean_is_zero", "the mean was not taken away")


def test_use_returns_theirs_if_right_and_ours_if_not(course, capsys):
    def my_center(x, scale=1.0):
        return (x - x.mean(dim=-1, keepdim=True)) * scale

    assert check.use(my_center) is my_center
    assert capsys.readouterr().out == "center: right\n"

    def center(x, scale=1.0):
        raise NotImplementedError("Your turn: ...")

    stand_in = check.use(center)
    assert stand_in.__module__ == f"{course.name}.alpha"
    assert capsys.readouterr().out == "center: not written yet. Until it is right, minillm's own center stands in.\n"


def test_names(course):
    for name in ("center", "my_center", "center_fast"):
        assert find_part(name, course=course)[1] == "center"
    with pytest.raises(ValueError, match="No check is called 'centre'; say which is meant, as part=…: center, Layer"):
        find_part("centre", course=course)
    with pytest.raises(ValueError, match="There is no chapter 'gamma'"):
        find_part("center", "gamma", course)
    with pytest.raises(ValueError, match="takes a function or a class, not 3"):
        first_mistake(3, course=course)
    with pytest.raises(AttributeError, match="no chapter is called so"):
        check.nothing  # noqa: B018
    with pytest.raises(ValueError, match=r"such as check.alpha\(f\)"):
        check.alpha()


def test_a_part_in_two_chapters_must_be_told_apart(course):
    beta = course.package / "course" / "checks" / "beta.py"
    beta.write_text("from minillm.course.checks.harness import checks\n\n\n@checks('center')\ndef f(center): ...\n")
    with pytest.raises(ValueError, match="'center' is checked in alpha and beta: say chapter=…"):
        find_part("center", course=course)
    assert find_part("center", "alpha", course)[0].slug == "alpha"


def test_a_check_leaves_random_numbers_as_they_were():
    def numbers() -> tuple:
        return torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002

    seed()
    expected = numbers()
    seed()
    seen = []
    for _ in range(2):
        with same_randomness():
            run_limited(lambda: seen.append(numbers()), 5.0)
    assert numbers() == expected
    assert seen[0] == seen[1]


def test_limits():
    assert run_limited(lambda: None, 1.0) is None
    assert isinstance(run_limited(lambda: 1 / 0, 1.0), ZeroDivisionError)
    assert isinstance(run_limited(lambda: time.sleep(0.4), 0.1), TimeoutError)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [((1, 2), (1, 2, 3)), (None, 1.0), (1.5, 1.0), ("a", "b"), ([torch.ones(2)], [torch.zeros(2)]), (True, False)],
)
def test_same_refuses(actual, expected):
    with pytest.raises(Mistake):
        same(actual, expected, "differs")


@pytest.mark.parametrize(
    ("actual", "expected", "other"),
    [
        ((torch.tensor([1, 2]), 1.0), [torch.tensor([1, 2]), 1.0 + 1e-9], [torch.tensor([1, 2]), 1.01]),
        (torch.tensor([math.nan, -math.inf]), torch.tensor([math.nan, -math.inf]), torch.tensor([math.nan, math.inf])),
    ],
    ids=["rounding", "not a number"],
)
def test_same_accepts_what_is_equal_and_nothing_near_it(actual: Any, expected: Any, other: Any):
    assert same(actual, expected, "differs") is None
    with pytest.raises(Mistake, match="differs"):
        same(actual, other, "differs")


def test_an_error_of_the_check_itself_is_not_blamed_on_a_line_of_the_candidate():
    assert explain(TypeError("no len"), lambda: 0) == "what it returned cannot be used (TypeError: no len)"
