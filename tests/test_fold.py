"""The fold: notebooks and package are the same text, and whoever changes one is told how to mend the other."""

import json
import random
import re
from pathlib import Path

import pytest
import typer
from fake_course import ALPHA, CONSTANTS, DOUBLE, HEAD, ROOT, alpha_cells, code, make_course, write_notebook
from typer.testing import CliRunner

from minillm.course import commands
from minillm.course.chapters import CHAPTERS, COURSE, STILL_TO_COME, Course, module_order, notebooks_directory
from minillm.course.fold import check_fold, folded_modules, rebuild, write_notebooks
from minillm.course.notebooks import read_notebook
from minillm.course.source import hollow, is_stub, names_in, rewrite_imports, split_chunks


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Course, Path]:
    return make_course(tmp_path, monkeypatch)


def cells_of(path: Path) -> list:
    return read_notebook(path)["cells"]


def sources(path: Path, tag: str = "fold:alpha") -> list[str]:
    return [cell["source"] for cell in cells_of(path) if tag in cell["metadata"].get("tags", [])]


def write_alpha(course: Course, chunks: list[str]) -> None:
    course.file("alpha").write_text("\n\n\n".join(chunks) + "\n", encoding="utf-8")


# ---- the real course ------------------------------------------------------------------------------------------------


def test_the_real_notebooks_fold_into_the_real_package():
    problems = check_fold(notebooks_directory())
    assert not problems, "\n\n".join(problems)


def test_still_to_come_is_exactly_what_is_not_folded():
    folded = folded_modules(notebooks_directory())
    assert [module for module in module_order() if module not in folded] == list(STILL_TO_COME)


def test_chapters_are_in_order_and_every_module_has_one():
    assert [chapter.number for chapter in CHAPTERS] == list(range(len(CHAPTERS)))
    order = module_order()
    assert len(set(order)) == len(order)
    assert len({chapter.slug for chapter in CHAPTERS}) == len(CHAPTERS)
    said = {
        path.stem: match[1]
        for path in COURSE.package.glob("*.py")
        if (match := re.search(r"^Chapter: (\w+)\.$", path.read_text(encoding="utf-8"), re.MULTILINE))
    }
    listed = {module: chapter.slug for chapter in CHAPTERS for module in chapter.modules}
    assert said == {module: slug for module, slug in listed.items() if COURSE.file(module).is_file()}


def test_every_real_module_can_be_cut_and_joined():
    for module in module_order():
        if COURSE.file(module).is_file():
            text = COURSE.file(module).read_text(encoding="utf-8")
            assert "\n\n\n".join(split_chunks(text[:-1])) + "\n" == text
            compile(hollow(text), module, "exec")


# ---- comparing ------------------------------------------------------------------------------------------------------


def test_equal_is_silent(made):
    course, notebooks = made
    assert check_fold(notebooks, course) == []


def test_a_changed_character_of_the_module_is_shown(made):
    course, notebooks = made
    path = course.file("alpha")
    path.write_text(path.read_text().replace("math.sqrt(x)", "math.sqrt(z)"))
    [problem] = check_fold(notebooks, course)
    assert "@@ cell 8, line 8 @@" in problem
    assert "-    return math.sqrt(x)" in problem
    assert "+    return math.sqrt(z)" in problem
    assert f"{course.name} fold --to {course.name}" in problem
    assert f"{course.name} fold   " in problem
    assert str(path) in problem
    assert "01_alpha.ipynb" in problem


def test_a_changed_character_of_the_notebook_is_shown(made):
    course, notebooks = made
    path = notebooks / "01_alpha.ipynb"
    path.write_text(path.read_text().replace("SCALE = 2.0", "SCALE = 3.0"))
    [problem] = check_fold(notebooks, course)
    assert "@@ cell 3, line 1 @@" in problem
    assert "-SCALE = 3.0\n" in problem


@pytest.mark.parametrize("ending", ["", "\n\n"])
def test_the_end_of_the_file_counts(made, ending):
    course, notebooks = made
    path = course.file("alpha")
    path.write_text(path.read_text().rstrip("\n") + ending)
    assert len(check_fold(notebooks, course)) == 1


def test_windows_line_ends_are_named(made):
    course, notebooks = made
    path = course.file("alpha")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert "Windows line ends" in check_fold(notebooks, course)[0]


def test_not_json_is_one_line(made):
    course, notebooks = made
    (notebooks / "01_alpha.ipynb").write_text("<<<<<<< ours\n{}")
    [problem] = check_fold(notebooks, course)
    assert "01_alpha.ipynb is not a notebook: it is not JSON" in problem
    assert "\n" not in problem


@pytest.mark.parametrize("text", ["[]", "{}", '{"nbformat": 3, "cells": []}', '{"nbformat": 4, "cells": [1]}'])
def test_other_json_is_named(made, text):
    course, notebooks = made
    (notebooks / "01_alpha.ipynb").write_text(text)
    [problem] = check_fold(notebooks, course)
    assert "01_alpha.ipynb" in problem
    assert "\n" not in problem


