"""The check of chapter attention: mistakes that a learner makes get the message meant for them, right versions pass.

The wrong versions and the words that their message must hold were written without looking at the check.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import dropout

from minillm import attention
from minillm.attention import attend_torch, causal_mask, merge_heads, share_heads, split_heads, visible
from minillm.course.checks import harness
from minillm.course.checks.harness import NOT_WRITTEN, first_mistake
from minillm.embeddings import rotary_angles, rotary_frequencies, rotate


PARTS = [
    "causal_mask",
    "attention_weights",
    "split_heads",
    "merge_heads",
    "share_heads",
    "attend",
    "visible",
    "Attention",
]
INVERTED = "invert|opposite|wrong way|revers|turned (a)?round|True (where|means|is|should)"
HIDDEN = "mask|hid(e|den|es)"
FUTURE = "future|t ?\\+ ?1|next token|after (it|the query)"
ITSELF = "itself|its own|own key"
LAST = "\\blast\\b|\\bfirst\\b"
AXIS = "axis|\\bdim\\b|dim=|over the keys"
WIDTH = "\\bD\\b|head_dim|head width|width of a head"
NEIGHBOURS = "neighbo|repeat_interleave|adjacent|in a row"
MIXED = "view|reshape|transpos|permut|mix"
ORDER = "side by side|interleav|neighbo|consecutive|contiguous|order|\\(H D\\)|beside"
IN_PLACE = "in place|in-place|chang|modif|overw"
RANDOM = "random|dropout|twice|noise"

F = TypeVar("F", bound=Callable[..., Any])
WRONG: list[Any] = []
RIGHT: list[Any] = [pytest.param(part, getattr(attention, part), id=f"{part}-ours") for part in PARTS]


def wrong(part: str, *keywords: str) -> Callable[[F], F]:
    """Enter a wrong version; each keyword is a pattern that its message must hold."""

    def enter(candidate: F) -> F:
        WRONG.append(pytest.param(part, candidate, keywords, id=f"{part}-{candidate.__name__}"))
        return candidate

    return enter


def right(part: str) -> Callable[[F], F]:
    """Enter a version that is written otherwise than ours and right all the same."""

    def enter(candidate: F) -> F:
        RIGHT.append(pytest.param(part, candidate, id=f"{part}-{candidate.__name__}"))
        return candidate

    return enter


@right("causal_mask")
def compares_places(T, S, window=None):
    query, key = torch.arange(S - T, S)[:, None], torch.arange(S)[None, :]
    return (key <= query) & (key > query - (window or S))


@right("causal_mask")
def one_entry_at_a_time(T, S, window=None):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for t in range(T):
        for s in range(S):
            distance = S - T + t - s
            mask[t, s] = 0 <= distance and (window is None or distance < window)
    return mask


@wrong("causal_mask", LAST)
def queries_are_the_first_keys(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).tril()
    return mask if window is None else mask.triu(1 - window)


@wrong("causal_mask", FUTURE)
def sees_the_next(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T + 1)
    return mask if window is None else mask.triu(S - T - window + 1)


@wrong("causal_mask", ITSELF)
def not_itself(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T - 1)
    return mask if window is None else mask.triu(S - T - window + 1)


@wrong("causal_mask", INVERTED)
def true_where_hidden(T, S, window=None):
    return ~causal_mask(T, S, window)


@wrong("causal_mask", FUTURE)
def upper_triangle(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).triu(S - T)
    return mask if window is None else mask.tril(S - T + window - 1)


@wrong("causal_mask", "window")
def window_ignored(T, S, window=None):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


@wrong("causal_mask", "window")
def window_one_too_long(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    return mask if window is None else mask.triu(S - T - window)


@wrong("causal_mask", "window")
def window_one_too_short(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    return mask if window is None else mask.triu(S - T - window + 2)


@wrong("causal_mask", "window is ignored", "T or more")
def window_compared_with_the_queries(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    return mask if window is None or window >= T else mask.triu(S - T - window + 1)


@wrong("causal_mask", "window", f"{LAST}|T is less than S")
def window_from_the_first_key(T, S, window=None):
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    return mask if window is None else mask.triu(1 - window)


@wrong("causal_mask", "bool")
def ones_and_zeros(T, S, window=None):
    return causal_mask(T, S, window).float()


@wrong("causal_mask", "bool")
def zero_and_minus_infinity(T, S, window=None):
    return torch.zeros(T, S).masked_fill(~causal_mask(T, S, window), -torch.inf)


@wrong("causal_mask", "shape")
def ready_for_broadcasting(T, S, window=None):
    return causal_mask(T, S, window)[None, None]


@wrong("causal_mask", "shape")
def keys_by_queries(T, S, window=None):
    return causal_mask(T, S, window).T


@wrong("causal_mask", "expected", "window")
def no_window_parameter(T, S):
    return causal_mask(T, S)


@wrong("causal_mask", "None", "return")
def mask_not_returned(T, S, window=None):
    torch.ones(T, S, dtype=torch.bool).tril(S - T)


@right("attention_weights")
def einsum_and_own_softmax(q, k, mask):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * q.shape[-1] ** -0.5
    scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    exp = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return exp / exp.sum(dim=-1, keepdim=True)


@wrong("attention_weights", "sqrt|√|scale")
def no_scale(q, k, mask):
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "sqrt|√|root")
def scaled_by_the_width(q, k, mask):
    return (q @ k.mT / q.shape[-1]).masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "sqrt|√|root", "divide")
def multiplied_by_the_root(q, k, mask):
    return (q @ k.mT * math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "sqrt|√|root", WIDTH)
def root_of_the_length(q, k, mask):
    return (q @ k.mT / math.sqrt(k.shape[2])).masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "sqrt|√|root", WIDTH)
def root_of_all_heads_width(q, k, mask):
    scores = q @ k.mT / math.sqrt(q.shape[1] * q.shape[3])
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "sqrt|√|scale|root")
def scaled_after_softmax(q, k, mask):
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(dim=-1) / math.sqrt(q.shape[-1])


@wrong("attention_weights", "softmax|add up|sum", AXIS)
def softmax_over_queries(q, k, mask):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9)
    return scores.softmax(dim=-2)


@wrong("attention_weights", "softmax|add up|sum", AXIS)
def softmax_over_heads(q, k, mask):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9)
    return scores.softmax(dim=1)


@wrong("attention_weights", HIDDEN, "softmax")
def masked_after_softmax(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) * mask


@wrong("attention_weights", "mask", INVERTED)
def mask_inverted(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(mask, -1e9).softmax(dim=-1)


@wrong("attention_weights", HIDDEN, "inf")
def masked_with_zero(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, 0.0).softmax(dim=-1)


@wrong("attention_weights", HIDDEN, "inf")
def masked_with_a_tiny_number(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e-9).softmax(dim=-1)


@wrong("attention_weights", HIDDEN)
def no_mask(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)


@wrong("attention_weights", HIDDEN)
def mask_added(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1]) + mask).softmax(dim=-1)


@wrong("attention_weights", HIDDEN)
def fill_not_kept(q, k, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


@wrong("attention_weights", "NaN")
def zero_times_infinity(q, k, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores + (~mask).float() * -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "swap|exchang|transpos|wrong way|q @ k")
def keys_ask_queries(q, k, mask):
    scores = (k @ q.mT).reshape(*q.shape[:3], k.shape[2]) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "softmax|add up|sum")
def softmax_forgotten(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, 0.0)


@wrong("attention_weights", "softmax|add up|sum|not negative|logarithm")
def log_softmax(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9).log_softmax(dim=-1)


@wrong("attention_weights", "large|overflow|maximum|big")
def softmax_that_overflows(q, k, mask):
    exp = (q @ k.mT / math.sqrt(q.shape[-1])).exp() * mask
    return exp / exp.sum(dim=-1, keepdim=True)


@wrong("attention_weights", IN_PLACE)
def scales_the_queries_in_place(q, k, mask):
    q /= math.sqrt(q.shape[-1])
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", IN_PLACE)
def flips_the_mask_in_place(q, k, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(mask.logical_not_(), -torch.inf).softmax(dim=-1)


@wrong("attention_weights", RANDOM)
def weights_dropped_out(q, k, mask):
    return dropout((q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(dim=-1), 0.1)


@wrong("attention_weights", "dtype")
def softmax_in_another_dtype(q, k, mask):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.bfloat16)


@wrong("attention_weights", "shape")
def mask_has_two_axes_always(q, k, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask[None, None], -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "shape|raised")
def transposes_all_axes(q, k, mask):
    return (q @ k.transpose(0, 3) / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "None", "return")
def weights_not_returned(q, k, mask):
    (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(dim=-1)


@wrong("attention_weights", "expected", "mask")
def no_mask_parameter(q, k):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)


@right("split_heads")
def view_and_transpose(x, head_dim):
    B, T, width = x.shape
    return x.view(B, T, width // head_dim, head_dim).transpose(1, 2)


@right("split_heads")
def slices_stacked(x, head_dim):
    return torch.stack(x.split(head_dim, dim=-1), dim=1)


@wrong("split_heads", MIXED)
def view_alone(x, head_dim):
    B, T, width = x.shape
    return x.reshape(B, width // head_dim, T, head_dim)


@wrong("split_heads", "shape")
def heads_behind_tokens(x, head_dim):
    return x.unflatten(-1, (-1, head_dim))


@wrong("split_heads", ORDER)
def every_hth_number(x, head_dim):
    return rearrange(x, "B T (D H) -> B H T D", D=head_dim)


@wrong("split_heads", "shape|number of heads")
def head_dim_many_heads(x, head_dim):
    return x.unflatten(-1, (head_dim, -1)).transpose(1, 2)


@wrong("split_heads", "shape")
def heads_in_the_batch(x, head_dim):
    return rearrange(x, "B T (H D) -> (B H) T D", D=head_dim)


@wrong("split_heads", "order|revers|first head|which head")
def heads_reversed(x, head_dim):
    return rearrange(x, "B T (H D) -> B H T D", D=head_dim).flip(1)


@wrong("split_heads", "None", "return")
def heads_not_returned(x, head_dim):
    x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


@right("merge_heads")
def transpose_and_reshape(x):
    return x.transpose(1, 2).flatten(2)


@right("merge_heads")
def heads_concatenated(x):
    return torch.cat(x.unbind(1), dim=-1)


@wrong("merge_heads", MIXED)
def reshape_alone(x):
    B, H, T, D = x.shape
    return x.reshape(B, T, H * D)


@wrong("merge_heads", ORDER)
def heads_inside(x):
    return rearrange(x, "B H T D -> B T (D H)")


@wrong("merge_heads", "view", "raised")
def view_of_a_transpose(x):
    B, H, T, D = x.shape
    return x.contiguous().transpose(1, 2).view(B, T, H * D)


@wrong("merge_heads", "shape")
def heads_averaged(x):
    return x.mean(dim=1)


@wrong("merge_heads", "shape")
def heads_not_flattened(x):
    return x.transpose(1, 2)


@right("share_heads")
def expand_and_reshape(x, n_heads):
    B, K, S, D = x.shape
    return x[:, :, None].expand(B, K, n_heads // K, S, D).reshape(B, n_heads, S, D)


@right("share_heads")
def picked_by_number(x, n_heads):
    return x[:, torch.arange(n_heads) * x.shape[1] // n_heads]


@wrong("share_heads", NEIGHBOURS)
def repeated_in_turn(x, n_heads):
    return x.repeat(1, n_heads // x.shape[1], 1, 1)


@wrong("share_heads", "shape")
def n_heads_times_each(x, n_heads):
    return x.repeat_interleave(n_heads, dim=1)


@wrong("share_heads", "shape")
def keys_repeated(x, n_heads):
    return x.repeat_interleave(n_heads // x.shape[1], dim=2)


@wrong("share_heads", "shape")
def numbers_repeated(x, n_heads):
    return x.repeat_interleave(n_heads // x.shape[1])


@wrong("share_heads", "shape")
def nothing_repeated(x, n_heads):
    return x


@wrong("share_heads", "raised|one key-value head")
def expanded(x, n_heads):
    return x.expand(-1, n_heads, -1, -1)


@wrong("share_heads", "first|all (the )?query heads|each|serve|neighbo")
def first_head_for_all(x, n_heads):
    return x[:, :1].repeat(1, n_heads, 1, 1)


@right("attend")
def fused(q, k, v, mask=None):
    return attend_torch(q, k, v, mask)


@right("attend")
def grouped_einsum(q, k, v, mask=None, scale=None):
    (B, H, T, D), (_, K, S, _) = q.shape, k.shape
    if mask is None:
        mask = torch.arange(S)[None, :] <= torch.arange(S - T, S)[:, None]
    q = q.reshape(B, K, H // K, T, D)
    scores = torch.einsum("bkgtd,bksd->bkgts", q, k) / D**0.5
    mask = mask.expand(B, 1, T, S)[:, :, None]
    weights = scores.masked_fill(mask.logical_not(), -torch.inf).softmax(-1)
    return torch.einsum("bkgts,bksd->bkgtd", weights, v).reshape(B, H, T, D)


def prepared(q, k, v, mask):
    """Shared heads and the plain causal mask: what most wrong versions below do rightly."""
    if mask is None:
        mask = causal_mask(q.shape[2], k.shape[2])
    return share_heads(k, q.shape[1]), share_heads(v, q.shape[1]), mask


@wrong("attend", "sqrt|√|scale")
def attend_without_scale(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


@wrong("attend", "sqrt|√|root")
def attend_scaled_by_the_width(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT / q.shape[-1]).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


@wrong("attend", "sqrt|√|root", WIDTH)
def attend_scaled_by_the_model_width(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    scores = q @ k.mT / math.sqrt(q.shape[1] * q.shape[3])
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


@wrong("attend", "softmax|add up|sum", AXIS)
def attend_softmax_over_queries(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9).softmax(dim=2) @ v


@wrong("attend", "softmax|add up|sum")
def attend_without_softmax(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, 0.0) @ v


@wrong("attend", HIDDEN, "softmax")
def attend_masked_after_softmax(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) * mask) @ v


@wrong("attend", "mask", INVERTED)
def attend_mask_inverted(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(mask, -1e9).softmax(dim=-1) @ v


@wrong("attend", "inf")
def attend_masked_with_zero(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, 0.0).softmax(dim=-1) @ v


@wrong("attend", FUTURE)
def attend_sees_everything_without_a_mask(q, k, v, mask=None):
    return attend_torch(q, k, v, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool) if mask is None else mask)


@wrong("attend", FUTURE)
def attend_sees_the_next(q, k, v, mask=None):
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2] + 1)
    return attend_torch(q, k, v, mask)


@wrong("attend", ITSELF)
def attend_not_to_itself(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask if mask is not None else causal_mask(q.shape[2], k.shape[2]).tril(-1))
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9).softmax(dim=-1) @ v


@wrong("attend", LAST)
def attend_queries_are_the_first_keys(q, k, v, mask=None):
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return attend_torch(q, k, v, mask)


@wrong("attend", "mask", "given|ignor|passed")
def attend_mask_ignored(q, k, v, mask=None):
    return attend_torch(q, k, v)


@wrong("attend", "mask", "causal|given|alone|as well")
def attend_causal_on_top_of_the_mask(q, k, v, mask=None):
    causal = causal_mask(q.shape[2], k.shape[2])
    return attend_torch(q, k, v, causal if mask is None else mask & causal)


@wrong("attend", "mask", "batch|each sequence|\\brow")
def attend_with_the_first_mask_of_the_batch(q, k, v, mask=None):
    return attend_torch(q, k, v, mask[:1] if mask is not None and mask.ndim == 4 else mask)


@wrong("attend", "value")
def attend_averages_keys(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ k


@wrong("attend", "key", "value", "swap|exchang|instead|not")
def attend_values_answer(q, k, v, mask=None):
    return attend_torch(q, v, k, mask)


@wrong("attend", NEIGHBOURS)
def attend_repeats_in_turn(q, k, v, mask=None):
    times = q.shape[1] // k.shape[1]
    return attend_torch(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), mask)


@wrong("attend", NEIGHBOURS)
def attend_repeats_values_in_turn(q, k, v, mask=None):
    times = q.shape[1] // k.shape[1]
    return attend_torch(q, k.repeat_interleave(times, 1), v.repeat(1, times, 1, 1), mask)


@wrong("attend", "raised|key-value head")
def attend_does_not_share(q, k, v, mask=None):
    mask = causal_mask(q.shape[2], k.shape[2]) if mask is None else mask
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


@wrong("attend", RANDOM)
def attend_with_dropout(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return dropout(weights, 0.1) @ v


@wrong("attend", IN_PLACE)
def attend_scales_in_place(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    q.div_(math.sqrt(q.shape[-1]))
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


@wrong("attend", "shape")
def attend_tokens_before_heads(q, k, v, mask=None):
    return attend_torch(q, k, v, mask).transpose(1, 2)


@wrong("attend", "shape")
def attend_merges_too(q, k, v, mask=None):
    return merge_heads(attend_torch(q, k, v, mask))


@wrong("attend", "tuple")
def attend_returns_weights_too(q, k, v, mask=None):
    return attend_torch(q, k, v, mask), q @ share_heads(k, q.shape[1]).mT


@wrong("attend", "dtype")
def attend_in_half_precision(q, k, v, mask=None):
    return attend_torch(q, k, v, mask).bfloat16()


@wrong("attend", "NaN")
def attend_zero_times_infinity(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT / math.sqrt(q.shape[-1]) + ~mask * -torch.inf).softmax(dim=-1) @ v


@wrong("attend", "expected", "mask")
def attend_without_mask_parameter(q, k, v):
    return attend_torch(q, k, v)


@wrong("attend", "None", "return")
def attend_not_returned(q, k, v, mask=None):
    attend_torch(q, k, v, mask)


@right("visible")
def pair_by_pair(positions, key_positions, window=None):
    (B, T), S = positions.shape, key_positions.shape[1]
    seen = torch.zeros(B, 1, T, S, dtype=torch.bool)
    for b, keys in enumerate(key_positions.tolist()):
        document = [keys[: s + 1].count(0) for s in range(S)]
        for t, p in enumerate(positions[b].tolist()):
            for s, at in enumerate(keys):
                alike = (at < 0) == (p < 0) and document[s] == document[S - T + t]
                seen[b, 0, t, s] = alike and at <= p and (window is None or p - at < window)
    return seen


def rule(positions, key_positions, window, *, documents=True, padding=True):
    """The rule as (B, T, S), with a part of it left out on demand."""
    q, k = positions[:, :, None], key_positions[:, None, :]
    number = (key_positions == 0).cumsum(dim=1)
    seen = k <= q
    if padding:
        seen = seen & ((k < 0) == (q < 0))
    if documents:
        seen = seen & (number[:, number.shape[1] - positions.shape[1] :, None] == number[:, None, :])
    return seen if window is None else seen & (q - k < window)


@wrong("visible", ITSELF)
def visible_not_itself(positions, key_positions, window=None):
    seen = rule(positions, key_positions, window)
    return (seen & (key_positions[:, None, :] != positions[:, :, None]))[:, None]


@wrong("visible", FUTURE)
def visible_future(positions, key_positions, window=None):
    number = (key_positions == 0).cumsum(dim=1)
    q, k = positions[:, :, None], key_positions[:, None, :]
    same = (number[:, -positions.shape[1] :, None] == number[:, None]) & ((k < 0) == (q < 0))
    return (same if window is None else same & (q - k < window))[:, None]


@wrong("visible", "document")
def visible_across_documents(positions, key_positions, window=None):
    return rule(positions, key_positions, window, documents=False)[:, None]


@wrong("visible", "document")
def visible_documents_counted_over_the_batch(positions, key_positions, window=None):
    number = (key_positions == 0).cumsum(dim=0)
    same = number[:, -positions.shape[1] :, None] == number[:, None]
    return (rule(positions, key_positions, window, documents=False) & same)[:, None]


@wrong("visible", "padding")
def visible_padding(positions, key_positions, window=None):
    return rule(positions, key_positions, window, padding=False)[:, None]


@wrong("visible", "padding")
def visible_nothing_for_padding(positions, key_positions, window=None):
    return (rule(positions, key_positions, window) & (key_positions >= 0)[:, None])[:, None]


@wrong("visible", "window")
def visible_window_ignored(positions, key_positions, window=None):
    return rule(positions, key_positions, None)[:, None]


@wrong("visible", "window")
def visible_window_one_too_long(positions, key_positions, window=None):
    return rule(positions, key_positions, None if window is None else window + 1)[:, None]


@wrong("visible", "window")
def visible_window_one_too_short(positions, key_positions, window=None):
    return rule(positions, key_positions, None if window is None else window - 1)[:, None]


@wrong("visible", LAST)
def visible_queries_are_the_first_keys(positions, key_positions, window=None):
    number = (key_positions == 0).cumsum(dim=1)
    same = number[:, : positions.shape[1], None] == number[:, None]
    return (rule(positions, key_positions, window, documents=False) & same)[:, None]


@wrong("visible", "position")
def visible_by_place_alone(positions, key_positions, window=None):
    mask = causal_mask(positions.shape[1], key_positions.shape[1], window)
    return mask.expand(len(positions), 1, -1, -1)


@wrong("visible", "batch|each sequence|\\brow")
def visible_as_in_the_first_row(positions, key_positions, window=None):
    return rule(positions, key_positions, window)[:1, None].expand(len(positions), -1, -1, -1)


@wrong("visible", "shape")
def visible_without_an_axis_for_heads(positions, key_positions, window=None):
    return rule(positions, key_positions, window)


@wrong("visible", INVERTED)
def visible_true_where_hidden(positions, key_positions, window=None):
    return ~rule(positions, key_positions, window)[:, None]


@wrong("visible", "bool")
def visible_as_numbers(positions, key_positions, window=None):
    return rule(positions, key_positions, window)[:, None].int()


@wrong("visible", IN_PLACE)
def visible_moves_padding_away(positions, key_positions, window=None):
    seen = rule(positions, key_positions, window)
    key_positions[key_positions < 0] = 1_000_000
    return seen[:, None]


@right("Attention")
class Layer(nn.Module):
    """Attention in steps; most wrong layers below replace one of them."""

    def __init__(
        self,
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        *,
        window=None,
        attend: Callable[..., Tensor] = attend_torch,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
    ):
        super().__init__()
        if n_heads % n_kv_heads != 0:
            raise ValueError(f"n_heads={n_heads} is not a multiple of n_kv_heads={n_kv_heads}")
        self.head_dim, self.window, self.attend = head_dim, window, attend
        self.query = nn.Linear(d_model, n_heads * head_dim, bias=False)
        self.key = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.value = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.output = nn.Linear(n_heads * head_dim, d_model, bias=False)
        self.query_norm = nn.Identity() if query_norm is None else query_norm
        self.key_norm = nn.Identity() if key_norm is None else key_norm

    def project(self, x):
        return tuple(split_heads(f(x), self.head_dim) for f in (self.query, self.key, self.value))

    def place(self, q, k, v, angles):
        return rotate(self.query_norm(q), angles), rotate(self.key_norm(k), angles), v

    def recall(self, k, v, positions, cache, layer):
        return (k, v, positions) if cache is None else cache.update(layer, k, v, positions)

    def mask(self, T, S, positions, key_positions, cache):
        if positions is not None and key_positions is not None:
            return visible(positions, key_positions, self.window)
        return causal_mask(T, S, self.window)

    def finish(self, heads, x):
        return self.output(heads.transpose(1, 2).flatten(2))

    def forward(self, x, angles, positions=None, cache=None, layer=0):
        q, k, v = self.project(x)
        q, k, v = self.place(q, k, v, angles)
        k, v, key_positions = self.recall(k, v, positions, cache, layer)
        mask = self.mask(q.shape[2], k.shape[2], positions, key_positions, cache)
        return self.finish(self.attend(q, k, v, mask), x)


@right("Attention")
class NoMaskWhereNoneIsNeeded(Layer):
    def mask(self, T, S, positions, key_positions, cache):
        return attention.mask_for(T, S, positions, key_positions, self.window)


@wrong("Attention", "output|projection")
class NoOutputProjection(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **parts)
        self.output = nn.Identity()


@wrong("Attention", "output")
class OutputNotApplied(Layer):
    def finish(self, heads, x):
        return merge_heads(heads)


@wrong("Attention", MIXED, "head")
class HeadsMergedByReshape(Layer):
    def finish(self, heads, x):
        return self.output(heads.reshape(heads.shape[0], heads.shape[2], -1))


@wrong("Attention", MIXED, "head")
class HeadsSplitByView(Layer):
    def project(self, x):
        B, T, _ = x.shape
        return tuple(f(x).view(B, -1, T, self.head_dim) for f in (self.query, self.key, self.value))


@wrong("Attention", "residual|added|adds|input|plus x|x \\+")
class AddsItsInput(Layer):
    def finish(self, heads, x):
        return x + super().finish(heads, x)


@wrong("Attention", RANDOM)
class DropsOut(Layer):
    def finish(self, heads, x):
        return dropout(super().finish(heads, x), 0.1)


@wrong("Attention", "rotat")
class NotRotated(Layer):
    def place(self, q, k, v, angles):
        return self.query_norm(q), self.key_norm(k), v


@wrong("Attention", "rotat", "key")
class OnlyQueriesRotated(Layer):
    def place(self, q, k, v, angles):
        return rotate(self.query_norm(q), angles), self.key_norm(k), v


@wrong("Attention", "rotat", "value")
class ValuesRotated(Layer):
    def place(self, q, k, v, angles):
        return rotate(self.query_norm(q), angles), rotate(self.key_norm(k), angles), rotate(v, angles)


@wrong("Attention", "norm", "before|after")
class NormAfterRotation(Layer):
    def place(self, q, k, v, angles):
        return self.query_norm(rotate(q, angles)), self.key_norm(rotate(k, angles)), v


@wrong("Attention", "norm")
class NormsIgnored(Layer):
    def place(self, q, k, v, angles):
        return rotate(q, angles), rotate(k, angles), v


@wrong("Attention", "norm", "key")
class QueryNormForKeys(Layer):
    def place(self, q, k, v, angles):
        return rotate(self.query_norm(q), angles), rotate(self.query_norm(k), angles), v


@wrong("Attention", "norm", "value")
class ValuesNormalised(Layer):
    def place(self, q, k, v, angles):
        return rotate(self.query_norm(q), angles), rotate(self.key_norm(k), angles), self.key_norm(v)


@wrong("Attention", "norm", f"{WIDTH}|head|shape")
class NormOverAllHeads(Layer):
    def project(self, x):
        projected = self.query_norm(self.query(x)), self.key_norm(self.key(x)), self.value(x)
        return tuple(split_heads(each, self.head_dim) for each in projected)

    def place(self, q, k, v, angles):
        return rotate(q, angles), rotate(k, angles), v


@wrong("Attention", "value")
class KeysAsValues(Layer):
    def project(self, x):
        q, k, _ = super().project(x)
        return q, k, k


@wrong("Attention", "swap|exchang|mixed up|confus|instead|key", "value")
class KeysAndValuesSwapped(Layer):
    def project(self, x):
        q, k, v = super().project(x)
        return q, v, k


@wrong("Attention", "cache")
class CacheIgnored(Layer):
    def recall(self, k, v, positions, cache, layer):
        return k, v, positions


@wrong("Attention", "cache")
class CacheFilledButNotRead(Layer):
    def recall(self, k, v, positions, cache, layer):
        if cache is not None:
            cache.update(layer, k, v, positions)
        return k, v, positions


@wrong("Attention", "layer")
class OneLayerOfTheCache(Layer):
    def recall(self, k, v, positions, cache, layer):
        return super().recall(k, v, positions, cache, 0)


@wrong("Attention", "cache", "position")
class CacheWithoutPositions(Layer):
    def recall(self, k, v, positions, cache, layer):
        return super().recall(k, v, positions if cache is None else None, cache, layer)


@wrong("Attention", "cache", "\\bv\\b|value|swap|exchang|order")
class CacheSwapsKeysAndValues(Layer):
    def recall(self, k, v, positions, cache, layer):
        return (k, v, positions) if cache is None else cache.update(layer, v, k, positions)


@wrong("Attention", "cache", "rotat")
class CachesUnrotatedKeys(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        q, k, v = self.project(x)
        k, v, key_positions = self.recall(self.key_norm(k), v, positions, cache, layer)
        q, k = rotate(self.query_norm(q), angles), rotate(k, angles)
        mask = self.mask(q.shape[2], k.shape[2], positions, key_positions, cache)
        return self.finish(self.attend(q, k, v, mask), x)


@wrong("Attention", f"{FUTURE}|cache|causal")
class NoMaskWithACache(Layer):
    def mask(self, T, S, positions, key_positions, cache):
        if cache is not None:
            return torch.ones(T, S, dtype=torch.bool)
        return super().mask(T, S, positions, key_positions, cache)


@wrong("Attention", FUTURE)
class SeesTheFuture(Layer):
    def mask(self, T, S, positions, key_positions, cache):
        return torch.ones(T, S, dtype=torch.bool)


@wrong("Attention", "position")
class PositionsIgnored(Layer):
    def mask(self, T, S, positions, key_positions, cache):
        return causal_mask(T, S, self.window)


@wrong("Attention", "window")
class WindowIgnored(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, *, window=None, **parts):
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **parts)


@wrong("Attention", "window", "position")
class WindowIgnoredWithPositions(Layer):
    def mask(self, T, S, positions, key_positions, cache):
        if positions is not None and key_positions is not None:
            return visible(positions, key_positions)
        return causal_mask(T, S, self.window)


@wrong("Attention", "attend")
class OwnAttendIgnored(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, *, attend=None, **parts):
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **parts)


@wrong("Attention", "ValueError|even|multiple")
class UnevenHeadsAccepted(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
        super().__init__(d_model, n_heads, n_kv_heads if n_heads % n_kv_heads == 0 else 1, head_dim, **parts)


@wrong("Attention", "n_kv_heads|key-value heads|key\\b")
class KeyForEveryQueryHead(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **parts)
        self.key = nn.Linear(d_model, n_heads * head_dim, bias=False)
        self.value = nn.Linear(d_model, n_heads * head_dim, bias=False)


@wrong("Attention", "head_dim|shape|width|wide")
class HeadWidthFromModelWidth(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
        super().__init__(d_model, n_heads, n_kv_heads, d_model // n_heads, **parts)


@wrong("Attention", "bias")
class WithBias(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **parts)
        self.query, self.key = nn.Linear(d_model, n_heads * head_dim), nn.Linear(d_model, n_kv_heads * head_dim)
        self.value = nn.Linear(d_model, n_kv_heads * head_dim)
        self.output = nn.Linear(n_heads * head_dim, d_model)


@wrong("Attention", "query", "name|called|parameter|weight|layer")
class OtherNames(nn.Module):
    def __init__(
        self,
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        *,
        window=None,
        attend: Callable[..., Tensor] = attend_torch,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
    ):
        super().__init__()
        inner = Layer(
            d_model,
            n_heads,
            n_kv_heads,
            head_dim,
            window=window,
            attend=attend,
            query_norm=query_norm,
            key_norm=key_norm,
        )
        self.head_dim, self.window, self.inner_product = head_dim, window, attend
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = inner.query, inner.key, inner.value, inner.output
        self.q_norm, self.k_norm = inner.query_norm, inner.key_norm

    def forward(self, x, angles, positions=None, cache=None, layer=0):
        q, k, v = (split_heads(f(x), self.head_dim) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, seen = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles), positions
        if cache is not None:
            k, v, seen = cache.update(layer, k, v, positions)
        mask = attention.mask_for(q.shape[2], k.shape[2], positions, seen, self.window)
        return self.o_proj(merge_heads(self.inner_product(q, k, v, mask)))


@wrong("Attention", "query|parameter|weight", "name|called|parameter|list|register|weight")
class LayersInAList(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **parts)
        self.layers = [self.query, self.key, self.value]
        del self.query, self.key, self.value

    def project(self, x):
        return tuple(split_heads(f(x), self.head_dim) for f in self.layers)


@wrong("Attention", "__init__|super")
class SuperForgotten(Layer):
    @functools.wraps(Layer.__init__)
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
        self.query = nn.Linear(d_model, n_heads * head_dim, bias=False)


@wrong("Attention", "expected", "n_kv_heads")
class NoSharedHeadsParameter(Layer):
    def __init__(self, d_model, n_heads, head_dim, **parts):
        super().__init__(d_model, n_heads, n_heads, head_dim, **parts)


@wrong("Attention", "forward", "argument|expected|takes")
class ForwardTakesNoAngles(Layer):
    def forward(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = self.project(x)
        return self.finish(self.attend(q, k, v, None), x)


@wrong("Attention", "tuple")
class ReturnsTheCacheToo(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        return super().forward(x, angles, positions, cache, layer), cache


@wrong("Attention", "None", "return")
class ResultNotReturned(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        super().forward(x, angles, positions, cache, layer)


@wrong("Attention", IN_PLACE)
class ChangesItsInput(Layer):
    def finish(self, heads, x):
        return x.copy_(super().finish(heads, x))


@wrong("Attention", "function|class")
def attention_as_a_function(d_model, n_heads, n_kv_heads, head_dim, *, window=None):
    return Layer(d_model, n_heads, n_kv_heads, head_dim, window=window)


@wrong("causal_mask", "future|both")
def window_both_sides(T, S, window=None):
    q, k = torch.arange(S - T, S)[:, None], torch.arange(S)
    if window is None:
        return k <= q
    return (q - k).abs() < window


@wrong("causal_mask", "window|far")
def window_keeps_the_far(T, S, window=None):
    m = causal_mask(T, S)
    return m if window is None else m & ~causal_mask(T, S, window)


@wrong("causal_mask", "shape|raised")
def square_then_row_slice(T, S, window=None):
    return causal_mask(T, T, window)


@wrong("causal_mask", "first|last")
def square_first_rows(T, S, window=None):
    return causal_mask(S, S, window)[:T]


@wrong("causal_mask", "window")
def window_when_longer_only(T, S, window=None):
    m = causal_mask(T, S)
    if window is not None and T > window:
        m = causal_mask(T, S, window)
    return m


@wrong("causal_mask", "raised|window|NoneType")
def window_none_not_handled(T, S, window=None):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T).triu(S - T - window + 1)


@wrong("causal_mask", "window")
def window_minus_t(T, S, window=None):
    m = causal_mask(T, S)
    return m if window is None else m.triu(T - window)


@wrong("attention_weights", "invert|wrong way|True")
def inverted_inf(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(mask, -torch.inf).softmax(-1)


@wrong("attention_weights", "twice")
def softmax_twice(q, k, mask):
    return attention.attention_weights(q, k, mask).softmax(-1)


@wrong("attention_weights", "mask|hid")
def masks_the_q(q, k, mask):
    s = q @ k.mT / math.sqrt(q.shape[-1])
    return s.masked_fill(~mask, -5.0).softmax(-1)


@wrong("attention_weights", "mask", "ignored")
def always_causal(q, k, mask):
    return attention.attention_weights(q, k, causal_mask(q.shape[2], k.shape[2]))


@wrong("attention_weights", "sum|add up|softmax")
def sigmoid_weights(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).sigmoid()


@wrong("attention_weights", "softmax|sum|add")
def linear_norm(q, k, mask):
    s = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, 0.0)
    return s / s.sum(-1, keepdim=True)


@wrong("attention_weights", "normali|length|cosine|scores")
def cosine(q, k, mask):
    q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
    return attention.attention_weights(q, k, mask)


@wrong("attention_weights", "sqrt|head_dim")
def half_width(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1] // 2)).masked_fill(~mask, -torch.inf).softmax(-1)


@wrong("attention_weights", "mask|hid")
def mask_multiplied(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1]) * mask).softmax(-1)


@wrong("attention_weights", "overflow|large|hid|inf")
def minus_ten(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -100.0).softmax(-1)


@wrong("attention_weights", "sum|add up|softmax|all")
def softmax_flat(q, k, mask):
    s = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    return s.flatten(2).softmax(-1).view_as(s)


@wrong("attention_weights", "gradient|detach")
def detached_scores(q, k, mask):
    return attention.attention_weights(q, k.detach(), mask)


@wrong("attention_weights", "random|noise|differ")
def gumbel(q, k, mask):
    s = q @ k.mT / math.sqrt(q.shape[-1])
    s = s + torch.rand_like(s) * 0.1
    return s.masked_fill(~mask, -torch.inf).softmax(-1)


@wrong("attention_weights", "row|batch")
def mask_any_row(q, k, mask):
    if mask.ndim == 4:
        mask = mask.any(0)
    return attention.attention_weights(q, k, mask)


@wrong("attention_weights", "transpos|wrong way|row t")
def weights_transposed(q, k, mask):
    w = attention.attention_weights(q, k, mask)
    return w.mT if w.shape[2] == w.shape[3] else w


@wrong("attention_weights", "sign|wrong way|negative")
def minus(q, k, mask):
    return attention.attention_weights(-q, k, mask)


@wrong("attention_weights", "softmax", "batch|row")
def softmax_batch(q, k, mask):
    s = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9)
    return s.softmax(0)


@wrong("split_heads", "mix|transpos")
def split_transpose_first(x, head_dim):
    B, T, W = x.shape
    return x.mT.reshape(B, W // head_dim, head_dim, T).reshape(B, W // head_dim, T, head_dim)


@wrong("split_heads", "shape")
def split_chunk(x, head_dim):
    return torch.stack(x.chunk(head_dim, -1), 1)


@wrong("split_heads", "batch|rows|mix")
def split_batch_mixed(x, head_dim):
    B, T, _W = x.shape
    return x.reshape(B, T, -1, head_dim).transpose(0, 1).reshape(B, -1, T, head_dim)


@wrong("merge_heads", "order|revers")
def merge_rev(x):
    return merge_heads(x.flip(1))


@wrong("merge_heads", "mix|position|transpos")
def merge_wrong_transpose(x):
    B, H, T, D = x.shape
    return x.transpose(2, 3).reshape(B, T, H * D)


@wrong("merge_heads", "shape")
def merge_into_time(x):
    return x.transpose(1, 2).flatten(1, 2)


@wrong("share_heads", "h //|neighbo|order")
def share_flip(x, n_heads):
    return share_heads(x.flip(1), n_heads)


@wrong("share_heads", "shape")
def share_swapped_division(x, n_heads):
    return x.repeat_interleave(max(1, x.shape[1] // n_heads), dim=1)


@wrong("share_heads", "shape")
def share_cat_twice(x, n_heads):
    return torch.cat((x, x), 1) if n_heads != x.shape[1] else x


@wrong("share_heads", "mean|chang|numbers")
def share_mean(x, n_heads):
    return x.mean(1, keepdim=True).expand(-1, n_heads, -1, -1)


@wrong("share_heads", NEIGHBOURS)
def share_reshape(x, n_heads):
    B, K, S, D = x.shape
    return x.repeat_interleave(n_heads // K, 0).reshape(B, n_heads, S, D)


@wrong("attend", "value head")
def attend_v_first(q, k, v, mask=None):
    return attend_torch(q, k, v[:, :1].expand_as(v), mask)


@wrong("attend", "transpos|row t|wrong way")
def attend_wT(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    w = attention.attention_weights(q, k, mask)
    return (w.mT if w.shape[-1] == w.shape[-2] else w) @ v


@wrong("attend", "fewer|T=|raised|shape")
def attend_square_mask(q, k, v, mask=None):
    if mask is None:
        mask = causal_mask(q.shape[2], q.shape[2])
    return attend_torch(q, k, v, mask)


@wrong("attend", "add to the causal")
def attend_mask_or_causal(q, k, v, mask=None):
    c = causal_mask(q.shape[2], k.shape[2])
    return attend_torch(q, k, v, c if mask is None else c | mask)


@wrong("attend", LAST)
def attend_is_causal_only_square(q, k, v, mask=None):
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


@wrong("attend", "sqrt|head_dim")
def attend_prescaled(q, k, v, mask=None):
    return attend_torch(q / math.sqrt(q.shape[-1]), k, v, mask)


@wrong("attend", "other heads")
def attend_mean_heads(q, k, v, mask=None):
    o = attend_torch(q, k, v, mask)
    return o.mean(1, keepdim=True).expand_as(o)


@wrong("attend", "single key|softmax")
def attend_softmax_one(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    s = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return e / (1 + e.sum(-1, keepdim=True)) @ v


@wrong("attend", "quer|residual|added|adds")
def attend_residual(q, k, v, mask=None):
    return q + attend_torch(q, k, v, mask)


@wrong("attend", "itself|own")
def attend_strict_inf(q, k, v, mask=None):
    if mask is None:
        mask = causal_mask(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2] - 1)
    k, v, mask = prepared(q, k, v, mask)
    return attention.attention_weights(q, k, mask) @ v


@wrong("attend", "shared")
def attend_q_grouped(q, k, v, mask=None):
    _B, H, _T, _D = q.shape
    K = k.shape[1]
    perm = torch.arange(H).view(H // K, K).T.flatten()
    return attend_torch(q[:, perm], k, v, mask)


@wrong("visible", "document")
def vis_doc_leq(positions, key_positions, window=None):
    n = (key_positions == 0).cumsum(1)
    T = positions.shape[1]
    return (rule(positions, key_positions, window, documents=False) & (n[:, None] <= n[:, -T:, None]))[:, None]


@wrong("visible", "document|quer")
def vis_doc_queries(positions, key_positions, window=None):
    n = (key_positions == 0).cumsum(1)
    m = (positions == 0).cumsum(1)
    return (rule(positions, key_positions, window, documents=False) & (n[:, None] == m[:, :, None]))[:, None]


@wrong("visible", "window")
def vis_window_keys(positions, key_positions, window=None):
    s = rule(positions, key_positions, None)
    return (s if window is None else s & ((positions[:, :, None] - key_positions[:, None]).abs() <= window))[:, None]


@wrong("visible", "transpos|shape")
def vis_transposed(positions, key_positions, window=None):
    return visible(positions, key_positions, window).mT


@wrong("visible", "document")
def vis_doc_is_one(positions, key_positions, window=None):
    n = (key_positions == 1).cumsum(1)
    T = positions.shape[1]
    return (rule(positions, key_positions, window, documents=False) & (n[:, None] == n[:, -T:, None]))[:, None]


@wrong("visible", "padding")
def vis_pad_all(positions, key_positions, window=None):
    return (
        rule(positions, key_positions, window, padding=False) & ~((key_positions < 0) & True)[:, None]
        | (positions < 0)[:, :, None]
    )[:, None]


@right("visible")
def window_by_place(positions, key_positions, window=None):
    T, S = positions.shape[1], key_positions.shape[1]
    return (rule(positions, key_positions, None) & causal_mask(T, S, window))[:, None]


@wrong("visible", "document|position|place")
def vis_order_by_place(positions, key_positions, window=None):
    T, S = positions.shape[1], key_positions.shape[1]
    return rule(positions, key_positions, window, documents=False)[:, None] & causal_mask(T, S)


@wrong("Attention", "mask", "wrong way")
class MaskTransposed(Layer):
    def mask(self, *a):
        m = super().mask(*a)
        return m.mT if m.shape[-1] == m.shape[-2] else m


@wrong("Attention", "twice")
class RotatesTwice(Layer):
    def place(self, q, k, v, angles):
        q, k, v = super().place(q, k, v, angles)
        return rotate(q, angles), rotate(k, angles), v


@wrong("Attention", "rotat")
class RotatesBack(Layer):
    def place(self, q, k, v, angles):
        return super().place(q, k, v, (angles[0], -angles[1]))


@wrong("Attention", "rotat|angles")
class CosSinSwapped(Layer):
    def place(self, q, k, v, angles):
        return super().place(q, k, v, angles[::-1])


@wrong("Attention", "scale|sqrt|multipl")
class ScalesQueries(Layer):
    def place(self, q, k, v, angles):
        q, k, v = super().place(q, k, v, angles)
        return q / self.head_dim**0.5, k, v


@wrong("Attention", "cache")
class RotatesCachedAgain(Layer):
    def recall(self, k, v, positions, cache, layer):
        return super().recall(k, v, positions, cache, layer)

    def forward(self, x, angles, positions=None, cache=None, layer=0):
        q, k, v = self.project(x)
        q, k, v = self.place(q, k, v, angles)
        n = k.shape[2]
        k, v, kp = self.recall(k, v, positions, cache, layer)
        if cache is not None:
            k = torch.cat((k[:, :, :-n], rotate(k[:, :, -n:], angles)), 2)
        return self.finish(self.attend(q, k, v, self.mask(q.shape[2], k.shape[2], positions, kp, cache)), x)


@wrong("Attention", "first", "cache")
class CacheMaskFirst(Layer):
    def mask(self, T, S, positions, kp, cache):
        if positions is None:
            return torch.ones(T, S, dtype=torch.bool).tril().triu(1 - (self.window or S))
        return super().mask(T, S, positions, kp, cache)


@wrong("Attention", "cache", "shape|mask")
class KeyPositionsOwn(Layer):
    def mask(self, T, S, positions, kp, cache):
        return super().mask(T, S, positions, positions, cache)


@wrong("Attention", "position")
class PositionsOnlyWithCache(Layer):
    def mask(self, T, S, positions, kp, cache):
        return super().mask(T, S, positions if cache is not None else None, kp, cache)


@wrong("Attention", "window")
class WindowOff(Layer):
    def __init__(self, *a, window=None, **k):
        super().__init__(*a, window=None if window is None else window + 1, **k)


@wrong("Attention", "attend")
class CallsModuleAttend(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        self.__dict__["attend"] = attend_torch
        return super().forward(x, angles, positions, cache, layer)


@wrong("Attention", "input is normalised")
class PreNorm(Layer):
    def project(self, x):
        return super().project(nn.functional.rms_norm(x, x.shape[-1:]))


@wrong("Attention", "swap")
class QKSwapped(Layer):
    def project(self, x):
        q, k, v = super().project(x)
        return (k, q, v) if q.shape == k.shape else (q, k, v)


@wrong("Attention", "neighbo|h //")
class RepeatsKV(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        q, k, v = self.project(x)
        q, k, v = self.place(q, k, v, angles)
        k, v, kp = self.recall(k, v, positions, cache, layer)
        n = q.shape[1] // k.shape[1]
        return self.finish(
            self.attend(
                q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1), self.mask(q.shape[2], k.shape[2], positions, kp, cache)
            ),
            x,
        )


@wrong("Attention", "same")
class TiedKV(Layer):
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.value = self.key


@wrong("Attention", "gradient|detach")
class DetachedV(Layer):
    def place(self, q, k, v, angles):
        q, k, v = super().place(q, k, v, angles)
        return q, k, v.detach()


@wrong("Attention", "twice|output")
class OutputTwice(Layer):
    def finish(self, h, x):
        y = super().finish(h, x)
        return self.output(y) if y.shape[-1] == self.output.in_features else y


@wrong("Attention", "query_norm")
class NormBoth(Layer):
    def __init__(self, *a, query_norm=None, key_norm=None, **k):
        if query_norm is None or key_norm is None:
            query_norm = key_norm = None
        super().__init__(*a, query_norm=query_norm, key_norm=key_norm, **k)


@wrong("Attention", "rotat", "angles")
class RotatesOwnAngles(Layer):
    def place(self, q, k, v, angles):
        return super().place(q, k, v, rotary_angles(torch.arange(q.shape[2]), rotary_frequencies(q.shape[3])))


@wrong("Attention", "bool|dtype")
class FloatMask(Layer):
    def mask(self, *a):
        return torch.zeros(()).masked_fill(~super().mask(*a), -torch.inf)


@wrong("Attention", "cache.update", "times")
class CacheTwice(Layer):
    def recall(self, k, v, positions, cache, layer):
        if cache is not None:
            cache.update(layer, k, v, positions)
        return super().recall(k, v, positions, cache, layer)


@wrong("Attention", "window")
class WindowNotWithCache(Layer):
    def mask(self, T, S, positions, kp, cache):
        if cache is not None:
            return visible(positions, kp) if positions is not None and kp is not None else causal_mask(T, S)
        return super().mask(T, S, positions, kp, cache)


@wrong("Attention", "nonlin|relu|activ")
class Activated(Layer):
    def finish(self, h, x):
        return super().finish(h, x).relu()


@wrong("Attention", "default")
class BadDefaultAttend(Layer):
    def __init__(self, *a, attend=None, **k):
        super().__init__(*a, attend=attend or (lambda q, k, v, m: attend_torch(q * 2, k, v, m)), **k)


@wrong("Attention", "order")
class HeadsFlippedAtEnd(Layer):
    def finish(self, h, x):
        return super().finish(h.flip(1), x)


@wrong("Attention", "output", "d_model")
class OutputWrongWay(Layer):
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **k):
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **k)
        self.output = nn.Linear(d_model, n_heads * head_dim, bias=False)


@wrong("Attention", "kept")
class KeepsMask(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        y = super().forward(x, angles, positions, cache, layer)
        self.__dict__["n"] = self.__dict__.get("n", 0) + 1
        return y * self.__dict__["n"]


@right("Attention")
class PerHead(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        q, k, v = self.project(x)
        q, k, v = self.place(q, k, v, angles)
        k, v, kp = self.recall(k, v, positions, cache, layer)
        m = self.mask(q.shape[2], k.shape[2], positions, kp, cache)
        g = q.shape[1] // k.shape[1]
        outs = [
            self.attend(q[:, h : h + 1], k[:, h // g : h // g + 1], v[:, h // g : h // g + 1], m)
            for h in range(q.shape[1])
        ]
        return self.finish(torch.cat(outs, 1), x)


@right("Attention")
class SharesFirst(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        q, k, v = self.project(x)
        q, k, v = self.place(q, k, v, angles)
        k, v, kp = self.recall(k, v, positions, cache, layer)
        m = self.mask(q.shape[2], k.shape[2], positions, kp, cache)
        return self.finish(self.attend(q, share_heads(k, q.shape[1]), share_heads(v, q.shape[1]), mask=m), x)


@right("Attention")
class KeywordArgs(Layer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def forward(self, x, angles, *args, **kwargs):
        return super().forward(x, angles, *args, **kwargs)


@right("attention_weights")
def minus_1e9(q, k, mask):
    return (q @ k.mT * (q.shape[-1] ** -0.5)).masked_fill(mask == 0, -1e9).softmax(-1)


@right("attend")
def heads_loop(q, k, v, mask=None):
    g = q.shape[1] // k.shape[1]
    return torch.stack(
        [attend_torch(q[:, h : h + 1], k[:, [h // g]], v[:, [h // g]], mask)[:, 0] for h in range(q.shape[1])], 1
    )


@right("causal_mask")
def full(T, S, window=None):
    full = torch.tril(torch.ones(S, S))
    if window:
        full = full - torch.tril(torch.ones(S, S), -window)
    return full[S - T :].bool()


@wrong("causal_mask", "should see")
def window_never_longer_than_the_queries(T, S, window=None):
    w = min(window or S, T)
    return causal_mask(T, S, w)


@wrong("causal_mask", "future|wrong way")
def tril_transposed(T, S, window=None):
    m = causal_mask(T, S, window)
    return m.flip(0, 1)


@wrong("attention_weights", "scale|sqrt|square root")
def scale_squared(q, k, mask):
    return (q @ k.mT / q.shape[-1] ** 2).masked_fill(~mask, -torch.inf).softmax(-1)


@wrong("attention_weights", "square root|head_dim|sqrt")
def scale_both(q, k, mask):
    s = math.sqrt(q.shape[-1])
    return ((q / s) @ (k / s).mT).masked_fill(~mask, -torch.inf).softmax(-1)


@wrong("attention_weights", "softmax|sum|add")
def relu_normalised(q, k, mask):
    s = (q @ k.mT / math.sqrt(q.shape[-1])).relu() * mask
    return s / (s.sum(-1, keepdim=True) + 1e-6)


@wrong("attention_weights", "NaN|overflow|inf")
def minus_inf_mult(q, k, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1]) - (1 - mask.float()) * float("inf")).softmax(-1)


@wrong("attention_weights", "softmax|sum|add up|axis")
def sm_dim1(q, k, mask):
    return nn.functional.softmax((q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf), dim=1)


@wrong("attention_weights", "in place|chang")
def mask_inplace(q, k, mask):
    mask |= torch.eye(mask.shape[-2], mask.shape[-1], dtype=torch.bool)
    return attention.attention_weights(q, k, mask)


@wrong("attention_weights", "mask")
def mask_adds_self(q, k, mask):
    return attention.attention_weights(
        q,
        k,
        mask
        | torch.ones(mask.shape[-2:], dtype=torch.bool)
        .triu(mask.shape[-1] - mask.shape[-2])
        .tril(mask.shape[-1] - mask.shape[-2]),
    )


@wrong("attention_weights", "sum|add up|less than 1|eps|multipl")
def leaky(q, k, mask):
    return attention.attention_weights(q, k, mask) * 0.9


@wrong("attention_weights", "other heads")
def head_average(q, k, mask):
    return attention.attention_weights(q, k, mask).mean(1, keepdim=True).expand(-1, q.shape[1], -1, -1)


@wrong("attention_weights", "queries are not used")
def ignores_q(q, k, mask):
    return attention.attention_weights(k[:, :, -q.shape[2] :], k, mask)


@wrong("attention_weights", "temperature|divided|sqrt")
def temperature(q, k, mask):
    return attention.attention_weights(q / 0.7, k, mask)


@wrong("attention_weights", "batch|row")
def batch_mean_mask(q, k, mask):
    return attention.attention_weights(q, k, mask[-1] if mask.ndim == 4 else mask)


@wrong("split_heads", "shape|number of heads")
def head_dim_heads(x, head_dim):
    return rearrange(x, "B T (H D) -> B H T D", H=head_dim)


@wrong("split_heads", "mix|position")
def reshaped_at_once(x, head_dim):
    return rearrange(x, "B (T H) D -> B H T D", H=1).reshape(x.shape[0], -1, x.shape[1], head_dim)


@wrong("split_heads", "shape")
def numbers_before_tokens(x, head_dim):
    return rearrange(x, "B T (H D) -> B H D T", D=head_dim)


@wrong("split_heads", "order|coordinates")
def numbers_of_a_head_reversed(x, head_dim):
    return split_heads(x, head_dim).flip(-1)


@wrong("merge_heads", "shape")
def tokens_merged_with_numbers(x):
    return rearrange(x, "B H T D -> B H (T D)")


@wrong("merge_heads", "order|coordinates")
def numbers_reversed_when_merged(x):
    return merge_heads(x.flip(-1))


@wrong("merge_heads", "numbers|chang|mov")
def divided_by_the_heads(x):
    return merge_heads(x) / x.shape[1]


@wrong("share_heads", "shape")
def repeated_n_heads_times(x, n_heads):
    return x.repeat(1, n_heads, 1, 1)


@wrong("share_heads", "raised|view|shape")
def viewed_as_more_heads(x, n_heads):
    return x.view(x.shape[0], n_heads, x.shape[2], x.shape[3])


@wrong("share_heads", NEIGHBOURS)
def last_head_for_the_rest(x, n_heads):
    return torch.cat((x, x[:, -1:].expand(-1, n_heads - x.shape[1], -1, -1)), 1)


@wrong("attend", FUTURE)
def attend_fused_without_causal(q, k, v, mask=None):
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@wrong("attend", "queries are not used")
def attend_keys_for_queries(q, k, v, mask=None):
    return attend_torch(share_heads(k, q.shape[1])[:, :, -q.shape[2] :], k, v, mask)


@wrong("attend", "shape|raised|fewer|key-value")
def attend_shares_keys_only(q, k, v, mask=None):
    k = share_heads(k, q.shape[1])
    mask = causal_mask(q.shape[2], k.shape[2]) if mask is None else mask
    return attention.attention_weights(q, k, mask) @ v


@wrong("attend", "mask|wrong way|True")
def attend_inverts_a_given_mask(q, k, v, mask=None):
    return attend_torch(q, k, v, None if mask is None else ~mask)


@wrong("attend", "mask|ignored|batch|row")
def attend_ignores_a_mask_for_each_row(q, k, v, mask=None):
    if mask is not None and mask.ndim == 4:
        mask = None
    return attend_torch(q, k, v, mask)


@wrong("attend", "gradient|detach")
def attend_detaches_values(q, k, v, mask=None):
    return attend_torch(q, k, v.detach(), mask)


@wrong("attend", "scale|sqrt|multipl|after")
def attend_scales_the_result(q, k, v, mask=None):
    k, v, mask = prepared(q, k, v, mask)
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v / math.sqrt(q.shape[-1])


@wrong("attend", "fewer key-value heads")
def attend_demands_equal_heads(q, k, v, mask=None):
    _B, H, _T, _D = q.shape
    assert k.shape[1] == H
    return attend_torch(q, k, v, mask)


@wrong("attend", "T=1")
def attend_one_query_sees_one_key(q, k, v, mask=None):
    if q.shape[2] == 1:
        k, v, mask = k[:, :, :1], v[:, :, :1], None
    return attend_torch(q, k, v, mask)


@wrong("attend", "in place|chang")
def attend_scales_keys_in_place(q, k, v, mask=None):
    k *= 1 / math.sqrt(q.shape[-1])
    k2, v, mask = prepared(q, k, v, mask)
    return (q @ k2.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v


@wrong("visible", "window")
def visible_with_other_names(p, kp, window=None):
    return p


@wrong("visible", "padding")
def visible_padding_sees_text(positions, key_positions, window=None):
    return (
        rule(positions, key_positions, window, padding=False) & (key_positions >= 0)[:, None]
        | ((positions < 0)[:, :, None] & (key_positions >= 0)[:, None])
    )[:, None]


@wrong("visible", "document")
def visible_in_the_last_document(positions, key_positions, window=None):
    n = (key_positions == 0).cumsum(1)
    T = positions.shape[1]
    last = n[:, -1:, None].expand(-1, T, -1)
    return (rule(positions, key_positions, window, documents=False) & (n[:, None] == last))[:, None]


@wrong("visible", "shape|raised|size")
def visible_documents_of_keys_alone(positions, key_positions, window=None):
    n = (key_positions == 0).cumsum(1)
    return (rule(positions, key_positions, window, documents=False) & (n[:, :, None] == n[:, None]))[:, None]


@wrong("visible", "window")
def visible_window_by_wrong_place(positions, key_positions, window=None):
    T, S = positions.shape[1], key_positions.shape[1]
    return visible(positions, key_positions) & (
        causal_mask(T, T, window).repeat(1, 2)[:, :S] if window and 2 * T >= S else True
    )


@wrong("visible", "document")
def visible_documents_by_falling_positions(positions, key_positions, window=None):
    new = torch.diff(key_positions, dim=1, prepend=key_positions[:, :1]) < 0
    n = new.cumsum(0)
    T = positions.shape[1]
    return (rule(positions, key_positions, window, documents=False) & (n[:, -T:, None] == n[:, None]))[:, None]


@wrong("Attention", "value", "rotat")
class ValuesRotatedNotKeys(Layer):
    def place(self, q, k, v, a):
        return rotate(self.query_norm(q), a), self.key_norm(k), rotate(v, a)


@wrong("Attention", "query_norm")
class KeyNormAlone(Layer):
    def place(self, q, k, v, a):
        return rotate(q, a), rotate(self.key_norm(k), a), v


@wrong("Attention", "swap|key_norm|query_norm")
class NormsSwapped(Layer):
    def place(self, q, k, v, a):
        return rotate(self.key_norm(q), a), rotate(self.query_norm(k), a), v


@wrong("Attention", "norm")
class NormsOfItsOwn(Layer):
    def __init__(self, *sizes, query_norm=None, key_norm=None, **others):
        super().__init__(*sizes, **others)
        self.query_norm = nn.RMSNorm(self.head_dim)
        self.key_norm = nn.RMSNorm(self.head_dim)


@wrong("Attention", "order|\\(D H\\)|side|interleav")
class MergesInterleaved(Layer):
    def finish(self, h, x):
        return self.output(rearrange(h, "B H T D -> B T (D H)"))


@wrong("Attention", "neighbouring|\\(H D\\)")
class SplitsInterleaved(Layer):
    def project(self, x):
        return tuple(
            rearrange(f(x), "B T (D H) -> B H T D", D=self.head_dim) for f in (self.query, self.key, self.value)
        )


@wrong("Attention", "value|neighbouring|\\(H D\\)|view")
class ValuesSplitByView(Layer):
    def project(self, x):
        q, k, _v = super().project(x)
        B, T, _ = x.shape
        return q, k, self.value(x).reshape(B, -1, T, self.head_dim)


@wrong("Attention", "raised|rotate|shape")
class HeadsBehindTokens(Layer):
    def project(self, x):
        return tuple(f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.query, self.key, self.value))


@wrong("Attention", "cache|position")
class KeyPositionsDropped(Layer):
    def recall(self, k, v, positions, cache, layer):
        if cache is None:
            return k, v, positions
        k, v, _ = cache.update(layer, k, v, positions)
        return k, v, None


@wrong("Attention", "window")
class OneQueryIgnoresTheWindow(Layer):
    def mask(self, T, S, p, kp, cache):
        if p is not None and kp is not None:
            return visible(p, kp, self.window)
        if T == 1:
            return torch.ones(1, S, dtype=torch.bool)
        return causal_mask(T, S, self.window)


@wrong("Attention", "n_kv_heads|uneven|ValueError")
class UnevenHeadsAsserted(Layer):
    def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **p):
        assert n_heads % n_kv_heads == 0
        super().__init__(d_model, n_heads, n_kv_heads, head_dim, **p)


@wrong("Attention", "shape")
class LastTokenAlone(Layer):
    def forward(self, x, angles, positions=None, cache=None, layer=0):
        return super().forward(x, angles, positions, cache, layer)[:, -1:]


@wrong("Attention", "scal|multipl|attend")
class ScalesTheResult(Layer):
    def finish(self, h, x):
        return super().finish(h / self.head_dim**0.5, x)


@wrong("Attention", "cache|order|first|behind|update|attend")
class KeysInReverse(Layer):
    def recall(self, k, v, positions, cache, layer):
        k2, v2, p = super().recall(k, v, positions, cache, layer)
        return k2.flip(2), v2.flip(2), p


@wrong("Attention", "key_norm", "after")
class NormAfterTheCache(Layer):
    def place(self, q, k, v, a):
        return rotate(self.query_norm(q), a), rotate(k, a), v

    def recall(self, k, v, positions, cache, layer):
        k, v, p = super().recall(k, v, positions, cache, layer)
        return self.key_norm(k), v, p


@wrong("Attention", "order")
class QueriesGroupedInTurn(Layer):
    def project(self, x):
        q, k, v = super().project(x)
        _H, K = q.shape[1], k.shape[1]
        return rearrange(q, "B (G K) T D -> B (K G) T D", K=K), k, v


@wrong("Attention", "document", "padding")
class PositionsWithoutDocuments(Layer):
    def mask(self, T, S, p, kp, cache):
        if p is None:
            return causal_mask(T, S, self.window)
        return (kp[:, None, :] <= p[:, :, None])[:, None]


@wrong("Attention", "layer")
class NextLayerOfTheCache(Layer):
    def recall(self, k, v, positions, cache, layer):
        return (k, v, positions) if cache is None else cache.update(layer + 1, k, v, positions)


@wrong("Attention", "nn.Module")
class NoModule:
    def __init__(
        self, d_model, n_heads, n_kv_heads, head_dim, *, window=None, attend=None, query_norm=None, key_norm=None
    ):
        pass

    def forward(self, x, angles, positions=None, cache=None, layer=0):
        return x


@wrong("Attention", "forward|raised")
class NoForward(nn.Module):
    def __init__(
        self, d_model, n_heads, n_kv_heads, head_dim, *, window=None, attend=None, query_norm=None, key_norm=None
    ):
        super().__init__()
        self.query = nn.Linear(d_model, n_heads * head_dim, bias=False)
        self.key = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.value = nn.Linear(d_model, n_kv_heads * head_dim, bias=False)
        self.output = nn.Linear(n_heads * head_dim, d_model, bias=False)


@wrong("Attention", "cache", "return")
class ValuesOfTheCacheDropped(Layer):
    def recall(self, k, v, positions, cache, layer):
        if cache is None:
            return k, v, positions
        k, _, p = cache.update(layer, k, v, positions)
        return k, v.repeat(1, 1, k.shape[2] // v.shape[2] + 1, 1)[:, :, : k.shape[2]], p


@wrong("Attention", "first")
class MaskOfTheFirstRows(Layer):
    def mask(self, T, S, p, kp, cache):
        if p is None:
            return causal_mask(S, S, self.window)[:T]
        return visible(p, kp, self.window)


@wrong("Attention", "query", "not applied")
class QueriesNotProjected(Layer):
    def project(self, x):
        q, k, v = super().project(x)
        return (split_heads(x, self.head_dim), k, v) if x.shape[-1] == q.shape[1] * q.shape[3] else (q, k, v)


@pytest.mark.parametrize(("part", "candidate", "keywords"), WRONG)
def test_a_wrong_version_is_named(part: str, candidate: Any, keywords: tuple[str, ...]) -> None:
    mistake = first_mistake(candidate, part=part)
    assert mistake is not None, "not noticed at all"
    said = mistake.replace(candidate.__name__, "")  # our own name for it must not count
    missing = [keyword for keyword in keywords if not re.search(keyword, said, re.IGNORECASE)]
    assert not missing, f"{mistake!r} does not say {missing}"


@pytest.mark.parametrize(("part", "candidate"), RIGHT)
def test_a_right_version_passes(part: str, candidate: Any) -> None:
    assert first_mistake(candidate, part=part) is None


@pytest.mark.parametrize("part", PARTS[:-1])
def test_an_empty_function_is_not_written_yet(part: str) -> None:
    @functools.wraps(getattr(attention, part))
    def stub(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("Your turn: look back.")

    assert first_mistake(stub, part=part) == NOT_WRITTEN


def test_an_empty_class_is_not_written_yet() -> None:
    class NoInit(Layer):
        @functools.wraps(Layer.__init__)
        def __init__(self, d_model, n_heads, n_kv_heads, head_dim, **parts):
            raise NotImplementedError("Your turn: look back.")

    class NoForward(Layer):
        def forward(self, x, angles, positions=None, cache=None, layer=0):
            raise NotImplementedError("Your turn: look back.")

    assert first_mistake(NoInit, part="Attention") == NOT_WRITTEN
    assert first_mistake(NoForward, part="Attention") == NOT_WRITTEN


@pytest.mark.parametrize("part", ["causal_mask", "attend"])
def test_a_loop_without_end_is_named(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.wraps(getattr(attention, part))
    def endless(*args: Any, **kwargs: Any) -> None:
        while True:
            pass

    limited = harness.run_limited
    monkeypatch.setattr(harness, "run_limited", lambda function, seconds: limited(function, min(seconds, 0.3)))
    mistake = first_mistake(endless, part=part)
    assert mistake is not None
    assert "never ends" in mistake


def test_every_part_has_planted_mistakes() -> None:
    assert {param.values[0] for param in WRONG} == set(PARTS)
