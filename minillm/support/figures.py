"""Figures for the chapters: numbers as grids, curves with direct labels, one look for all."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


BLUE, ORANGE, GREEN, RED, GREY = "#1f6fb4", "#d9730d", "#2a8a57", "#b3263a", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)  # told apart by colour-blind readers, and by lightness in print


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'minillm-course[course]'") from error
    return plt


def _draw_grid(axis: Any, array: np.ndarray, top: float) -> Any:
    """Squares, dark where a number is large; thin white lines between them where there is room for lines."""
    low = min(0.0, float(np.nanmin(array)))
    image = axis.imshow(array, cmap="Blues", vmin=low, vmax=top * 1.25, interpolation="nearest")
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    if max(array.shape) <= 16:
        axis.set_xticks(np.arange(array.shape[1] + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(array.shape[0] + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
    return image


def _readable_on(colour: Sequence[float]) -> str:
    """Black or white, whichever stands out more (relative luminance, WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "white" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.179 else "black"


def show_grids(
    grids: Mapping[str, Any],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    decimals: int | None = None,
    size: float = 2.6,
    labels: tuple[str, str] = ("query t", "key s"),
) -> None:
    """Draw matrices side by side, dark where a number is large; `decimals` writes the numbers into the cells.

    `rows` and `columns` name the cells, by default with numbers; `labels` name the axes, downwards and to the right.
    Shows the figure.
    """
    plt = _pyplot()
    arrays = {title: np.asarray(grid, dtype=float) for title, grid in grids.items()}
    tallest = max(a.shape[0] / a.shape[1] for a in arrays.values())
    figure, axes = plt.subplots(
        1, len(arrays), figsize=(size * len(arrays) + 0.6, size * max(tallest, 0.5) + 0.7), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    figure.get_layout_engine().set(wspace=0.08)
    for axis, (title, array) in zip(axes[0], arrays.items()):
        top = float(np.nanmax(np.abs(array))) or 1.0
        image = _draw_grid(axis, array, top)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(array.shape[1]), columns or [str(s) for s in range(array.shape[1])], fontsize=8)
        axis.set_yticks(range(array.shape[0]), rows or [str(t) for t in range(array.shape[0])], fontsize=8)
        if columns and max(map(len, columns)) > 3:
            axis.tick_params("x", rotation=90)
        axis.set_xlabel(labels[1], fontsize=9)
        axis.set_ylabel(labels[0], fontsize=9)
        if decimals is not None:
            for (t, s), number in np.ndenumerate(array):
                colour = _readable_on(image.cmap(image.norm(number)))
                axis.text(s, t, f"{number:.{decimals}f}", ha="center", va="center", fontsize=8, color=colour)
    plt.show()


def show_heads(maps: Any, size: float = 1.5) -> None:
    """Draw the attention weights of all heads, (L, H, T, T), small: a row for each layer. Shows the figure."""
    plt = _pyplot()
    maps = np.asarray(maps, dtype=float)
    L, H = maps.shape[:2]
    _, axes = plt.subplots(L, H, figsize=(size * H + 0.4, size * L + 0.4), squeeze=False, layout="constrained")
    for (layer, head), axis in np.ndenumerate(axes):
        _draw_grid(axis, np.sqrt(maps[layer, head]), top=0.8)  # roots, or all but the largest weights would look white
        axis.set(xticks=[], yticks=[])
        axis.spines[["left", "bottom"]].set(visible=True, color=GREY, linewidth=0.5)
        if layer == 0:
            axis.set_title(f"head {head}", fontsize=9)
        if head == 0:
            axis.set_ylabel(f"layer {layer}", fontsize=9)
    plt.show()


def show_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    log: str = "",
    size: tuple[float, float] = (6.0, 3.2),
) -> None:
    """Draw curves, each labelled at its end; `log` is "", "x", "y" or "xy". Shows the figure."""
    plt = _pyplot()
    _, axis = plt.subplots(figsize=size, layout="constrained")
    for colour, (label, (xs, ys)) in zip(COLOURS, lines.items()):
        axis.plot(xs, ys, color=colour, marker="o" if len(xs) < 20 else None, markersize=4)
        axis.annotate(
            label, (xs[-1], ys[-1]), xytext=(6, 0), textcoords="offset points", color=colour, va="center", fontsize=9
        )
    if "x" in log:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if "y" in log:
        axis.set_yscale("log")
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.05)
    plt.show()


def show_bars(bars: Mapping[str, float], label: str, size: tuple[float, float] = (6.0, 3.0)) -> None:
    """Draw horizontal bars with their values, the first on top. Shows the figure."""
    plt = _pyplot()
    _, axis = plt.subplots(figsize=size, layout="constrained")
    drawn = axis.barh(list(bars), list(bars.values()), color=BLUE)
    axis.bar_label(drawn, fmt="%.3g", padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
    plt.show()


class LiveLines:
    """A curve that grows while a cell runs; drawn again about every second, so that drawing costs next to nothing."""

    def __init__(self, x_label: str, y_label: str, every: float = 1.0) -> None:
        from IPython.display import display

        plt = _pyplot()
        self.figure, self.axis = plt.subplots(figsize=(6.0, 3.2), layout="constrained")
        plt.close(self.figure)  # the display below shows it; otherwise the cell would show it once more
        self.axis.set(xlabel=x_label, ylabel=y_label)
        self.axis.grid(alpha=0.3)
        self.axis.spines[["top", "right"]].set_visible(False)
        (self.line,) = self.axis.plot([], [], color=BLUE, linewidth=1.2)
        self.xs: list[float] = []
        self.values: list[float] = []
        self.every, self.drawn = every, time.monotonic()
        self.handle: Any = display(self.figure, display_id=True)

    def add(self, x: float, y: float, note: str = "") -> None:
        """Another point; the note stands above the curve."""
        self.xs.append(x)
        self.values.append(y)
        if time.monotonic() - self.drawn > self.every:
            self.draw(note)

    def draw(self, note: str = "") -> None:
        """Show what there is now."""
        self.line.set_data(self.xs, self.values)
        self.axis.relim()
        self.axis.autoscale_view()
        self.axis.set_title(note, fontsize=9, loc="right")
        self.handle.update(self.figure)
        self.drawn = time.monotonic()

    def close(self) -> None:
        """Draw the last points."""
        self.draw(self.axis.get_title(loc="right"))
