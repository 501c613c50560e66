"""The loop against plain PyTorch loops; a resumed run against the run that was never stopped."""

import copy
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minillm.baseline import cross_entropy
from minillm.checkpoint import load_checkpoint, write_checkpoint
from minillm.model import ModelConfig, Transformer
from minillm.optim import AdamW, Muon
from minillm.train import (
    Diverged,
    Precision,
    State,
    Step,
    TrainConfig,
    accumulate,
    clip_gradients,
    default_optimizer,
    learning_rate_factor,
    steps_that_fit,
    stream,
    train,
)


V = 17


@pytest.fixture(autouse=True)
def one_thread():
    """Numbers this small are added faster than they are handed out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(vocab_size=V, n_layers=1, n_heads=2, d_model=8, max_seq_len=8, **options))
    with torch.no_grad():  # away from the zeros of the initialisation, so that every parameter has a gradient
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def make_batches(n: int, rows: int = 2, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Batches of 1 to `rows` rows, each with another share of targets that do not count."""
    source = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(n):
        ids = torch.randint(V, (1 + i % rows, 9), generator=source)
        ignored = torch.rand(ids[:, 1:].shape, generator=source) < (i % 4) / 4
        batches.append((ids[:, :-1], ids[:, 1:].masked_fill(ignored, -100)))
    return batches


def one_large(batches) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*batches, strict=True))


def plain_gradients(model: nn.Module, batch) -> list[Tensor]:
    """What PyTorch's own mean over the targets that count has for gradients."""
    logits = model(batch[0])
    nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=-100).backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    return gradients  # pyright: ignore[reportReturnType]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def take(steps: Iterator[Step], n: int) -> list[Step]:
    return list(itertools.islice(steps, n))


# Accumulation and clipping


@pytest.mark.parametrize("k", [1, 3, 5])
def test_accumulated_batches_have_the_gradients_of_one_large_batch(k):
    model, batches = make_model(), make_batches(k)
    expected = plain_gradients(model, one_large(batches))
    nats, tokens = accumulate(model, batches, cross_entropy, Precision())
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)
    inputs, targets = one_large(batches)
    loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    assert nats == pytest.approx(loss.item(), rel=1e-5)
    assert tokens == (targets != -100).sum()


def test_accumulated_steps_are_the_steps_of_large_batches():
    batches = make_batches(12)
    large = [one_large(batches[i : i + 3]) for i in range(0, 12, 3)]
    a, b = make_model(), make_model()
    config = TrainConfig(steps=4, schedule="constant")
    small_steps = list(train(a, batches, replace(config, accumulation=3)))
    large_steps = list(train(b, large, config))
    for small, big in zip(small_steps, large_steps, strict=True):
        assert small.loss == pytest.approx(big.loss, rel=1e-4)
        assert small.grad_norm == pytest.approx(big.grad_norm, rel=1e-3)
        assert small.tokens == big.tokens
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_a_run_is_a_plain_pytorch_loop():
    """Everything at once, in PyTorch's own parts: mean loss, clipping, AdamW, warm-up and cosine."""
    batches, steps = make_batches(4), 6
    ours, theirs = make_model(), make_model()
    config = TrainConfig(steps=steps, clip_norm=0.5, schedule="cosine", warmup_steps=3)
    got = list(train(ours, batches, config, optimizer=AdamW(ours.parameters(), lr=0.01)))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for i in range(steps):
        factor = min(1, (i + 1) / 3) * (0.1 + 0.9 * (1 + math.cos(math.pi * i / steps)) / 2)
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        inputs, targets = batches[i % 4]
        loss = nn.functional.cross_entropy(theirs(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        assert got[i].loss == pytest.approx(loss.item(), rel=1e-4)
        assert got[i].grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert got[i].lr_factor == pytest.approx(factor)
        assert got[i].step == i + 1
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_loss_over_padding_does_not_count():
    inputs, targets = make_batches(2)[1]
    padded = torch.cat([inputs, inputs.flip(1)], dim=0), torch.cat([targets, torch.full_like(targets, -100)])
    nats, tokens = accumulate(make_model(), [padded], cross_entropy, Precision())
    assert (nats, tokens) == pytest.approx(accumulate(make_model(), [(inputs, targets)], cross_entropy, Precision()))


def test_positions_reach_the_model():
    """Two documents packed in a row give what they give alone."""
    ids = torch.randint(V, (2, 4), generator=torch.Generator().manual_seed(0))
    packed = ids.reshape(1, 8), ids.reshape(1, 8).roll(1), torch.arange(4).repeat(2)[None]
    alone = ids, packed[1].reshape(2, 4)
    nats, _ = accumulate(make_model(), [packed], cross_entropy, Precision())
    assert nats == pytest.approx(accumulate(make_model(), [alone], cross_entropy, Precision())[0], rel=1e-5)


def test_a_step_without_targets_is_refused():
    inputs, targets = make_batches(1)[0]
    with pytest.raises(ValueError, match="no target in this step counts: all are -100"):
        next(train(make_model(), [(inputs, torch.full_like(targets, -100))]))


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1000.0])
def test_clipping_is_pytorchs(max_norm):
    shapes = [(3, 4), (5,), (2, 2, 2)]
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in [*shapes, (9,)]] for _ in range(2))
    for p, q in zip(ours[:3], theirs[:3], strict=True):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        q.grad = p.grad.clone()
    norm = clip_gradients(ours, max_norm)
    assert norm == pytest.approx(nn.utils.clip_grad_norm_(theirs, max_norm).item())
    for p, q in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert ours[3].grad is None


