"""The reader's own package: what they wrote and is right, the rest borrowed from minillm and marked so.

It works at any time: `python -m mymini train` trains with the reader's parts and, where there are none yet, with ours.
"""

import hashlib
import json
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from minillm.course.chapters import COURSE, Course, module_file
from minillm.course.judge import Module, judge
from minillm.course.source import BETWEEN, rewrite_imports
from minillm.course.workbook import back_up
from minillm.support.files import sha256_of, write_text_atomic


RECORD = ".minillm.json"  # the hash of every file as it was written, so that a change by the reader is seen
MARK = "# borrowed from {course}: {what} ({why})"
WHOLE = "the whole module"

INIT = '''"""My own language model: what I wrote in the workbook, the rest borrowed from {course}."""
'''
MAIN = '''"""The commands of {course}, run on this package: python -m {name} train."""

from {runner} import run


MODULES = (
{modules}
)

if __name__ == "__main__":
    run("{name}", "{course}", MODULES)
'''


@dataclass
class Made:
    """A package: its modules, the files written, those the reader has changed since, and backups of replaced ones."""

    modules: list[Module]
    written: list[Path]
    kept: list[Path]
    backups: list[Path]


def make_package(folder: Path, target: Path, course: Course = COURSE, force: bool = False) -> Made:
    """Make a package from a workbook; a file that the reader changed is kept, or with force moved to a backup.

    Raises ValueError for a name that cannot be imported, or a folder that holds something else.
    """
    record = _door(target, course, force)
    made = Made(judge(folder, course), [], [], [])
    for name, text in _files(made.modules, target.name, course).items():
        path, digest = target / name, hashlib.sha256(text.encode("utf-8")).hexdigest()
        if path.exists() and sha256_of(path) not in (digest, record.get(name)):
            if not force:
                made.kept.append(path)
                continue
            made.backups.append(back_up(path))
        if record.get(name) != digest or not path.exists():
            write_text_atomic(path, text)
            made.written.append(path)
        record[name] = digest
    write_text_atomic(target / RECORD, json.dumps({"made by": course.name, "files": record}, indent=1) + "\n")
    return made


def _door(target: Path, course: Course, force: bool) -> dict[str, str]:
    """Refuse a target that would do harm; the hashes of an earlier fold."""
    name = target.name
    if not name.isidentifier() or keyword.iskeyword(name) or name in sys.stdlib_module_names or name == course.name:
        raise ValueError(f"{name!r} cannot be the name of your package; choose one such as mymini.")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; name a folder for your package.")
    try:
        return dict(json.loads((target / RECORD).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        if target.exists() and any(target.iterdir()) and not force:
            raise ValueError(
                f"{target} holds something that `{course.name} fold` did not make: name another folder, or add --force "
                "(what it replaces is kept as .bak)."
            ) from None
    except (ValueError, KeyError, TypeError):
        pass  # without the record every file counts as the reader's
    return {}


def _files(modules: list[Module], name: str, course: Course) -> dict[str, str]:
    """The text of every file of the package."""
    order = [module.name for module in modules]
    files = {module_file(module.name): package_text(module, name, order, course) for module in modules}
    for module in order:
        for parent in list(Path(module_file(module)).parents)[:-1]:
            files.setdefault(f"{parent.as_posix()}/__init__.py", "")
    files["__init__.py"] = INIT.format(course=course.name)
    listed = "\n".join(f'    "{module}",' for module in order)
    runner = f"{__name__.split('.')[0]}.course.stand_in"
    files["__main__.py"] = MAIN.format(course=course.name, name=name, runner=runner, modules=listed)
    return files


def package_text(module: Module, name: str, order: list[str], course: Course = COURSE) -> str:
    """A module of the reader's package: marks above what is borrowed, imports within the package."""
    if module.reason is not None:
        text = MARK.format(course=course.name, what=WHOLE, why=module.reason) + "\n" + module.parts[0].text
        return rewrite_imports(text, order, course.name, name) + "\n"
    pieces = []
    for part in module.parts:
        pieces += part.helpers
        mark = (
            MARK.format(course=course.name, what=", ".join(part.names), why=part.reason) + "\n" if part.reason else ""
        )
        pieces.append(mark + part.text)
    pieces[0] = "\n".join([pieces[0], *module.imports])
    return rewrite_imports(BETWEEN.join(pieces), order, course.name, name) + "\n"


def borrowed(text: str, course: Course = COURSE) -> dict[str, str]:
    """What a module's marks say: the borrowed names with the reasons.

    >>> borrowed("# borrowed from minillm: attend (failed its check: wrong (twice))")
    {'attend': 'failed its check: wrong (twice)'}
    """
    pattern = re.escape(MARK.format(course=course.name, what="\0", why="\1"))
    pattern = pattern.replace("\0", r"(.+?)").replace("\1", r"(.*)")
    marks = re.findall(f"^{pattern}$", text, re.MULTILINE)
    return {name: why for what, why in marks for name in what.split(", ")}
