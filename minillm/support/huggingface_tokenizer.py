"""The files in which byte-level BPE tokenizers are kept, ours and other people's, and checks on what comes out of them.

GPT-2's `vocab.bpe` and Hugging Face's `tokenizer.json` show every byte as one visible character: the 188 bytes that
print in Latin-1 as themselves, the other 68 as the characters from 256 on, so that a space looks like "Ġ".

Source: GPT-2's encoder.py, bytes_to_unicode (Radford et al. 2019).
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


FORMAT, VERSION = "minillm-tokenizer", 1
MAX_TOTAL_BYTES = 1 << 28  # of all tokens together; a vocabulary of 200,000 takes under 2 MB


def visible_characters() -> list[str]:
    """The character that stands for each of the 256 bytes."""
    hidden = iter(range(256, 512))
    prints = [chr(byte).isprintable() and byte != ord(" ") for byte in range(256)]
    return [chr(byte) if prints[byte] else chr(next(hidden)) for byte in range(256)]


VISIBLE = visible_characters()


def visible(token: bytes) -> str:
    """The token as these files print it.

    >>> visible(" café".encode())
    'ĠcafÃ©'
    """
    return "".join(VISIBLE[byte] for byte in token)


def parse_merges(lines: Iterable[str]) -> list[tuple[int, int]]:
    """Merges such as "Ġ t", one a line, as pairs of ids: the bytes come first, in the order of their characters.

    A heading ("#version: 0.2") and empty lines are passed over. Raises ValueError for a token that no line before has
    made.

    >>> parse_merges(["#version: 0.2", "Ġ t", "Ġt h"])
    [(220, 83), (256, 71)]
    """
    ids = {character: number for number, character in enumerate(sorted(VISIBLE))}
    merges = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(part in ids for part in parts):
            raise ValueError(f"line {number} of the merges must hold two tokens that exist by then, but is {line!r}")
        merges.append((ids[parts[0]], ids[parts[1]]))
        ids["".join(parts)] = 255 + len(merges)
    return merges


def check_merges(merges: Iterable[Any]) -> list[tuple[int, int]]:
    """The merges as pairs of ids, if each joins two tokens that exist by then; ValueError otherwise."""
    sizes, total, pairs = [1] * 256, 0, []
    for number, pair in enumerate(merges):
        two = isinstance(pair, list | tuple) and len(pair) == 2
        if not two or not all(type(token) is int and 0 <= token < len(sizes) for token in pair):
            raise ValueError(f"merge {number} must join two of the {len(sizes)} ids there are by then, but is {pair!r}")
        sizes.append(sizes[pair[0]] + sizes[pair[1]])
        total += sizes[-1]
        if total > MAX_TOTAL_BYTES:
            raise ValueError(f"merge {number} brings the tokens to {total} bytes: no real vocabulary is so large")
        pairs.append((pair[0], pair[1]))
    if len(set(pairs)) < len(pairs):
        raise ValueError("a pair of tokens is merged twice, so one of the two merges could never apply")
    return pairs


def check_specials(names: Iterable[Any]) -> list[str]:
    """The special tokens' names, if they are distinct and none is empty; ValueError otherwise."""
    if isinstance(names, str):
        raise ValueError(f"special_tokens is the single string {names!r}: pass a list, such as [{names!r}]")
    seen = {}  # a dict keeps the order
    for name in names:
        if not isinstance(name, str) or not name or name in seen:
            raise ValueError(f"special tokens must be distinct strings and not empty: {name!r} is not, after {[*seen]}")
        seen[name] = None
    return list(seen)


def saved_json(merges: Sequence[tuple[int, int]], special_tokens: Sequence[str]) -> str:
    """The text of our own file."""
    saved = {"format": FORMAT, "version": VERSION, "special_tokens": special_tokens, "merges": merges}
    return json.dumps(saved) + "\n"


def read_saved(path: Path) -> tuple[list[tuple[int, int]], list[str]]:
    """Merges and special tokens of our own file. Raises ValueError, in one line, for any other content."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise ValueError(f"it does not say format {FORMAT!r}")
        if saved.get("version") != VERSION:
            raise ValueError(f"version {saved.get('version')!r} is not {VERSION}, the one that this minillm reads")
        if not all(isinstance(saved.get(key), list) for key in ("merges", "special_tokens")):
            raise ValueError("its merges or special_tokens are not lists")
        return check_merges(saved["merges"]), check_specials(saved["special_tokens"])
    except (RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read as a minillm tokenizer ({error}): write it again with Tokenizer.save, "
            "or build one from GPT-2's merges with Tokenizer.from_merges"
        ) from error


def huggingface_json(tokens: Sequence[bytes], merges: Sequence[tuple[int, int]], specials: dict[str, int]) -> str:
    """The text of a `tokenizer.json` that gives the same ids; `tokens` holds the bytes behind each id.

    Raises ValueError where that file cannot say what we mean: it names tokens by their text alone.
    """
    shown = [visible(token) for token in tokens[: 256 + len(merges)]]
    if len({*shown, *specials}) < len(shown) + len(specials):
        raise ValueError("two tokens would have the same name in tokenizer.json: choose other special tokens")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {**{name: number for number, name in enumerate(shown)}, **specials},
        "merges": [f"{shown[left]} {shown[right]}" for left, right in merges],
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **plain} for name, number in specials.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
