"""Files and folders that are whole or absent: a kill, an error or a full disk never leaves half of one.

Everything is written under a temporary name beside its destination, pushed to the disk, then renamed. What a kill
leaves behind is called ``.NAME.XXXXXXXX.tmp`` and is never mistaken for the real thing.
"""

import errno
import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


STALE_SECONDS = 3600.0  # a temporary untouched for an hour belongs to nobody who is still writing


class DiskFullError(OSError):
    """There is no room for a file; nothing of it was kept."""

    def __init__(self, path: Path, needed: int | None = None) -> None:
        wanted = f" needs {human_bytes(needed)}," if needed else ""
        with suppress(OSError):
            wanted += f" {human_bytes(shutil.disk_usage(path.parent).free)} are free,"
        super().__init__(f"The disk is full: {path}{wanted} nothing was written. Make room and run it again.")
        self.errno = errno.ENOSPC


def human_bytes(n: int) -> str:
    """A size as a person reads it.

    >>> human_bytes(812), human_bytes(5_416_192)
    ('812 bytes', '5.4 MB')
    """
    if n < 1000:
        return f"{n} bytes"
    size, unit = n / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}"


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; a previous one stays until the new one is on the disk."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; a previous one stays until the new one is on the disk.

    Folders above it are made. Raises DiskFullError (an OSError) when there is no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if _is_disk_full(error):
            raise DiskFullError(path, len(data)) from error
        raise
    _sync_folder(path.parent)


@contextmanager
def new_directory(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Fill a folder under a temporary name; it takes its own name when the block ends well.

    needed is the room it will take in bytes, if known: without so much room nothing is begun. Raises ValueError when
    the folder exists and holds something, DiskFullError when the disk fills up.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists already: remove it or choose another folder.")
    with _filled(path, needed, _move_new) as temporary:
        yield temporary


@contextmanager
def replace_directory(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Like new_directory, but an earlier folder of that name gives way once the new one is complete.

    Folders cannot be exchanged in one step on every system: the old one is moved aside first. After a kill between
    the two moves, restore_directory (which this calls) brings the old one back.
    """
    restore_directory(path)
    with _filled(path, needed, _move_over) as temporary:
        yield temporary


def restore_directory(path: Path) -> None:
    """Bring back what a killed replace_directory had moved aside, or clear it if the new folder is in place."""
    aside = path.with_name(f".{path.name}.old")
    if aside.exists() and not path.exists():
        aside.rename(path)
    elif aside.exists():
        shutil.rmtree(aside)


def remove_directory(path: Path) -> None:
    """Remove a folder; a kill on the way leaves a leftover, never half a folder of that name."""
    doomed = _temporary_name(path)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(path: Path, older_than: float = STALE_SECONDS) -> list[Path]:
    """Remove temporaries of this file or folder that a kill left behind; returns them.

    older_than is in seconds; 0 only where nobody else can be writing the same path.
    """
    removed = []
    for leftover in sorted(path.parent.glob(f".{glob.escape(path.name)}.????????.tmp")):
        try:
            if time.time() - leftover.stat().st_mtime < older_than:
                continue
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except FileNotFoundError:  # its owner has just finished
            continue
        removed.append(leftover)
    return removed


def is_leftover(path: Path) -> bool:
    """True for the name of something unfinished, which whoever lists a folder passes over.

    >>> is_leftover(Path("runs/.step-100.1a2b3c4d.tmp")), is_leftover(Path("runs/step-100"))
    (True, False)
    """
    return path.name.startswith(".") and path.suffix in (".tmp", ".old")


@contextmanager
def _filled(path: Path, needed: int | None, move: Callable[[Path, Path], None]) -> Iterator[Path]:
    """A temporary folder, pushed to the disk and moved to its place if the block ends well, gone if it doesn't."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    if needed is not None and shutil.disk_usage(path.parent).free < needed:
        raise DiskFullError(path, needed)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        move(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _is_disk_full(error):
            raise DiskFullError(path, needed) from error
        raise
    _sync_folder(path.parent)


def _move_new(temporary: Path, path: Path) -> None:
    if path.exists():
        path.rmdir()  # an empty one; Windows doesn't rename over it
    temporary.rename(path)


def _move_over(temporary: Path, path: Path) -> None:
    aside = path.with_name(f".{path.name}.old")
    if path.exists():
        path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        if aside.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _is_disk_full(error: BaseException) -> bool:
    full = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # EDQUOT: the user's share is used up
    return isinstance(error, OSError) and error.errno in full


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("r+b") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets a folder be synced (Windows doesn't)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
