"""The training loop: the only one, for every model and every purpose.

`train` is a generator. It makes one optimizer step, yields a `Step` that says what happened, and goes on when asked;
the caller's `for` body logs, draws, saves, stops. What differs between uses is passed in: loss, precision, optimizer,
validation. Nothing here knows about files.
Chapter: train.

Choices: gradients are summed over tokens and divided once by the number of tokens of the whole step, so accumulated
batches give the gradient of one large batch however uneven they are; a time budget is turned into a number of steps
once, at the start, so that a schedule has an end and a resumed run is the same run.

Source: clipping by the global norm, Pascanu et al. 2013 (arXiv:1211.5063), section 3.2.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minillm.baseline import Batch, cross_entropy
from minillm.optim import AdamW, Muon, Together, cosine, parameter_groups, stable_decay, warm_up


SCHEDULES = {"stable_decay": stable_decay, "cosine": cosine, "constant": lambda done: 1.0}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; ValueError names a value that cannot be.

    `max_seconds`, if given, decides the number of steps in place of `steps`: the first steps are timed, and what fits
    is kept. It counts time inside the loop, not in validation or the caller's body.
    """

    steps: int = 1000
    max_seconds: float | None = None
    accumulation: int = 1
    matrix_lr: float = 0.02
    lr: float = 0.004
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    schedule: str = "stable_decay"
    warmup_steps: int = 10
    validate_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("steps", "max_seconds", "accumulation", "matrix_lr", "lr", "clip_norm", "validate_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"no schedule is called {self.schedule!r}; there are {', '.join(SCHEDULES)}")


@dataclass
class State:
    """Where a run stands: all that is needed to go on as if it had never stopped."""

    step: int = 0
    batches: int = 0
    total_steps: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    optimizer: dict[str, Any] | None = None
    precision: dict[str, Any] | None = None
    rng: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What one optimizer step did; `step` counts from 1, `loss` is in nats a token, `validation` in bits per byte.

    `snapshot()` is the run's state; its tensors are the live ones, so save it before the next step.
    """

    step: int
    total_steps: int | None
    loss: float
    grad_norm: float
    lr_factor: float
    tokens: int
    seconds: float
    tokens_per_second: float
    validation: float | None
    snapshot: Callable[[], State]

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the time that the remaining steps take."""
        return None if self.total_steps is None else self.seconds / self.step * (self.total_steps - self.step)


class Diverged(ArithmeticError):
    """The loss or the gradient is no longer a number."""


class Precision:
    """How the numbers of a step are computed: here in the parameters' own format, with nothing to prepare or to keep.

    Chapter precision brings others with the same methods. `may_overflow` says that a gradient which is not finite is
    normal and that `step` will not use it.
    """

    may_overflow = False

    def forward(self) -> AbstractContextManager[Any]:
        """The context in which the loss is computed."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters'."""
        loss.backward()

    def unscale(self, optimizer: Any) -> None:
        """Bring the gradients to their true size, before they are clipped."""

    def step(self, optimizer: Any) -> None:
        """Let the optimizer step, or not."""
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was kept."""


def default_optimizer(model: nn.Module, config: TrainConfig) -> Together:
    """Muon for the matrices, AdamW for the rest."""
    groups = parameter_groups(model)
    matrices, rest = groups["matrices"], groups["tables"] + groups["vectors"]
    muon = [Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay)] if matrices else []
    return Together(muon + ([AdamW(rest, lr=config.lr)] if rest else []))


def accumulate(
    model: nn.Module, micro_batches: list[Batch], loss: Callable[..., Tensor], precision: Precision
) -> tuple[float, int]:
    """Add up the gradients of several batches as if they were one; return nats a token and the number of tokens.

    The mean over all tokens is not the mean of the batches' means unless all have equally many targets, so each batch's
    sum is divided by the tokens of all. ValueError if no target counts.
    """
    tokens = sum(int((targets != -100).sum()) for _, targets, *_ in micro_batches)
    if tokens == 0:
        raise ValueError("no target in this step counts: all are -100")
    total = 0.0
    for batch in micro_batches:
        with precision.forward():
            part = loss(model, *batch) / tokens
        precision.backward(part)
        total += part.item()
    return total, tokens


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Shrink all gradients together if their norm exceeds `max_norm`; return the norm that they had."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    if max_norm < norm < math.inf:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm.item()


def stream(batches: Iterable[Batch], skip: int) -> Iterator[Batch]:
    """An endless stream of batches from number `skip` on; what can be iterated again begins again at its end.

    A `skip(n)` method of the batches is used where there is one. ValueError if the batches end for good.
    """
    if skip and hasattr(batches, "skip"):
        batches, skip = batches.skip(skip), 0  # pyright: ignore[reportAttributeAccessIssue]
    served = 0
    while True:
        before = served
        for batch in batches:
            served += 1
            if served > skip:
                yield batch
        if served == before or iter(batches) is batches:
            raise ValueError(f"the batches ended after {served}; pass a list, an endless iterator, or fewer steps")


def learning_rate_factor(step: int, total: int | None, config: TrainConfig) -> float:
    """What multiplies the learning rates after `step` steps; a run of yet unknown length is at its start."""
    return warm_up(step, config.warmup_steps) * SCHEDULES[config.schedule](step / total if total else 0.0)


def optimizer_step(
    model: nn.Module,
    micro_batches: list[Batch],
    loss: Callable[..., Tensor],
    optimizer: Any,
    precision: Precision,
    clip_norm: float,
) -> tuple[float, float, int]:
    """Gradients, clipped, and one step; return nats a token, the gradients' norm, and the number of tokens.

    Raises Diverged, before any weight is touched, for a loss or gradient that is not finite.
    """
    model.train()
    optimizer.zero_grad()
    model.zero_grad()  # also what the optimizer does not move: it would grow and weigh in the norm
    nats, tokens = accumulate(model, micro_batches, loss, precision)
    precision.unscale(optimizer)
    norm = clip_gradients(model.parameters(), clip_norm)
    if not math.isfinite(nats) or not (math.isfinite(norm) or precision.may_overflow):
        raise Diverged(f"loss {nats}, gradient norm {norm}; lower the learning rates or look at the data")
    precision.step(optimizer)
    return nats, norm, tokens


def restore(start: State | None, optimizer: Any, precision: Precision) -> State:
    """Put optimizer, precision and random numbers where they stood; without a start, a new state."""
    if start is None:
        return State()
    if start.optimizer is not None:
        optimizer.load_state_dict(start.optimizer)
    if start.precision is not None:
        precision.load_state_dict(start.precision)
    if start.rng is not None:
        torch.set_rng_state(start.rng)
    return start


def steps_that_fit(step: int, seconds: float, warm: tuple[int, float], config: TrainConfig) -> int | None:
    """The number of steps of the whole run: `config.steps`, or those that fit into `max_seconds`.

    None until there is something to judge by: 3 % of the time and a few steps after the first ones, which are slower.
    """
    if config.max_seconds is None:
        return config.steps
    if seconds >= config.max_seconds:
        return step
    if step < warm[0] + 5 or seconds < 0.03 * config.max_seconds:
        return None
    pace = (seconds - warm[1]) / (step - warm[0])
    return step + int((config.max_seconds - seconds) / pace)


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    config: TrainConfig | None = None,
    *,
    optimizer: Any = None,
    precision: Precision | None = None,
    loss: Callable[..., Tensor] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    start: State | None = None,
) -> Iterator[Step]:
    """Train the model, one optimizer step an iteration.

    `batches` yields (inputs, targets) or (inputs, targets, positions), each (B, T) int64; a target of -100 does not
    count. `loss(model, *batch)` returns a sum over the targets that count. `validate(model)` returns bits per byte, is
    called every `validate_every` steps and at the end. `start` is the state to go on from; the model's weights are the
    caller's to restore, and batches must draw from a random generator of their own. Raises Diverged, naming the step,
    before a loss or gradient that is not finite does damage; ValueError if the batches end.
    """
    config, precision, loss = config or TrainConfig(), precision or Precision(), loss or cross_entropy
    optimizer = optimizer or default_optimizer(model, config)
    torch.manual_seed(config.seed)
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]  # not the rates of the start
    state = restore(start, optimizer, precision)
    source = stream(batches, state.batches)
    warm = (state.step + 2, state.seconds)
    total = config.steps if config.max_seconds is None else state.total_steps
    while total is None or state.step < total:
        began = time.perf_counter()
        factor = learning_rate_factor(state.step, total, config)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update(initial_lr=rate, lr=rate * factor)
        micro_batches = list(itertools.islice(source, config.accumulation))
        try:
            nats, norm, tokens = optimizer_step(model, micro_batches, loss, optimizer, precision, config.clip_norm)
        except Diverged as error:
            raise Diverged(f"step {state.step + 1}: {error}") from None
        spent = time.perf_counter() - began
        step, seconds = state.step + 1, state.seconds + spent
        warm = (step, seconds) if step == warm[0] else warm
        total = total or steps_that_fit(step, seconds, warm, config)
        state = State(step, state.batches + config.accumulation, total, state.tokens + tokens, seconds)
        due = step % config.validate_every == 0 or step == total
        score = validate(model) if validate and due else None
        state.rng = torch.get_rng_state()
        yield Step(
            step, total, nats, norm, factor, state.tokens, seconds, tokens / spent, score,
            lambda state=state: replace(state, optimizer=optimizer.state_dict(), precision=precision.state_dict()),
        )  # fmt: skip
        torch.set_rng_state(state.rng)
