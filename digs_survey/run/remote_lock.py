"""The lock of a run directory on an object store, where no system keeps locks: an object that only one can create.

It tells who holds it, and its holder writes it anew every so often. A process that was killed leaves it behind: it is
taken over at once if that process ran on this very machine, else when it was not written for long, which is waited for.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import psutil

from digs_survey.run.take_over import STALE_S, Sign, claimed, held, wait_while_silent
from digs_survey.store.locations import store_errors
from digs_survey.store.storage import create_bytes, read_json, remove, write_json

__all__ = ["RemoteLock"]

_REFRESH_S = 20.0
_SETTLE_S = 2.0
"""After a take-over: long enough that another one that took over at the same moment is seen."""

log = logging.getLogger(__name__)


class RemoteLock:
    """Hold a run directory on an object store; a context manager.

    Parameters
    ----------
    run_dir : Path
        A remote location. The lock is ``lock.json`` in it: host, pid, when it was taken and last refreshed.
    say : callable
        Called with one line if the process before this one did not end properly, and one if that is waited for.
    refresh_s : float
        Seconds between two refreshes.
    stale_s : float
        Seconds without a refresh after which others may take this process to have ended. Clocks of machines may
        differ by less than this and the time between two refreshes.
    settle_s : float
        Seconds to wait after taking over a lock that was left behind.

    Raises
    ------
    RunDirectoryError
        On entering, if another process holds it; on leaving, if another took it over meanwhile, since this one had
        stood still.
    """

    def __init__(
        self,
        run_dir: Path,
        say: Callable[[str], None] = log.warning,
        *,
        refresh_s: float = _REFRESH_S,
        stale_s: float = STALE_S,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self.run_dir, self.path, self._say = run_dir, run_dir / "lock.json", say
        self.refresh_s, self.settle_s = refresh_s, settle_s
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": psutil.Process().create_time(),
            "since": _now(),
            "token": uuid4().hex,
            "stale_s": stale_s,
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="run directory's lock")

    def __enter__(self) -> RemoteLock:
        while not create_bytes(self.path, json.dumps(self._about()).encode()) and not self._take_over():
            pass
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
            raise held(self.run_dir, _who(holder))

    def _take_over(self) -> bool:
        """Replace a lock that was left behind; return whether that was so, and not given back in the meantime."""
        holder = self._holder()
        if holder is None:
            return False
        last, dead = _sign(holder), self._is_dead(holder)
        if dead is False and not last.stale:
            raise held(self.run_dir, last.holder)
        sign = wait_while_silent(self.run_dir, self._look, self._say) if dead is None else last
        with claimed(self.run_dir / "lock.claim"):
            if sign is None or self._look() != sign:
                return False
            write_json(self.path, self._about())
        self._say(
            f"{self.run_dir}: the digs-survey process before this one did not end properly: {_who(holder)}; this one "
            "goes on from its finished shards"
        )
        time.sleep(self.settle_s)
        found = self._holder()
        if found is None or found["token"] != self._me["token"]:
            raise held(self.run_dir, _who(found))
        return True

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

    def _look(self) -> Sign | None:
        holder = self._holder()
        return None if holder is None else _sign(holder)

    def _is_dead(self, holder: dict[str, Any]) -> bool | None:
        """Tell whether the holder's process has ended; None if it is not one of this machine."""
        if holder["host"] != self._me["host"] or holder["machine"] != self._me["machine"]:
            return None
        try:
            return bool(psutil.Process(holder["pid"]).create_time() != holder["started"])
        except psutil.NoSuchProcess:
            return True


def _sign(holder: dict[str, Any]) -> Sign:
    age = datetime.now(UTC) - datetime.fromisoformat(holder["refreshed"])
    return Sign(str(_who(holder)), holder["refreshed"], age.total_seconds(), float(holder.get("stale_s", STALE_S)))


def _who(holder: dict[str, Any] | None) -> str | None:
    return None if holder is None else f"host {holder['host']}, pid {holder['pid']}, since {holder['since']}"


def _machine() -> str:
    """Return what tells machines of one name apart, and containers that see other processes on one machine."""
    try:
        return os.readlink("/proc/self/ns/pid") + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(psutil.boot_time())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
