"""From token ids to batches: shards on disk, one long stream of documents, windows of it in a new order every epoch.

Text is encoded once and kept in memory-mapped files, so that a corpus may be larger than memory and a batch costs
microseconds. All documents stand one behind another in a single stream, and a row is a window of it: no padding. The
stream is a ring, its end joined to its beginning, so that every epoch has as many windows, wherever it starts to cut.

Chapter: packing.

Sources: windows packed with documents and an end-of-text token between them, Brown et al. 2020 (arXiv:2005.14165),
appendix B; attention kept inside each document, Grattafiori et al. 2024 (arXiv:2407.21783), section 3.2.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from minillm.support.files import replace_directory


FORMAT, VERSION = "minillm-tokens", 1
IGNORED = -100  # a target that no loss counts: the number that PyTorch's cross-entropy ignores
SHARD_TOKENS = 2**24  # 32 MB of uint16


@dataclass(frozen=True)
class TokenShards:
    """A stream of tokens on disk. Document i is its tokens starts[i] to starts[i + 1]; n_bytes is the text's length."""

    directory: Path
    shards: list[np.ndarray]
    shard_tokens: int
    starts: Int64[np.ndarray, "documents_and_end"]
    vocab_size: int
    n_bytes: int  # UTF-8 bytes of all the text behind the tokens, for bits per byte; 0 where unknown
    sha256: str  # of the stream: it tells whether a resumed run reads the same data

    @classmethod
    def open(cls, directory: Path) -> "TokenShards":
        """Map a folder that write_shards made; ValueError if a part is missing, cut short or something else."""
        return open_shards(directory)

    @property
    def n_tokens(self) -> int:
        """Length of the stream."""
        return int(self.starts[-1])

    @property
    def n_documents(self) -> int:
        """How many documents the stream holds."""
        return len(self.starts) - 1

    def document(self, i: int) -> Int64[np.ndarray, "n"]:
        """The tokens of document i."""
        return gather(self, np.arange(self.starts[i], self.starts[i + 1]))


def token_dtype(vocab_size: int) -> str:
    """The smallest little-endian integer type that holds every id.

    >>> token_dtype(50_257), token_dtype(128_256)
    ('<u2', '<u4')
    """
    return "<u2" if vocab_size <= 2**16 else "<u4"


def token_array(document: Sequence[int] | np.ndarray, number: int, vocab_size: int) -> np.ndarray:
    """One document's ids, checked and made small; number names the document in the error."""
    ids = np.asarray(document, np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"Document {number} holds the id {wrong}, outside a vocabulary of {vocab_size}.")
    return ids.astype(token_dtype(vocab_size))


def cut_shards(documents: Iterable[np.ndarray], shard_tokens: int, starts: list[int]) -> Iterator[np.ndarray]:
    """Join documents and cut the stream every shard_tokens; notes in starts where each document ends."""
    pending, n_pending = [], 0
    for ids in documents:
        starts.append(starts[-1] + len(ids))
        pending.append(ids)
        n_pending += len(ids)
        if n_pending >= shard_tokens:
            joined = np.concatenate(pending)
            whole = n_pending - n_pending % shard_tokens
            yield from np.split(joined[:whole], whole // shard_tokens)
            pending, n_pending = [joined[whole:]], n_pending - whole
    if n_pending:
        yield np.concatenate(pending)


def write_shards(
    documents: Iterable[Sequence[int] | np.ndarray],
    directory: Path,
    vocab_size: int,
    n_bytes: int = 0,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenShards:
    """Write documents, one after another as they come, and open the result; shards written there before give way.

    Nothing is put between documents: the caller ends each with the tokenizer's end-of-text id. n_bytes is the length of
    all the text in UTF-8 bytes. Raises ValueError for a wrong id, for no tokens, and for a folder of other things.
    """
    if directory.exists() and not all(
        re.fullmatch(r"(shard-\d+|starts|index)\.\w+", p.name) for p in directory.iterdir()
    ):
        raise ValueError(f"{directory} holds other files, which would be lost: choose a new or an empty folder.")
    starts, digest = [0], hashlib.sha256()
    arrays = (token_array(document, number, vocab_size) for number, document in enumerate(documents))
    with replace_directory(directory) as folder:
        for number, shard in enumerate(cut_shards(arrays, shard_tokens, starts)):
            (folder / f"shard-{number:05d}.bin").write_bytes(shard.tobytes())
            digest.update(shard.tobytes())
        if starts[-1] == 0:
            raise ValueError(f"There is nothing to pack: {len(starts) - 1} documents hold no tokens.")
        (folder / "starts.bin").write_bytes(np.array(starts, "<i8").tobytes())
        index = {"format": FORMAT, "version": VERSION, "vocab_size": vocab_size, "n_tokens": starts[-1]}
        index |= {"shard_tokens": shard_tokens, "n_bytes": n_bytes, "sha256": digest.hexdigest()}
        (folder / "index.json").write_text(json.dumps(index, indent=1))
    return open_shards(directory)


def read_index(directory: Path) -> dict[str, Any]:
    """The index of a folder of shards; ValueError if there is none or it is of another kind."""
    path = directory / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        known = index["format"] == FORMAT and index["version"] == VERSION
        known &= all(type(index[key]) is int and index[key] >= 0 for key in ("vocab_size", "n_tokens", "n_bytes"))
        known &= type(index["shard_tokens"]) is int and index["shard_tokens"] > 0 and type(index["sha256"]) is str
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}): write the tokens with write_shards.") from error
    except (ValueError, KeyError, TypeError):
        known, index = False, {}
    if not known:
        raise ValueError(
            f"{path} is not an index of {FORMAT}, version {VERSION}: write the tokens again with write_shards."
        )
    return index


