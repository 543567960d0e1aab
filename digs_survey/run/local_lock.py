"""One process at a time in a run directory, and a word on whose it is.

An flock on ``.lock`` is what excludes: the system frees it however its process ends. Beside it ``.lock.json``
names the holder; its time of change is a heartbeat, for file systems whose flock does not reach other hosts, or stays
for a while after a host went down.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from digs_survey.logs.command_line import safe_command
from digs_survey.run.take_over import STALE_S, Sign, claimed, held, wait_while_silent
from digs_survey.store.storage import create_bytes, read_json, write_json

__all__ = ["Holder", "local_lock"]

_BEATS = 6
"""Heartbeats in the time after which a silent holder counts as ended."""

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
    stale_s : float
        Seconds without a heartbeat after which it counts as ended.
    """

    host: str
    pid: int
    since: str
    command: str
    stale_s: float = STALE_S

    @classmethod
    def here(cls, stale_s: float = STALE_S) -> Holder:
        """Describe this process."""
        since = datetime.now(UTC).isoformat(timespec="milliseconds")
        return cls(socket.gethostname(), os.getpid(), since, safe_command(), stale_s)

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
def local_lock(
    run_dir: Path, say: Callable[[str], None] = log.warning, *, stale_s: float = STALE_S
) -> Iterator[Holder]:
    """Keep other processes out of a run directory.

    A process on this host that is dead makes way at once. One on another host does when its heartbeat is stale; until
    then this waits.

    Parameters
    ----------
    run_dir : Path
        Is there already.
    say : callable
        Called with one line if the process before this one did not end properly, and one if that is waited for.
    stale_s : float
        Seconds without a heartbeat after which others may take this process to have ended; its heart beats six times
        as often.

    Raises
    ------
    RunDirectoryError
        If another process works there; the message names it.
    """
    run_dir = Path(run_dir)
    lock, note, me = FileLock(run_dir / ".lock"), run_dir / ".lock.json", Holder.here(stale_s)
    _acquire(run_dir, lock, note, me, say)
    try:
        _write_name(run_dir, note, me, say)
        try:
            with _heartbeat(note, me):
                yield me
        finally:
            # Where this process stood still for too long, another one may have taken over.
            if Holder.read(note) == me:
                note.unlink(missing_ok=True)
    finally:
        lock.release()


def _acquire(run_dir: Path, lock: FileLock, note: Path, me: Holder, say: Callable[[str], None]) -> None:
    """Take the flock; wait for it while a holder on another host is silent, whose server may free it late."""

    def taken() -> bool:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    if taken():
        return
    holder = Holder.read(note)
    if holder is None or holder.host == me.host:
        raise held(run_dir, holder)

    def look() -> Sign | None:
        sign = None if taken() else _sign(run_dir, note)
        # A little longer: who holds the flock may be waiting too, and is to write its name first.
        return sign and replace(sign, stale_s=1.1 * sign.stale_s)

    if wait_while_silent(run_dir, look, say) or not lock.is_locked:
        raise held(run_dir, holder)


def _write_name(run_dir: Path, note: Path, me: Holder, say: Callable[[str], None]) -> None:
    """Name this process in the note, in place of one that has ended."""
    while not create_bytes(note, json.dumps(asdict(me), indent=1).encode()):
        before = Holder.read(note)
        if before is not None and before.host != me.host:
            sign = wait_while_silent(run_dir, lambda: _sign(run_dir, note), say)
            if sign is None:
                continue
        else:
            sign = _sign(run_dir, note)
        with claimed(run_dir / ".lock.claim"):
            if _sign(run_dir, note) != sign:
                continue
            write_json(note, asdict(me))
        if before is not None:
            say(
                f"{run_dir}: the digs-survey process before this one did not end properly: {before}; "
                "this one goes on from its finished shards"
            )
        return


def _sign(run_dir: Path, note: Path) -> Sign | None:
    """Return what the note shows of its holder, by the file system's clock, which all hosts share."""
    holder, lock = Holder.read(note), run_dir / ".lock"
    lock.touch()
    try:
        beat, now = note.stat(), lock.stat()
    except FileNotFoundError:
        return None
    stale_s = STALE_S if holder is None else holder.stale_s
    return Sign(str(holder), beat.st_mtime_ns, now.st_mtime - beat.st_mtime, stale_s)


@contextmanager
def _heartbeat(note: Path, me: Holder) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(me.stale_s / _BEATS):
            # A file system that does not answer now may do so at the next beat.
            with suppress(OSError):
                if (holder := Holder.read(note)) not in (me, None):
                    log.error("%s: %s took over; the heartbeat of this process came too late", note.parent, holder)
                    return
                os.utime(note)

    thread = threading.Thread(target=beat, name="digs-survey-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
