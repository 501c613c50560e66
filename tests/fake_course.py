"""A course of two small chapters, so that tests of the machinery do not depend on the chapters of the real one."""

import sys
from pathlib import Path

import nbformat.v4 as v4
import pytest

from minillm.course.chapters import Chapter, Course
from minillm.course.notebooks import notebook_text


HEAD = '"""Numbers.\n\nChapter: alpha.\n"""\n\nimport math'
CONSTANTS = "SCALE = 2.0"
DOUBLE = 'def double(x: float) -> float:\n    """Twice a number."""\n    return SCALE * x'
ROOT = '''def root(x: float) -> float:
    """The square root of a number.

    >>> root(4.0)
    2.0
    """
    # math has it
    return math.sqrt(x)  # of "x"'''
COUNTER = '''class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def step(self) -> int:
        """One more."""
        self.value += 1
        return self.value'''
ALPHA = [HEAD, CONSTANTS, DOUBLE, ROOT, COUNTER]
BETA = [
    '"""More numbers."""\n\nfrom {name}.alpha import Counter, double, root',
    'def quadruple(x: float) -> float:\n    """Four times a number."""\n    return double(double(x))',
]
CHECKS = """from minillm.course.checks.harness import Mistake, checks


@checks("double")
def adds(double):
    if double(1.0) == 1.0:
        raise Mistake("it returns x itself")
    if double(3.0) != 6.0:
        raise Mistake("it is not twice x")


@checks("root")
def is_root(root):
    if root(9.0) != 3.0:
        raise Mistake("its square is not x")


@checks("Counter")
def counts(Counter):
    if Counter(3).step() != 4:
        raise Mistake("it does not count by one")
"""
CLI = """import sys

from {name}.beta import quadruple


def main(arguments):
    print(quadruple(float(arguments[1])), quadruple.__module__)
    return 0
"""
NAMES = iter(f"fake{number}" for number in range(10**6))


def code(text: str, *tags: str, **metadata: object) -> dict:
    return v4.new_code_cell(text, metadata={"tags": list(tags), **metadata})


def alpha_cells() -> list[dict]:
    return [
        v4.new_markdown_cell("# Alpha"),
        code(HEAD, "fold:alpha"),
        code(CONSTANTS, "fold:alpha"),
        v4.new_markdown_cell("Twice is a sum."),
        code("def slow_double(x):\n    return x + x\n\n\nslow_double(2)"),
        code(DOUBLE, "fold:alpha", "yours", minillm={"hints": ["What is twice?", "Use `SCALE`."]}),
        code("double = check.use(double)"),
        code(ROOT, "fold:alpha", "yours"),
        code("root = check.use(root)"),
        code(COUNTER, "fold:alpha", "yours", minillm={"keep": ["__init__"]}),
        code("Counter = check.use(Counter)"),
    ]


def write_notebook(path: Path, cells: list[dict]) -> None:
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [v4.new_output("stream", text=f"output {number}\n")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook_text(v4.new_notebook(cells=cells)), encoding="utf-8")


def make_course(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Course, Path]:
    """Write package and notebooks; returns the course and the folder of notebooks."""
    name = next(NAMES)
    package = folder / "src" / name
    (package / "course" / "checks").mkdir(parents=True)
    texts = {"alpha.py": ALPHA, "beta.py": [chunk.format(name=name) for chunk in BETA]}
    for file, chunks in texts.items():
        (package / file).write_text("\n\n\n".join(chunks) + "\n", encoding="utf-8")
    for file in ("__init__.py", "course/__init__.py", "course/checks/__init__.py"):
        (package / file).touch()
    (package / "course" / "checks" / "alpha.py").write_text(CHECKS)
    (package / "cli.py").write_text(CLI.format(name=name))
    notebooks = folder / "notebooks"
    write_notebook(notebooks / "01_alpha.ipynb", alpha_cells())
    write_notebook(notebooks / "02_beta.ipynb", [code(chunk, "fold:beta") for chunk in texts["beta.py"]])
    monkeypatch.syspath_prepend(str(package.parent))
    chapters = (Chapter(1, "alpha", ("alpha",), "I"), Chapter(2, "beta", ("beta",), "I"))
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]
    return Course(package, chapters, ()), notebooks
