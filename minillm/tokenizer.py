"""Byte-level byte-pair encoding: text in, token ids out, and back without a loss.

A tokenizer starts with the 256 bytes, so that nothing is ever unknown, and learns which neighbours to merge: always
the pair that occurs most often. Choices made here:

- text is cut into words by GPT-2's pattern first, and no merge crosses a word's border;
- ids are the bytes in GPT-2's order, then the merges as learned, then the special tokens;
- of equally frequent pairs the one with the smaller ids is merged, as Hugging Face's trainer does;
- while merging, a word is a Python string with one character a token, `chr(id)`: slicing, searching and replacing
  then run at the speed of C, and strings compare just as lists of ids would.

Chapter: tokenizer.

Sources: Sennrich et al. 2016 (arXiv:1508.07909), section 3.2; Radford et al. 2019 (GPT-2), section 2.2.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import regex

from minillm.support import huggingface_tokenizer as formats
from minillm.support.files import write_text_atomic


# A contraction, letters, digits or signs with the space before them, or white space. A run of white space leaves its
# last space to the word that follows. From GPT-2's encoder.py.
WORD = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


# The byte behind each of the first 256 ids, and the way back: GPT-2 begins with the 188 bytes that print in Latin-1.
BYTES = bytes(sorted(range(256), key=lambda byte: (byte == ord(" ") or not chr(byte).isprintable(), byte)))
BYTE_TO_ID = bytes.maketrans(BYTES, bytes(range(256)))


def as_text(text: str | bytes) -> str:
    r"""Text that can be cut into words: a byte that is not UTF-8 gets a stand-in, a lone surrogate turns into U+FFFD.

    >>> as_text(b"\xff"), as_text("\ud800")
    ('\udcff', '�')
    """
    if isinstance(text, bytes):
        return text.decode("utf-8", "surrogateescape")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def as_tokens(word: str) -> str:
    """The word's bytes as tokens, one character each.

    >>> [ord(token) for token in as_tokens("é!")]
    [127, 102, 0]
    """
    return word.encode("utf-8", "surrogateescape").translate(BYTE_TO_ID).decode("latin-1")


def split_specials(text: str, names: Collection[str]) -> list[str]:
    """Cut the text at the special tokens; the pieces at odd places are special, those at even places are not.

    >>> split_specials("one<|end|>two", ["<|end|>"])
    ['one', '<|end|>', 'two']
    """
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    return regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)


def count_words(texts: Iterable[str], special_tokens: Collection[str] = ()) -> Counter[str]:
    """How often each word occurs. Special tokens part the text and are not counted.

    >>> count_words(["to be or not to be"]).most_common(1)
    [(' be', 2)]
    """
    if isinstance(texts, str):
        raise ValueError("texts is a single string, whose letters would be counted one by one: pass [text]")
    words = Counter()
    for text in texts:
        for piece in split_specials(as_text(text), special_tokens)[::2]:
            words.update(WORD.findall(piece))
    if not words:
        raise ValueError("there is no text to learn from: every text is empty, or the iterator was already used up")
    return words


Counts = defaultdict[str, int]  # pair → how often it occurs
Places = defaultdict[str, list[int]]  # pair → the places in the list of words where it is or was


def count_pairs(words: list[str], weights: list[int]) -> tuple[Counts, Places]:
    """How often each pair of neighbours occurs, and the places of the words that hold it.

    >>> counts, places = count_pairs(["aab", "ab"], [10, 1])
    >>> dict(counts), dict(places)
    ({'aa': 10, 'ab': 11}, {'aa': [0], 'ab': [0, 1]})
    """
    counts, places = defaultdict(int), defaultdict(list)
    for place, (word, weight) in enumerate(zip(words, weights, strict=True)):
        for left, right in zip(word, word[1:]):
            counts[left + right] += weight
            places[left + right].append(place)
    return counts, places


def most_frequent(heap: list[tuple[int, str]], counts: dict[str, int]) -> str | None:
    """Take the most frequent pair off the heap, the smaller one of equals; None when no pair is left.

    Counts fall behind the heap's back. That is noticed only when an entry comes up, which then goes back corrected.
    """
    while heap:
        old_count, pair = heapq.heappop(heap)
        if counts[pair] == -old_count:
            return pair
        if counts[pair] > 0:
            heapq.heappush(heap, (-counts[pair], pair))
    return None


def merge_pair(
    pair: str, token: str, words: list[str], weights: list[int], counts: Counts, places: Places
) -> dict[str, int]:
    """Replace the pair by its token in the words that hold it and correct the counts; returns those of the new pairs.

    A pair can only grow more frequent in the step that makes its younger token, so all new pairs hold `token`.
    """
    first, second = pair
    fresh = defaultdict(int)
    for place in places.pop(pair):
        if pair not in words[place]:  # a neighbour's merge took it, or the word was listed twice
            continue
        words[place] = word = words[place].replace(pair, token)
        weight = weights[place]
        for left, right in zip(word, word[1:]):
            if left == token or right == token:
                fresh[left + right] += weight
                places[left + right].append(place)
                counts[(second if left == token else left) + (first if right == token else right)] -= weight
    del counts[pair]
    counts.update(fresh)
    return fresh


def learn_merges(word_counts: dict[str, int], n_merges: int) -> list[tuple[int, int]]:
    """The first `n_merges` merges as pairs of ids, fewer when every word has become a single token.

    >>> learn_merges({"aaab": 1}, 2)  # ids start at "!", which makes "a" 64 and "b" 65
    [(64, 64), (64, 65)]
    """
    words, weights = [as_tokens(word) for word in word_counts], list(word_counts.values())
    counts, places = count_pairs(words, weights)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < n_merges and (pair := most_frequent(heap, counts)):
        fresh = merge_pair(pair, chr(256 + len(merges)), words, weights, counts, places)
        for new_pair, count in fresh.items():
            heapq.heappush(heap, (-count, new_pair))
        merges.append((ord(pair[0]), ord(pair[1])))
    return merges


def merge_word(word: str, merges: dict[str, str]) -> str:
    """Merge a word's tokens, the earliest learned merge first and from left to right, in O(n log n).

    The tokens form a ring through an empty one that marks the end, so that every token has two neighbours.

    >>> merge_word("abab", {"ab": "X", "XX": "Y"})
    'Y'
    """
    end = len(word)
    tokens, before, after = [*word, ""], [end, *range(end)], [*range(1, end + 1), 0]
    heap = [(merges[word[i : i + 2]], i) for i in range(end - 1) if word[i : i + 2] in merges]
    heapq.heapify(heap)
    while heap:
        token, i = heapq.heappop(heap)
        j = after[i]
        if merges.get(tokens[i] + tokens[j]) != token:  # one of the two was merged with its other neighbour
            continue
        tokens[i], tokens[j] = token, ""
        after[i], before[after[j]] = after[j], i
        for k in (before[i], i):
            if new := merges.get(tokens[k] + tokens[after[k]]):
                heapq.heappush(heap, (new, k))
    return "".join(tokens)


class WordIds(dict[str, list[int]]):
    """The ids of the words met so far; a word that is missing is merged when it is looked up."""

    most_words, longest_word = 1 << 16, 64  # some 20 MB of ordinary text's words

    def __init__(self, merges: dict[str, str]):
        super().__init__()
        self.merges = merges

    def __missing__(self, word: str) -> list[int]:
        ids = [ord(token) for token in merge_word(as_tokens(word), self.merges)]
        if len(word) <= self.longest_word:
            if len(self) >= self.most_words:
                self.clear()
            self[word] = ids
        return ids


def encode_text(text: str, word_ids: dict[str, list[int]], specials: dict[str, int]) -> list[int]:
    """Ids of the text, in which `specials` are single tokens and all else is cut into words and looked up."""
    ids = []
    for number, piece in enumerate(split_specials(text, specials)):
        if number % 2:
            ids.append(specials[piece])
        else:
            ids += [token for word in WORD.findall(piece) for token in word_ids[word]]
    return ids


def allowed_ids(allowed: str | Collection[str], specials: dict[str, int]) -> dict[str, int]:
    """The special tokens that may be encoded as such: all of them for "all", else those named."""
    names = list(specials) if allowed == "all" else [allowed] if isinstance(allowed, str) else list(allowed)
    if unknown := [name for name in names if name not in specials]:
        raise ValueError(f"allowed_special names {unknown}, but the special tokens are {list(specials)}")
    return {name: specials[name] for name in names}


def token_table(merges: Iterable[tuple[int, int]], special_tokens: Iterable[str] = ()) -> list[bytes]:
    """The bytes behind each id: single bytes, then what the merges join, then the special tokens' names.

    >>> token_table([(64, 65), (256, 66)], ["<|end|>"])[256:]
    [b'ab', b'abc', b'<|end|>']
    """
    tokens = [bytes([byte]) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens + [name.encode("utf-8") for name in special_tokens]


class Tokenizer:
    """Merges and special tokens, and what follows from them. `tokens[i]` is the bytes of token i."""

    def __init__(self, merges: Iterable[Sequence[int]], special_tokens: Iterable[str] = ()):
        names = formats.check_specials(special_tokens)
        self.merges = formats.check_merges(merges)
        self.tokens = token_table(self.merges, names)
        self.vocab_size = len(self.tokens)
        self.special_tokens = {name: self.vocab_size - len(names) + i for i, name in enumerate(names)}
        self.word_ids = WordIds({chr(a) + chr(b): chr(256 + i) for i, (a, b) in enumerate(self.merges)})

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special_tokens: Iterable[str] = ()) -> "Tokenizer":
        """Learn from texts. `vocab_size` counts bytes, merges and special tokens; it may not be reached."""
        names = formats.check_specials(special_tokens)
        if vocab_size < 256 + len(names):
            raise ValueError(f"vocab_size is {vocab_size}, but 256 bytes and {len(names)} special tokens need a place")
        return cls(learn_merges(count_words(texts, names), vocab_size - 256 - len(names)), names)

    @classmethod
    def from_merges(cls, lines: Iterable[str], special_tokens: Iterable[str] = ()) -> "Tokenizer":
        """Take over merges as GPT-2's vocab.bpe lists them, such as "Ġ t"."""
        return cls(formats.parse_merges(lines), special_tokens)

    def encode(self, text: str | bytes, allowed_special: str | Collection[str] = ()) -> list[int]:
        """Ids of the text. A special token's name is ordinary text unless allowed by name or by "all"."""
        return encode_text(as_text(text), self.word_ids, allowed_ids(allowed_special, self.special_tokens))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that were encoded."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that was encoded; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, which may be a part of a character."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(
                f"token id {token} is not in 0 to {self.vocab_size - 1}: the vocabulary has {self.vocab_size} tokens"
            )
        return self.tokens[token]

    def save(self, path: str | Path) -> None:
        """Write a JSON file for `load`."""
        write_text_atomic(Path(path), formats.saved_json(self.merges, list(self.special_tokens)))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote; ValueError for any other content."""
        return cls(*formats.read_saved(Path(path)))

    def save_huggingface(self, path: str | Path) -> None:
        """Write a tokenizer.json, with which Hugging Face's libraries give our ids with all special tokens allowed."""
        write_text_atomic(Path(path), formats.huggingface_json(self.tokens, self.merges, self.special_tokens))