def test_gradients_that_are_not_finite_are_not_spread_by_clipping():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, math.inf, 2.0])
    assert clip_gradients([p], 1.0) == math.inf
    assert p.grad.tolist() == [1.0, math.inf, 2.0]


def test_what_the_optimizer_does_not_move_does_not_pile_up():
    """The model stands still, so every step has the same gradients and the same norm."""
    model = make_model()
    optimizer = torch.optim.SGD([model.norm.weight], lr=0.0)
    steps = list(train(model, make_batches(1), TrainConfig(steps=4), optimizer=optimizer))
    assert [s.grad_norm for s in steps] == pytest.approx([steps[0].grad_norm] * 4)


# Where a run ends, and what it reads


def test_a_run_has_as_many_steps_as_asked():
    steps = list(train(make_model(), make_batches(3), TrainConfig(steps=7)))
    assert [s.step for s in steps] == list(range(1, 8))
    assert {s.total_steps for s in steps} == {7}
    assert steps[-1].seconds_left == 0
    assert steps[2].seconds_left == pytest.approx(steps[2].seconds / 3 * 4)


def test_the_schedule_ends_with_the_run():
    steps = list(train(make_model(), make_batches(1), TrainConfig(steps=10, warmup_steps=4)))
    down = [x / 8 for x in (8, 7, 6, 5, 4, 3, 2, 1)]  # after two flat steps
    assert [s.lr_factor for s in steps] == pytest.approx([0.25, 0.5, 0.75 * down[0], *down[1:]])


def test_all_groups_follow_the_schedule_from_their_own_rate():
    model = make_model()
    optimizer = default_optimizer(model, TrainConfig(matrix_lr=0.5, lr=0.25, weight_decay=0.125))
    assert [type(part) for part in optimizer.optimizers] == [Muon, AdamW]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0]
    for step in train(model, make_batches(2), TrainConfig(steps=5, schedule="cosine"), optimizer=optimizer):
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * step.lr_factor, 0.25 * step.lr_factor]


@pytest.mark.parametrize("model", [nn.Embedding(5, 4), nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.LayerNorm(4)])
def test_models_with_one_kind_of_parameter_have_a_default_optimizer(model):
    groups = default_optimizer(model, TrainConfig()).param_groups
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in model.parameters()]


def test_batches_that_end_are_said_to():
    batches = make_batches(5)
    steps = train(make_model(), iter(batches), TrainConfig(steps=3, accumulation=2))
    assert [s.step for s in take(steps, 2)] == [1, 2]
    with pytest.raises(ValueError, match="the batches ended after 5; pass a list, an endless iterator, or fewer steps"):
        next(steps)
    with pytest.raises(ValueError, match="the batches ended after 0"):
        next(train(make_model(), []))


def read(batches, skip: int, n: int) -> list[int]:
    return [int(batch[0]) for batch in itertools.islice(stream(batches, skip), n)]


