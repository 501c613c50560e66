"""With a cache every logit is what it is without one, in whatever portions the tokens come."""

import random

import pytest
import torch
from jaxtyping import TypeCheckError
from test_model import ids_for, randomised
from torch import Tensor

from minillm.attention import Cache
from minillm.cache import Buffer, KVCache
from minillm.generate import decode, generate, pad_left
from minillm.model import ModelConfig, Transformer


LONG = 130  # more than two buffers of 64
PORTIONS: dict[str, list[int]] = {
    "one by one": [1] * LONG,
    "all at once": [LONG],
    "a prompt, then one by one": [40] + [1] * (LONG - 40),
    "a prompt of one buffer": [64] + [1] * (LONG - 64),
    "in portions": [5, 1, 30, 1, 1, 28, 44, 20],
    "in portions longer than the first": [1, 129],
}


def small(window: int, seed: int = 0) -> Transformer:
    return randomised(
        ModelConfig(vocab_size=23, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16, max_seq_len=window), seed
    )


@torch.no_grad()
def cached(
    model: Transformer, cache: Cache, ids: Tensor, portions: list[int], positions: Tensor | None = None
) -> Tensor:
    parts = ids.split(portions, dim=1)
    places = [None] * len(parts) if positions is None else positions.split(portions, dim=1)
    return torch.cat([model(part, place, cache) for part, place in zip(parts, places)], dim=1)


def caches(window: int) -> list[KVCache]:
    return [KVCache(), KVCache(window)]


def assert_same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("portions", PORTIONS.values(), ids=PORTIONS)
@pytest.mark.parametrize("window", [1, 7, 200])
@torch.no_grad()
def test_cached_is_uncached_at_every_position(window, portions):
    model = small(window)
    ids = ids_for(model.config, 2, LONG)
    expected = model(ids)
    for cache in caches(window):
        assert_same(cached(model, cache, ids, portions), expected)
        assert cache.length == LONG


@pytest.mark.parametrize("window", [1, 7, 40])
@torch.no_grad()
def test_packed_documents_and_padding_in_portions(window):
    """Positions begin again where they like, and the cache forgets the first ones on the way."""
    rng, model = random.Random(window), small(window)
    for seed in range(2):
        places = torch.full((3, 60), -1)
        for row in places:
            at = rng.randint(0, 6)  # padding on the left
            while at < 60:
                n = min(rng.randint(1, 25), 60 - at)
                row[at : at + n] = torch.arange(n)
                at += n
        ids = ids_for(model.config, 3, 60, seed)
        real = places >= 0
        expected = model(ids, places)[real]
        for portions in ([1] * 60, [20, 1, 1, 38], [3, 31, 1, 25]):
            for cache in caches(window):
                assert_same(cached(model, cache, ids, portions, places)[real], expected)


@pytest.mark.parametrize("window", [5, 40])
@pytest.mark.parametrize("start", [0, 12])
@torch.no_grad()
def test_positions_may_come_after_plain_ones(window, start):
    """A second document, or more of the first, after tokens that came without positions."""
    model = small(window)
    ids = ids_for(model.config, 2, 30)
    places = torch.cat((torch.arange(12), torch.arange(start, start + 18))).expand(2, -1)
    for cache in caches(window):
        first = cached(model, cache, ids[:, :12], [5, 7])
        second = cached(model, cache, ids[:, 12:], [1, 10, 7], places[:, 12:])
        assert_same(torch.cat((first, second), 1), model(ids, places))


def test_plain_ones_may_not_come_after_positions():
    """The row's own positions are needed, and nobody can guess them."""
    model, cache = small(20), KVCache()
    with torch.no_grad():
        model(torch.tensor([[0, 1, 2]]), torch.tensor([[-1, 0, 1]]), cache)
        with pytest.raises(ValueError, match="positions"):
            model(torch.tensor([[3]]), None, cache)


@pytest.mark.parametrize("window", [3, 50])
def test_prompts_of_unequal_length_are_as_if_alone(window):
    model = small(window)
    rows = [ids_for(model.config, 1, n, seed=n)[0].tolist() for n in (9, 4, 1, 12)]
    ids, places = pad_left([row[:-1] or row for row in rows])
    assert places is not None
    for cache in caches(window):
        out = cached(model, cache, ids, [2, 4, ids.shape[1] - 6], places)
        for row, logits in zip(rows, out):
            n = len(row[:-1] or row)
            assert_same(logits[-n:], model(torch.tensor([row[:n]]))[0])


