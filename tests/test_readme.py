"""What README.md says can be done, is done here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language; ```bash and ```python can run unattended, ```shell can't."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This checkout's minillm on the path, whether or not it is installed."""
    command = tmp_path / "bin" / "minillm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m minillm "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("block", blocks("bash"))
def test_quick_commands_run(block: str, environment: dict[str, str], tmp_path: Path):
    where = ROOT if block.startswith("make ") else tmp_path
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=where, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "generate" in block:
        assert done.stdout.startswith("KING RICHARD.")


def test_python_example_runs(environment: dict[str, str], tmp_path: Path):
    (block,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("KING RICHARD.\n")
    assert len(done.stdout) > 40


def test_make_targets_exist_and_are_described():
    named = set(re.findall(r"`?make ([a-z][a-z-]*)", "\n".join(blocks("shell") + blocks("bash")) + README))
    assert {"lab", "test", "train", "setup", "lint"} <= named & TARGETS
    wrong = {name for name in re.findall(r"`make ([a-z][a-z-]*)", README)} - TARGETS
    assert not wrong
    helped = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True)
    assert {line.split()[1] for line in helped.stdout.splitlines()} == TARGETS


def test_make_alone_shows_the_help():
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True)
    assert "make train" in shown.stdout


def test_commands_and_options_exist(environment: dict[str, str]):
    lines = [line for block in blocks("shell") + blocks("bash") for line in block.splitlines()]
    commands = {line.split()[1] for line in lines if line.startswith("minillm ")}
    assert {"train", "generate"} <= commands
    import typer.main

    from minillm.cli import app

    group = typer.main.get_command(app)
    for line in lines:
        if line.startswith("minillm "):
            options = {name for p in group.commands[line.split()[1]].params for name in p.opts}  # pyright: ignore[reportAttributeAccessIssue]
            assert {word for word in line.split() if word.startswith("--")} <= options


def test_links_and_pictures_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]", README))
    for folder in re.findall(r"^\| `([^`]+/)`", README, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
