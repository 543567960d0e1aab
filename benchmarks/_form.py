"""The form of every benchmark: repeats, a table for people, and one line of JSON last."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PAPER_NETWORK", "finish", "parser", "repeat", "write_table"]

PAPER_NETWORK = (
    "train.hidden_features=25",
    "train.transforms=10",
    "train.embedding=none",
    "train.whitening=element",
    "train.amplitude=feature",
)
"""Overrides that give a configuration the network of Khullar et al. (2022), and its whitened log10 flux."""

_END = "<!-- end -->"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the argument parser that all benchmarks share."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    found.add_argument("--quick", action="store_true", help="smaller, under a minute")
    found.add_argument("--json", type=Path, metavar="FILE", help="write the line of JSON there as well")
    return found


def repeat(functions: Sequence[Callable[[], Any]], times: int) -> list[list[float]]:
    """Time functions in turn, ``times`` rounds after one to warm up; seconds (function, round)."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(times + 1):
        for measured, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                measured.append(time.perf_counter() - start)
    return seconds


def finish(
    title: str, rows: Sequence[tuple[str, Sequence[float], str]], result: dict[str, Any], json_path: Path | None
) -> None:
    """Print the table (name, values of the repeats, unit), then the result as one line of JSON."""
    print(f"{title}\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(f"{'':44}{'median':>12}{'min':>12}{'max':>12}  unit")
    for name, values, unit in rows:
        print(f"{name:44}{statistics.median(values):12.4g}{min(values):12.4g}{max(values):12.4g}  {unit}")
    line = json.dumps(result)
    if json_path is not None:
        json_path.write_text(line + "\n", encoding="utf-8")
    print(f"\n{line}")


def write_table(
    page: Path, begin: str, head: Sequence[str], rows: Sequence[Sequence[str]], about: str | None = None
) -> None:
    """Put a table into a Markdown page, between the line ``begin`` and the next ``<!-- end -->``.

    The machine, the date and the commit are stated below it, after what ``about`` says.

    Raises
    ------
    ValueError
        If the page has no such lines.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(_END)
    if not found or not ended:
        raise ValueError(f"{page}: expected the lines {begin} and {_END}, between which the table belongs")
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    where = f"{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}, commit {commit.strip()}"
    stated = where if about is None else f"{about}; {where}"
    table = "\n".join(lines)
    page.write_text(f"{before}{begin}\n\n{table}\n\n{stated}.\n\n{_END}{after}", encoding="utf-8")