@pytest.mark.parametrize("window", [4, 30])
def test_the_same_tokens_are_generated_past_the_window(window):
    model = small(window)
    plain = list(generate(model, [1, 2, 3], 40))
    for cache in caches(window):
        assert list(generate(model, [1, 2, 3], 40, cache=cache)) == plain
    prompts = [[1, 2, 3], [4], [5, 6]]
    batch = list(decode(model, prompts, 40))
    for cache in caches(window):
        assert list(decode(model, prompts, 40, cache=cache)) == batch


def test_a_cache_that_generated_can_be_used_on():
    """`generate` runs in inference mode; what it leaves must serve outside, for another turn or a look inside."""
    model, cache = small(30), KVCache()
    tokens = list(generate(model, [1, 2, 3], 5, cache=cache))
    assert cache.length == 3 + 5 - 1  # the last token was drawn, but not read
    with torch.no_grad():
        last = model(torch.tensor([tokens[-1:]]), cache=cache)
        assert_same(last[0, -1], model(torch.tensor([[1, 2, 3, *tokens]]))[0, -1])


def test_a_cache_may_keep_more_than_the_model_sees():
    model = small(7)
    ids = ids_for(model.config, 2, 40)
    assert_same(cached(model, KVCache(10), ids, [3, 20] + [1] * 17), model(ids))


# The store ----------------------------------------------------------------------------------------------------------


def test_a_buffer_is_a_list_of_the_newest():
    rng = random.Random(0)
    for kept in (None, 0, 1, 5, 63, 64, 70):
        buffer, entries = Buffer(), torch.zeros(2, 3, 0, 4)
        for _ in range(60):
            new = torch.randn(2, 3, rng.choice([1, 1, 1, 2, 17]), 4)
            before = entries if kept is None else entries[:, :, max(entries.shape[2] - kept, 0) :]
            entries = torch.cat((before, new), dim=2)
            assert torch.equal(buffer.append(new, kept), entries)


def test_appending_costs_the_same_however_long_the_text(monkeypatch):
    moves, move = [], Buffer.moved
    monkeypatch.setattr(Buffer, "moved", lambda self, capacity: moves.append(capacity) or move(self, capacity))
    buffer = Buffer()
    for _ in range(1000):
        buffer.append(torch.zeros(1, 1, 1, 2))
    assert len(moves) <= 4
    assert sum(moves) <= 4 * 1000
    moves.clear()
    bounded = Buffer()
    for _ in range(1000):
        bounded.append(torch.zeros(1, 1, 1, 2), 99)
    assert len(moves) <= 1000 / 90


def test_memory_of_a_growing_cache():
    model, cache = small(500), KVCache()
    assert cache.n_bytes == 0
    per_token = 2 * 2 * 2 * 4 * 4  # keys and values, layers, key-value heads, width, bytes
    cached(model, cache, ids_for(model.config, 3, 64), [1] * 64)
    assert cache.n_bytes == 64 * 3 * per_token
    cached(model, cache, ids_for(model.config, 3, 200), [1] * 200)
    assert 264 * 3 * per_token <= cache.n_bytes <= 2 * 264 * 3 * per_token


def test_memory_of_a_window_is_bounded():
    model, cache = small(10), KVCache(10)
    ids, sizes = ids_for(model.config, 1, 200), []
    with torch.no_grad():
        for t in range(200):
            model(ids[:, t : t + 1], cache=cache)
            sizes.append(cache.n_bytes)
    assert max(sizes) == 64 * 2 * 2 * 2 * 4 * 4
    long = KVCache(10)
    cached(model, long, ids, [130] + [1] * 70)
    assert long.n_bytes <= max(sizes)  # a long prompt's room is given back


def test_a_window_keeps_the_positions_it_needs_and_no_more():
    model, cache = small(6), KVCache(6)
    places = torch.arange(50)[None]
    cached(model, cache, ids_for(model.config, 1, 50), [1] * 50, places)
    assert cache.positions is not None
    assert cache.positions.tolist() == [list(range(44, 50))]


def test_it_fits_the_socket_that_attention_declares():
    assert isinstance(KVCache(), Cache)
    assert not isinstance(Buffer(), Cache)
    with pytest.raises(TypeCheckError):
        small(5)(torch.tensor([[1]]), cache=Buffer())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_holds_a_token_at_least(window):
    with pytest.raises(ValueError, match=f"window must be at least 1 token, not {window}"):
        KVCache(window)
