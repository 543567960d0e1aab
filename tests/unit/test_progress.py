"""Progress: nested bars in a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import time

from rich.console import Console

from digs_survey.logs.progress import ProgressReporter


def test_tasks_may_nest_in_a_terminal():
    reporter = ProgressReporter()
    reporter.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    reporter.live = True
    with reporter.task("audit", 4, "galaxies") as outer:
        outer(1)
        with reporter.task("calibration", 10, "simulations") as inner:
            inner(10)
        outer(3)
    with reporter.task("report", 1, "page") as step:
        step(1)
    text = reporter.console.file.getvalue()
    assert "audit [galaxies]" in text
    assert "10/10" in text
    assert "4/4" in text


def test_plain_lines_without_a_terminal(capsys):
    with ProgressReporter().task("map", 3, "galaxies") as advance:
        advance(3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("map: 3/3 galaxies")
    with ProgressReporter(quiet=True).task("map", 3, "galaxies") as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_numbers_stay_on_one_line_in_a_narrow_terminal():
    reporter = ProgressReporter()
    reporter.console = Console(file=io.StringIO(), force_terminal=True, width=80)
    reporter.live = True
    with reporter.task("audit", 1_200, "galaxies with emcee") as outer:
        with reporter.task("calibration", 1_000_000, "independent simulations") as inner:
            for started in (False, True):
                table = reporter._bars.get_renderable()
                lines = ["".join(part.text for part in line) for line in reporter.console.render_lines(table)]
                assert len(lines) == 2
                assert all(line.rstrip().endswith(" left") for line in lines)
                assert "/1000000" in lines[1]
                assert ("/s " in lines[1]) == started
                inner(1000)
                time.sleep(0.01)
                inner(1000)
        outer(1)
