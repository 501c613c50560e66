"""Filters, decoding and streaming against transformers' own, and against what a bytes decoder says."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_model import ids_for, peer, randomised
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillm.cache import KVCache
from minillm.generate import (
    decode,
    generate,
    generate_batch,
    greedy,
    min_p,
    pad_left,
    penalise,
    sampler,
    stream_text,
    top_k,
    top_p,
)
from minillm.model import ModelConfig, Transformer


NO_IDS: Any = torch.zeros(1, 1, dtype=torch.long)


def scores() -> Iterator[Tensor]:
    """Rows of 12 logits: ordinary, with ties, flat, one certain token, some tokens already dropped."""
    random = torch.Generator().manual_seed(0)
    for size in (0.1, 1.0, 10.0, 1e4):
        yield size * torch.randn(6, 12, generator=random, dtype=torch.float64)
    yield torch.randint(-2, 3, (20, 12), generator=random).double()
    yield torch.zeros(1, 12, dtype=torch.float64)
    yield torch.tensor([[-1e30] * 11 + [1e30]], dtype=torch.float64)
    yield torch.randn(6, 12, generator=random, dtype=torch.float64).masked_fill(
        torch.rand(6, 12, generator=random) < 0.4, -torch.inf
    )


def model_for(window: int = 40, vocab_size: int = 29, seed: int = 0) -> Transformer:
    shape = ModelConfig(vocab_size, 2, 4, n_kv_heads=2, d_model=16, max_seq_len=window, qk_norm=False)
    return randomised(shape, seed)


def captured(monkeypatch, sample, logits: Tensor) -> Tensor:
    """The probabilities from which a sampler draws."""
    seen, draw = [], torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, *args, **kw: seen.append(p) or draw(p, *args, **kw))
    sample(logits)
    monkeypatch.undo()
    return seen[0]


# Filters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12, 13, 1000])
def test_top_k_is_that_of_transformers(k):
    for logits in scores():
        assert torch.equal(top_k(logits, k), TopKLogitsWarper(k)(NO_IDS, logits))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.37, 0.45, 0.9, 0.999])
def test_top_p_is_that_of_transformers(p):
    """Among tokens of equal probability either may keep another, so the kept logits are compared as sorted lists."""
    for logits in scores():
        ours, theirs = top_p(logits, p), TopPLogitsWarper(p)(NO_IDS, logits)
        assert torch.equal(ours.sort().values, theirs.sort().values)
        if all(len(set(row)) == 12 for row in logits.tolist()):
            assert torch.equal(ours, theirs)


def test_top_p_keeps_the_smallest_set_that_is_enough():
    halves = torch.tensor([[0.125, 0.5, 0.25, 0.125]]).log()
    kept = {p: (top_p(halves, p) > -torch.inf).tolist()[0] for p in (0.0, 0.3, 0.5, 0.51, 0.75, 0.76, 1.0)}
    assert kept[0.0] == kept[0.3] == kept[0.5] == [False, True, False, False]
    assert kept[0.51] == kept[0.75] == [False, True, True, False]
    assert kept[0.76] == [True, True, True, False]  # of the last two, equally likely, the first
    assert kept[1.0] == [True] * 4


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9, 1.0])
def test_min_p_is_that_of_transformers(p):
    for logits in scores():
        assert torch.equal(min_p(logits, p), MinPLogitsWarper(p)(NO_IDS, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_penalty_is_that_of_transformers(penalty):
    ids: Any = torch.randint(12, (20, 5), generator=torch.Generator().manual_seed(1))
    for logits in scores():
        rows = ids[: len(logits)]
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, rows, value=True)
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(rows, logits.clone())
        assert torch.equal(penalise(logits, seen, penalty), theirs)


def test_filters_leave_their_input_alone():
    logits = torch.randn(2, 12)
    before = logits.clone()
    for changed in (top_k(logits, 2), top_p(logits, 0.2), min_p(logits, 0.9), penalise(logits, logits > 0, 2.0)):
        assert not torch.equal(changed, before)
        assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("k", "p", "minimum"), [(None, None, None), (4, 0.7, None), (6, 0.95, 0.2), (None, 0.5, 0.6)])
def test_the_filters_stand_in_the_order_of_transformers(monkeypatch, temperature, k, p, minimum):
    logits = 2 * torch.randn(8, 12, generator=torch.Generator().manual_seed(2))
    expected = TemperatureLogitsWarper(temperature)(NO_IDS, logits)
    for warp, amount in ((TopKLogitsWarper, k), (TopPLogitsWarper, p), (MinPLogitsWarper, minimum)):
        expected = expected if amount is None else warp(amount)(NO_IDS, expected)
    ours = captured(monkeypatch, sampler(temperature, k, p, minimum, seed=0), logits)
    torch.testing.assert_close(ours, expected.softmax(-1))


# Samplers -----------------------------------------------------------------------------------------------------------


def test_samples_follow_the_distribution():
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    draws = sampler(seed=0)(chances.log().expand(20_000, -1))
    counts = torch.bincount(draws, minlength=5)
    spread = (20_000 * chances * (1 - chances)).sqrt()
    assert ((counts - 20_000 * chances).abs() <= 4 * spread).all()
    assert sampler(seed=0)(chances.log()[None]).dtype == torch.int64


def test_a_seed_draws_the_same_and_none_draws_anew():
    logits = torch.zeros(1, 1000)

    def draws(seed: int | None) -> list[int]:
        sample = sampler(seed=seed)
        return [int(sample(logits)) for _ in range(10)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)
    assert len(set(draws(7))) > 1
    assert draws(0) == draws(0)  # 0 is a seed like any other
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draws(7)
    draws(None)
    assert torch.equal(torch.get_rng_state(), state)  # the training's own randomness is not touched


def test_temperature_0_is_greedy():
    logits = torch.randn(5, 12)
    assert torch.equal(sampler(temperature=0.0)(logits), logits.argmax(-1))
    assert torch.equal(sampler(temperature=0.0, k=3, p=0.5, minimum=0.5)(logits), logits.argmax(-1))
    assert torch.equal(sampler(k=1)(logits), logits.argmax(-1))
    assert greedy(torch.tensor([[1.0, 3.0, 3.0]])).tolist() == [1]


def test_a_tiny_temperature_is_as_good_as_greedy():
    logits = torch.randn(5, 12)
    for temperature in (1e-3, 1e-30):
        assert torch.equal(sampler(temperature, seed=0)(logits), logits.argmax(-1))


def test_scores_in_half_precision_are_sampled_in_single(monkeypatch):
    logits = torch.randn(2, 12).bfloat16()
    chances = captured(monkeypatch, sampler(0.7, seed=0), logits)
    torch.testing.assert_close(chances, (logits.float() / 0.7).softmax(-1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more, not -0.1"),
        ({"temperature": math.nan}, "temperature must be 0 or more, not nan"),
        ({"k": 0}, "top-k must keep at least 1 token, not 0"),
        ({"k": -5, "temperature": 0.0}, "top-k must keep at least 1 token, not -5"),
        ({"p": 0.0}, "top-p must be above 0 and at most 1, not 0.0"),
        ({"p": 1.01}, "top-p must be above 0 and at most 1, not 1.01"),
        ({"minimum": -0.5}, "min-p must be above 0 and at most 1, not -0.5"),
        ({"minimum": 2.0}, "min-p must be above 0 and at most 1, not 2.0"),
        ({"minimum": math.nan}, "min-p must be above 0 and at most 1, not nan"),
    ],
)
def test_samplers_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler(**arguments)


def test_the_borders_are_allowed():
    assert sampler(p=1.0, minimum=1.0, k=1)(torch.tensor([[0.0, 1.0]])).tolist() == [1]


# Decoding -----------------------------------------------------------------------------------------------------------


def theirs(model: Transformer, prompts: list[list[int]], n: int, **options) -> list[list[int]]:
    """What transformers generates with the same weights, prompts padded on the left."""
    T = max(map(len, prompts))
    ids = torch.tensor([[0] * (T - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(max_new_tokens=n, do_sample=False, pad_token_id=0, **options)
    generated: Any = peer(model)  # pyright takes `generate` for a tensor
    return generated.generate(ids, attention_mask=mask, generation_config=config)[:, T:].tolist()


@pytest.mark.parametrize(("seed", "penalty"), [(0, 1.0), (1, 1.0), (2, 1.4)])
def test_greedy_generation_is_that_of_transformers(seed, penalty):
    model = model_for(seed=seed)
    prompt = ids_for(model.config, 1, 6, seed)[0].tolist()
    expected = theirs(model, [prompt], 16, repetition_penalty=penalty)[0]
    for cache in (None, KVCache()):
        assert list(generate(model, prompt, 16, cache=cache, repetition_penalty=penalty)) == expected
    assert penalty == 1.0 or expected != list(generate(model, prompt, 16))


def test_prompts_of_unequal_length_are_continued_as_in_transformers():
    model = model_for(vocab_size=60)
    prompts = [ids_for(model.config, 1, n, n)[0].tolist() for n in (5, 1, 8, 8, 2)]
    expected = theirs(model, prompts, 12)
    for cache in (None, KVCache()):
        assert generate_batch(model, prompts, 12, cache=cache) == expected
        assert [list(row) for row in zip(*decode(model, prompts, 12, cache=cache))] == expected
    assert len({tuple(row) for row in expected}) > 1


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_a_batch_is_its_rows_alone(penalty):
    """Past the window too, and with a penalty, which must not count the id that pads."""
    model = model_for(window=9, vocab_size=10)
    prompts = [[2], [5, 6, 7, 8, 9], [3, 1]]
    alone = [list(generate(model, prompt, 25, repetition_penalty=penalty)) for prompt in prompts]
    for cache in (None, KVCache(), KVCache(9)):
        assert generate_batch(model, prompts, 25, cache=cache, repetition_penalty=penalty) == alone
    assert any(0 in row for row in alone)  # the padding's id is a token like any other


def test_the_penalty_counts_what_was_said_and_not_the_padding():
    """Token 0 leads, then 1, then 2; a penalty of 2 puts a token that was said behind the others."""
    model = model_for(vocab_size=4)

    def lead(module: object, inputs: object, logits: Tensor) -> Tensor:
        return torch.tensor([1.2, 1.1, 1.0, 0.1]).expand_as(logits)

    model.register_forward_hook(lead)
    rows = generate_batch(model, [[3], [3, 3], [0, 3, 3], [1]], 3, repetition_penalty=2.0)
    assert rows == [[0, 1, 2], [0, 1, 2], [1, 2, 0], [0, 2, 0]]


def test_padding_on_the_left():
    ids, places = pad_left([[5, 6, 7], [8], [9, 1]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 9, 1]]
    assert places is not None
    assert places.tolist() == [[0, 1, 2], [-1, -1, 0], [-1, 0, 1]]
    assert pad_left([[5, 6], [7, 8]])[1] is None


def test_a_sampler_with_a_seed_gives_the_same_text():
    model = model_for()

    def texts(seed: int, cache: KVCache | None = None) -> list[list[int]]:
        return generate_batch(model, [[1, 2], [3]], 15, sampler(0.8, k=20, seed=seed), cache)

    assert texts(1) == texts(1) == texts(1, KVCache())
    assert texts(1) != texts(2)


def test_generated_tokens_follow_the_models_distribution():
    model = model_for(vocab_size=5)
    chances = (model(torch.tensor([[1, 2]]))[0, -1] / 1.5).softmax(-1).tolist()
    first = next(decode(model, [[1, 2]] * 4000, 1, sampler(1.5, seed=0)))
    for token, count in Counter(first).items():
        chance = chances[token]
        assert abs(count - 4000 * chance) <= 4 * (4000 * chance * (1 - chance)) ** 0.5


def test_generation_ends_before_a_stop_id():
    model = model_for()
    full = list(generate(model, [1, 2, 3], 30))
    stop = full[10]
    assert list(generate(model, [1, 2, 3], 30, stop_ids={stop})) == full[: full.index(stop)]
    assert list(generate(model, [1, 2, 3], 30, stop_ids=[full[0], stop])) == []
    prompts = [[1, 2, 3], [4], [5, 6]]
    rows = generate_batch(model, prompts, 30)
    stops = {rows[0][3], rows[1][6]}
    expected = [[t for i, t in enumerate(row) if not stops & set(row[: i + 1])] for row in rows]
    assert generate_batch(model, prompts, 30, stop_ids=stops) == expected


def test_work_stops_when_every_row_has_stopped():
    model, calls = model_for(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = next(decode(model, [[1], [2]], 1))
    calls.clear()
    assert generate_batch(model, [[1], [2]], 50, stop_ids=tokens) == [[], []]
    assert len(calls) == 1
    calls.clear()
    next(generate(model, [1], 50))
    assert len(calls) == 1  # a token is given out before the next is thought of


def test_a_cache_reads_each_token_once():
    model, widths = model_for(), []
    model.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    list(generate(model, [1, 2, 3], 4, cache=KVCache()))
    list(generate(model, [1, 2, 3], 4))
    assert widths == [3, 1, 1, 1, 3, 4, 5, 6]


def test_nothing_is_asked_for_and_nothing_comes():
    assert list(generate(model_for(), [1], 0)) == []
    assert generate_batch(model_for(), [[1], [2]], 0) == [[], []]
    assert generate_batch(model_for(), [], 5) == []


def test_generation_records_no_gradients_and_the_callers_work_between_two_tokens_does():
    model, modes = model_for(), []
    model.register_forward_hook(lambda _, __, logits: modes.append((logits.requires_grad, model.training)))
    for _ in generate(model.train(), [1], 2):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert modes == [(False, False)] * 2


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_the_models_mode_as_it_was(training):
    model = model_for().train(training)
    list(generate(model, [1], 2))
    assert model.training is training


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty; give at least one token"),
        ([1] * 41, {}, "the prompt has 41 tokens, the model's context holds 40; shorten the prompt"),
        ([1, 29], {}, "prompt id 29 is outside the vocabulary of 29; was another tokenizer used?"),
        ([1, -1], {}, "prompt id -1 is outside the vocabulary of 29"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens must be 0 or more, not -1"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty must be above 0, not 0.0"),
        ([1], {"repetition_penalty": -1.5}, "repetition_penalty must be above 0, not -1.5"),
    ],
)
def test_prompts_that_do_not_fit(prompt, options, message):
    model = model_for()
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        list(generate(model, prompt, **options))
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        generate_batch(model, [[1, 2], prompt], **options)


def test_a_prompt_may_fill_the_context_with_the_last_id():
    assert len(list(generate(model_for(), [28] * 40, 3))) == 3


# Text ---------------------------------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer whose tokens are given pieces of bytes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.pieces[i] for i in ids)


def streamed(pieces: list[bytes], *stop: str) -> list[str]:
    return list(stream_text(iter(range(len(pieces))), Pieces(pieces), stop))


def test_text_comes_as_soon_as_it_is_certain():
    assert streamed([b"Hel", b"lo", b" ", b"you"]) == ["Hel", "lo", " ", "you"]
    euro = "€".encode()
    assert streamed([b"5", euro[:1], euro[1:2], euro[2:] + b" or", b"!"]) == ["5", "€ or", "!"]
    assert streamed([b"a", b"E", b"N", b"x", b"b"], "END") == ["a", "ENx", "b"]


def test_text_ends_before_a_stop_string():
    assert "".join(streamed([b"one EN", b"D two"], "END")) == "one "
    assert "".join(streamed([b"one\n", b"\n", b"two"], "\n\n")) == "one"
    assert "".join(streamed([b"ab", b"c", b"d"], "x", "cd", "bcd")) == "a"
    assert "".join(streamed([b"a b STOP", b" END"], "END", "STOP")) == "a b "
    assert "".join(streamed([b"aab", b"c"], "aac")) == "aabc"
    assert "".join(streamed([b"a", b"a", b"a", b"b"], "aab")) == "a"
    assert "".join(streamed([b"almost EN"], "END")) == "almost EN"
    assert "".join(streamed(["x€".encode()[:2], "x€".encode()[2:], b"y"], "€")) == "x"


def test_no_empty_text_is_given_out():
    assert streamed([b"", b"a", b"", b"b"]) == ["a", "b"]
    assert streamed([b"END"], "END") == []
    assert streamed([]) == []


@pytest.mark.parametrize("tail", [b"\xe2", b"\xe2\x82", b"\xf0\x9f\x91"])
def test_a_character_that_never_ends_is_shown_as_broken(tail):
    assert "".join(streamed([b"ab", tail])) == (b"ab" + tail).decode(errors="replace")
    assert "".join(streamed([b"aEN" + tail], "END")) == (b"aEN" + tail).decode(errors="replace")


def test_after_a_stop_no_more_tokens_are_drawn():
    tokens = iter(range(3))
    assert "".join(stream_text(tokens, Pieces([b"a", b".", b"b"]), ["."])) == "a"
    assert next(tokens) == 2


def test_streams_of_all_kinds_against_the_whole_text():
    """The oracle decodes all that has come so far, and looks for the earliest stop in it, after every token."""
    rng = random.Random(0)
    for _ in range(1500):
        whole = "".join(rng.choices("aab€é👍", k=rng.randint(0, 12))).encode()
        if rng.random() < 0.3:
            whole += rng.choice([b"\xff", b"\x80a", b"\xe2\x82", b"\xf0\x9f"])
        cuts = sorted(rng.choices(range(len(whole) + 1), k=rng.randint(0, 8)))
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)])]
        stops = ["".join(rng.choices("ab€", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        expected, so_far = whole.decode(errors="replace"), b""
        for piece in pieces:
            so_far += piece
            found = [at for s in stops if (at := so_far.decode(errors="ignore").find(s)) >= 0]
            if found:
                expected = so_far.decode(errors="replace")[: min(found)]
                break
        if b"\xff" in whole or b"\x80" in whole[-2:]:
            stops = []
            expected = whole.decode(errors="replace")
        assert "".join(streamed(pieces, *stops)) == expected, (pieces, stops)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="a stop string is empty"):
        streamed([b"a"], "END", "")
