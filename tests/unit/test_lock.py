"""The lock of a run directory: one process at a time, by name, and free again however that process ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from digs_survey.errors import RunDirectoryError
from digs_survey.logs.command_line import safe_command
from digs_survey.run.local_lock import Holder, local_lock
from digs_survey.run.take_over import STALE_S

HOLD = """
import sys, time
from pathlib import Path
from digs_survey.run.local_lock import local_lock
with local_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), "--token", "hunter2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def take(folder):
    said = []
    with local_lock(folder, said.append):
        pass
    return said


def leave_note(folder, host, age_s):
    note = folder / ".lock.json"
    note.write_text(json.dumps({"host": host, "pid": 123, "since": "2026-01-01T00:00:00+00:00", "command": "x"}))
    os.utime(note, (time.time() - age_s,) * 2)


def test_second_process_is_told_whose_lock_it_is(other, tmp_path):
    with pytest.raises(RunDirectoryError, match="another digs-survey process works in this run directory") as caught:
        take(tmp_path)
    message = str(caught.value)
    assert f"host {socket.gethostname()}, pid {other.pid}, since 20" in message
    assert "(command digs-survey " in message
    assert "hunter2" not in message


def test_killed_process_frees_the_directory(other, tmp_path):
    other.kill()
    other.wait()
    (line,) = take(tmp_path)
    assert f"host {socket.gethostname()}, pid {other.pid}" in line
    assert "did not end properly" in line
    assert take(tmp_path) == []


def test_lock_is_left_as_if_it_had_never_been(tmp_path):
    with local_lock(tmp_path) as me:
        assert Holder.read(tmp_path / ".lock.json") == me
        assert me.pid == os.getpid()
    assert not (tmp_path / ".lock.json").exists()
    with pytest.raises(ValueError, match="from inside"), local_lock(tmp_path):
        raise ValueError("from inside")
    assert take(tmp_path) == []


def test_holder_without_a_note_is_refused_too(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(RunDirectoryError, match="no word of its host"):
        take(tmp_path)
    (tmp_path / ".lock.json").write_text("half a no")
    assert take(tmp_path) == []


def test_flock_that_does_not_reach_another_host(tmp_path):
    leave_note(tmp_path, "elsewhere", age_s=STALE_S + 60)
    assert "host elsewhere" in take(tmp_path)[0]
    leave_note(tmp_path, socket.gethostname(), age_s=0)
    assert "did not end properly" in take(tmp_path)[0]


def test_heart_beats_while_the_lock_is_held(tmp_path):
    note = tmp_path / ".lock.json"
    with local_lock(tmp_path, stale_s=0.12):
        os.utime(note, (0, 0))
        deadline = time.monotonic() + 10
        while note.stat().st_mtime == 0:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("argv", "hidden", "kept"),
    [
        (["run", "c.zarr", "--set", "train.epochs=5"], None, "digs-survey run c.zarr --set train.epochs=5"),
        (["run", "--ray-address", "ray://me:hunter2@host:6379"], "hunter2", "ray://***@host:6379"),
        (["run", "--api-token", "hunter2", "-q"], "hunter2", "--api-token *** -q"),
        (["run", "--api-token=hunter2", "-q"], "hunter2", "--api-token=*** -q"),
        (["run", "s3://b/c.zarr?X-Amz-Signature=hunter2&x=1"], "hunter2", "&x=1"),
        (["run", "--option", '{"secret_key": "hunter2", "region": "a"}'], "hunter2", '"region": "a"'),
    ],
)
def test_secrets_are_not_written_down(argv, hidden, kept):
    shown = safe_command(argv)
    assert kept in shown
    assert hidden is None or hidden not in shown
