"""Run minillm's commands on another package: its modules stand in for minillm's wherever those are imported."""

import importlib
import sys
from collections.abc import Sequence

from minillm.course.chapters import module_name


ABOUT_THE_PACKAGE = ("check", "progress")  # these compare the package with minillm, so minillm must stay itself
ABOUT_NOTEBOOKS = ("fold", "workbook")


def run(package: str, course: str, modules: Sequence[str]) -> None:
    """Run the course's command line on a package, and end the program with its exit code."""
    arguments = sys.argv[1:]
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command in ABOUT_THE_PACKAGE:
        if not any(word.split("=")[0] in ("--package", "--workbook") for word in arguments):
            arguments += ["--package", package]
    elif command not in ABOUT_NOTEBOOKS:
        stand_in(package, course, modules)
    sys.exit(importlib.import_module(f"{course}.cli").main(arguments))


def stand_in(package: str, course: str, modules: Sequence[str]) -> None:
    """From now on, importing a chapter module of the course gives the package's module of that name."""
    whole = importlib.import_module(course)
    for module in modules:
        theirs, ours = importlib.import_module(module_name(package, module)), module_name(course, module)
        sys.modules[ours] = theirs
        if ours.count(".") == 1:
            setattr(whole, ours.split(".")[1], theirs)
