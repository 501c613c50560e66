"""Pictures. They need matplotlib, which the extra [course] brings; nothing here draws on the screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.support.files import write_bytes_atomic
from minillm.support.progress import Smoother


class MatplotlibMissing(ImportError):
    """Raised where a picture is wanted and cannot be drawn; the message says what to install."""

    def __init__(self) -> None:
        super().__init__("matplotlib is not installed: pip install 'minillm-course[course]'")


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches; it belongs to no window. Raises MatplotlibMissing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MatplotlibMissing from error
    return Figure(figsize=(width, height), layout="constrained")


def loss_figure(metrics: Sequence[Mapping[str, Any]], title: str = "") -> Any:
    """Training loss and held-out bits per byte over the tokens read, from the lines of a run's metrics.jsonl.

    Raises ValueError where there is nothing to draw, MatplotlibMissing without matplotlib.
    """
    if not metrics:
        raise ValueError("there is no step to draw: the run has not begun")
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    scale, unit = (1e6, "millions") if metrics[-1]["tokens"] > 2e5 else (1e3, "thousands")
    read = [line["tokens"] / scale for line in metrics]
    losses = [line["loss"] for line in metrics]
    left.plot(read, losses, color="#b8c7dd", linewidth=0.8, label="each step")
    left.plot(read, list(map(Smoother(), losses)), color="#1f4e8c", linewidth=1.8, label="running mean")
    left.set(xlabel=f"tokens read ({unit})", ylabel="training loss (nats per token)")
    left.legend(frameon=False)
    measured = [(x, line["validation"]) for x, line in zip(read, metrics) if line.get("validation") is not None]
    if measured:
        right.plot(*zip(*measured), color="#b3470b", marker="o", markersize=4, linewidth=1.5)
        right.annotate(f"{measured[-1][1]:.2f}", measured[-1], xytext=(0, 8), textcoords="offset points", ha="center")
    right.set(xlabel=f"tokens read ({unit})", ylabel="held-out text (bits per byte)")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG, whole or not at all; the same figure gives the same bytes."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    write_bytes_atomic(path, buffer.getvalue())