def test_lost_tags_are_named_and_put_back(made):
    course, notebooks = made
    path = notebooks / "01_alpha.ipynb"
    before = path.read_text()
    stripped = json.loads(before)
    for cell in stripped["cells"]:
        cell["metadata"] = {}
    path.write_text(json.dumps(stripped))
    assert "has no cell tagged fold:alpha: its tags were lost" in check_fold(notebooks, course)[0]
    words = write_notebooks(notebooks, course)
    assert sum("is back on" in line for line in words) == 5
    assert check_fold(notebooks, course) == []
    assert len(cells_of(path)) == len(json.loads(before)["cells"])


def test_one_lost_tag_is_found_in_the_diff(made):
    course, notebooks = made
    path = notebooks / "01_alpha.ipynb"
    lost = json.loads(path.read_text())
    lost["cells"][7]["metadata"]["tags"] = []
    path.write_text(json.dumps(lost))
    assert "Cell 8 holds `def root(x: float) -> float:` but has lost its tag" in check_fold(notebooks, course)[0]


def test_syntax_error_names_cell_and_line(made):
    course, notebooks = made
    cells = alpha_cells()
    cells[5]["source"] = DOUBLE.replace("return SCALE * x", "return SCALE *")
    write_notebook(notebooks / "01_alpha.ipynb", cells)
    [problem] = check_fold(notebooks, course)
    assert "01_alpha.ipynb, cell 6, line 3: invalid syntax in `return SCALE *`" in problem
    assert "\n" not in problem
    with pytest.raises(ValueError, match="cell 6, line 3"):
        rebuild(notebooks, course)


def test_a_tag_of_another_chapter_is_named(made):
    course, notebooks = made
    write_notebook(notebooks / "01_alpha.ipynb", [*alpha_cells(), code("x = 1", "fold:alhpa")])
    assert "cell 12: the tag fold:alhpa is not one of this chapter (fold:alpha)" in check_fold(notebooks, course)[0]


def test_missing_and_unlisted_notebooks_are_named(made):
    course, notebooks = made
    (notebooks / "02_beta.ipynb").rename(notebooks / "03_gamma.ipynb")
    problems = check_fold(notebooks, course)
    assert "03_gamma.ipynb is not in the list of chapters" in problems[0]
    assert "02_beta.ipynb does not exist, but should hold beta" in problems[1]


def test_folded_but_listed_as_still_to_come(made):
    course, notebooks = made
    waiting = Course(course.package, course.chapters, ("beta",))
    assert "beta is folded" in check_fold(notebooks, waiting)[0]
    (notebooks / "02_beta.ipynb").unlink()
    assert check_fold(notebooks, waiting) == []


# ---- from the package into the notebooks ----------------------------------------------------------------------------


def test_nothing_to_do_touches_nothing(made):
    course, notebooks = made
    before = (notebooks / "01_alpha.ipynb").read_bytes()
    assert write_notebooks(notebooks, course) == []
    assert (notebooks / "01_alpha.ipynb").read_bytes() == before


def test_a_rewritten_function_goes_to_its_cell_and_the_rest_stays(made):
    course, notebooks = made
    path = notebooks / "01_alpha.ipynb"
    before = cells_of(path)
    new = DOUBLE.replace("SCALE * x", "x * SCALE")
    write_alpha(course, [new if chunk is DOUBLE else chunk for chunk in ALPHA])
    assert write_notebooks(notebooks, course) == ["01_alpha.ipynb: cell 6: double rewritten"]
    after = cells_of(path)
    assert after[5]["source"] == new
    assert after[5]["outputs"] == []
    assert after[5]["metadata"] == before[5]["metadata"]
    assert [cell for i, cell in enumerate(after) if i != 5] == [cell for i, cell in enumerate(before) if i != 5]
    assert check_fold(notebooks, course) == []


def test_new_gone_and_moved_definitions(made):
    course, notebooks = made
    triple = "def triple(x: float) -> float:\n    return 3 * x"
    write_alpha(course, [HEAD, CONSTANTS, DOUBLE, triple, ALPHA[4]])
    words = write_notebooks(notebooks, course)
    path = notebooks / "01_alpha.ipynb"
    assert any("root is gone" in line for line in words)
    assert any("triple is new" in line for line in words)
    shown = [cell["source"] for cell in cells_of(path)]
    assert shown.index(triple) == shown.index("double = check.use(double)") + 1
    assert "root = check.use(root)" not in shown
    assert check_fold(notebooks, course) == []
    write_alpha(course, [HEAD, CONSTANTS, triple, DOUBLE, ALPHA[4]])
    assert any("moved here" in line for line in write_notebooks(notebooks, course))
    assert check_fold(notebooks, course) == []


def test_random_refactorings_come_back_byte_for_byte(made):
    course, notebooks = made
    pick = random.Random(0)
    extra = [f"def f{i}(x):\n    text = '''a\n\n\nb'''\n    return text" for i in range(4)]
    extra += ["# a note on what follows\n\nLIMIT: int = 3", "if LIMIT if 'LIMIT' in globals() else True:\n    pass"]
    for _ in range(60):
        body = pick.sample([*ALPHA[1:], *extra, DOUBLE.replace("Twice", "Two times")], pick.randint(0, 8))
        write_alpha(course, [pick.choice([HEAD, HEAD + "\nimport os"]), *body])
        write_notebooks(notebooks, course)
        assert check_fold(notebooks, course) == []
        prose = [cell["source"] for cell in cells_of(notebooks / "01_alpha.ipynb") if cell["cell_type"] == "markdown"]
        assert prose == ["# Alpha", "Twice is a sum."]


