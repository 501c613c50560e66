"""Reading notebooks for the fold: their cells, tags and modules, and clear words when one is broken."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.course.chapters import COURSE, Chapter, Course, notebooks_directory
from minillm.course.source import BETWEEN


FOLD, YOURS = "fold:", "yours"
WORKBOOK = "workbook"


class NotebookError(ValueError):
    """A notebook that cannot be used; the message names it and, where there is one, the cell."""


class NbformatMissing(ImportError, ValueError):
    """Raised where a notebook is needed without the library for notebooks; the message says what to install."""

    def __init__(self) -> None:
        super().__init__(
            "Notebooks need nbformat, which comes with the extra [course]: pip install 'minillm-course[course]'"
        )


@dataclass(frozen=True)
class Cell:
    """A cell that is part of a module; `number` counts all cells of the notebook from 1."""

    node: Any
    number: int
    module: str

    @property
    def source(self) -> str:
        """The cell's text."""
        return self.node["source"]

    @property
    def yours(self) -> bool:
        """True for a cell that the reader writes."""
        return YOURS in tags_of(self.node)


def nbformat() -> Any:
    """Version 4 of the notebook format, from the library that comes with the extra [course]; NbformatMissing."""
    try:
        import nbformat.v4
    except ImportError as error:
        raise NbformatMissing from error
    return nbformat.v4


def read_notebook(path: Path) -> Any:
    """The notebook as nbformat gives it; NotebookError for a file that is not one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NotebookError(f"{path} is not a notebook: it is not JSON ({error}).") from error
    cells = raw.get("cells") if isinstance(raw, dict) else None
    if not isinstance(cells, list) or raw.get("nbformat") != 4:
        raise NotebookError(f"{path} is not a notebook of format 4: save it again in JupyterLab.")
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, dict) or "source" not in cell or "cell_type" not in cell:
            raise NotebookError(f"{path}, cell {number} is not a notebook cell: it has no source or no type.")
        cell.setdefault("metadata", {})
    return nbformat().reads(json.dumps(raw))


def notebook_text(notebook: Any) -> str:
    """A notebook as Jupyter would save it."""
    return nbformat().writes(notebook) + "\n"


def tags_of(cell: Any) -> list[str]:
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


def is_folded(cell: Any) -> bool:
    """True for a cell that is part of a module."""
    return any(tag.startswith(FOLD) for tag in tags_of(cell))


def course_metadata(node: Any) -> dict[str, Any]:
    """What a cell's or a notebook's metadata says to the course."""
    return node["metadata"].get("minillm", {})


def is_workbook(notebook: Any) -> bool:
    """True for a notebook of the workbook edition, whose cells belong to the reader."""
    return course_metadata(notebook).get("edition") == WORKBOOK


def fold_cells(notebook: Any, path: Path, chapter: Chapter) -> dict[str, list[Cell]]:
    """The cells of each of the chapter's modules; NotebookError for a tag that names no module of the chapter."""
    found: dict[str, list[Cell]] = {module: [] for module in chapter.modules}
    for number, node in enumerate(notebook["cells"], start=1):
        for tag in tags_of(node):
            if not tag.startswith(FOLD):
                continue
            module = tag.removeprefix(FOLD)
            if module not in found:
                known = ", ".join(FOLD + name for name in chapter.modules) or "none: it has no module"
                raise NotebookError(f"{path}, cell {number}: the tag {tag} is not one of this chapter ({known}).")
            if node["cell_type"] != "code":
                raise NotebookError(f"{path}, cell {number}: the tag {tag} belongs to a code cell, this is text.")
            found[module].append(Cell(node, number, module))
    return found


def require_python(cells: list[Cell], path: Path) -> None:
    """NotebookError for the first cell that does not parse."""
    for cell in cells:
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            line = cell.source.split("\n")[(error.lineno or 1) - 1].strip()
            raise NotebookError(
                f"{path}, cell {cell.number}, line {error.lineno}: {error.msg} in `{line}`; a fold cell must be Python."
            ) from error


def module_text(cells: list[Cell]) -> str:
    """A module is its cells, joined by two blank lines."""
    return BETWEEN.join(cell.source for cell in cells) + "\n"


def chapter_notebooks(folder: Path, course: Course = COURSE) -> dict[Chapter, Path]:
    """The chapters whose notebook is in a folder."""
    return {chapter: folder / chapter.notebook for chapter in course.chapters if (folder / chapter.notebook).is_file()}


def find_notebooks(given: Path | None = None, course: Course = COURSE) -> Path:
    """The folder of notebooks meant: the one given, else the working directory, its notebooks/, the course's own.

    Raises FileNotFoundError for a given folder without a chapter.
    """
    if given is not None:
        if not chapter_notebooks(given, course):
            raise FileNotFoundError(f"{given} holds no chapter's notebook, such as {course.chapters[-1].notebook}.")
        return given
    for folder in (Path(), Path("notebooks")):
        if chapter_notebooks(folder, course):
            return folder
    return notebooks_directory()


def holds_workbook(folder: Path, course: Course = COURSE) -> bool:
    """True if any chapter in a folder is of the workbook edition."""
    return any(is_workbook(read_notebook(path)) for path in chapter_notebooks(folder, course).values())