class Counting:
    """Numbers as batches, without an end; notes whether they were skipped or read."""

    def __init__(self) -> None:
        self.next, self.skipped = 0, []

    def __iter__(self) -> "Counting":
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        self.next += 1
        return (torch.tensor(self.next - 1),)

    def skip(self, n: int) -> "Counting":
        self.next += n
        self.skipped.append(n)
        return self


def test_the_stream_goes_on_where_it_stopped():
    numbered = [(torch.tensor(i),) for i in range(4)]
    for skip in range(10):  # a list begins again at its end
        assert read(numbered, skip, 6) == [(skip + i) % 4 for i in range(6)]
    assert read(iter(numbered), 3, 1) == [3]


def test_skip_is_used_where_there_is_one():
    counting = Counting()
    assert read(counting, 5, 3) == [5, 6, 7]
    assert counting.skipped == [5]
    counting = Counting()
    assert read(counting, 0, 3) == [0, 1, 2]
    assert counting.skipped == []


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def loss(self, *costs: float):
        """A loss that takes so many seconds, the last for ever."""
        left = list(costs)

        def slow(model: nn.Module, *batch: Tensor) -> Tensor:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return cross_entropy(model, *batch)

        return slow


def test_a_time_budget_becomes_a_number_of_steps(monkeypatch):
    """10 + 4 s for the first steps, then 2 s each: in 114 s fit 2 + 50. Callers and validation take their own time."""
    clock, batches = Clock(monkeypatch), make_batches(2)

    def validate(_: nn.Module) -> float:
        clock.now += 1000
        return 1.0

    steps = []
    config = TrainConfig(max_seconds=114.0, steps=3, validate_every=7)
    for step in train(make_model(), batches, config, loss=clock.loss(10, 4, 2), validate=validate):
        steps.append(step)
        clock.now += 1000
    assert [s.step for s in steps] == list(range(1, 53))
    assert [s.total_steps for s in steps] == [None] * 6 + [52] * 46
    assert [s.seconds for s in steps] == pytest.approx([10] + [14 + 2 * i for i in range(51)])
    assert steps[-1].snapshot().total_steps == 52
    assert [s.lr_factor for s in steps[7:]] == pytest.approx(
        [min(1, (i + 1) / 10) * (1 if i / 52 < 0.2 else (1 - i / 52) / 0.8) for i in range(7, 52)]
    )
    assert steps[0].seconds_left is None
    assert steps[3].tokens_per_second == pytest.approx((steps[3].tokens - steps[2].tokens) / 2)
    assert steps[-1].validation == 1.0


def test_a_small_time_budget_ends_with_the_step_that_uses_it_up(monkeypatch):
    clock = Clock(monkeypatch)
    steps = list(train(make_model(), make_batches(2), TrainConfig(max_seconds=10.0), loss=clock.loss(3)))
    assert [s.seconds for s in steps] == [3, 6, 9, 12]
    assert steps[-1].total_steps == 4


def test_a_large_time_budget_is_judged_after_three_percent_of_it():
    config = TrainConfig(max_seconds=1000.0)
    assert steps_that_fit(20, 29.9, (2, 3.0), config) is None
    assert steps_that_fit(20, 30.0, (2, 3.0), config) == 20 + int(970 / 1.5)
    assert steps_that_fit(6, 500.0, (2, 100.0), config) is None
    assert steps_that_fit(7, 500.0, (2, 100.0), config) == 7 + int(500 / 80)
    assert steps_that_fit(1, 1000.0, (2, 0.0), config) == 1


def test_a_run_of_unknown_length_is_at_its_start():
    config = TrainConfig(warmup_steps=2, schedule="cosine")
    assert [learning_rate_factor(s, None, config) for s in (0, 1, 50)] == [0.5, 1, 1]
    assert learning_rate_factor(50, 100, config) == pytest.approx(0.55)
    assert learning_rate_factor(50, 100, replace(config, schedule="constant")) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be positive, not 0"),
        ({"max_seconds": -1.0}, "max_seconds must be positive, not -1.0"),
        ({"accumulation": 0}, "accumulation must be positive, not 0"),
        ({"matrix_lr": 0.0}, "matrix_lr must be positive, not 0.0"),
        ({"lr": math.nan}, "lr must be positive, not nan"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, not 0.0"),
        ({"validate_every": 0}, "validate_every must be positive, not 0"),
        ({"schedule": "linear"}, "no schedule is called 'linear'; there are stable_decay, cosine, constant"),
    ],
)
def test_configurations_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


