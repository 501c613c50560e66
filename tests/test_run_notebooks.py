"""Running notebooks in place: what is kept, what is left out, and what happens when a cell fails."""

import base64
import io
from pathlib import Path
from typing import Any

import nbformat.v4
import pytest
from PIL import Image

from minillm.course.notebooks import notebook_text
from minillm.course.run_notebooks import lighter, main, number_widgets, run_notebook


def write(path: Path, *sources: str, **metadata: Any) -> Path:
    """A notebook of code cells with fixed ids."""
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    path.write_text(notebook_text(nbformat.v4.new_notebook(cells=cells, metadata=metadata)))
    return path


def test_two_runs_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = write(
        tmp_path / "a.ipynb",
        "import ipywidgets\n\nipywidgets.IntSlider(value=3)",
        "import matplotlib.pyplot as plt\n\n_ = plt.plot([1, 2])\nplt.show()",
        "for i in range(3):\n    print(i, flush=True)",
    )
    assert run_notebook(path) > 0
    first = path.read_bytes()
    notebook = nbformat.read(path, 4)
    slider, plot, lines = (cell["outputs"] for cell in notebook["cells"])
    state = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    name = slider[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert state[name]["state"]["value"] == 3
    assert "image/png" in plot[0]["data"]
    assert [line["text"] for line in lines] == ["0\n1\n2\n"]
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert not any("execution" in cell["metadata"] for cell in notebook["cells"])
    run_notebook(path)
    assert path.read_bytes() == first


def test_a_failing_cell_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "a.ipynb", "print(1)", "1 / 0")
    before = path.read_bytes()
    assert main([str(path)]) == 1
    said = capsys.readouterr().err
    assert "did not run through and was not saved" in said
    assert "ZeroDivisionError" in said
    assert path.read_bytes() == before


def test_a_workbook_is_left_alone(tmp_path: Path):
    path = write(tmp_path / "a.ipynb", "print(1)", minillm={"edition": "workbook"})
    with pytest.raises(ValueError, match="workbook edition: run it in JupyterLab"):
        run_notebook(path)


def test_a_missing_notebook_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "none.ipynb")]) == 1
    assert "none.ipynb" in capsys.readouterr().err


def png(image: Image.Image) -> str:
    """An image as a notebook holds it."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_pictures_get_lighter_and_stay_what_they_are():
    grey = Image.radial_gradient("L")
    image = Image.merge(
        "RGBA",
        (grey, grey.point([v // 32 for v in range(256)]), Image.new("L", grey.size, 99), grey.point([255] * 256)),
    )
    light = lighter(png(image))
    assert len(light) < len(png(image))
    shown = Image.open(io.BytesIO(base64.b64decode(light))).convert("RGB")
    assert shown.size == image.size
    assert max(abs(a - b) for a, b in zip(shown.tobytes(), image.convert("RGB").tobytes())) <= 8
    assert lighter(light) == light


def test_photographs_and_glass_are_left_alone():
    noise = png(Image.effect_noise((100, 100), 80).convert("RGB"))
    photograph = png(Image.merge("RGB", [Image.effect_noise((100, 100), 80) for _ in range(3)]))
    assert lighter(noise) != noise
    assert lighter(photograph) == photograph
    glass = png(Image.new("RGBA", (50, 50), (10, 20, 30, 128)))
    assert lighter(glass) == glass


def test_widgets_are_numbered_alike_everywhere():
    a, b = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    text = f'"{b}": {{"layout": "IPY_MODEL_{a}"}}, "{a}": {{}}'
    assert number_widgets(text) == f'"{1:032x}": {{"layout": "IPY_MODEL_{2:032x}"}}, "{2:032x}": {{}}'
    assert number_widgets(f'"sha {a}"') == f'"sha {a}"'
