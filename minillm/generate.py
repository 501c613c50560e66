"""From scores to text: choose a token, append it, ask again.

`decode` is the only decode loop. How a token is chosen from the logits is a function passed in, and so is the cache,
which changes the time and nothing else.
Chapter: generate.

Choices: prompts of unequal length are padded on the left with position -1, which nobody sees; the filters keep their
order (temperature, top-k, top-p, min-p), each a function from logits to logits that sets what it drops to -inf.

Sources: top-k, Fan et al. 2018 (arXiv:1805.04833), section 5.4; top-p, Holtzman et al. 2019 (arXiv:1904.09751), section
3.1; min-p, Nguyen et al. 2024 (arXiv:2407.01082), section 3; repetition penalty, Keskar et al. 2019 (arXiv:1909.05858),
section 4.1.
"""

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.attention import Cache
from minillm.baseline import evaluating


Sample = Callable[[Tensor], Tensor]  # logits (B, V) to ids (B,)


def greedy(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """The most likely token."""
    return logits.argmax(dim=-1)


def top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Keep the k most likely tokens, and any as likely as the last of them.

    >>> top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2).tolist()
    [[-inf, 3.0, 2.0]]
    """
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the smallest set of most likely tokens whose probabilities add up to at least p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    enough_before = probabilities.cumsum(dim=-1) - probabilities >= p
    enough_before[:, 0] = False
    return logits.masked_fill(enough_before.scatter(-1, order, enough_before), -torch.inf)


def min_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the tokens at least p times as likely as the most likely one."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


def penalise(logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: float) -> Float[Tensor, "B V"]:
    """Make tokens that occurred before less likely: divide a positive logit by the penalty, multiply a negative one."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def sampler(
    temperature: float = 1.0,
    k: int | None = None,
    p: float | None = None,
    minimum: float | None = None,
    seed: int | None = None,
) -> Sample:
    """A function that draws a token from what temperature, top-k, top-p and min-p leave; temperature 0 is greedy.

    With a seed it draws the same tokens each time it is made anew. ValueError names a value that cannot be.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, not {temperature}")
    if k is not None and k < 1:
        raise ValueError(f"top-k must keep at least 1 token, not {k}")
    for name, share in (("top-p", p), ("min-p", minimum)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {share}")
    if temperature == 0:
        return greedy
    random = torch.Generator()
    random.manual_seed(seed) if seed is not None else random.seed()

    def sample(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        logits = logits.float().cpu() / temperature
        logits = logits if k is None else top_k(logits, k)
        logits = logits if p is None else top_p(logits, p)
        logits = logits if minimum is None else min_p(logits, minimum)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=random)[:, 0]

    return sample


def check_prompt(model: Any, prompt: Sequence[int], max_new_tokens: int) -> None:
    """ValueError with the number that does not fit, before any work is done."""
    V, context = model.config.vocab_size, model.config.max_seq_len
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, not {max_new_tokens}")
    if len(prompt) == 0:
        raise ValueError("the prompt is empty; give at least one token")
    if len(prompt) > context:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, the model's context holds {context}; shorten the prompt"
        )
    wrong = [i for i in prompt if not 0 <= i < V]
    if wrong:
        raise ValueError(f"prompt id {wrong[0]} is outside the vocabulary of {V}; was another tokenizer used?")


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"] | None]:
    """Ids that end together, and their positions: -1 for padding; None where nothing had to be padded.

    >>> pad_left([[5, 6, 7], [8]])[1].tolist()
    [[0, 1, 2], [-1, -1, 0]]
    """
    lengths = torch.tensor([len(p) for p in prompts])
    T = int(lengths.max())
    ids = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts])
    if int(lengths.min()) == T:
        return ids, None
    return ids, (torch.arange(T) - (T - lengths)[:, None]).clamp(min=-1)


@torch.inference_mode()
def last_logits(
    model: Any, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None, cache: Cache | None
) -> Float[Tensor, "B V"]:
    """What the model says at the last position; nothing is recorded for gradients."""
    return model(ids, positions, cache)[:, -1]


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sample: Sample = greedy,
    cache: Cache | None = None,
    repetition_penalty: float = 1.0,
) -> Iterator[list[int]]:
    """Yield the next token of every prompt, one list of B ids a step.

    Past the model's window the oldest tokens drop out of sight. Raises ValueError for a prompt that does not fit.
    """
    for prompt in prompts:
        check_prompt(model, prompt, max_new_tokens)
    if not repetition_penalty > 0:
        raise ValueError(f"repetition_penalty must be above 0, not {repetition_penalty}")
    device = next(model.parameters()).device
    ids, positions = pad_left(prompts)
    ids, positions = ids.to(device), None if positions is None else positions.to(device)
    penalty = repetition_penalty != 1.0
    seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=device)
    for row, prompt in zip(seen, prompts):
        row[torch.tensor(prompt)] = True
    new_ids, new_positions = ids, positions
    with evaluating(model):
        for _ in range(max_new_tokens):
            logits = last_logits(model, new_ids, new_positions, cache)
            token = sample(penalise(logits, seen, repetition_penalty) if penalty else logits).to(device)
            yield token.tolist()
            if penalty:
                seen.scatter_(1, token[:, None], True)
            new_ids = token[:, None]
            if new_positions is not None:
                new_positions = new_positions[:, -1:] + 1
            if cache is None:
                new_ids = ids = torch.cat((ids, new_ids), dim=1)
                if positions is not None and new_positions is not None:
                    new_positions = positions = torch.cat((positions, new_positions), dim=1)


def generate(
    model: Any,
    prompt_ids: Sequence[int],
    max_new_tokens: int = 200,
    sample: Sample = greedy,
    cache: Cache | None = None,
    stop_ids: Collection[int] = (),
    repetition_penalty: float = 1.0,
) -> Iterator[int]:
    """Yield the tokens that continue one prompt, until `max_new_tokens` or a token of `stop_ids`, which is not yielded.

    `cache=KVCache()` gives the same tokens in a fraction of the time. Raises ValueError for a prompt that does not fit.
    """
    for (token,) in decode(model, [prompt_ids], max_new_tokens, sample, cache, repetition_penalty):
        if token in stop_ids:
            return
        yield token


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 200,
    sample: Sample = greedy,
    cache: Cache | None = None,
    stop_ids: Collection[int] = (),
    repetition_penalty: float = 1.0,
) -> list[list[int]]:
    """Continue several prompts at once; each result ends before its first token of `stop_ids`."""
    results: list[list[int]] = [[] for _ in prompts]
    if not results:
        return results
    running = set(range(len(prompts)))
    for tokens in decode(model, prompts, max_new_tokens, sample, cache, repetition_penalty):
        running -= {row for row in running if tokens[row] in stop_ids}
        if not running:
            break
        for row in running:
            results[row].append(tokens[row])
    return results


def stream_text(tokens: Iterable[int], tokenizer: Any, stop: Sequence[str] = ()) -> Iterator[str]:
    """Yield text as soon as it is certain: whole characters only, and nothing that a stop string may still swallow.

    Ends before the first stop string. `tokenizer.decode_bytes(ids)` gives the bytes.
    """
    if "" in stop:
        raise ValueError("a stop string is empty; it would stop before the first token")
    utf8, held = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
    for token in tokens:
        held += utf8.decode(tokenizer.decode_bytes([token]))
        ends = [held.index(s) for s in stop if s in held]
        if ends:
            if min(ends):
                yield held[: min(ends)]
            return
        unsure = max((n for s in stop for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        if len(held) > unsure:
            yield held[: len(held) - unsure]
            held = held[len(held) - unsure :]
    held += utf8.decode(b"", final=True)
    if held:
        yield held
