"""How long work shows itself: a bar on a terminal, a plain line every few seconds in a log. Always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Report(Protocol):
    """What a step of training says of itself (minillm.train.Step does)."""

    @property
    def step(self) -> int:
        """Steps made so far."""
        ...

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, if known yet."""
        ...

    @property
    def loss(self) -> float:
        """Nats a token."""
        ...

    @property
    def tokens_per_second(self) -> float:
        """Speed of this step."""
        ...

    @property
    def validation(self) -> float | None:
        """Bits per byte on held-out text, where it was measured."""
        ...

    @property
    def seconds_left(self) -> float | None:
        """An estimate."""
        ...


Show = Callable[[Report], None]


def duration(seconds: float | int | None) -> str:
    """A time as a person reads it.

    >>> duration(7.4), duration(125), duration(3700), duration(None)
    ('7 s', '2 min 05 s', '1 h 01 min', 'some time')
    """
    if seconds is None:
        return "some time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Smoother:
    """A running mean that follows the newest values; the first values count fully from the start.

    >>> smooth = Smoother(0.5)
    >>> smooth(4.0), smooth(1.0)
    (4.0, 2.0)
    """

    def __init__(self, keep: float = 0.95) -> None:
        self.keep, self.total, self.weight = keep, 0.0, 0.0

    def __call__(self, value: float) -> float:
        """Take one more value, return the mean."""
        self.total = self.keep * self.total + (1 - self.keep) * value
        self.weight = self.keep * self.weight + (1 - self.keep)
        return self.total / self.weight


def say(text: str) -> None:
    """One line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def training_display(every: float = 5.0, stream: Any = None) -> Iterator[Show]:
    """A function to call with every step. `every` is in seconds, for the plain lines of a log."""
    out = stream or sys.stderr
    if out.isatty():
        with _bar(out) as show:
            yield show
    else:
        yield _lines(out, every)


def _lines(stream: Any, every: float) -> Show:
    loss, speed, last = Smoother(), Smoother(), time.monotonic() - every

    def show(report: Report) -> None:
        nonlocal last
        mean, pace = loss(report.loss), speed(report.tokens_per_second)
        now, final = time.monotonic(), report.step == report.total_steps
        if now - last < every and report.validation is None and not final:
            return
        last = now
        parts = [f"step {report.step} of {report.total_steps or '?'}", f"loss {mean:.3f} nats a token"]
        parts += [f"held-out {report.validation:.3f} bits per byte"] if report.validation is not None else []
        parts += [f"{pace:,.0f} tokens/s"] + ([] if final else [f"{duration(report.seconds_left)} left"])
        print(" · ".join(parts), file=stream, flush=True)

    return show


@contextmanager
def _bar(stream: Any) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    text = " · ".join(
        (
            "[bold]{task.fields[steps]}[/]",
            "loss {task.fields[loss]:.3f}{task.fields[held_out]}",
            "{task.fields[pace]:,.0f} tokens/s",
            "{task.fields[left]} left",
        )
    )
    bar = Progress(BarColumn(20), TextColumn(text), console=Console(file=stream), refresh_per_second=4)
    loss, speed, held_out = Smoother(), Smoother(), ""
    with bar:
        task = bar.add_task("", total=None, steps="starting", loss=float("nan"), held_out="", pace=0, left="some time")

        def show(report: Report) -> None:
            nonlocal held_out
            if report.validation is not None:
                held_out = f" · held-out {report.validation:.3f} bits/byte"
            bar.update(
                task, completed=report.step, total=report.total_steps, held_out=held_out, loss=loss(report.loss),
                steps=f"{report.step}/{report.total_steps or '?'}", pace=speed(report.tokens_per_second),
                left=duration(report.seconds_left),
            )  # fmt: skip

        yield show
