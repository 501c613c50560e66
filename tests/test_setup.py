"""Packaging: what is declared in several places agrees, and the wheel works with nothing but its core dependencies."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from minillm.runs import shipped_folder, shipped_models


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]


def requirement_name(requirement: str) -> str:
    """The distribution's name, as pip compares names."""
    found = re.match(r"[A-Za-z0-9._-]+?(?=[\[<>=!~ ]|$)", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def constraints() -> dict[str, str]:
    """Pinned versions by name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    return {requirement_name(name): version for name, version in pins.items()}


def test_conda_environment_equals_pyproject():
    declared = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, *packages = declared
    assert python == "python" + PROJECT["requires-python"]
    assert pip == "pip"
    assert [name.replace("pytorch", "torch") for name in packages] == CORE + EXTRAS["course"]


def test_constraints_pin_every_direct_dependency_within_its_range():
    from packaging.requirements import Requirement

    pins = constraints()
    wanted = [*CORE, *EXTRAS["course"], *EXTRAS["test"], *EXTRAS["lint"]]
    for requirement in map(Requirement, wanted):
        pin = pins[requirement_name(requirement.name)]
        assert requirement.specifier.contains(pin), (str(requirement), pin)


def test_constraints_are_neutral_between_machines():
    text = (ROOT / "constraints.txt").read_text()
    assert "+" not in text
    assert ";" not in text
    assert "://" not in text
    assert constraints()["torch"] == "2.13.0"


def test_dev_is_all_extras():
    (dev,) = EXTRAS["dev"]
    assert dev == "minillm-course[course,test,lint]"


def test_licence_is_apache_2():
    """The text that the foundation publishes, byte for byte."""
    official = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == official
    assert PROJECT["license"] == "Apache-2.0"


def test_no_package_index_is_named():
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/run", "README.md", ".pre-commit-config.yaml"):
        text = (ROOT / name).read_text()
        assert not re.search(r"index-url|find-links|pypi\.|https?://\S*(simple|whl)", text), name


def test_every_package_is_listed():
    """The list in pyproject.toml is written by hand, because two of its packages lie elsewhere."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "minillm").rglob("*.py")}
    assert {*listed} - {"minillm._models", "minillm._notebooks"} == found


def test_the_small_model_is_small_and_on_record():
    """data/README.md names the sha256 of every file of it."""
    assert shipped_models() == ["nano"]
    folder = shipped_folder("models") / "nano"
    assert {path.name for path in folder.iterdir()} == {"checkpoint.json", "model.safetensors", "tokenizer.json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    lines = [
        f"| `{hashlib.sha256(path.read_bytes()).hexdigest()}` | models/nano/{path.name} |"
        for path in sorted(folder.iterdir())
    ]
    text = (ROOT / "data" / "README.md").read_text()
    assert all(line in text for line in lines), "put these lines into data/README.md:\n" + "\n".join(lines)


def test_make_setup_refuses_an_old_python(tmp_path: Path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or later" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert "make setup PYTHON=python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_second_setup_is_instant(tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".stamp").touch()
    assert subprocess.run(["make", "-q", "setup"], cwd=tmp_path).returncode == 0
    (tmp_path / "constraints.txt").touch()
    os.utime(tmp_path / ".venv" / ".stamp", (2, 2))
    assert subprocess.run(["make", "-q", "setup"], cwd=tmp_path).returncode == 1


BLOCKER = """
import sys


class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)


sys.meta_path[:] = map(Without, sys.meta_path)
import minillm
assert "torch" not in sys.modules, "import minillm is not cheap"
from minillm.cli import main
assert "torch" not in sys.modules, "minillm --help is not quick"
assert not minillm.__file__.startswith(ROOT), minillm.__file__
code = main(ARGUMENTS)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy, so that the checkout stays clean."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("minillm", "data", "notebooks"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), "."]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, without what it depends on."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def core_modules() -> set[str]:
    """Top-level modules of the core dependencies and of what they depend on, without any extra."""
    from importlib.metadata import distribution, packages_distributions

    from packaging.requirements import Requirement

    waiting, found = [requirement_name(name) for name in CORE], set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for requirement in map(Requirement, distribution(name).requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement_name(requirement.name))
    owners = packages_distributions().items()
    return {module for module, names in owners if found & {requirement_name(name) for name in names}}


def run_core_only(installed: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of the installed wheel where nothing but core dependencies can be imported."""
    from importlib.metadata import packages_distributions

    blocked = set(packages_distributions()) - core_modules() - {"minillm"}
    assert {"matplotlib", "pytest", "IPython", "transformers", "yaml"} <= blocked
    code = f"ROOT = {str(ROOT)!r}\nBLOCKED = {blocked!r}\nARGUMENTS = {list(arguments)!r}\n{BLOCKER}"
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )


def test_wheel_holds_models_notebooks_and_licence(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        f"minillm/_models/nano/{name}" for name in ("checkpoint.json", "model.safetensors", "tokenizer.json")
    } < names
    notebooks = {f"minillm/_notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_wheel_generates_with_core_dependencies_only(installed: Path, tmp_path: Path):
    done = run_core_only(installed, tmp_path, "generate", "KING", "--max-new-tokens", "20", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("KING")
    assert len(done.stdout) > 15


def test_wheel_trains_and_says_how_to_get_the_picture(installed: Path, tmp_path: Path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(3):
        (texts / f"{number}.txt").write_text(f"Text {number}. " + "All the world's a stage. " * 200)
    done = run_core_only(installed, tmp_path, "train", "--preset", "tiny", "--corpus", "texts", "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert "No picture of the curves: matplotlib is not installed: pip install 'minillm-course[course]'" in done.stderr
    assert "bits per byte" in done.stdout
    assert not (tmp_path / "runs" / "tiny-1" / "loss.png").exists()


def test_notebooks_are_not_run_with_another_figure_backend():
    """With one, a notebook shows no figures, and each that has some would differ from its outputs."""
    show = ["make", "-s", "--eval", "backend: ; @echo [$$MPLBACKEND]", "backend"]
    done = subprocess.run(show, cwd=ROOT, env={**os.environ, "MPLBACKEND": "Agg"}, capture_output=True, text=True)
    assert done.stdout == "[]\n"
