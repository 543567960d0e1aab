"""Progress on stderr: live bars in a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["ProgressReporter"]

_SECONDS_BETWEEN_LINES = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.4g}/s")


class ProgressReporter:
    """Says on stderr what is going on.

    Parameters
    ----------
    quiet : bool
        Say nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self._bars: Progress | None = None

    def say(self, message: str) -> None:
        """Print one line."""
        if self.quiet:
            return
        if self.live:
            self.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Follow a task of ``total`` units; yields the function that is told of each step.

        The first step may be what was done before; it does not count in the rate.
        """
        if self.quiet:
            yield lambda count: None
        elif self.live:
            with self._display() as bars:
                task = bars.add_task(f"{name} [{unit}]".replace("[", r"\["), total=total)
                yield lambda count: bars.advance(task, count)
        else:
            lines = _Lines(name, total, unit)
            yield lines.advance
            lines.close()

    @contextmanager
    def _display(self) -> Iterator[Progress]:
        """Share one live display among nested tasks: a terminal has room for one only."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as self._bars:
            try:
                yield self._bars
            finally:
                self._bars = None


class _Lines:
    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self.before = 0, 0
        self.started = self.printed = time.monotonic()
        self.first = True

    def advance(self, count: int) -> None:
        self.done += count
        if self.first:
            self.first = False
            if time.monotonic() - self.started < 1.0:
                self.before = self.done
        if time.monotonic() - self.printed >= _SECONDS_BETWEEN_LINES:
            self.printed = time.monotonic()
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.before) / elapsed if elapsed > 0 else 0.0
        left = timedelta(seconds=round((self.total - self.done) / rate)) if rate > 0 else "unknown"
        ending = f"took {timedelta(seconds=round(elapsed))}" if self.done >= self.total else f"{left} left"
        text = f"{self.name}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.4g}/s, {ending}"
        print(text, file=sys.stderr, flush=True)
