"""What a lock's next holder does about the one before: wait while it is silent, refuse to start if it lives.

Any lock that names its holder and shows a heartbeat can be taken over by these two functions, on a disk or on an object
store. A job that is started again under another host name needs them: nothing else tells it that the first one is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from digs_survey.errors import RunDirectoryError
from digs_survey.store.storage import create_bytes, remove

__all__ = ["STALE_S", "Sign", "claimed", "held", "wait_while_silent"]

STALE_S = 120.0
"""A holder whose heartbeat is older than this is taken to have ended: several heartbeats, and clocks that differ."""
_POLLS = 60
"""Looks at a silent holder until it counts as ended."""
_CLAIM_S = 30.0
"""To replace a lock takes milliseconds; a process that takes longer was killed meanwhile."""


@dataclass(frozen=True)
class Sign:
    """What a lock shows of its holder; two are equal if it has shown no sign of life between them.

    Attributes
    ----------
    holder : str
        Its host, process and time, which differ from those of any other.
    beat : object
        Changes with each heartbeat.
    silent_s : float
        Seconds since the last heartbeat.
    stale_s : float
        Seconds of silence after which it counts as ended.
    """

    holder: str
    beat: object
    silent_s: float = field(compare=False)
    stale_s: float = field(compare=False)

    @property
    def stale(self) -> bool:
        """Whether it counts as ended."""
        return self.silent_s > self.stale_s


def wait_while_silent(run_dir: Path, look: Callable[[], Sign | None], say: Callable[[str], None]) -> Sign | None:
    """Wait until the holder of a lock counts as ended, and return its last sign; None if it gave the lock back.

    Parameters
    ----------
    run_dir : Path
        Named in messages.
    look : callable
        Reads the lock; None if nobody holds it.
    say : callable
        Called with one line if there is anything to wait for.

    Raises
    ------
    RunDirectoryError
        As soon as the lock shows a newer heartbeat, or another holder.
    """
    sign = look()
    if sign is None:
        return None
    left_s = sign.stale_s - max(0.0, sign.silent_s)
    deadline = time.monotonic() + left_s
    if left_s > 0:
        until = datetime.now(UTC) + timedelta(seconds=left_s)
        say(
            f"{run_dir}: {sign.holder} holds this run directory and has been silent for {max(0.0, sign.silent_s):.0f} "
            f"s; waiting for a sign of life until {until:%H:%M:%S} UTC ({left_s:.0f} s), then this process takes over"
        )
    while (left_s := deadline - time.monotonic()) > 0:
        time.sleep(min(left_s, sign.stale_s / _POLLS))
        now = look()
        if now is None:
            return None
        if now != sign:
            raise held(run_dir, now.holder)
    return sign


@contextmanager
def claimed(claim: Path) -> Iterator[None]:
    """Let one process at a time replace a lock, which it reads once more inside.

    Parameters
    ----------
    claim : Path
        A file or an object beside the lock, which is there meanwhile.
    """
    deadline = time.monotonic() + _CLAIM_S
    while not create_bytes(claim, b""):
        if time.monotonic() > deadline:
            remove(claim)
        time.sleep(0.05)
    try:
        yield
    finally:
        remove(claim)


def held(run_dir: Path, holder: object | None) -> RunDirectoryError:
    """Return the error that refuses a run directory because another process lives in it."""
    who = "it has left no word of its host and pid" if holder is None else str(holder)
    return RunDirectoryError(
        f"{run_dir}: another digs-survey process works in this run directory: {who}; "
        "wait for it, or use another --run-dir"
    )