# Parts passed in


def test_validation_is_called_when_due_and_at_the_end():
    model, seen = make_model(), []

    def validate(given: nn.Module) -> float:
        assert given is model
        given.eval()  # the next step trains all the same
        seen.append(next(given.parameters()).detach().clone())
        return float(len(seen))

    def loss(given: nn.Module, *batch: Tensor) -> Tensor:
        assert given.training
        return cross_entropy(given, *batch)

    steps = train(model, make_batches(2), TrainConfig(steps=8, validate_every=3), validate=validate, loss=loss)
    scores = []
    for step in steps:
        scores.append(step.validation)
        if step.validation is not None:
            assert torch.equal(seen[-1], next(model.parameters()))  # after the step, not before it
    assert scores == [None, None, 1, None, None, 2, None, 3]


def test_a_custom_loss_and_a_pytorch_optimizer():
    model = nn.Linear(3, 1)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    batch = x, x @ torch.tensor([[1], [2], [3]]).float() + 4

    def squares(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return (model(inputs) - targets).square().sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    config = TrainConfig(steps=200, clip_norm=math.inf, schedule="constant")
    steps = list(train(model, [batch], config, loss=squares, optimizer=optimizer))
    assert steps[-1].loss < 1e-4
    torch.testing.assert_close(model.weight.flatten().tolist(), [1.0, 2.0, 3.0], rtol=0.1, atol=0.1)


class Scaled(Precision):
    """Losses scaled up, as chapter precision does it; notes the calls. The second step's gradients overflow."""

    may_overflow = True

    def __init__(self) -> None:
        self.calls, self.steps, self.seen = [], 0, []

    @contextmanager
    def forward(self):
        self.calls.append("forward")
        yield
        self.calls.append("forward ends")

    def backward(self, loss: Tensor) -> None:
        self.calls.append("backward")
        (loss * (math.inf if self.steps == 1 else 1024.0)).backward()

    def unscale(self, optimizer) -> None:
        self.calls.append("unscale")
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_div_(gradients, 1024.0)  # pyright: ignore[reportPrivateImportUsage]
        self.overflow = any(not g.isfinite().all() for g in gradients)

    def step(self, optimizer) -> None:
        self.calls.append("step")
        self.steps += 1
        if not self.overflow:
            optimizer.step()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = state["steps"]


def test_precision_is_asked_at_every_turn_and_may_skip_a_step():
    model, precision, batches = make_model(), Scaled(), make_batches(2)
    config = TrainConfig(steps=4, accumulation=2, clip_norm=0.01, schedule="constant", warmup_steps=0)
    steps = train(model, batches, config, precision=precision)
    first = next(steps)
    assert precision.calls == ["forward", "forward ends", "backward"] * 2 + ["unscale", "step"]
    before = copy.deepcopy(model)
    second = next(steps)
    assert not math.isfinite(second.grad_norm)
    assert math.isfinite(second.loss)
    assert same_weights(model, before)
    third = next(steps)
    assert not same_weights(model, before)
    assert third.snapshot().precision == {"steps": 3}

    plain = list(train(make_model(), batches, replace(config, steps=2)))  # clipped alike: after the scale is gone
    assert (first.loss, first.grad_norm) == pytest.approx((plain[0].loss, plain[0].grad_norm), rel=1e-5)
    assert (third.loss, third.grad_norm) == pytest.approx((plain[1].loss, plain[1].grad_norm), rel=1e-3)


def explode_at(step: int, how: str):
    """A loss that is, or has a gradient that is, not a number at one step."""
    calls = itertools.count(1)

    def loss(model: nn.Module, *batch: Tensor) -> Tensor:
        nats = cross_entropy(model, *batch)
        if next(calls) != step:
            return nats
        return nats * math.nan if how == "loss" else nats + torch.sqrt(0 * nats)  # the root's slope at 0 is infinite

    return loss


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_divergence_names_the_step_and_leaves_the_weights(how):
    model, optimizer = make_model(), None
    optimizer = default_optimizer(model, TrainConfig())
    steps = train(model, make_batches(2), TrainConfig(steps=9), loss=explode_at(3, how), optimizer=optimizer)
    take(steps, 2)
    before, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(Diverged, match=r"^step 3: loss .*, gradient norm nan; lower the learning rates") as caught:
        next(steps)
    assert ("loss nan" in str(caught.value)) == (how == "loss")
    assert same_weights(model, before)
    after = optimizer.state_dict()
    assert all(torch.equal(state["1"]["state"][i]["mean"], s["mean"]) for i, s in after["1"]["state"].items())


def test_a_loss_that_is_not_a_number_is_no_overflow():
    steps = train(make_model(), make_batches(2), loss=explode_at(1, "loss"), precision=Scaled())
    with pytest.raises(Diverged, match="step 1: loss nan"):
        next(steps)


def test_one_batch_is_learnt_by_heart():
    """Each input id has one target, so the loss can reach zero."""
    ids = torch.randperm(V, generator=torch.Generator().manual_seed(0))[:16].reshape(2, 8)
    batch = ids, (ids * 3 + 1) % V
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=V, n_layers=1, n_heads=2, d_model=16, max_seq_len=8))
    losses = [s.loss for s in train(model, [batch], TrainConfig(steps=200))]
    assert losses[0] == pytest.approx(math.log(V), rel=1e-4)
    assert losses[-1] < 0.02


