"""What the benchmarks share: contestants that take turns, a table, a JSON file."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def arguments(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def alternate(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each repeat; they take turns, so that a busy moment of the machine strikes all."""
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: dict[str, list[float]], amount: float) -> dict[str, dict[str, float]]:
    """Median and spread in seconds, amount a second, and the first one's time over each (median over the turns)."""
    ours = next(iter(seconds.values()))
    return {
        name: {
            "median_s": statistics.median(times),
            "fastest_s": min(times),
            "slowest_s": max(times),
            "per_s": amount / statistics.median(times),
            "first_over_this": statistics.median(a / b for a, b in zip(ours, times, strict=True)),
        }
        for name, times in seconds.items()
    }


def show(title: str, rows: dict[str, dict[str, float]], unit: str) -> None:
    """Print a table; the last column is the first contestant's time over this one's."""
    print(f"\n{title:<34} {'median s':>9} {'fastest':>9} {'slowest':>9} {unit + '/s':>10} {'first / this':>13}")
    for name, row in rows.items():
        print("{:<34} {:9.3f} {:9.3f} {:9.3f} {:10,.1f} {:13.2f}".format(name, *row.values()))


def write_json(path: Path | None, results: dict[str, Any], packages: tuple[str, ...], **facts: Any) -> None:
    """Write the figures with the machine and the versions they were made with."""
    if path:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        versions = {name: version(name) for name in packages}
        path.write_text(json.dumps({**facts, **machine, **versions, "results": results}, indent=2) + "\n")
