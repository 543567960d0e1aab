"""One process at a time in a run directory, and a word on whose it is.

An flock on ``.lock`` is what excludes: the system frees it however its process ends. Beside it ``.lock.json``
names the holder; its time of change is a heartbeat, for file systems whose flock does not reach other hosts.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from digs_survey.errors import RunDirectoryError
from digs_survey.logs.command_line import safe_command
from digs_survey.store.storage import read_json, write_json

__all__ = ["Holder", "local_lock"]

HEARTBEAT_S = 20.0
STALE_S = 120.0
"""A holder on another host whose heartbeat is older than this is taken to have ended."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The process that works in a run directory.

    Attributes
    ----------
    host : str
    pid : int
    since : str
        UTC, ISO 8601.
    command : str
        Without secrets.
    """

    host: str
    pid: int
    since: str
    command: str

    @classmethod
    def here(cls) -> Holder:
        """Describe this process."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), since, safe_command())

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """Return the holder that a file names; None if there is no such file, or none that can be read."""
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since} (command {self.command})"


@contextmanager
def local_lock(run_dir: Path, say: Callable[[str], None] = log.warning) -> Iterator[Holder]:
    """Keep other processes out of a run directory.

    Parameters
    ----------
    run_dir : Path
        Is there already.
    say : callable
        Told, in one line, if the process before this one did not end properly.

    Raises
    ------
    RunDirectoryError
        If another process works there; the message names it.
    """
    run_dir = Path(run_dir)
    lock, note = FileLock(run_dir / ".lock"), run_dir / ".lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _taken(run_dir, Holder.read(note)) from None
    try:
        before, me = Holder.read(note), Holder.here()
        if before is not None:
            if before.host != me.host and _silent_s(note, run_dir / ".lock") < STALE_S:
                raise _taken(run_dir, before)
            say(
                f"{run_dir}: the digs-survey process before this one did not end properly: {before}; "
                "this one goes on from its finished shards"
            )
        write_json(note, asdict(me))
        try:
            with _heartbeat(note):
                yield me
        finally:
            note.unlink(missing_ok=True)
    finally:
        lock.release()


def _taken(run_dir: Path, holder: Holder | None) -> RunDirectoryError:
    who = "it has left no word of its host and pid" if holder is None else str(holder)
    remedy = "wait for it, or use another --run-dir"
    if holder is not None and holder.host != socket.gethostname():
        remedy += f"; if it was killed, the directory is free {STALE_S:g} s after its last sign of life"
    return RunDirectoryError(f"{run_dir}: another digs-survey process works in this run directory: {who}; {remedy}")


def _silent_s(note: Path, lock: Path) -> float:
    """Return the age of a heartbeat by the file system's clock, which all hosts share."""
    lock.touch()
    try:
        return lock.stat().st_mtime - note.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


@contextmanager
def _heartbeat(note: Path) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            # A file system that does not answer now may do so at the next beat.
            with suppress(OSError):
                os.utime(note)

    thread = threading.Thread(target=beat, name="digs-survey-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