# Resuming


def dropout_loss(model: nn.Module, *batch: Tensor) -> Tensor:
    """The loss with a tenth of the table's rows left out, by torch's own random numbers."""
    inputs, *rest = batch
    dropped = torch.where(torch.rand(inputs.shape) < 0.1, 0, inputs)
    return cross_entropy(model, dropped, *rest)


def through_memory(model: Transformer, state: State, path: Path) -> tuple[Transformer, State]:
    return copy.deepcopy(model), copy.deepcopy(state)


def through_files(model: Transformer, state: State, path: Path) -> tuple[Transformer, State]:
    write_checkpoint(path / f"at-{state.step}", model, state)
    loaded = load_checkpoint(path / f"at-{state.step}")
    assert loaded.state is not None
    return loaded.model, loaded.state


def untimed(step: Step) -> tuple:
    return step.step, step.total_steps, step.loss, step.grad_norm, step.lr_factor, step.tokens, step.validation


@pytest.mark.parametrize("keep", [through_memory, through_files])
@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": "cosine"}, {"accumulation": 3, "warmup_steps": 4}, {"weight_decay": 0.1, "seed": 5}],
    ids=str,
)
def test_a_resumed_run_is_the_run_never_stopped(tmp_path, keep, options):
    """To the bit, from every step, with dropout, and with a caller and a validation that draw random numbers."""
    batches, config = make_batches(5), TrainConfig(steps=6, validate_every=2, **options)

    def validate(model: nn.Module) -> float:
        return sum(p.sum().item() for p in model.parameters()) + torch.rand(()).item()

    def run(model: Transformer, start: State | None) -> Iterator[Step]:
        return train(model, batches, config, loss=dropout_loss, validate=validate, start=start)

    model, straight, kept = make_model(), [], []
    for step in run(model, None):
        straight.append(untimed(step))
        kept.append(keep(model, step.snapshot(), tmp_path))
        torch.rand(step.step)
    for at, (other, state) in enumerate(kept, start=1):
        assert [untimed(step) for step in run(other, state)] == straight[at:]
        assert same_weights(other, model)


def test_a_caller_that_draws_random_numbers_changes_nothing():
    def losses(draw: bool) -> list[float]:
        found = []
        for step in train(make_model(), make_batches(2), TrainConfig(steps=4), loss=dropout_loss):
            found.append(step.loss)
            if draw:
                torch.manual_seed(step.step)
        return found

    assert losses(False) == losses(True)


def test_the_seed_decides():
    def losses(seed: int) -> list[float]:
        config = TrainConfig(steps=2, seed=seed)
        return [s.loss for s in train(make_model(), make_batches(2), config, loss=dropout_loss)]

    assert losses(1) == losses(1) != losses(2)


