"""Attention against Python loops, PyTorch's kernel and layer, and transformers' layer; and who sees whom."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from minillm.attention import (
    Attention,
    attend,
    attend_torch,
    attention_weights,
    causal_mask,
    merge_heads,
    share_heads,
    split_heads,
    visible,
)
from minillm.blocks import RMSNorm
from minillm.embeddings import rotary_angles, rotary_frequencies


BOTH = pytest.mark.parametrize("inner", [attend, attend_torch])


def heads(T: int, S: int, H: int = 4, K: int = 2, D: int = 6, B: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(B, n, length, D, generator=random, dtype=torch.float64) for n, length in ((H, T), (K, S), (K, S))
    )


def by_hand(q: Tensor, k: Tensor, v: Tensor, sees: Callable[[int, int, int], bool]) -> Tensor:
    """Attention as its definition says it, one number at a time; `sees(b, t, s)` is the rule."""
    (B, H, T, D), (_, K, S, _) = q.shape, k.shape
    q, k, v = q.detach(), k.detach(), v.detach()
    out = torch.zeros_like(q)
    for b, h, t in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(T)).tolist():
        group = h // (H // K)
        keys = [s for s in range(S) if sees(b, t, s)]
        scores = [sum(float(q[b, h, t, i] * k[b, group, s, i]) for i in range(D)) / math.sqrt(D) for s in keys]
        weights = [math.exp(score) for score in scores]
        for s, weight in zip(keys, weights):
            out[b, h, t] += weight / sum(weights) * v[b, group, s]
    return out


def layer(window: int | None = None, **parts: Any) -> Attention:
    torch.manual_seed(0)
    return Attention(16, 4, 2, 6, window=window, **parts).double()


def look(
    attention: Attention, x: Tensor, positions: Tensor | None = None, angles: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    places = torch.arange(x.shape[1]) if positions is None else positions
    return attention(x, angles or rotary_angles(places, rotary_frequencies(attention.head_dim).double()), positions)


def influence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """True at (t, s) where the output at t moves when the input at s is changed, one s a row."""
    T = x.shape[1]
    changed = x + torch.eye(T, dtype=x.dtype)[:, :, None]
    moved = function(torch.cat((x, changed))) - function(torch.cat((x, x.expand(T, -1, -1))))
    return moved[1:].abs().amax(dim=-1).T > 1e-9


# The inner product --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (6, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize(("T", "S"), [(5, 5), (1, 1), (1, 5), (2, 5)])
def test_attention_is_its_definition(inner, H, K, T, S):
    q, k, v = heads(T, S, H, K, D=4)
    torch.testing.assert_close(inner(q, k, v), by_hand(q, k, v, lambda b, t, s: s <= t + S - T))


@BOTH
@pytest.mark.parametrize("shape", [(5, 8), (2, 1, 5, 8)])
def test_attention_obeys_a_mask_that_is_not_causal(inner, shape):
    q, k, v = heads(5, 8, D=4)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    full = mask.expand(2, 1, 5, 8)[:, 0]
    torch.testing.assert_close(inner(q, k, v, mask), by_hand(q, k, v, lambda b, t, s: bool(full[b, t, s])))


@pytest.mark.parametrize(("T", "S"), [(7, 7), (1, 7), (3, 7), (64, 100)])
@pytest.mark.parametrize("D", [2, 7, 64])
def test_attention_and_its_gradients_are_those_of_pytorch(T, S, D):
    q, k, v = (x.requires_grad_() for x in heads(T, S, D=D))
    up = torch.randn(2, 4, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    repeated = (x[:, [0, 0, 1, 1]] for x in (k, v))
    theirs = scaled_dot_product_attention(q, *repeated, attn_mask=mask)
    expected = torch.autograd.grad((theirs * up).sum(), (q, k, v))
    for inner in (attend, attend_torch):
        ours = inner(q, k, v)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad((ours * up).sum(), (q, k, v)), expected)


@BOTH
def test_large_scores_do_not_overflow(inner):
    q, k, v = (x.float() for x in heads(6, 6))
    sharp = inner(1e4 * q, k, v)
    assert sharp.isfinite().all()
    best = (q @ k.repeat_interleave(2, 1).mT).masked_fill(~causal_mask(6, 6), -torch.inf).argmax(-1)
    torch.testing.assert_close(sharp, v.repeat_interleave(2, 1).gather(2, best[..., None].expand(-1, -1, -1, 6)))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_keeps_the_number_format(inner, dtype):
    q, k, v = heads(5, 9)
    out = inner(q.to(dtype), k.to(dtype), v.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), inner(q, k, v), atol=10 * torch.finfo(dtype).eps, rtol=0.0)


def test_weights_are_not_negative_add_up_to_one_and_are_0_where_nothing_is_seen():
    q, k, _ = heads(4, 6, H=2)
    mask = causal_mask(4, 6, window=3)
    weights = attention_weights(q, k, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, dtype=torch.float64))
    assert torch.equal(weights > 0, mask.expand(2, 2, 4, 6))
    ratio = weights[0, 1, 3, 5] / weights[0, 1, 3, 4]
    assert ratio.log().item() == pytest.approx(float(q[0, 1, 3] @ (k[0, 1, 5] - k[0, 1, 4])) / math.sqrt(6))


def test_query_heads_beside_each_other_share_a_key_value_head():
    x = torch.arange(6.0).view(1, 2, 3, 1)
    assert torch.equal(share_heads(x, 6), x[:, [0, 0, 0, 1, 1, 1]])


@BOTH
def test_wrong_shapes_are_refused(inner):
    q, k, v = heads(5, 5, H=4, K=3)
    with pytest.raises((RuntimeError, TypeCheckError)):
        inner(q, k, v)
    q, k, v = heads(5, 5)
    with pytest.raises(TypeCheckError):
        inner(q, k[..., :4], v)
    with pytest.raises(TypeCheckError):
        inner(q, k, v[:, :, 1:])
    with pytest.raises(TypeCheckError):
        inner(q, k, v, torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(TypeCheckError):
        inner(q, k, v, torch.ones(5, 5))


# Who sees whom ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 2, 3, 6, 100])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (6, 6), (1, 6), (4, 6)])
def test_causal_mask_and_positions_say_the_same(T, S, window):
    rule = [[0 <= t + S - T - s < (window or S) for s in range(S)] for t in range(T)]
    assert causal_mask(T, S, window).tolist() == rule
    places = torch.arange(S)[None]
    assert visible(places[:, S - T :], places, window)[0, 0].tolist() == rule


def random_row(rng: random.Random, S: int) -> list[tuple[int, int]]:
    """(document, position) of every slot: padding, the rest of a document cut off before, documents, padding."""
    slots = [(-1, -1)] * rng.choice([0, 0, 1, 3])
    cut = rng.choice([0, 0, 4])
    slots += [(0, cut + i) for i in range(rng.randint(1, 5))] if cut else []
    document = 1
    while len(slots) < S:
        slots += [(document, i) for i in range(rng.randint(1, 6))]
        document += 1
    return slots[: S - 2] + [(-1, -1)] * 2 if rng.random() < 0.3 else slots[:S]


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("T", [1, 4, 12])
def test_documents_padding_and_windows_together(T, window):
    rng = random.Random(T)
    for _ in range(40):
        rows = [random_row(rng, 12) for _ in range(3)]
        places = torch.tensor([[position for _, position in row] for row in rows])
        seen = visible(places[:, -T:], places, window)
        assert seen.shape == (3, 1, T, 12)
        assert seen.any(dim=-1).all()  # a query that sees nothing would be 0 / 0, padding included
        for b, row in enumerate(rows):
            for t, (document, q) in enumerate(row[-T:]):
                rule = [d == document and 0 <= q - k < (window or 99) for d, k in row]
                assert document < 0 or seen[b, 0, t].tolist() == rule
                if document < 0:  # whatever padding looks at, it is padding
                    assert all(d < 0 for (d, _), sees in zip(row, seen[b, 0, t].tolist()) if sees)


# The layer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("H", "K", "D"), [(4, 4, 4), (4, 2, 4), (6, 2, 8), (3, 1, 2)])
def test_layer_is_that_of_transformers(H, K, D):
    config = LlamaConfig(
        hidden_size=12,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=D,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    torch.manual_seed(0)
    ours, theirs = Attention(12, H, K, D), LlamaAttention(config, layer_idx=0)
    for name, module in (("q", ours.query), ("k", ours.key), ("v", ours.value), ("o", ours.output)):
        getattr(theirs, f"{name}_proj").weight.data.copy_(module.weight)
    x, places = torch.randn(2, 7, 12), torch.arange(7)[None]
    closed = torch.full((7, 7), -torch.inf).triu(1)[None, None]
    expected, _ = theirs(x, LlamaRotaryEmbedding(config)(x, places), closed)
    angles = rotary_angles(torch.arange(7), rotary_frequencies(D, 100.0))
    torch.testing.assert_close(ours(x, angles), expected, atol=1e-5, rtol=1e-4)


def test_without_rotation_the_layer_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3, 3, 4), nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    theirs.in_proj_weight.data.copy_(torch.cat((ours.query.weight, ours.key.weight, ours.value.weight)))
    theirs.out_proj.weight.data.copy_(ours.output.weight)
    x = torch.randn(2, 5, 12)
    expected, _ = theirs(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1), need_weights=False)
    torch.testing.assert_close(
        ours(x, rotary_angles(torch.zeros(5, dtype=torch.long), rotary_frequencies(4))), expected
    )


@BOTH
@pytest.mark.parametrize("window", [None, 1, 3, 5])
def test_the_past_moves_the_present_and_the_future_does_not(inner, window):
    attention = layer(window, attend=inner)
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    expected = causal_mask(6, 6, window)
    assert torch.equal(influence(lambda x: look(attention, x), x), expected)
    places = torch.arange(6)[None]
    assert torch.equal(influence(lambda x: look(attention, x, places.expand(len(x), -1)), x), expected)
    torch.testing.assert_close(look(attention, x), look(attention, x, places))


def test_the_inner_product_is_a_part_passed_in():
    calls = []

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        calls.append((q.shape, k.shape, mask))
        return attend(q, k, v, mask)

    x = torch.randn(1, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(look(layer(attend=spy), x), look(layer(), x))
    look(layer(6, attend=spy), x)
    assert calls == 2 * [((1, 4, 6, 6), (1, 2, 6, 6), None)]  # plain attention builds no mask, grouped heads no copies


@pytest.mark.parametrize("window", [None, 2])
def test_packed_documents_are_as_if_alone(window):
    attention, lengths = layer(window), [3, 1, 5, 2]
    x = torch.randn(1, sum(lengths), 16, dtype=torch.float64)
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    alone = torch.cat([look(attention, document) for document in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(look(attention, x, places), alone)


@BOTH
@pytest.mark.parametrize("window", [None, 2])
def test_padding_changes_nothing_wherever_it_stands(inner, window):
    attention = layer(window, attend=inner)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    for left, right in ((0, 3), (3, 0), (2, 1)):
        noise = 100 * torch.randn(1, left + right, 16, dtype=torch.float64)
        padded = torch.cat((noise[:, :left], x, noise[:, left:]), dim=1)
        places = torch.tensor([[-1] * left + list(range(5)) + [-1] * right])
        out = look(attention, padded, places)
        assert out.isfinite().all()
        torch.testing.assert_close(out[:, left : left + 5], look(attention, x))


def test_norms_of_queries_and_keys_come_before_the_rotation():
    """A norm over D with unequal weights does not commute with the rotation, so the order shows."""
    norms = [RMSNorm(6), RMSNorm(6)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.2, 3.0)
    attention = layer(query_norm=norms[0], key_norm=norms[1])
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    q, k, v = (split_heads(f(x), 6) for f in (attention.query, attention.key, attention.value))
    q, k = (nn.functional.rms_norm(y, (6,), n.weight, 1e-5) for y, n in zip((q, k), norms))
    turn = torch.arange(5)[:, None] * rotary_frequencies(6).double()
    q, k = (torch.complex(y[..., :3], y[..., 3:]) * torch.polar(torch.ones_like(turn), turn) for y in (q, k))
    q, k = (torch.cat((y.real, y.imag), -1) for y in (q, k))
    expected = attention.output(merge_heads(by_hand(q, k, v, lambda b, t, s: s <= t)))
    torch.testing.assert_close(look(attention, x), expected)


def test_heads_are_neighbouring_slices_of_the_width():
    x = torch.randn(2, 3, 12)
    for h in range(4):
        assert torch.equal(split_heads(x, 3)[:, h], x[:, :, 3 * h : 3 * h + 3])
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


def test_heads_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key-value heads evenly"):
        Attention(16, 4, 3, 4)
