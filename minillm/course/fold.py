"""Notebooks and package are one text: compare them, or write one from the other."""

import difflib
from bisect import bisect_right
from pathlib import Path
from typing import Any

from minillm.course.chapters import COURSE, Chapter, Course
from minillm.course.distribute import spread
from minillm.course.notebooks import (
    Cell,
    NotebookError,
    chapter_notebooks,
    fold_cells,
    is_folded,
    is_workbook,
    module_text,
    notebook_text,
    read_notebook,
    require_python,
)
from minillm.course.source import split_chunks
from minillm.support.files import write_text_atomic


def check_fold(folder: Path, course: Course = COURSE) -> list[str]:
    """What is wrong between notebooks and package, one text a problem; empty if they are the same, byte for byte."""
    problems = [
        f"{path} is not in the list of chapters: name it in chapters.py, or rename it."
        for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))
        if path.name not in {chapter.notebook for chapter in course.chapters}
    ]
    for chapter in course.chapters:
        path = folder / chapter.notebook
        try:
            if path.is_file():
                problems += _check_chapter(path, chapter, course)
            elif missing := [module for module in chapter.modules if module not in course.still_to_come]:
                problems.append(f"{path} does not exist, but should hold {', '.join(missing)}.")
        except ValueError as error:
            problems.append(str(error))
    return problems


def _check_chapter(path: Path, chapter: Chapter, course: Course) -> list[str]:
    notebook, problems = read_notebook(path), []
    if is_workbook(notebook):
        raise NotebookError(
            f"{path} is of the workbook edition; `{course.name} fold --to mymini` makes a package of it."
        )
    for module, cells in fold_cells(notebook, path, chapter).items():
        listed = module in course.still_to_come
        if not cells:
            if not listed:
                problems.append(
                    f"{path} has no cell tagged fold:{module}: its tags were lost. "
                    f"`{course.name} fold` puts them back on the cells that hold the module's text."
                )
            continue
        if listed:
            problems.append(f"{module} is folded by {path}: take it off the list STILL_TO_COME in chapters.py.")
        require_python(cells, path)
        ours, theirs = module_text(cells), _module(course, module)
        if ours != theirs:
            problems.append(_difference(path, notebook, cells, course.file(module), theirs, course.name))
    return problems


def _module(course: Course, module: str) -> str:
    """A module's text, byte for byte; ValueError for what no notebook could hold."""
    path = course.file(module)
    if not path.is_file():
        return ""
    text = path.read_bytes().decode("utf-8")
    if "\r" in text:
        raise ValueError(f"{path} has Windows line ends, notebooks have not: check it out with core.autocrlf=input.")
    return text


def _difference(path: Path, notebook: Any, cells: list[Cell], file: Path, text: str, command: str) -> str:
    """A unified diff that says at each place in which cell it is, and how to mend it."""
    old, new = module_text(cells).splitlines(keepends=True), text.splitlines(keepends=True)
    starts = [0]
    for cell in cells:
        starts.append(starts[-1] + cell.source.count("\n") + 3)
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    lines = [f"{path} and {file} differ.\n", f"--- {path}\n", f"+++ {file}\n"]
    for group in difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes():
        changed = next(i1 for tag, i1, *_ in group if tag != "equal")
        cell = cells[min(bisect_right(starts, changed), len(cells)) - 1]
        lines.append(f"@@ cell {cell.number}, line {changed - starts[cells.index(cell)] + 1} @@\n")
        for tag, i1, i2, j1, j2 in group:
            lines += [(" " if tag == "equal" else "-") + line for line in old[i1:i2]]
            lines += ["+" + line for line in new[j1:j2] if tag != "equal"]
    lines = [line if line.endswith("\n") else line + "\n\\ no end of line\n" for line in lines]
    for number, words in _untagged(notebook, cells, text):
        lines.append(f"Cell {number} holds `{words}` but has lost its tag.\n")
    other = f"{command} fold --to {command}"
    lines.append(f"If the package is right:  {f'{command} fold':<{len(other)}}  writes it into the notebook's cells.\n")
    lines.append(f"If the notebook is right: {other}  writes it into the package.")
    return "".join(lines)


def _untagged(notebook: Any, cells: list[Cell], text: str) -> list[tuple[int, str]]:
    """Cells without a tag that are, word for word, a piece of the module which no tagged cell holds."""
    try:
        chunks = set(split_chunks(text.removesuffix("\n")))
        chunks -= {chunk for cell in cells for chunk in split_chunks(cell.source)}
    except SyntaxError:
        return []
    return [
        (number, node["source"].split("\n")[0])
        for number, node in enumerate(notebook["cells"], start=1)
        if node["cell_type"] == "code" and node["source"] in chunks and not is_folded(node)
    ]


def write_notebooks(folder: Path, course: Course = COURSE) -> list[str]:
    """Write the package's text into the notebooks' fold cells; what was done, a line each.

    Other cells stay as they are. NotebookError for a notebook of the workbook edition: its cells are the reader's.
    """
    done = []
    for chapter, path in chapter_notebooks(folder, course).items():
        notebook = read_notebook(path)
        if is_workbook(notebook):
            raise NotebookError(f"{path} is of the workbook edition: nothing was written over what may be yours.")
        before = notebook_text(notebook)
        for module, cells in fold_cells(notebook, path, chapter).items():
            if not course.file(module).is_file() or (not cells and module in course.still_to_come):
                continue
            text = _module(course, module)
            done += [f"{path.name}: {words}" for words in spread(notebook, module, _chunks(course, module, text))]
            written = fold_cells(notebook, path, chapter)[module]
            assert module_text(written) == text, f"{path} would not give {course.file(module)} back"
        if (after := notebook_text(notebook)) != before:
            write_text_atomic(path, after)
    return done


def _chunks(course: Course, module: str, text: str) -> list[str]:
    path = course.file(module)
    try:
        chunks = split_chunks(text.removesuffix("\n"))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}; mend it before folding.") from error
    if not text.endswith("\n"):
        raise ValueError(f"{path} does not end with a line end, as every module does.")
    return chunks


def rebuild(folder: Path, course: Course = COURSE) -> list[str]:
    """Write the package's modules from the notebooks' fold cells; the names of the files that changed.

    All notebooks are read before the first file is written.
    """
    texts: dict[Path, str] = {}
    for chapter, path in chapter_notebooks(folder, course).items():
        notebook = read_notebook(path)
        if is_workbook(notebook):
            raise NotebookError(f"{path} is of the workbook edition: name another package, such as --to mymini.")
        for module, cells in fold_cells(notebook, path, chapter).items():
            if cells:
                require_python(cells, path)
                texts[course.file(module)] = module_text(cells)
    changed = [path for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode("utf-8")]
    for path in changed:
        write_text_atomic(path, texts[path])
    return [str(path) for path in changed]


def folded_modules(folder: Path, course: Course = COURSE) -> list[str]:
    """The modules that have at least one fold cell."""
    return [
        module
        for chapter, path in chapter_notebooks(folder, course).items()
        for module, cells in fold_cells(read_notebook(path), path, chapter).items()
        if cells
    ]
