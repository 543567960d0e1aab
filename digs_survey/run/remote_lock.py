"""The lock of a run directory on an object store, where no system keeps locks: an object that only one can create.

It tells who holds it, and its holder writes it anew every so often. One that was not for long, or whose process on this
very machine is gone, was left behind by a process that was killed, and is taken over.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import psutil

from digs_survey.errors import RunDirectoryError
from digs_survey.store.locations import store_errors
from digs_survey.store.storage import read_json, remove, write_json

__all__ = ["RemoteLock"]

_REFRESH_S = 20.0
_STALE_S = 120.0
"""Clocks of machines may differ by less than this and the time between two refreshes."""
_SETTLE_S = 2.0
"""After a take-over: long enough that another one that took over at the same moment is seen."""

log = logging.getLogger(__name__)


class RemoteLock:
    """Hold a run directory on an object store; a context manager.

    Parameters
    ----------
    run_dir : Path
        A remote location. The lock is ``lock.json`` in it: host, pid, when it was taken and last refreshed.
    refresh_s : float
        Seconds between two refreshes.
    stale_s : float
        Seconds without a refresh after which a lock counts as left behind.
    settle_s : float
        Seconds to wait after taking over a lock that was left behind.

    Raises
    ------
    RunDirectoryError
        On entering, if another process holds it; on leaving, if another took it over meanwhile, since this one had
        stood still.
    """

    def __init__(
        self, run_dir: Path, *, refresh_s: float = _REFRESH_S, stale_s: float = _STALE_S, settle_s: float = _SETTLE_S
    ) -> None:
        self.run_dir, self.path = run_dir, run_dir / "lock.json"
        self.refresh_s, self.stale_s, self.settle_s = refresh_s, stale_s, settle_s
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": psutil.Process().create_time(),
            "since": _now(),
            "token": uuid4().hex,
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="run directory's lock")

    def __enter__(self) -> RemoteLock:
        try:
            self._create()
        except FileExistsError:
            self._take_over()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        holder = self._holder()
        if holder is not None and holder["token"] == self._me["token"]:
            remove(self.path)
        elif kind is None:
            raise self._held(holder)

    def _create(self) -> None:
        store: Any = self.path
        store.fs.pipe_file(store.path, json.dumps(self._about()).encode(), mode="create")

    def _take_over(self) -> None:
        holder = self._holder()
        if holder is not None:
            if not self._left_behind(holder):
                raise self._held(holder)
            log.warning("%s: the lock of process %s on %s was left behind", self.run_dir, holder["pid"], holder["host"])
        write_json(self.path, self._about())
        time.sleep(self.settle_s)
        holder = self._holder()
        if holder is None or holder["token"] != self._me["token"]:
            raise self._held(holder)

    def _keep(self) -> None:
        while not self._stop.wait(self.refresh_s):
            # A store that does not answer now will be asked again; the lock is good for several refreshes.
            with suppress(*store_errors()):
                holder = self._holder()
                if holder is not None and holder["token"] != self._me["token"]:
                    log.error("%s: another process took over; its lock was not refreshed in time", self.run_dir)
                    return
                write_json(self.path, self._about())

    def _about(self) -> dict[str, Any]:
        return {**self._me, "refreshed": _now()}

    def _holder(self) -> dict[str, Any] | None:
        try:
            return read_json(self.path)
        except FileNotFoundError:
            return None

    def _left_behind(self, holder: dict[str, Any]) -> bool:
        age = datetime.now(UTC) - datetime.fromisoformat(holder["refreshed"])
        if age.total_seconds() > self.stale_s:
            return True
        if holder["host"] != self._me["host"] or holder["machine"] != self._me["machine"]:
            return False
        try:
            return bool(psutil.Process(holder["pid"]).create_time() != holder["started"])
        except psutil.NoSuchProcess:
            return True

    def _held(self, holder: dict[str, Any] | None) -> RunDirectoryError:
        who = "another digs-survey process"
        if holder is not None:
            who += f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
        return RunDirectoryError(
            f"{self.run_dir}: {who} works in this run directory; wait for it, or use another --run-dir. If it was "
            f"killed on another machine, its lock is free {self.stale_s:g} s after its end"
        )


def _machine() -> str:
    """Return what tells machines of one name apart, and containers that see other processes on one machine."""
    try:
        return os.readlink("/proc/self/ns/pid") + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(psutil.boot_time())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
