"""Figures: what they draw is what they were given, and it can be read."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation

from minillm.support.figures import show_grids, show_heads, show_lines


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is shown, and each figure is closed."""
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")


def luminance(colour) -> float:
    """Relative luminance of sRGB, from 0 for black to 1 for white (WCAG 2.1, "relative luminance")."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("top", [1.0, 40.0])
def test_numbers_in_cells_stand_out_whatever_the_cell(top: float):
    show_grids({"all shades": np.linspace(0, top, 12).reshape(3, 4)}, decimals=1)
    axis = plt.gcf().axes[0]
    (image,) = axis.images
    shades = np.asarray(image.cmap(image.norm(np.asarray(image.get_array()))))[..., :3].reshape(-1, 3)
    texts = axis.texts
    assert [text.get_text() for text in texts] == [f"{n:.1f}" for n in np.linspace(0, top, 12)]
    for text, shade in zip(texts, shades, strict=True):
        bright, dark = sorted((luminance(text.get_color()), luminance(shade)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 4.5  # WCAG 2.1, success criterion 1.4.3


def test_a_cell_is_a_square_and_rows_go_down():
    show_grids({"wide": np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])}, rows=["a", "b"])
    axis = plt.gcf().axes[0]
    assert axis.get_aspect() == 1
    assert axis.yaxis_inverted()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert np.asarray(axis.images[0].get_array()).tolist()[0] == [0, 1, 0, 0]


def test_every_head_has_its_place():
    maps = np.zeros((2, 3, 4, 4))
    maps[1, 2, 3, 0] = 1.0
    show_heads(maps)
    axes = plt.gcf().axes
    assert len(axes) == 6
    assert [axis.get_title() for axis in axes[:3]] == ["head 0", "head 1", "head 2"]
    assert [axis.get_ylabel() for axis in axes[::3]] == ["layer 0", "layer 1"]
    drawn = [np.argwhere(np.asarray(axis.images[0].get_array()) > 0).tolist() for axis in axes]
    assert drawn == [[]] * 5 + [[[3, 0]]]


def test_each_line_is_named_at_its_end():
    lines = {"one": ([1.0, 2.0], [3.0, 4.0]), "two": ([1.0, 2.0], [5.0, 6.0])}
    show_lines(lines, "length (tokens)", "time (ms)", log="x")
    (axis,) = plt.gcf().axes
    named = [text for text in axis.texts if isinstance(text, Annotation)]
    assert [(text.get_text(), text.xy) for text in named] == [("one", (2, 4)), ("two", (2, 6))]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale(), axis.get_yscale()) == (
        "length (tokens)", "time (ms)", "log", "linear",
    )  # fmt: skip
