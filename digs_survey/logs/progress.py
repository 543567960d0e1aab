"""Progress on stderr: live bars in a terminal, plain lines otherwise; and, quiet or not, in the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from digs_survey.logs.log import event

__all__ = ["ProgressReporter"]

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReporter:
    """Says on stderr what is going on, and tells the log.

    Parameters
    ----------
    quiet : bool
        Say nothing on stderr.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self._bars: Progress | None = None

    def say(self, message: str, *, kind: str = "message", **fields: Any) -> None:
        """Print one line, and log it as an event of some kind."""
        event(kind, message, **fields)
        if not self.quiet:
            self.show(message)

    def show(self, message: str) -> None:
        """Print one line, quiet or not, and do not log it."""
        if self.live:
            self.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Follow a task of ``total`` units; yields the function that is told of each step.

        The first step may be what was done before; it does not count in the rate.
        """
        plain = not self.quiet and not self.live
        meter = _Meter(name, total, unit, self.show if plain else lambda line: None)
        if self.live and not self.quiet:
            with self._display() as bars:
                task = bars.add_task(f"{name} [{unit}]", total=total, meter=meter)

                def advance(count: int) -> None:
                    meter.advance(count)
                    bars.advance(task, count)

                yield advance
        else:
            yield meter.advance
        meter.tell()

    @contextmanager
    def _display(self) -> Iterator[Progress]:
        """Share one live display among nested tasks: a terminal has room for one only."""
        if self._bars is not None:
            yield self._bars
            return
        # In a narrow terminal the bar and the name give way; numbers that wrap cannot be read.
        numbers = (kind(table_column=Column(no_wrap=True)) for kind in _NUMBERS)
        with Progress(_Name(), BarColumn(), *numbers, console=self.console) as self._bars:
            try:
                yield self._bars
            finally:
                self._bars = None


class _Meter:
    """Counts the steps of a task, and tells of them every ten seconds.

    Parameters
    ----------
    name : str
    total : int
    unit : str
    show : callable
        Takes the line for the terminal.
    """

    def __init__(self, name: str, total: int, unit: str, show: Callable[[str], None]) -> None:
        self.name, self.total, self.unit, self.show = name, total, unit, show
        self.done, self.before = 0, 0
        self.started = self.told = time.monotonic()
        self.ended: float | None = None
        self.first = True

    def advance(self, count: int) -> None:
        self.done += count
        if self.first:
            self.first = False
            if time.monotonic() - self.started < 1.0:
                self.before = self.done
        if self.done >= self.total:
            self.ended = time.monotonic()
        elif time.monotonic() - self.told >= _SECONDS_BETWEEN_LINES:
            self.tell()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the begin, or from it to the last unit."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def rate(self) -> float:
        """Units a second, without those that were done before."""
        return (self.done - self.before) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at this rate; None as long as nothing is known."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    def tell(self) -> None:
        self.told = time.monotonic()
        elapsed, rate, left = self.elapsed_s, self.rate, self.left_s
        ending = f"took {_clock(elapsed)}" if self.done >= self.total else f"{_clock(left)} left"
        line = f"{self.name}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.4g}/s, {ending}"
        event(
            "progress",
            line,
            task=self.name,
            done=self.done,
            total=self.total,
            unit=self.unit,
            rate=round(rate, 4),
            seconds=round(elapsed, 3),
            left_s=None if left is None else round(left, 1),
        )
        self.show(line)


class _Name(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.fields["meter"].rate
        return Text(f"{rate:,.4g}/s" if rate > 0 else "")


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        meter = task.fields["meter"]
        left = "-:--:--" if meter.left_s is None else _clock(meter.left_s)
        return Text("" if meter.done >= meter.total else f"{left} left")


_NUMBERS = (MofNCompleteColumn, _Rate, TimeElapsedColumn, _Left)


def _clock(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
