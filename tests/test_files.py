"""Whole or absent: errors, kills and a full disk are provoked for real where the system allows it."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillm.support import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_and_replaced(tmp_path):
    path = tmp_path / "deep" / "notes.txt"
    files.write_text_atomic(path, "first\n")
    files.write_text_atomic(path, "été\n")
    assert path.read_bytes() == "été\n".encode()
    assert names(path.parent) == ["notes.txt"]


def test_sha256_is_hashlibs(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert files.sha256_of(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.DiskFullError, match=rf"The disk is full: {path} needs 1.5 kB, .* are free") as caught:
        files.write_bytes_atomic(path, b"n" * 1500)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state.bin"]


def test_the_old_file_is_never_opened_for_writing(tmp_path, monkeypatch):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)  # the last moment at which a kill may come
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_truly_full_device_is_recognised(tmp_path):
    with pytest.raises(files.DiskFullError, match="The disk is full"), files.new_directory(tmp_path / "run"):
        Path("/dev/full").write_bytes(b"x")
    assert names(tmp_path) == []


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(files.DiskFullError, match=r"needs 1000\.0 TB"), files.new_directory(tmp_path / "run", 10**15):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [files.new_directory, files.replace_directory])
def test_a_folder_appears_only_when_complete(tmp_path, make):
    target = tmp_path / "run"
    with make(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not target.exists()
        assert files.is_leftover(folder)
    assert (target / "sub" / "a.txt").read_text() == "a"
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_nothing(tmp_path, error):
    def write_half():
        with files.new_directory(tmp_path / "run") as folder:
            (folder / "a").write_text("a")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert names(tmp_path) == []


def test_new_directory_refuses_what_exists(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    with files.new_directory(target) as folder:  # empty: nothing to lose
        (folder / "a").write_text("a")
    with (
        pytest.raises(ValueError, match="exists already: remove it or choose another folder"),
        files.new_directory(target),
    ):
        pass
    assert (target / "a").read_text() == "a"


def test_replace_keeps_the_old_folder_until_the_new_one_is_done(tmp_path):
    target = tmp_path / "run"
    for text in ("old", "new"):
        with files.replace_directory(target) as folder:
            (folder / text).write_text(text)
    assert names(target) == ["new"]
    with pytest.raises(RuntimeError), files.replace_directory(target):
        raise RuntimeError
    assert names(target) == ["new"]
    assert names(tmp_path) == ["run"]


def test_a_failed_second_move_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def fail_the_second(self, to):
        if self.suffix == ".tmp":
            raise PermissionError("busy")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_the_second)
    with pytest.raises(PermissionError), files.replace_directory(target):
        pass
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old"]


def test_a_kill_between_the_moves_is_repaired(tmp_path):
    target = tmp_path / "run"
    aside = tmp_path / ".run.old"
    aside.mkdir()
    (aside / "old").write_text("old")
    files.restore_directory(target)
    assert names(target) == ["old"]
    aside.mkdir()
    files.restore_directory(target)
    assert names(tmp_path) == ["run"]


def test_a_kill_leaves_only_a_leftover_that_is_cleared_later(tmp_path):
    program = (
        "import os, sys, signal; from pathlib import Path; from minillm.support.files import new_directory\n"
        "with new_directory(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], cwd=root, check=False)
    assert done.returncode != 0
    (leftover,) = tmp_path.iterdir()
    assert files.is_leftover(leftover)
    assert files.remove_leftovers(tmp_path / "run") == []  # young: its writer might be alive
    hour_ago = time.time() - 2 * files.STALE_SECONDS
    os.utime(leftover, (hour_ago, hour_ago))
    with files.new_directory(tmp_path / "run") as folder:
        (folder / "a").write_text("whole")
    assert names(tmp_path) == ["run"]


def test_files_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    target, synced = tmp_path / "run", []

    def note(descriptor):
        synced.append((os.fstat(descriptor).st_ino, target.exists()))

    monkeypatch.setattr(os, "fsync", note)
    with files.new_directory(target) as folder:
        (folder / "a").write_text("a")
    assert [(target / "a").stat().st_ino, False] in [list(entry) for entry in synced]
    assert synced[-1] == (tmp_path.stat().st_ino, True)
