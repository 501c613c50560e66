"""Shards and batches against a plain list of ids: what is on disk, what an epoch covers, where documents end."""

import errno
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm.packing import (
    IGNORED,
    Batches,
    TokenShards,
    document_rows,
    epoch_starts,
    gather,
    held_out_batches,
    packed_rows,
    write_shards,
)


def write(tmp_path: Path, lengths: list[int], **options) -> TokenShards:
    """Documents of these lengths. Every token's id is its place in the stream, so a batch shows where it came from."""
    ends = np.cumsum([0, *lengths]).tolist()
    documents = [list(range(a, b)) for a, b in zip(ends, ends[1:], strict=False)]
    return write_shards(documents, tmp_path / "tokens", vocab_size=max(ends[-1], 1), **options)


def test_what_is_written_is_read(tmp_path):
    documents = [[5, 1, 65_535], [], [7], list(range(20))]
    write_shards(iter(documents), tmp_path / "t", vocab_size=65_536, n_bytes=99, shard_tokens=4)
    tokens = TokenShards.open(tmp_path / "t")
    assert [tokens.document(i).tolist() for i in range(tokens.n_documents)] == documents
    assert (tokens.n_tokens, tokens.n_documents, tokens.n_bytes, tokens.vocab_size) == (24, 4, 99, 65_536)
    raw = b"".join(path.read_bytes() for path in sorted((tmp_path / "t").glob("shard-*.bin")))
    assert np.frombuffer(raw, "<u2").tolist() == [id for ids in documents for id in ids]
    sizes = [path.stat().st_size for path in sorted((tmp_path / "t").glob("shard-*.bin"))]
    assert sizes == [8] * 6


def test_large_vocabularies_take_four_bytes(tmp_path):
    ids = [0, 65_536, 128_255]
    tokens = write_shards([ids], tmp_path / "t", vocab_size=128_256)
    assert (tmp_path / "t" / "shard-00000.bin").read_bytes() == np.array(ids, "<u4").tobytes()
    assert tokens.document(0).tolist() == ids


@pytest.mark.parametrize("make", [tuple, np.array, lambda ids: np.array(ids, np.uint16)])
def test_documents_may_be_arrays(tmp_path, make):
    tokens = write_shards([make([1, 2, 3])], tmp_path / "t", vocab_size=10)
    assert tokens.document(0).tolist() == [1, 2, 3]


def test_shards_are_mapped_not_loaded_and_cannot_be_written_to(tmp_path):
    tokens = write(tmp_path, [10])
    assert isinstance(tokens.shards[0].base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens.shards[0][0] = 1


def test_the_hash_tells_streams_apart_whatever_the_shards(tmp_path):
    one = write_shards([[1, 2, 3, 4]], tmp_path / "a", 9)
    same = write_shards([[1, 2], [3, 4]], tmp_path / "b", 9, shard_tokens=3)
    other = write_shards([[1, 2, 3, 5]], tmp_path / "c", 9)
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize("shard_tokens", [7, 1000])
def test_gather_reads_across_shards(tmp_path, shard_tokens):
    tokens = write(tmp_path, [50, 50], shard_tokens=shard_tokens)
    places = np.random.default_rng(0).integers(0, 100, (3, 9))
    np.testing.assert_array_equal(gather(tokens, places), places)


@pytest.mark.parametrize("shard_tokens", [5, 2**24])
@pytest.mark.parametrize(("n", "seq_len"), [(96, 8), (101, 8), (97, 8), (33, 32)])
def test_an_epoch_has_each_token_as_a_target_once(tmp_path, n, seq_len, shard_tokens):
    tokens = write(tmp_path, [n], shard_tokens=shard_tokens)
    n_windows = n // seq_len
    batches = Batches(tokens, 1, seq_len, seed=3)
    left_out = []
    for _ in range(4):
        seen = Counter(t for _, targets in islice(batches, n_windows) for t in targets.flatten().tolist())
        assert set(seen.values()) == {1}
        assert len(seen) == n_windows * seq_len
        left_out.append(frozenset(range(n)) - set(seen))
    assert {len(some) for some in left_out} == {n % seq_len}
    if n % seq_len:
        assert len(set(left_out)) > 1  # no token is left out for ever


def test_targets_are_the_next_tokens(tmp_path):
    tokens = write(tmp_path, [40, 60], shard_tokens=9)
    for inputs, targets in islice(Batches(tokens, 4, 5), 50):
        assert inputs.shape == targets.shape == (4, 5)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, (inputs + 1) % 100)
        assert inputs.is_contiguous()
        assert targets.is_contiguous()