def test_several_definitions_can_share_a_cell(made):
    course, notebooks = made
    both = f"{DOUBLE}\n\n\n{ROOT}"
    cells = [code(HEAD, "fold:alpha"), code(CONSTANTS, "fold:alpha"), code(both, "fold:alpha")]
    write_notebook(notebooks / "01_alpha.ipynb", [*cells, code(ALPHA[4], "fold:alpha")])
    assert check_fold(notebooks, course) == []
    between = "def half(x):\n    return x / 2"
    write_alpha(course, [HEAD, CONSTANTS, DOUBLE, between, ROOT, ALPHA[4]])
    write_notebooks(notebooks, course)
    assert sources(notebooks / "01_alpha.ipynb")[2] == f"{DOUBLE}\n\n\n{between}\n\n\n{ROOT}"


def test_a_module_that_does_not_parse_is_not_folded(made):
    course, notebooks = made
    course.file("alpha").write_text("def f(:\n")
    with pytest.raises(ValueError, match=r"alpha.py, line 1: .*; mend it before folding"):
        write_notebooks(notebooks, course)


# ---- from the notebooks into the package ----------------------------------------------------------------------------


def test_rebuild_makes_the_same_bytes(made):
    course, notebooks = made
    texts = {module: course.file(module).read_bytes() for module in course.modules}
    for module in course.modules:
        course.file(module).unlink()
    assert len(rebuild(notebooks, course)) == 2
    assert {module: course.file(module).read_bytes() for module in course.modules} == texts
    assert rebuild(notebooks, course) == []


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_exits_with_one_and_shows_the_diff(made, monkeypatch):
    course, notebooks = made
    for module in ("fold", "notebooks", "commands"):
        monkeypatch.setattr(f"minillm.course.{module}.COURSE", course)
    monkeypatch.setattr(commands, "find_notebooks", lambda given: notebooks)
    monkeypatch.setattr(commands, "holds_workbook", lambda folder: False)
    for function in ("check_fold", "write_notebooks"):
        real = {"check_fold": check_fold, "write_notebooks": write_notebooks}[function]
        monkeypatch.setattr(f"minillm.course.fold.{function}", lambda folder, real=real: real(folder, course))
    app = typer.Typer()
    commands.register(app)
    assert CliRunner().invoke(app, ["fold", "--check"]).exit_code == 0
    path = course.file("alpha")
    path.write_text(path.read_text().replace("SCALE = 2.0", "SCALE = 4.0"))
    result = CliRunner().invoke(app, ["fold", "--check"])
    assert result.exit_code == 1
    assert "+SCALE = 4.0" in result.output
    assert "cell 3: SCALE rewritten" in CliRunner().invoke(app, ["fold"]).output
    assert CliRunner().invoke(app, ["fold", "--check"]).exit_code == 0


# ---- text taken apart -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a, b = 1, 2", ("a", "b")),
        ("@cached\ndef f(): ...", ("f",)),
        ("async def f(): ...", ("f",)),
        ("import os", ()),
        ("def f(x:\n    return", ("f",)),
    ],
)
def test_names(text, names):
    assert names_in(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "def f(x): return x",
        "def f(x):\n    # a hint too many\n    return x\n    # the end",
        'def f(x):\n    """Doc."""\n\n    @g\n    def inner():\n        return 1\n\n    return inner',
        'def f(x):\n    """With "quotes" and a \\\\ in it, ü."""\n    return "ü" + x',
        "class A:\n    x = 1\n\n    @property\n    def f(self):\n        return 1",
    ],
)
def test_hollow_leaves_python_without_the_body(text):
    stub = hollow(text)
    compile(stub, "stub", "exec")
    assert "return" not in stub
    assert "#" not in stub
    assert is_stub(stub)
    assert not is_stub(text)


def test_hollow_leaves_protocols_alone():
    text = 'class P(Protocol):\n    def f(self) -> int:\n        """Doc."""\n        ...\n\n    def g(self) -> int: ...'
    assert hollow(text) == text


def test_only_imports_of_chapters_are_rewritten():
    text = (
        "import a.x as ax\nfrom a import x\nfrom a import x, support\nfrom a.x import (\n    f,\n)\nfrom a.xy import g"
        "\nfrom ba.x import h\nimport a.x\nDOC = 'from a.x import f'\n\n\ndef f():\n    from a.x import g"
    )
    assert rewrite_imports(text, ["x"], "a", "b") == (
        "import b.x as ax\nfrom b import x\nfrom a import x, support\nfrom b.x import (\n    f,\n)\nfrom a.xy import g"
        "\nfrom ba.x import h\nimport a.x\nDOC = 'from a.x import f'\n\n\ndef f():\n    from b.x import g"
    )
