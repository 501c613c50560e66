"""The workbook edition: the notebooks with holes where the reader writes, hints and solution folded below each hole."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.course.chapters import COURSE, Chapter, Course
from minillm.course.notebooks import (
    WORKBOOK,
    NotebookError,
    chapter_notebooks,
    course_metadata,
    fold_cells,
    nbformat,
    notebook_text,
    read_notebook,
    require_python,
)
from minillm.course.source import hollow
from minillm.support.files import write_text_atomic


@dataclass
class Written:
    """Which notebooks were written, which were left as they are, and where replaced ones were kept."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    backups: list[Path] = field(default_factory=list)


def make_workbook(folder: Path, target: Path, course: Course = COURSE, force: bool = False) -> Written:
    """Write the workbook edition of the notebooks in `folder`; what exists is kept, or with force moved to a backup.

    All notebooks are read before the first is written. ValueError if both folders are one.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; name a folder for the workbook.")
    if target.exists() and target.samefile(folder):
        raise ValueError(f"{target} holds the course's own notebooks; name another folder for the workbook.")
    texts = {}
    for chapter, path in chapter_notebooks(folder, course).items():
        notebook = read_notebook(path)
        dig_holes(notebook, path, chapter)
        texts[target / path.name] = notebook_text(notebook)
    done = Written()
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text.encode("utf-8"):
            if not force:
                done.kept.append(path)
                continue
            done.backups.append(back_up(path))
        write_text_atomic(path, text)
        done.written.append(path)
    return done


def back_up(path: Path) -> Path:
    """Move a file aside under the first free name: notes.txt.bak, notes.txt.bak2, …; returns where it is."""
    number, aside = 1, path.with_name(f"{path.name}.bak")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.bak{number}")
    return path.rename(aside)


def dig_holes(notebook: Any, path: Path, chapter: Chapter) -> None:
    """Turn a notebook into its workbook edition, in place."""
    if course_metadata(notebook).get("edition") == WORKBOOK:
        raise NotebookError(f"{path} is of the workbook edition already.")
    holes = [cell for cells in fold_cells(notebook, path, chapter).values() for cell in cells if cell.yours]
    require_python(holes, path)
    for cell in reversed(holes):
        settings = course_metadata(cell.node)
        solution = cell.source
        cell.node["source"] = hollow(solution, tuple(settings.get("keep", ())))
        if cell.source == solution:
            raise NotebookError(f"{path}, cell {cell.number} is tagged yours, but there is no body to write in it.")
        notebook["cells"].insert(cell.number, _help_cell(notebook, cell.number, settings.get("hints", ()), solution))
    for node in notebook["cells"]:
        if node["cell_type"] == "code":
            node["outputs"], node["execution_count"] = [], None
            node["metadata"].pop("execution", None)
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["minillm"] = {**course_metadata(notebook), "edition": WORKBOOK}


def _help_cell(notebook: Any, number: int, hints: Any, solution: str) -> Any:
    if isinstance(hints, str) or not all(isinstance(hint, str) for hint in hints):
        raise NotebookError(f"cell {number}: hints are a list of texts, not {json.dumps(hints)}.")
    node = nbformat().new_markdown_cell(help_text(list(hints), solution), metadata={"tags": ["solution"]})
    node["id"] = f"help-{number}"
    if notebook.get("nbformat_minor", 0) < 5:  # cells had no ids yet
        del node["id"]
    return node


def help_text(hints: list[str], solution: str) -> str:
    """Hints one by one, then the solution, each folded; the blank lines let Markdown work inside HTML."""
    longest = max((len(run) for run in re.findall(r"`{3,}", solution)), default=2)
    fence = "`" * (longest + 1)
    titles = ["Hint"] if len(hints) == 1 else [f"Hint {number}" for number in range(1, len(hints) + 1)]
    pieces = [*zip(titles, hints), ("Solution", f"{fence}python\n{solution}\n{fence}")]
    return "\n\n".join(
        f"<details>\n<summary>{title}</summary>\n\n{content.strip()}\n\n</details>" for title, content in pieces
    )