def test_epochs_differ_in_order_and_in_phase():
    first, second = epoch_starts(1000, 10, 0, 0), epoch_starts(1000, 10, 0, 1)
    assert first.tolist() != second.tolist()
    assert {int(start) % 10 for start in first} != {int(start) % 10 for start in second}
    steps = np.diff(first) % 1000
    assert len(set(steps.tolist())) > 50  # in reading order there would be one step, 10


def test_every_window_has_its_chance(tmp_path):
    """Over many epochs a row begins at every token of the stream: no border of windows is fixed."""
    starts = {int(start) for epoch in range(200) for start in epoch_starts(40, 8, 0, epoch)}
    assert starts == set(range(40))


def test_a_seed_decides_everything(tmp_path):
    tokens = write(tmp_path, [200])
    runs = [[inputs.tolist() for inputs, _ in islice(Batches(tokens, 2, 8, seed), 30)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("read", [packed_rows, document_rows])
@pytest.mark.parametrize("skipped", [0, 1, 5, 6, 7, 40])
def test_skipping_equals_drawing(tmp_path, skipped, read):
    tokens = write(tmp_path, [90, 60, 53])
    drawn = Batches(tokens, 4, 8, seed=5, read=read)
    list(islice(drawn, skipped))
    jumped = Batches(tokens, 4, 8, seed=5, read=read).skip(skipped)
    assert jumped.drawn == drawn.drawn == skipped
    for a, b in islice(zip(drawn, jumped, strict=True), 10):
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def naive_document_row(owner: list[tuple[int, int]], start: int, seq_len: int) -> tuple[list[int], list[int]]:
    """Targets and positions by walking token by token; owner is (document, place in it) of each token of the ring."""
    n, targets, positions = len(owner), [], []
    position = 0
    for t in range(seq_len):
        here, following = (start + t) % n, (start + t + 1) % n
        position = 0 if t == 0 or owner[here][1] == 0 else position + 1
        positions.append(position)
        targets.append(IGNORED if owner[following][1] == 0 else following)
    return targets, positions


@pytest.mark.parametrize("lengths", [[3, 1, 1, 8, 20, 2], [35], [0, 10, 0, 0, 25, 0]])
def test_documents_are_told_apart(tmp_path, lengths):
    tokens = write(tmp_path, lengths, shard_tokens=6)
    owner = [(d, i) for d, length in enumerate(lengths) for i in range(length)]
    starts = np.arange(35)
    inputs, targets, positions = document_rows(tokens, starts, 12)
    assert inputs.tolist() == [[(s + t) % 35 for t in range(12)] for s in range(35)]
    expected = [naive_document_row(owner, int(s), 12) for s in starts]
    assert targets.tolist() == [row[0] for row in expected]
    assert positions.tolist() == [row[1] for row in expected]


def test_documents_by_hand(tmp_path):
    tokens = write_shards([[10, 11, 12], [20, 21], [30, 31, 32, 33]], tmp_path / "t", 50)
    inputs, targets, positions = document_rows(tokens, np.array([1, 6]), 5)
    assert inputs.tolist() == [[11, 12, 20, 21, 30], [31, 32, 33, 10, 11]]
    assert targets.tolist() == [[12, IGNORED, 21, IGNORED, 31], [32, 33, IGNORED, 11, 12]]
    assert positions.tolist() == [[0, 1, 0, 1, 0], [0, 1, 2, 0, 1]]


@pytest.mark.parametrize(("n", "batch_size", "seq_len"), [(100, 4, 8), (96, 4, 8), (3, 4, 8), (1, 1, 1), (33, 1, 32)])
def test_held_out_text_is_predicted_once_and_in_order(tmp_path, n, batch_size, seq_len):
    tokens = write(tmp_path, [n], shard_tokens=10)
    batches = held_out_batches(tokens, batch_size, seq_len)
    for _ in range(2):  # it can be read again
        rows = list(batches)
        assert len(rows) == len(batches)
        pairs = [(i, t) for x, y in rows for i, t in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]
        predicted = [(i, t) for i, t in pairs if t != IGNORED]
        assert predicted == [((t - 1) % n, t) for t in range(n)]
        assert all(x.shape == y.shape and x.shape[0] <= batch_size and x.shape[1] == seq_len for x, y in rows)


def test_held_out_documents_are_told_apart_too(tmp_path):
    tokens = write(tmp_path, [5, 6])
    ((_, targets, positions),) = held_out_batches(tokens, 8, 4, read=document_rows)
    assert targets.tolist() == [[IGNORED, 1, 2, 3], [4, IGNORED, 6, 7], [8, 9, 10, IGNORED]]
    assert positions.tolist() == [[0, 0, 1, 2], [0, 1, 0, 1], [0, 1, 2, 3]]


def test_too_little_text_is_said_with_the_numbers(tmp_path):
    tokens = write(tmp_path, [128])
    message = "holds 128 tokens, but a batch of 16 x 8 reads 129: take a smaller batch, shorter rows or more text"
    with pytest.raises(ValueError, match=message):
        Batches(tokens, 16, 8)
    next(Batches(tokens, 15, 8))
    with pytest.raises(ValueError, match="A batch of 0 rows of 8 tokens is empty"):
        Batches(tokens, 0, 8)
    with pytest.raises(ValueError, match="Batches can't go back: skip was given -1"):
        Batches(tokens, 1, 8).skip(-1)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[1], [2, 10]], "Document 1 holds the id 10, outside a vocabulary of 10"),
        ([[-1]], "Document 0 holds the id -1, outside a vocabulary of 10"),
        ([[], []], "There is nothing to pack: 2 documents hold no tokens"),
        ([], "There is nothing to pack: 0 documents hold no tokens"),
    ],
)
def test_wrong_documents_leave_nothing_behind(tmp_path, documents, message):
    with pytest.raises(ValueError, match=message):
        write_shards(documents, tmp_path / "t", 10)
    assert list(tmp_path.iterdir()) == []


