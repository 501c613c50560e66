"""Run notebooks from top to bottom and keep what they show: light, and different only where a result is.

`python -m minillm.course.run_notebooks [NOTEBOOK ...]`; without a name, all chapters.
"""

import base64
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from minillm.course.chapters import notebooks_directory
from minillm.course.notebooks import chapter_notebooks, is_workbook, nbformat, notebook_text, read_notebook
from minillm.support.files import write_text_atomic


SECONDS, BYTES = 90, 400_000  # what a chapter may take on two cores, and what it may weigh with its outputs
PLOTS = "module://matplotlib_inline.backend_inline"  # another backend in the environment would draw no picture


def run_notebook(path: Path, timeout: int = 600) -> float:
    """Execute a notebook and save it with its outputs; the seconds that it took.

    Raises ValueError with the cell and its error, for a notebook that does not run through or is of the workbook
    edition; the file then stays as it was.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read_notebook(path)
    if is_workbook(notebook):
        raise ValueError(f"{path} is of the workbook edition: run it in JupyterLab, its outputs are yours.")
    notebook["metadata"].pop("widgets", None)  # of the run before
    client = NotebookClient(
        notebook,
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    begin = time.perf_counter()
    try:
        client.execute(env={**os.environ, "MPLBACKEND": PLOTS})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise ValueError(f"{path} did not run through and was not saved: {error}") from error
    seconds = time.perf_counter() - begin
    lighten_pictures(notebook)
    numbered = number_widgets(json.dumps(without_machine(notebook)))  # before keys are sorted, so in order of creation
    write_text_atomic(path, notebook_text(nbformat().reads(numbered)))
    return seconds


def lighten_pictures(notebook: Any) -> None:
    """Store every plot of a notebook with at most 256 colours: a third of the bytes, and nobody sees it."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = lighter(png)


def lighter(png: str) -> str:
    """A PNG in base64 with at most 256 colours; the same text if that is not lighter, for photographs and glass."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        return png
    image = image.convert("RGB")
    if image.getcolors(4096) is None:  # more colours than that: no plot
        return png
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    text = base64.b64encode(small.getvalue()).decode("ascii")
    return text if len(text) < len(png) else png


def without_machine(notebook: Any) -> Any:
    """The notebook without times and without the version of the Python that ran it."""
    notebook["metadata"]["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    notebook["metadata"]["language_info"] = {"name": "python"}
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
    return notebook


def number_widgets(text: str) -> str:
    """A notebook's JSON with the random names of its widgets exchanged for numbers, in order of appearance.

    >>> number_widgets('"model_id": "0f3a5c0f3a5c0f3a5c0f3a5c0f3a5c0f"')
    '"model_id": "00000000000000000000000000000001"'
    """
    names: dict[str, str] = {}
    return re.sub(
        r'(?<=["_])[0-9a-f]{32}(?=")', lambda found: names.setdefault(found[0], f"{len(names) + 1:032x}"), text
    )


def main(arguments: list[str]) -> int:
    """Run the notebooks named, or all, and say what each took; 1 if one does not run through."""
    paths = [Path(name) for name in arguments] or list(chapter_notebooks(notebooks_directory()).values())
    failed = 0
    for path in paths:
        try:
            seconds = run_notebook(path)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            failed += 1
            continue
        weight = path.stat().st_size
        print(f"{path.name}: {seconds:.0f} s, {weight / 1000:.0f} kB", flush=True)
        if seconds > SECONDS or weight > BYTES:
            print(f"  A chapter should stay under {SECONDS} s on two idle cores, and {BYTES / 1000:.0f} kB.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
