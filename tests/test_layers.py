"""The order of the chapters is the order of imports: early modules know nothing of later ones."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import minillm
from minillm.course.chapters import module_order


PACKAGE = Path(minillm.__file__).parent
SUPPORT = sorted((PACKAGE / "support").rglob("*.py"))
CHAPTERS = [PACKAGE / f"{name.replace('.', '/')}.py" for name in module_order()]
TOP = [path for path in sorted(PACKAGE.glob("*.py")) if path not in CHAPTERS]


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that is imported anywhere in the text, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield base, node
            if base == "minillm":  # from minillm import attention
                for alias in node.names:
                    yield f"minillm.{alias.name}", node


def ours(text: str) -> set[str]:
    """Modules of this package that a text imports, without the package's name."""
    found = {name for name, _ in imports(ast.parse(text)) if name.startswith("minillm.")}
    return {name.removeprefix("minillm.") for name in found}


def forbidden(text: str, allowed: list[str]) -> set[str]:
    """What a text imports of ours beyond minillm.support and what is allowed."""
    return {name for name in ours(text) if name.split(".")[0] != "support" and name not in allowed}


@pytest.mark.parametrize("number", range(len(CHAPTERS)), ids=module_order())
def test_a_chapter_imports_only_earlier_chapters_and_support(number: int):
    if not CHAPTERS[number].exists():
        pytest.skip("not written yet")
    wrong = forbidden(CHAPTERS[number].read_text(), [*module_order()[:number], "__version__"])
    assert not wrong, f"{CHAPTERS[number].name} imports {wrong}, which come later or are no chapters"


def test_the_check_sees_every_form_of_import():
    text = "import minillm.train\nfrom minillm import runs\ndef f():\n    from minillm.cli import main\n"
    assert forbidden(text, []) == {"train", "runs", "cli"}
    assert forbidden("from minillm.support.files import x\nfrom minillm.baseline import y\n", ["baseline"]) == set()


@pytest.mark.parametrize("path", SUPPORT, ids=lambda path: path.name)
def test_support_imports_no_chapter_and_no_top_module(path: Path):
    assert {name for name in ours(path.read_text()) if name.split(".")[0] != "support"} == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_absolute_and_name_what_they_want(path: Path):
    for name, node in imports(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import of {name}"
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}: from {name} import *"


def test_every_module_is_a_chapter_or_a_known_top_module():
    assert [path.stem for path in TOP] == ["__init__", "__main__", "cli", "recipes", "runs"]
    for path in TOP:
        assert "minillm." + path.stem not in module_order()


def test_chapter_modules_stay_small():
    for path in filter(Path.exists, CHAPTERS):
        text = path.read_text()
        assert text.count("\n") <= 300, f"{path.name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"