def test_shards_give_way_to_new_ones_but_other_files_do_not(tmp_path):
    write(tmp_path, [100], shard_tokens=10)
    tokens = write(tmp_path, [7])
    assert (tokens.n_tokens, len(list(tokens.directory.iterdir()))) == (7, 3)
    mine = tmp_path / "notes"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear")
    with pytest.raises(
        ValueError, match="notes holds other files, which would be lost: choose a new or an empty folder"
    ):
        write_shards([[1]], mine, 10)
    assert (mine / "diary.txt").read_text() == "dear"


def test_a_full_disk_keeps_the_shards_of_before(tmp_path, monkeypatch):
    write(tmp_path, [7])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="The disk is full"):
        write(tmp_path, [9])
    assert TokenShards.open(tmp_path / "tokens").n_tokens == 7
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def cut(folder):
    with (folder / "shard-00001.bin").open("r+b") as file:
        file.truncate(3)


def change(**fields):
    def edit(folder):
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(index | fields))

    return edit


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "shard-00001.bin has 3 bytes, not 20: write the tokens again with write_shards"),
        (lambda f: (f / "shard-00001.bin").write_bytes(bytes(22)), "shard-00001.bin has 22 bytes, not 20: write"),
        (lambda f: (f / "starts.bin").write_bytes(np.array([1, 10, 20], "<i8").tobytes()), "starts.bin doesn't fit"),
        (lambda f: (f / "shard-00001.bin").unlink(), "shard-00001.bin has 0 bytes, not 20: write"),
        (lambda f: (f / "index.json").unlink(), r"index.json can't be read \(No such file or directory\): write"),
        (
            lambda f: (f / "index.json").write_text("{"),
            "index.json is not an index of minillm-tokens, version 1: write",
        ),
        (lambda f: (f / "index.json").write_text("[1]"), "is not an index of minillm-tokens"),
        (lambda f: (f / "index.json").write_bytes(b"\xff\xfe\0"), "is not an index of minillm-tokens"),
        (change(version=2), "is not an index of minillm-tokens, version 1"),
        (change(n_tokens=-1), "is not an index of minillm-tokens"),
        (change(n_tokens=0), "starts.bin doesn't fit 0 tokens"),
        (change(n_tokens=21), "shard-00002.bin has 0 bytes, not 2: write"),
        (change(shard_tokens=0), "is not an index of minillm-tokens"),
        (change(vocab_size=100_000), "shard-00000.bin has 20 bytes, not 40: write"),
        (lambda f: (f / "starts.bin").unlink(), "starts.bin doesn't fit 20 tokens: write"),
        (lambda f: (f / "starts.bin").write_bytes(bytes(24)), "starts.bin doesn't fit 20 tokens"),
        (lambda f: (f / "starts.bin").write_bytes(np.array([0, 30, 20], "<i8").tobytes()), "starts.bin doesn't fit"),
    ],
)
def test_damage_is_named_with_the_way_out(tmp_path, harm, message):
    folder = write(tmp_path, [10, 10], shard_tokens=10).directory
    harm(folder)
    with pytest.raises(ValueError, match=message) as caught:
        TokenShards.open(folder)
    assert re.search(r"\n", str(caught.value)) is None
    assert str(folder) in str(caught.value)


def test_reading_a_batch_is_not_linear_in_the_stream(tmp_path):
    """Skipping a million batches takes no longer than skipping one: no batch in between is drawn."""
    tokens = write(tmp_path, [1000])
    reads = []

    def read(some, starts, seq_len):
        reads.append(starts)
        return packed_rows(some, starts, seq_len)

    next(Batches(tokens, 2, 8, read=read).skip(1_000_000))
    assert len(reads) == 1
