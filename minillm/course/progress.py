"""How far the reader is: the parts of a workbook or of a package that are theirs, and what is wrong with the others."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.course.borrow import WHOLE, borrowed
from minillm.course.chapters import COURSE, Chapter, Course, module_name
from minillm.course.checks.harness import parts_of, run_part
from minillm.course.judge import judge


@dataclass(frozen=True)
class Row:
    """A part that the reader writes; no reason means that it is theirs and right."""

    chapter: Chapter
    part: str
    reason: str | None = None

    def __str__(self) -> str:
        """One line for the reader."""
        return f"{self.part}: {self.reason or 'right'}"


def workbook_rows(folder: Path, course: Course = COURSE) -> list[Row]:
    """The parts that a workbook's reader writes, in order."""
    rows = []
    for module in judge(folder, course):
        if module.reason is not None and (folder / module.chapter.notebook).exists():
            rows += [Row(module.chapter, part, module.reason) for part in parts_of(module.chapter, course)]
        rows += [Row(module.chapter, name, part.reason) for part in module.parts if part.yours for name in part.names]
    return rows


def package_rows(package: str, slug: str | None = None, course: Course = COURSE) -> list[Row]:
    """Run the checks of one chapter, or of all, on a package; what it borrows counts as not theirs.

    ValueError for a package that is not there, or a chapter that has no check.
    """
    name = _importable(package)
    slugs = [chapter.slug for chapter in course.chapters if parts_of(chapter, course)]
    if slug is not None and slug not in slugs:
        raise ValueError(f"There is no check of a chapter {slug!r}; there is one of {', '.join(slugs) or 'none yet'}.")
    rows = []
    for chapter in course.chapters:
        if slug in (None, chapter.slug):
            rows += _chapter_rows(name, chapter, course)
    return rows


def _chapter_rows(package: str, chapter: Chapter, course: Course) -> list[Row]:
    marks: dict[str, str] = {}
    found: dict[str, Any] = {}
    failed = None
    parts = parts_of(chapter, course)
    for module in chapter.modules if parts else ():
        try:
            loaded = importlib.import_module(module_name(package, module))
        except Exception as error:  # it is the reader's: whatever is wrong in it is for them to read
            failed = f"{module_name(package, module)} cannot be imported: {type(error).__name__}: {error}"
            continue
        found = {**vars(loaded), **found}
        if loaded.__file__ is not None and package != course.name:
            marks |= borrowed(Path(loaded.__file__).read_text(encoding="utf-8"), course)
    rows = []
    for part in parts:
        if part in marks or WHOLE in marks:
            rows.append(Row(chapter, part, f"borrowed: {marks.get(part, marks.get(WHOLE))}"))
        elif part not in found:
            rows.append(Row(chapter, part, failed or f"{package} has no {part}"))
        else:
            rows.append(Row(chapter, part, run_part(found[part], chapter, part, course).mistake))
    return rows


def _importable(package: str) -> str:
    """The name of a package given by its name or its folder, which can be imported from now on."""
    path = Path(package)
    parent = str(path.parent.resolve())
    if parent not in sys.path:
        sys.path.insert(0, parent)
    importlib.invalidate_caches()
    if not path.name.isidentifier() or importlib.util.find_spec(path.name) is None:
        raise ValueError(f"There is no package {package} here; `minillm fold --to mymini` in your workbook makes one.")
    return path.name


def table(rows: Sequence[Row]) -> str:
    """A line a chapter: how many parts are theirs, and what comes next."""
    lines = [("chapter", "yours", "next")]
    for chapter in dict.fromkeys(row.chapter for row in rows):
        own = [row for row in rows if row.chapter == chapter]
        right = sum(row.reason is None for row in own)
        following = next((str(row) for row in own if row.reason is not None), "")
        lines.append((f"{chapter.number:02} {chapter.slug}", f"{right} of {len(own)}", following))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)