@pytest.mark.parametrize("keep", [through_memory, through_files])
def test_a_resumed_time_budget_keeps_its_number_of_steps(tmp_path, monkeypatch, keep):
    """However slow the machine has become."""
    clock, batches, config = Clock(monkeypatch), make_batches(3), TrainConfig(max_seconds=14.0, schedule="cosine")
    model, straight, kept = make_model(), [], {}
    for step in train(model, batches, config, loss=clock.loss(1)):
        straight.append(untimed(step))
        if step.step in (7, 10):
            kept[step.step] = keep(model, step.snapshot(), tmp_path)
            assert kept[step.step][1].seconds == step.step
    assert len(straight) == 14
    for at, (other, state) in kept.items():
        assert [untimed(step) for step in train(other, batches, config, loss=clock.loss(50), start=state)] == straight[
            at:
        ]
        assert same_weights(other, model)


def test_a_time_budget_not_yet_judged_goes_on_counting(monkeypatch):
    clock, config = Clock(monkeypatch), TrainConfig(max_seconds=30.0)
    model = make_model()
    third = take(train(model, make_batches(2), config, loss=clock.loss(1)), 3)[-1].snapshot()
    assert (third.total_steps, third.seconds) == (None, 3)
    steps = list(train(model, make_batches(2), config, loss=clock.loss(9, 2, 1), start=third))
    # warm after steps 4 and 5 of 9 and 2 s, judged after 10, when 19 of the 30 s are gone and a step takes 1 s
    assert [s.total_steps for s in steps[:7]] == [None] * 6 + [21]
    assert steps[-1].seconds == 30


def test_a_finished_run_has_no_further_step_and_more_steps_can_be_asked_for():
    model, batches = make_model(), make_batches(2)
    end = list(train(model, batches, TrainConfig(steps=3)))[-1].snapshot()
    assert list(train(model, batches, TrainConfig(steps=3), start=end)) == []
    assert [s.step for s in train(model, batches, TrainConfig(steps=5), start=end)] == [4, 5]


def test_a_resumed_run_takes_new_learning_rates():
    """After a divergence one goes on from the last checkpoint with smaller ones."""
    model, batches = make_model(), make_batches(2)
    state = copy.deepcopy(take(train(model, batches, TrainConfig(steps=9)), 2)[-1].snapshot())
    config = TrainConfig(steps=9, schedule="constant", warmup_steps=0, lr=1e-4, matrix_lr=1e-5)
    optimizer = default_optimizer(model, config)
    next(train(model, batches, config, optimizer=optimizer, start=state))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, 1e-4]


def test_a_snapshot_is_of_its_own_step():
    first, second = take(train(make_model(), make_batches(2), TrainConfig(steps=3)), 2)
    assert (first.snapshot().step, second.snapshot().step) == (1, 2)


def test_going_on_with_the_same_optimizer_keeps_its_rate():
    """Its rate as scheduled last is not the one to go on from."""
    model, batches, config = make_model(), make_batches(2), TrainConfig(steps=9, warmup_steps=4, schedule="constant")
    optimizer = AdamW(model.parameters(), lr=0.25)
    state = take(train(model, batches, config, optimizer=optimizer), 2)[-1].snapshot()
    assert optimizer.param_groups[0]["lr"] == 0.125
    next(train(model, batches, config, optimizer=optimizer, start=state))
    assert optimizer.param_groups[0]["lr"] == 0.1875


def test_precision_goes_on_from_its_state():
    model, batches, config = make_model(), make_batches(2), TrainConfig(steps=4)
    state = take(train(model, batches, config, precision=Scaled()), 3)[-1].snapshot()
    resumed = Scaled()
    list(train(model, batches, config, precision=resumed, start=state))
    assert resumed.steps == 4


def test_a_resumed_run_skips_what_it_has_read():
    seen, model = [], nn.Linear(1, 1)

    def loss(model: nn.Module, number: Tensor, *_: Tensor) -> Tensor:
        seen.append(int(number))
        return model(number.float().reshape(1, 1)).sum()

    class Numbers(Counting):
        def __next__(self) -> tuple[Tensor, ...]:
            (number,) = super().__next__()
            return number, torch.zeros(1)

    config = TrainConfig(steps=4, accumulation=3)
    state = take(train(model, Numbers(), config, loss=loss), 2)[-1].snapshot()
    assert (state.step, state.batches, state.tokens) == (2, 6, 6)
    resumed = Numbers()
    list(train(model, resumed, config, loss=loss, start=state))
    assert seen == list(range(12))
    assert resumed.skipped == [6]
