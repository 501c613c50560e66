"""The workbook and the reader's own package: what is right is theirs, and nothing of theirs is overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import typer
from fake_course import COUNTER, DOUBLE, HEAD, ROOT, alpha_cells, code, make_course, write_notebook
from typer.testing import CliRunner

from minillm.course import commands
from minillm.course.borrow import borrowed, make_package
from minillm.course.chapters import COURSE, Course, notebooks_directory
from minillm.course.fold import check_fold, folded_modules, rebuild, write_notebooks
from minillm.course.notebooks import NotebookError, read_notebook
from minillm.course.progress import package_rows, table, workbook_rows
from minillm.course.workbook import help_text, make_workbook


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Course, Path]:
    course, notebooks = make_course(tmp_path, monkeypatch)
    make_workbook(notebooks, tmp_path / "work", course)
    return course, tmp_path / "work"


def fill(path: Path, **texts: str) -> None:
    """Put the reader's answers into the cells that define these names."""
    notebook = read_notebook(path)
    for name, text in texts.items():
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code" and cell["source"].startswith((f"def {name}(", f"class {name}:")):
                cell["source"] = text
    path.write_text(json.dumps(notebook))


def run_package(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    source = [str(folder.parent / "src"), str(COURSE.package.parent)]
    program = f"import sys; sys.path[:0] = {source!r}; import runpy; sys.argv = ['', *{list(arguments)!r}]; "
    program += f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


# ---- the workbook ---------------------------------------------------------------------------------------------------


def test_bodies_give_way_and_help_stands_below(made):
    _, work = made
    notebook = read_notebook(work / "01_alpha.ipynb")
    nbformat.validate(notebook)
    shown = [cell["source"] for cell in notebook["cells"]]
    at = next(i for i, text in enumerate(shown) if text.startswith("def double"))
    assert shown[at] == (
        'def double(x: float) -> float:\n    """Twice a number."""\n'
        '    raise NotImplementedError("Your turn: Twice a number.")'
    )
    help_cell = notebook["cells"][at + 1]
    assert help_cell["cell_type"] == "markdown"
    assert help_cell["source"].count("<details>") == help_cell["source"].count("</details>") == 3
    assert "<summary>Hint 2</summary>\n\nUse `SCALE`.\n\n</details>" in help_cell["source"]
    assert f"<summary>Solution</summary>\n\n```python\n{DOUBLE}\n```\n\n</details>" in help_cell["source"]
    assert shown[at + 2] == "double = check.use(double)"
    root = next(text for text in shown if text.startswith("def root"))
    assert ">>> root(4.0)" in root
    assert "math" not in root


def test_methods_are_hollowed_except_those_to_keep(made):
    _, work = made
    text = next(c["source"] for c in read_notebook(work / "01_alpha.ipynb")["cells"] if "class Counter" in c["source"])
    assert "self.value = start" in text
    assert "self.value += 1" not in text
    assert 'raise NotImplementedError("Your turn: One more.")' in text


def test_no_output_is_left_and_other_cells_stay(made):
    _, work = made
    notebook = read_notebook(work / "01_alpha.ipynb")
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    shown = [cell["source"] for cell in notebook["cells"]]
    assert [cell["source"] for cell in alpha_cells() if "yours" not in cell["metadata"].get("tags", [])] == [
        text for text in shown if "Your turn" not in text and "<details>" not in text
    ]
    assert next(text for text in shown if text == HEAD)


def test_a_solution_with_a_fence_gets_a_longer_one():
    assert "````python\nx = '```'\n````" in help_text([], "x = '```'")
    assert help_text(["one"], "x").startswith("<details>\n<summary>Hint</summary>\n\none\n")


def test_existing_files_are_kept_unless_forced(made, tmp_path):
    course, work = made
    path = work / "01_alpha.ipynb"
    fill(path, double=DOUBLE)
    mine = path.read_bytes()
    again = make_workbook(tmp_path / "notebooks", work, course)
    assert again.kept == [path]
    assert path.read_bytes() == mine
    forced = make_workbook(tmp_path / "notebooks", work, course, force=True)
    assert forced.backups == [path.with_name("01_alpha.ipynb.bak")]
    assert forced.backups[0].read_bytes() == mine
    assert path.read_bytes() != mine
    fill(path, double=DOUBLE)
    assert make_workbook(tmp_path / "notebooks", work, course, force=True).backups[0].name == "01_alpha.ipynb.bak2"


def test_the_workbook_is_never_made_of_itself(made, tmp_path):
    course, work = made
    with pytest.raises(ValueError, match="holds the course's own notebooks"):
        make_workbook(tmp_path / "notebooks", tmp_path / "notebooks", course)
    with pytest.raises(NotebookError, match="is of the workbook edition already"):
        make_workbook(work, tmp_path / "other", course)


def test_authors_commands_leave_a_workbook_alone(made):
    course, work = made
    before = (work / "01_alpha.ipynb").read_bytes()
    for function in (write_notebooks, rebuild):
        with pytest.raises(NotebookError, match="of the workbook edition"):
            function(work, course)
    assert "of the workbook edition" in check_fold(work, course)[0]
    assert (work / "01_alpha.ipynb").read_bytes() == before


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (code("X = 1", "fold:alpha", "yours"), "cell 1 is tagged yours, but there is no body"),
        (code("def f(:", "fold:alpha", "yours"), "cell 1, line 1: invalid syntax"),
        (code(DOUBLE, "fold:alpha", "yours", minillm={"hints": "one"}), 'hints are a list of texts, not "one"'),
    ],
)
def test_what_an_author_may_get_wrong(tmp_path, monkeypatch, cell, message):
    course, notebooks = make_course(tmp_path, monkeypatch)
    write_notebook(notebooks / "01_alpha.ipynb", [cell])
    with pytest.raises(NotebookError) as caught:
        make_workbook(notebooks, tmp_path / "work", course)
    assert message in str(caught.value)
    assert not (tmp_path / "work").exists()


