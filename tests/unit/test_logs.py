"""The log of a run directory: what every line has, what is told, and that nothing of it ends a run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import PurePosixPath

import numpy as np
import pytest

from digs_survey import __version__
from digs_survey.cli import main
from digs_survey.errors import StageError
from digs_survey.logs import progress
from digs_survey.logs.log import event, exit_code, run_log, stage_log
from digs_survey.logs.progress import ProgressReporter

BASE = {"time", "level", "event", "stage", "message", "logger", "host", "pid"}
_LOG = logging.getLogger("digs_survey.somewhere")


def lines(run_dir):
    (path,) = (run_dir / "logs").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def keep_log(run_dir, work=lambda: None, shown=None):
    with run_log(run_dir, [].append if shown is None else shown.append) as log:
        log.begin(config_hash="abc")
        work()


def test_begin_stages_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["digs-survey", "map", "--token", "hunter2"])
    record = {"status": "done", "rows": np.int64(7), "wall_s": 3.0, "core_s": float("nan"), "key": {}}

    def work():
        with stage_log("map", 7, "galaxies", lambda: record):
            _LOG.warning("shard %d is slow", 3)
        event("other", "after", shard=2)

    keep_log(tmp_path, work)
    start, begin, warning, end, other, last = lines(tmp_path)
    assert all(set(line) >= BASE for line in lines(tmp_path))
    assert start["event"] == "start"
    assert start["command"] == "digs-survey map --token ***"
    assert (start["digs_survey"], start["config_hash"]) == (__version__, "abc")
    assert (begin["event"], begin["stage"], begin["total"]) == ("stage_begin", "map", 7)
    assert (warning["event"], warning["stage"], warning["message"]) == ("warning", "map", "shard 3 is slow")
    assert warning["logger"] == "digs_survey.somewhere"
    assert (end["event"], end["status"], end["rows"], end["wall_s"], end["core_s"]) == ("stage_end", "done", 7, 3, None)
    assert end["seconds"] >= 0
    assert (other["stage"], other["shard"]) == (None, 2)
    assert (last["event"], last["exit_code"]) == ("end", 0)


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [(StageError("100 % lost"), 7, False), (ValueError("a bug"), 1, True), (KeyboardInterrupt(), 130, False)],
)
def test_errors_are_logged_and_passed_on(tmp_path, error, code, traceback):
    def fail():
        raise error

    with pytest.raises(type(error)):
        keep_log(tmp_path, fail)
    *_, told, end = lines(tmp_path)
    assert (told["event"], told["level"], told["type"]) == ("error", "error", type(error).__name__)
    assert told["message"] == (str(error) or "KeyboardInterrupt")
    assert ("traceback" in told) == traceback
    assert not traceback or "in fail" in told["traceback"]
    assert (end["event"], end["exit_code"]) == ("end", code)


def test_exit_codes():
    assert [exit_code(SystemExit(value)) for value in (None, 3, "text")] == [0, 3, 1]


def test_nothing_is_written_before_the_work_begins(tmp_path):
    with pytest.raises(StageError), run_log(tmp_path / "new", print):
        raise StageError("refused")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()

    def refuse():
        with run_log(tmp_path / "old", print):
            event("message", "earlier")
            raise StageError("refused")

    with pytest.raises(StageError):
        refuse()
    assert [line["event"] for line in lines(tmp_path / "old")] == ["start", "message", "error", "end"]


def test_log_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    shown, did = [], []

    def work():
        for number in range(3):
            event("message", "lost")
            did.append(number)

    keep_log(tmp_path, work, shown)
    assert did == [0, 1, 2]
    (line,) = shown
    assert "cannot be written" in line
    assert str(tmp_path / "logs") in line


def test_warnings_are_shown_once_and_logging_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("digs_survey")
    before, shown = (logger.level, list(logger.handlers)), []
    keep_log(tmp_path, lambda: _LOG.warning("look here"), shown)
    assert shown == ["look here"]
    assert (logger.level, logger.handlers) == before


def test_two_logs_of_one_process_are_two_files(tmp_path):
    keep_log(tmp_path)
    keep_log(tmp_path)
    assert len(list((tmp_path / "logs").glob("*.jsonl"))) == 2


class ObjectStore(PurePosixPath):
    """A folder that is no local one: objects are written whole, and every write is counted."""

    objects: dict = {}
    writes: list = []

    def mkdir(self, **how):
        raise AssertionError("an object store has no folders")

    def write_text(self, text, encoding):
        self.objects[str(self)] = text
        self.writes.append(self)


def test_in_an_object_store_the_log_is_written_whole_now_and_then():
    def work():
        with stage_log("map", 1, "galaxies", lambda: {"status": "done"}):
            for _ in range(100):
                event("progress", "more")

    keep_log(ObjectStore("bucket/run"), work)
    ((name, text),) = ObjectStore.objects.items()
    assert name.startswith("bucket/run/logs/")
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert events == ["start", "stage_begin", *["progress"] * 100, "stage_end", "end"]
    assert len(ObjectStore.writes) == 3


def test_quiet_silences_the_terminal_and_not_the_log(tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def work():
        reporter = ProgressReporter(quiet=True)
        reporter.say("hello")
        with reporter.task("map", 40, "galaxies") as advance:
            for _ in range(5):
                now[0] += 4
                advance(8)

    keep_log(tmp_path, work)
    assert capsys.readouterr() == ("", "")
    told = [line for line in lines(tmp_path) if line["event"] in ("message", "progress")]
    assert told[0]["message"] == "hello"
    first, last = told[1:]
    about = {"task": "map", "total": 40, "unit": "galaxies", "rate": 2.0}
    assert first.items() >= (about | {"done": 24, "seconds": 12.0, "left_s": 8.0}).items()
    assert last.items() >= (about | {"done": 40, "seconds": 20.0, "left_s": 0.0}).items()


def test_every_command_in_a_run_directory_keeps_a_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digs-survey", "train", "--config", "quick", "-o", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 6
    assert "digs-survey simulate" in capsys.readouterr().err
    events = {line["event"]: line for line in lines(tmp_path)}
    assert events["start"]["config_hash"]
    assert (events["error"]["type"], events["end"]["exit_code"]) == ("RunDirectoryError", 6)
