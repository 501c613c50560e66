"""The notebooks in JupyterLab, as a reader opens them: Run All goes through, and what can be moved answers."""

import json
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, Watched
from playwright.sync_api import Locator


MINUTES = 4  # on a machine that does other things, too
SLIDER = ".widget-slider .noUi-handle"


def put_notebook(name: str, folder: Path) -> Path:
    """Copy a notebook without its outputs, with a last cell that leaves a file; the file to wait for."""
    notebook = json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    done = folder / f"{name}.done"
    last = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    notebook["cells"].append({**last, "source": f"__import__('pathlib').Path({str(done)!r}).touch()"})
    if notebook["nbformat_minor"] >= 5:
        notebook["cells"][-1]["id"] = "last"
    (folder / name).write_text(json.dumps(notebook), encoding="utf-8")
    return done


def kernel_state(address: str, name: str) -> str:
    """What the notebook's kernel is doing: starting, busy, idle; none if it has no kernel yet."""
    with urllib.request.urlopen(f"{address}/api/sessions", timeout=10) as answer:
        sessions = {session["path"]: session for session in json.load(answer)}
    return sessions[name]["kernel"]["execution_state"] if name in sessions else "none"


def what_stopped_it(path: Path) -> str:
    """The first cell of a saved notebook that failed, or else the first that did not come to its end."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                return f"cell {number} failed with {output['ename']}: {output['evalue']}"
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] == "code" and cell["execution_count"] is None:
            return f"cell {number} was still running: {cell['source'][:200]}"
    return "all cells have run"


def run_all(watched: Watched, address: str, folder: Path, name: str, done: Path) -> None:
    """Open a notebook, choose Run > Run All Cells, wait until its last cell has run."""
    page = watched.page
    page.goto(f"{address}/lab/tree/{name}")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    for _ in range(120):
        if kernel_state(address, name) == "idle":
            break
        page.wait_for_timeout(500)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    end, idle = time.monotonic() + 60 * MINUTES, 0
    while not done.exists():
        page.wait_for_timeout(1000)
        idle = idle + 1 if kernel_state(address, name) == "idle" else 0
        if idle > 10 or time.monotonic() > end:
            page.keyboard.press("ControlOrMeta+s")
            page.wait_for_timeout(2000)
            pytest.fail(f"{name} did not run to its end: {what_stopped_it(folder / name)}")


def bring_into_view(watched: Watched, selector: str) -> Locator:
    """Scroll through the notebook until something is there; JupyterLab draws cells only near the window."""
    page, found = watched.page, watched.page.locator(selector)
    panel = page.locator(".jp-Notebook .jp-WindowedPanel-outer").first
    panel.evaluate("panel => panel.scrollTo(0, 0)")
    for _ in range(200):
        if found.count() and found.first.is_visible():
            found.first.scroll_into_view_if_needed()
            return found
        panel.evaluate("panel => panel.scrollBy(0, 500)")
        page.wait_for_timeout(150)
    pytest.fail(f"Nothing in the notebook is {selector}.")


@pytest.mark.parametrize("name", ["00_tour.ipynb", "05_attention.ipynb"])
def test_run_all_and_move_a_slider(watched: Watched, lab: tuple[str, Path], name: str):
    if not (ROOT / "notebooks" / name).exists():
        pytest.skip(f"There is no notebooks/{name} yet.")
    address, folder = lab
    done = put_notebook(name, folder)
    run_all(watched, address, folder, name, done)

    handles = bring_into_view(watched, SLIDER)
    view, page = watched.page.locator(".widget-html-content"), watched.page
    page.get_by_text("Layer 0, head 0").first.wait_for(timeout=30_000)
    colours = "spans => spans.map(span => span.style.background)"
    before = view.locator("span[title]").evaluate_all(colours)
    assert len(before) > 5
    for slider, words in ((0, "Layer 1, head 0"), (1, "Layer 1, head 1")):
        handles.nth(slider).focus()
        page.keyboard.press("ArrowRight")
        page.get_by_text(words).first.wait_for(timeout=30_000)
    assert view.locator("span[title]").evaluate_all(colours) != before
    assert not watched.outside