# ---- the reader's package -------------------------------------------------------------------------------------------


MY_DOUBLE = (
    "import operator\n\n\ndef _sum(a, b):\n    return operator.add(a, b)\n\n\n"
    "def double(x: float) -> float:\n    return _sum(x, x)\n\nprint(double(2))"
)


def test_right_wrong_and_empty(made):
    course, work = made
    fill(work / "01_alpha.ipynb", double=MY_DOUBLE, root=ROOT.replace("math.sqrt(x)", "x / 2"))
    result = make_package(work, work / "mine", course)
    text = (work / "mine" / "alpha.py").read_text()
    assert "return _sum(x, x)" in text
    assert "import operator" in text
    assert "print" not in text
    assert f"# borrowed from {course.name}: root (failed its check: its square is not x)\n{ROOT}" in text
    assert f"# borrowed from {course.name}: Counter (not written yet)\n{COUNTER}" in text
    assert borrowed(text, course) == {
        "root": "failed its check: its square is not x",
        "Counter": "not written yet",
    }
    assert f"from {work.joinpath('mine').name}.alpha import Counter" in (work / "mine" / "beta.py").read_text()
    assert not result.kept
    done = run_package(work, "mine", "quadruple", "3")
    assert (done.stdout.strip(), done.stderr) == ("12.0 mine.beta", "")


def test_the_command_line_runs_the_readers_code(made):
    course, work = made
    fill(work / "01_alpha.ipynb", double=DOUBLE)
    make_package(work, work / "own", course)
    path = work / "own" / "beta.py"
    path.write_text(path.read_text().replace("double(double(x))", "100.0"))
    assert run_package(work, "own", "quadruple", "3").stdout.strip() == "100.0 own.beta"


def test_everything_right_is_the_same_text(made):
    course, work = made
    fill(work / "01_alpha.ipynb", double=DOUBLE, root=ROOT, Counter=COUNTER)
    make_package(work, work / "all_mine", course)
    assert (work / "all_mine" / "alpha.py").read_text() == course.file("alpha").read_text()
    expected = course.file("beta").read_text().replace(course.name, "all_mine")
    assert (work / "all_mine" / "beta.py").read_text() == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def double(x: float) -> float:\n    return SCALE *", "not Python yet: cell 6, line 2: invalid syntax"),
        ("def double(y: float) -> float:\n    return 2 * y", "failed its check: it takes (y), expected (x)"),
        ("def double(x: float) -> float:\n    return np.ma(x)", "NameError: name 'np' is not defined (line 2)"),
        ("def double(x: float = foo) -> float:\n    return x + x", "does not run: NameError: name 'foo' is not"),
        ("def double(x: float) -> float:\n    x + x", "failed its check: it returned None; is the return missing?"),
        ("%%time\ndef double(x: float) -> float:\n    return x", "failed its check: it returns x itself"),
        ("", "not found in the notebook"),
    ],
)  # fmt: skip
def test_reasons(made, text, reason):
    course, work = made
    fill(work / "01_alpha.ipynb", double=text)
    make_package(work, work / "mine2", course)
    found = (work / "mine2" / "alpha.py").read_text()
    assert reason in borrowed(found, course)["double"]
    assert DOUBLE in found


def test_chapters_that_cannot_be_read_are_borrowed_whole(made):
    course, work = made
    (work / "01_alpha.ipynb").write_text("nonsense")
    (work / "02_beta.ipynb").unlink()
    make_package(work, work / "mine3", course)
    alpha, beta = ((work / "mine3" / f"{name}.py").read_text() for name in ("alpha", "beta"))
    assert alpha.startswith(f"# borrowed from {course.name}: the whole module (")
    assert "is not JSON" in alpha.split("\n")[0]
    assert "02_beta.ipynb is not here" in beta.split("\n")[0]
    assert run_package(work, "mine3", "quadruple", "1").stdout.strip() == "4.0 mine3.beta"