def map_array(path: Path, dtype: str, length: int) -> np.ndarray:
    """Map a file of so many numbers into memory, read-only; ValueError if it is missing or of another size."""
    size = path.stat().st_size if path.is_file() else 0
    expected = length * np.dtype(dtype).itemsize
    if size != expected:
        raise ValueError(f"{path} has {size} bytes, not {expected}: write the tokens again with write_shards.")
    return np.asarray(np.memmap(path, dtype, mode="r"))  # a plain view: indexing it is faster than a memmap


def open_shards(directory: Path) -> TokenShards:
    """Map the shards of a folder; ValueError if a part is missing, cut short or something else."""
    index = read_index(directory)
    n_tokens, shard_tokens = index["n_tokens"], index["shard_tokens"]
    shards = [
        map_array(
            directory / f"shard-{i:05d}.bin", token_dtype(index["vocab_size"]), min(shard_tokens, n_tokens - begin)
        )
        for i, begin in enumerate(range(0, n_tokens, shard_tokens))
    ]
    path = directory / "starts.bin"
    starts = np.fromfile(path, "<i8").astype(np.int64) if path.is_file() else np.zeros(0, np.int64)
    if not shards or not starts.size or starts[0] != 0 or starts[-1] != n_tokens or (np.diff(starts) < 0).any():
        raise ValueError(f"{path} doesn't fit {n_tokens} tokens: write the tokens again with write_shards.")
    return TokenShards(directory, shards, shard_tokens, starts, index["vocab_size"], index["n_bytes"], index["sha256"])


