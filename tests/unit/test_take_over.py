"""A lock of another host: waited for while it is silent, taken over when it is stale, refused when it lives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from upath import UPath

from digs_survey.errors import RunDirectoryError
from digs_survey.run import local_lock as local_module
from digs_survey.run import take_over
from digs_survey.run.local_lock import local_lock
from digs_survey.run.remote_lock import RemoteLock
from digs_survey.store.storage import read_json, write_json

STALE_S = 1.2
HOST = threading.local()

HOLD = """
import socket, sys, time
from pathlib import Path
from digs_survey.run.local_lock import local_lock
socket.gethostname = lambda: "pod-1"
with local_lock(Path(sys.argv[1]), stale_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(120)
"""


class NoFlock:
    """An flock that does not reach other hosts."""

    is_locked = True

    def __init__(self, path: Path) -> None:
        path.touch()

    def acquire(self, timeout: float) -> None:
        """Succeed."""

    def release(self) -> None:
        """Do nothing."""


class Place:
    """A run directory, and the lock that fits it."""

    def __init__(self, folder: Path, remote: bool) -> None:
        self.folder, self.remote = folder, remote
        self.note = folder / ("lock.json" if remote else ".lock.json")
        self.stale_s = STALE_S

    def lock(self, host: str, said: list[str]):
        """Return the lock as a process on that host would take it, in a thread of its own."""
        HOST.name = host
        if self.remote:
            return RemoteLock(self.folder, said.append, refresh_s=self.stale_s / 6, stale_s=self.stale_s, settle_s=0.05)
        return local_lock(self.folder, said.append, stale_s=self.stale_s)

    def take(self, host: str) -> tuple[list[str], float]:
        """Take the lock and give it back; return what was said, and the seconds that it took."""
        said, began = [], time.monotonic()
        with self.lock(host, said):
            took = time.monotonic() - began
        return said, took

    def leave(self, host: str) -> None:
        """Leave the lock of a process that was killed just now."""
        note = {"host": host, "pid": 123, "since": "2026-01-01T00:00:00+00:00", "stale_s": self.stale_s}
        if self.remote:
            note |= {"machine": "m", "started": 1.0, "token": "left", "refreshed": datetime.now(UTC).isoformat()}
        else:
            note["command"] = "x"
        write_json(self.note, note)


@pytest.fixture(params=["disk", "disk without flock", "object store"])
def place(request, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: getattr(HOST, "name", "here"))
    if request.param == "disk without flock":
        monkeypatch.setattr(local_module, "FileLock", NoFlock)
    remote = request.param == "object store"
    folder = UPath(f"memory://{uuid4().hex}/run") if remote else tmp_path
    yield Place(folder, remote)
    if remote and folder.parent.exists():
        folder.fs.rm(folder.parent.path, recursive=True)


def test_silent_holder_is_waited_for_and_then_taken_over(place):
    place.leave("pod-1")
    (waiting, after), took = place.take("pod-2")
    assert "host pod-1, pid 123" in waiting
    assert "silent for 0 s; waiting for a sign of life until " in waiting
    assert "(1 s)" in waiting
    assert "host pod-1, pid 123" in after
    assert "did not end properly" in after
    assert STALE_S - 0.1 < took < STALE_S + 20
    assert place.take("pod-2")[0] == []


def test_living_holder_is_refused_at_its_next_heartbeat(place):
    place.stale_s = 6.0
    free, taken = threading.Event(), threading.Event()

    def hold():
        with place.lock("pod-1", []):
            taken.set()
            free.wait(60)

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        taken.wait(60)
        began = time.monotonic()
        with pytest.raises(RunDirectoryError, match="works in this run directory: host pod-1"):
            place.take("pod-2")
        took = time.monotonic() - began
        assert read_json(place.note)["host"] == "pod-1"
        free.set()
        holder.result()
    assert took < place.stale_s


def test_lock_that_is_given_back_meanwhile_is_taken(place):
    place.stale_s = 6.0
    place.leave("pod-1")
    threading.Timer(0.3, place.note.unlink).start()
    said, took = place.take("pod-2")
    assert ["waiting for a sign" in line for line in said] == [True]
    assert took < place.stale_s


def test_of_two_waiters_one_gets_the_lock(place):
    place.leave("pod-1")
    refused, start = threading.Event(), threading.Barrier(2)

    def attempt(host):
        start.wait(60)
        try:
            with place.lock(host, []):
                refused.wait(30)
                return f"held by {read_json(place.note)['host']}"
        except RunDirectoryError as error:
            refused.set()
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(attempt, ["pod-2", "pod-3"]), key=len)
    winner = answers[0].removeprefix("held by ")
    assert winner in ("pod-2", "pod-3"), answers
    assert f"works in this run directory: host {winner}" in answers[1]
    assert not place.note.exists()


def test_take_over_that_was_killed_half_way_does_not_bar_the_next(place, monkeypatch):
    monkeypatch.setattr(take_over, "_CLAIM_S", 0.2)
    place.leave("pod-1")
    claim = place.folder / place.note.name.replace("json", "claim")
    claim.write_text("")
    assert "did not end properly" in place.take("pod-2")[0][1]
    assert not claim.exists()


def test_holder_that_was_taken_over_leaves_the_lock_of_the_other(tmp_path):
    note = tmp_path / ".lock.json"
    with local_lock(tmp_path, stale_s=0.12):
        other = {**json.loads(note.read_text()), "host": "pod-2"}
        write_json(note, other)
        os.utime(note, (0, 0))
        time.sleep(0.2)
        assert note.stat().st_mtime == 0, "the heartbeat of another process was made"
    assert read_json(note) == other


def test_job_that_starts_under_another_name_after_sigkill(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path), "1.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as first:
        assert first.stdout.readline() == "held\n"
        first.send_signal(signal.SIGKILL)
        first.wait()
    said = []
    with local_lock(tmp_path, said.append):
        assert read_json(tmp_path / ".lock.json")["pid"] == os.getpid()
    assert [f"host pod-1, pid {first.pid}" in line for line in said] == [True, True]