def test_a_second_run_overwrites_nothing_of_the_readers(made):
    course, work = made
    target = work / "mine4"
    make_package(work, target, course)
    assert make_package(work, target, course).written == []
    path = target / "alpha.py"
    path.write_text(path.read_text().replace("return SCALE * x", "return x + x"))
    mine = path.read_text()
    fill(work / "01_alpha.ipynb", root=ROOT)
    assert make_package(work, target, course).kept == [path]
    assert path.read_text() == mine
    forced = make_package(work, target, course, force=True)
    assert forced.backups == [target / "alpha.py.bak"]
    assert forced.backups[0].read_text() == mine
    assert "root" not in borrowed(path.read_text(), course)
    (target / ".minillm.json").write_text("broken")
    path.write_text(mine)
    assert make_package(work, target, course).kept == [path]


@pytest.mark.parametrize("name", ["my-model", "class", "json"])
def test_names_that_cannot_be_imported(made, name):
    course, work = made
    with pytest.raises(ValueError, match="cannot be the name of your package"):
        make_package(work, work / name, course)


def test_a_folder_of_something_else_is_refused(made):
    course, work = made
    (work / "thesis").mkdir()
    (work / "thesis" / "alpha.py").write_text("years of work")
    with pytest.raises(ValueError, match="did not make"):
        make_package(work, work / "thesis", course)
    (work / "notes").touch()
    with pytest.raises(ValueError, match="is a file"):
        make_package(work, work / "notes", course)
    assert (work / "thesis" / "alpha.py").read_text() == "years of work"


def test_the_real_package_can_be_borrowed_whole(tmp_path):
    """Every real chapter module, rewritten into a reader's package, is what the real command line runs on."""
    target = tmp_path / "borrowed_model"
    result = make_package(tmp_path, target)
    assert all(module.reason for module in result.modules)
    program = (
        "from minillm.course.stand_in import stand_in; from borrowed_model.__main__ import MODULES;"
        "stand_in('borrowed_model', 'minillm', MODULES);"
        "import minillm.runs; print(minillm.runs.Transformer.__module__, minillm.runs.train.__module__)"
    )
    source = f"import sys; sys.path[:0] = ['', {str(COURSE.package.parent)!r}]; {program}"
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["borrowed_model.model", "borrowed_model.train"], done.stderr
    assert "from minillm.attention" not in (target / "model.py").read_text()


def test_the_real_notebooks_make_a_workbook_and_the_solutions_make_the_package(tmp_path):
    work = tmp_path / "work"
    make_workbook(notebooks_directory(), work)
    holes = [row for row in workbook_rows(work) if row.reason == "not written yet"]
    assert len(holes) == len(workbook_rows(work)) > 0
    for path in work.glob("*.ipynb"):
        solved, original = read_notebook(path), read_notebook(notebooks_directory() / path.name)
        solved["cells"] = original["cells"]
        path.write_text(json.dumps(solved))
    assert [row for row in workbook_rows(work) if row.reason is not None] == []
    make_package(work, tmp_path / "solved")
    for module in folded_modules(notebooks_directory()):
        text = (tmp_path / "solved" / f"{module}.py").read_text()
        assert text.replace("solved.", "minillm.") == COURSE.file(module).read_text()


# ---- progress -------------------------------------------------------------------------------------------------------


def test_progress_of_workbook_and_package(made, monkeypatch):
    course, work = made
    fill(work / "01_alpha.ipynb", double=DOUBLE, root=ROOT.replace("math.sqrt(x)", "x / 2"))
    rows = workbook_rows(work, course)
    assert [(row.part, row.reason) for row in rows] == [
        ("double", None),
        ("root", "failed its check: its square is not x"),
        ("Counter", "not written yet"),
    ]
    assert table(rows).split("\n") == [
        "chapter   yours   next",
        "01 alpha  1 of 3  root: failed its check: its square is not x",
    ]
    make_package(work, work / "mine5", course)
    monkeypatch.chdir(work)
    rows = package_rows("mine5", course=course)
    assert [row.reason is None for row in rows] == [True, False, False]
    assert str(rows[2]) == "Counter: borrowed: not written yet"
    with pytest.raises(ValueError, match="There is no package mine6 here"):
        package_rows("mine6", course=course)
    with pytest.raises(ValueError, match=r"no check of a chapter 'gamma'; there is one of alpha"):
        package_rows("mine5", "gamma", course)


def test_check_names_a_mistake_in_the_package(made, monkeypatch):
    course, work = made
    fill(work / "01_alpha.ipynb", double=DOUBLE, root=ROOT, Counter=COUNTER)
    make_package(work, work / "mine7", course)
    path = work / "mine7" / "alpha.py"
    path.write_text(path.read_text().replace("SCALE = 2.0", "SCALE = 1.0"))
    monkeypatch.chdir(work)
    assert [str(row) for row in package_rows("mine7", "alpha", course)] == [
        "double: it returns x itself",
        "root: right",
        "Counter: right",
    ]


def test_the_commands_on_the_real_package(tmp_path, monkeypatch):
    app = typer.Typer()
    commands.register(app)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["progress"])
    assert isinstance(result.exception, ValueError)
    assert "minillm workbook DIR" in str(result.exception)
    assert isinstance(CliRunner().invoke(app, ["check", "--package", "nothing_here"]).exception, ValueError)
    assert "give either" in CliRunner().invoke(app, ["fold", "--check", "--to", "x"]).output
