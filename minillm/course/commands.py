"""The course's commands: fold, workbook, check and progress."""

from pathlib import Path
from typing import Annotated

import typer

from minillm.course.chapters import COURSE, notebooks_directory
from minillm.course.notebooks import chapter_notebooks, find_notebooks, holds_workbook


Notebooks = Annotated[
    Path | None,
    typer.Option(help="The folder of notebooks.", show_default="this folder, its notebooks/, or the course's own"),
]
Force = Annotated[bool, typer.Option(help="Replace what exists; the old file is kept as .bak.")]


def register(app: typer.Typer) -> None:
    """Add the course's commands to a command line."""
    app.command("fold")(fold_command)
    app.command("workbook")(workbook_command)
    app.command("check")(check_command)
    app.command("progress")(progress_command)


def fold_command(
    check: Annotated[bool, typer.Option(help="Only compare notebooks and package.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="Make a package from the notebooks: yours, or minillm in a checkout.")
    ] = None,
    notebooks: Notebooks = None,
    force: Force = False,
) -> None:
    """Write the package's text into the notebooks; with --to, make a package from the notebooks."""
    from minillm.course.fold import check_fold, write_notebooks

    folder = find_notebooks(notebooks)
    if check and to is not None:
        raise typer.BadParameter("give either --check or --to")
    if to is not None:
        _fold_to(folder, to, force)
        return
    if not check:
        if holds_workbook(folder):
            raise ValueError(
                f"{folder.resolve()} is a workbook: nothing was written over what may be yours. "
                "`minillm fold --to mymini` makes a package of it."
            )
        if folder.resolve() == COURSE.package / "_notebooks":
            raise ValueError(f"{folder} belongs to the installed package: fold in a checkout of the repository.")
        print("\n".join(write_notebooks(folder)) or f"{folder.resolve()} and {COURSE.package} are the same already.")
        return
    problems = check_fold(folder)
    if problems:
        print("\n\n".join(problems))
        raise typer.Exit(1)
    missing = len(COURSE.still_to_come)
    rest = f" ({missing} of {len(COURSE.modules)} modules are still to come)" if missing else ""
    print(f"{folder.resolve()} and {COURSE.package} are the same, byte for byte{rest}.")


def _fold_to(folder: Path, to: Path, force: bool) -> None:
    """Write modules into the checkout's package, or make the reader's own."""
    from minillm.course.borrow import make_package
    from minillm.course.fold import rebuild

    if to.resolve() == COURSE.package:
        changed = rebuild(folder)
        print("\n".join(f"wrote {path}" for path in changed) or f"{to} is the same already.")
        return
    made = make_package(folder, to, force=force)
    for module in made.modules:
        for part in module.parts:
            if part.reason is not None:
                print(f"{module.name}: {', '.join(part.names)} is borrowed ({part.reason})")
        if module.reason is not None:
            print(f"{module.name} is borrowed ({module.reason})")
    _say_kept(made.kept, "you changed it since it was made")
    _say_backups(made.backups)
    own = [part.reason is None for module in made.modules for part in module.parts if part.yours]
    print(f"{to}: {sum(own)} of {len(own)} parts to write are yours. Try it: python -m {to.name} generate")


def workbook_command(
    to: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write it to.")],
    notebooks: Notebooks = None,
    force: Force = False,
) -> None:
    """Make the workbook: the notebooks with holes to fill, hints and solutions folded below."""
    from minillm.course.workbook import make_workbook

    source = notebooks or notebooks_directory()
    if not chapter_notebooks(source):
        raise ValueError(f"{source} holds no chapter's notebook.")
    done = make_workbook(source, to, force=force)
    _say_kept(done.kept, "it exists")
    _say_backups(done.backups)
    print(f"{to}: {len(done.written)} notebooks. Begin with: jupyter lab {to}")


def check_command(
    chapter: Annotated[str | None, typer.Argument(help="One chapter, such as attention.", show_default="all")] = None,
    package: Annotated[
        str | None, typer.Option(help="The package to check.", show_default="the one made here, else minillm")
    ] = None,
) -> None:
    """Run the checks on a package; the exit code is 1 unless all of it is right and your own."""
    from minillm.course.progress import package_rows

    rows = package_rows(package or _own_package() or COURSE.name, chapter)
    for part in rows:
        print(f"{part.chapter.slug}: {part}")
    right = sum(row.reason is None for row in rows)
    print(f"{right} of {len(rows)} are right." if rows else "There are no checks yet.")
    if right < len(rows):
        raise typer.Exit(1)


def progress_command(
    package: Annotated[str | None, typer.Option(help="A package of yours.")] = None,
    workbook: Annotated[Path | None, typer.Option(help="A workbook's folder.")] = None,
) -> None:
    """Show which parts are yours; of the workbook or the package in this folder unless told otherwise."""
    from minillm.course.progress import package_rows, table, workbook_rows

    if package is not None and workbook is not None:
        raise typer.BadParameter("give either --package or --workbook")
    if package is None and workbook is None:
        workbook = Path.cwd() if holds_workbook(Path.cwd()) else None
        package = _own_package()
    if workbook is not None:
        rows = workbook_rows(find_notebooks(workbook))
    elif package is not None:
        rows = package_rows(package)
    else:
        raise ValueError(f"There is no workbook in {Path.cwd()}: `minillm workbook DIR` makes one.")
    print(table(rows))
    print(f"{sum(row.reason is None for row in rows)} of {len(rows)} parts are yours.")


def _own_package() -> str | None:
    """The package that was made in the working directory, if it is the only one."""
    from minillm.course.borrow import RECORD

    made = sorted(Path.cwd().glob(f"*/{RECORD}"))
    return str(made[0].parent) if len(made) == 1 else None


def _say_kept(paths: list[Path], why: str) -> None:
    for path in paths:
        print(f"kept {path}: {why} (--force replaces it and keeps a copy)")


def _say_backups(paths: list[Path]) -> None:
    for path in paths:
        print(f"the old one is kept as {path}")