def gather(tokens: TokenShards, places: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """The tokens at these places of the stream, whichever shards they lie in."""
    which, offset = np.divmod(places, tokens.shard_tokens)
    found = np.empty(places.shape, np.int64)
    for shard in np.unique(which):
        here = which == shard
        found[here] = tokens.shards[shard][offset[here]]
    return found


def window_places(tokens: TokenShards, starts: Int64[np.ndarray, "B"], seq_len: int) -> Int64[np.ndarray, "B W"]:
    """Places of the T inputs and, one further, the T targets of each window: W = T + 1. The stream is a ring."""
    return (starts[:, None] + np.arange(seq_len + 1)) % tokens.n_tokens


def packed_rows(tokens: TokenShards, starts: Int64[np.ndarray, "B"], seq_len: int) -> tuple[Int64[Tensor, "B T"], ...]:
    """Inputs and targets of the windows that begin at these places; documents are not told apart."""
    window = torch.from_numpy(gather(tokens, window_places(tokens, starts, seq_len)))
    return window[:, :-1].clone(), window[:, 1:].clone()


def document_rows(
    tokens: TokenShards, starts: Int64[np.ndarray, "B"], seq_len: int
) -> tuple[Int64[Tensor, "B T"], ...]:
    """Inputs, targets and positions; positions begin at 0 in each row and again in each document of it.

    From them attention can tell where a document ends. The target behind its last token is IGNORED.
    """
    places = window_places(tokens, starts, seq_len)
    document = np.searchsorted(tokens.starts, places, side="right") - 1
    first = tokens.starts[document] == places  # (B, T + 1), True where a document begins
    column = np.arange(seq_len)
    positions = column - np.maximum.accumulate(np.where(first[:, :-1], column, 0), axis=1)
    inputs, targets = packed_rows(tokens, starts, seq_len)
    targets[torch.from_numpy(first[:, 1:])] = IGNORED
    return inputs, targets, torch.from_numpy(positions)


@lru_cache(maxsize=4)
def epoch_starts(n_tokens: int, seq_len: int, seed: int, epoch: int) -> Int64[np.ndarray, "windows"]:
    """Where the windows of an epoch begin, in the order they are read: a random phase, then every T tokens, shuffled.

    Each token is a target once, save n_tokens % T of them, which differ from epoch to epoch.
    """
    random = np.random.default_rng([seed, epoch])
    phase = random.integers(n_tokens)
    return (phase + seq_len * random.permutation(n_tokens // seq_len)) % n_tokens


RowReader = Callable[[TokenShards, np.ndarray, int], tuple[Tensor, ...]]


class Batches:
    """Endless shuffled batches, the same for the same seed; `read` is packed_rows or document_rows.

    Batches(...).skip(n) goes on where another had drawn n. Raises ValueError for a stream shorter than a batch.
    """

    def __init__(
        self, tokens: TokenShards, batch_size: int, seq_len: int, seed: int = 0, read: RowReader = packed_rows
    ) -> None:
        if batch_size < 1 or seq_len < 1:
            raise ValueError(f"A batch of {batch_size} rows of {seq_len} tokens is empty: give at least 1 and 1.")
        if tokens.n_tokens < batch_size * seq_len + 1:
            raise ValueError(
                f"{tokens.directory} holds {tokens.n_tokens} tokens, but a batch of {batch_size} x {seq_len} reads "
                f"{batch_size * seq_len + 1}: take a smaller batch, shorter rows or more text."
            )
        self.tokens, self.batch_size, self.seq_len, self.seed, self.read = tokens, batch_size, seq_len, seed, read
        self.drawn = 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        n_windows = self.tokens.n_tokens // self.seq_len
        numbers = self.drawn * self.batch_size + np.arange(self.batch_size)  # of windows, counted over all epochs
        epochs, ranks = np.divmod(numbers, n_windows)
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):  # one, or two where a batch ends an epoch and begins the next
            here = epochs == epoch
            starts[here] = epoch_starts(self.tokens.n_tokens, self.seq_len, self.seed, int(epoch))[ranks[here]]
        self.drawn += 1
        return self.read(self.tokens, starts, self.seq_len)

    def skip(self, n: int) -> "Batches":
        """Move n batches ahead, in the same time for any n."""
        if n < 0:
            raise ValueError(f"Batches can't go back: skip was given {n}.")
        self.drawn += n
        return self


@dataclass(frozen=True)
class HeldOutBatches:
    """What held_out_batches returns: it can be read again and again, and has a length."""

    tokens: TokenShards
    batch_size: int
    seq_len: int
    read: RowReader

    def __len__(self) -> int:
        return -(-self.tokens.n_tokens // (self.batch_size * self.seq_len))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        n_tokens = self.tokens.n_tokens
        firsts = np.arange(0, n_tokens, self.seq_len)  # the first target of each row
        for begin in range(0, len(firsts), self.batch_size):
            first = firsts[begin : begin + self.batch_size]
            inputs, targets, *rest = self.read(self.tokens, (first - 1) % n_tokens, self.seq_len)
            beyond = first[:, None] + np.arange(self.seq_len) >= n_tokens  # the last row runs over the end
            yield inputs, targets.masked_fill(torch.from_numpy(beyond), IGNORED), *rest


def held_out_batches(
    tokens: TokenShards, batch_size: int, seq_len: int, read: RowReader = packed_rows
) -> HeldOutBatches:
    """Every token of the stream as a target exactly once, in order; the last row is filled up with IGNORED targets.

    The very first token is predicted from the last, which as an end-of-text can precede any document.
    """
    return HeldOutBatches(tokens, batch_size, seq_len, read)
