"""Which parts of a workbook are the reader's own, and why the others are not."""

import ast
import re
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from minillm.course.chapters import COURSE, Chapter, Course, module_name
from minillm.course.checks.harness import NOT_WRITTEN, parts_of, run_part
from minillm.course.limits import run_limited
from minillm.course.notebooks import Cell, NotebookError, fold_cells, read_notebook
from minillm.course.source import Segment, is_stub, names_in, segments, split_chunks


SECONDS = 10.0
MAGIC = re.compile(r"^[%!].*$", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A piece of a module as the reader's package has it: their own text, or ours with the reason why."""

    names: tuple[str, ...]
    text: str
    yours: bool = False
    reason: str | None = None
    helpers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Module:
    """A chapter module taken from a workbook; `reason` says why all of it is borrowed."""

    chapter: Chapter
    name: str
    parts: list[Part]
    imports: tuple[str, ...] = ()
    reason: str | None = None


@dataclass
class Written:
    """What the fold cells of a module hold: definitions by name, their own helpers and imports, and what is broken."""

    chunks: set[str] = field(default_factory=set)
    found: dict[str, Segment] = field(default_factory=dict)
    helpers: dict[str, list[Segment]] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    yours: set[str] = field(default_factory=set)


def judge(folder: Path, course: Course = COURSE) -> list[Module]:
    """Every chapter module as a workbook gives it; a chapter that cannot be read is borrowed whole, with the reason."""
    modules = []
    for chapter in course.chapters:
        path, reason, cells = folder / chapter.notebook, None, {}
        try:
            cells = fold_cells(read_notebook(path), path, chapter)
        except FileNotFoundError:
            reason = f"{path.name} is not here"
        except NotebookError as error:
            reason = " ".join(str(error).split())
        for name in chapter.modules:
            if not course.file(name).is_file():
                continue
            if cells.get(name):
                modules.append(judge_module(cells[name], chapter, name, course))
                continue
            text = course.file(name).read_text(encoding="utf-8").removesuffix("\n")
            why = reason or f"no cell of {path.name} is tagged fold:{name}"
            modules.append(Module(chapter, name, [Part((), text)], reason=why))
    return modules


def judge_module(cells: list[Cell], chapter: Chapter, name: str, course: Course = COURSE) -> Module:
    """Go through our module piece by piece and take the reader's version of each if it is right."""
    chunks = split_chunks(course.file(name).read_text(encoding="utf-8").removesuffix("\n"))
    written = _read(cells, {known for chunk in chunks for known in names_in(chunk)})
    namespace = dict(vars(import_module(module_name(course.name, name))))
    head = chunks[0].split("\n")
    imports = tuple(text for text in written.imports if text not in head and _execute(text, 0, namespace) is None)
    parts = [Part(names_in(chunks[0]), chunks[0])]
    for chunk in chunks[1:]:
        names = names_in(chunk)
        helpers = [
            segment
            for known in names
            for segment in written.helpers.get(known, [])
            if _execute(segment.text, segment.start, namespace) is None
        ]
        text, reason = chunk, None
        if chunk not in written.chunks:
            reason = _why_not(names, written, namespace, chapter, course)
            if reason is None:
                text = "\n".join(written.found[known].text for known in names)
        yours = bool(written.yours & set(names))
        parts.append(Part(names, text, yours, reason, tuple(segment.text for segment in helpers)))
    return Module(chapter, name, parts, imports)


def _read(cells: list[Cell], known: set[str]) -> Written:
    written, waiting, last = Written(), [], None
    for cell in cells:
        source = MAGIC.sub("", cell.source)
        names = known & set(names_in(source))
        written.yours |= names if cell.yours else set()
        try:
            pieces = segments(source)
        except SyntaxError as error:
            written.broken |= dict.fromkeys(names, f"cell {cell.number}, line {error.lineno}: {error.msg}")
            continue
        written.chunks |= set(split_chunks(cell.source)) if source == cell.source else set()
        for piece in pieces:
            if ours := [name for name in piece.names if name in known]:
                written.found |= dict.fromkeys(ours, piece)
                written.helpers.setdefault(ours[0], []).extend(waiting)
                waiting, last = [], ours[0]
            elif issubclass(piece.kind, ast.Import | ast.ImportFrom):
                written.imports += [piece.text] if ".course" not in piece.text else []
            elif not issubclass(piece.kind, ast.Expr | ast.Assert):  # a call or a test is not part of a module
                waiting.append(piece)
    if waiting and last is not None:
        written.helpers[last].extend(waiting)
    return written


def _why_not(
    names: tuple[str, ...], written: Written, namespace: dict[str, Any], chapter: Chapter, course: Course
) -> str | None:
    """Why the reader's version of a piece is not taken, or None if it is right."""
    for name in names:
        if name in written.broken:
            return f"not Python yet: {written.broken[name]}"
        if name not in written.found:
            return "not found in the notebook"
        if is_stub(written.found[name].text):
            return NOT_WRITTEN
    own = dict(namespace)
    for name in names:
        piece = written.found[name]
        if (error := _execute(piece.text, piece.start, own)) is not None:
            return f"does not run: {type(error).__name__}: {' '.join(str(error).split())}"
    for name in names:
        if name in parts_of(chapter, course):
            result = run_part(own[name], chapter, name, course)
            if not result.right:
                return f"failed its check: {result.mistake}"
    return None if names else "not found in the notebook"


def _execute(text: str, start: int, namespace: dict[str, Any]) -> BaseException | None:
    """Run a definition; what it raised. Its lines are numbered as in its cell."""
    code = compile("\n" * start + text, "<your cell>", "exec")
    return run_limited(partial(exec, code, namespace), SECONDS)
