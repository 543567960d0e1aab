"""Done-markers: what a stage has finished, what it is at, and what failed, in small files that outlive everyone.

A unit of work is one whole shard of a stage's output: it is computed, checked, written once and then marked
done. That a chunk exists says nothing; only its marker does. A marker is made once: whoever comes later, a twin of
the same attempt or one that was taken for dead, finds it and leaves the shard alone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from digs_survey.store.locations import is_file
from digs_survey.store.storage import create_bytes, read_files, remove, write_json

__all__ = ["Ledger", "Pace"]

_RUNNING, _FAILED, _BEFORE = "running", "failed", "before"
_RECENT = 200
"""Shards that the present pace is judged by."""
_PAUSE = 10.0
"""Shards' times between two of them from which on work stood still in between."""


@dataclass(frozen=True)
class Pace:
    """How a stage is getting on, as its ledger tells.

    Attributes
    ----------
    done, rows : int
        Finished shards and their rows.
    running : list of dict
        What is under way: shard, attempt, host, pid and since (seconds of the epoch).
    failed : list of dict
        Shards whose last attempt failed: shard, error, host and at (seconds of the epoch).
    rows_per_s : float or None
        Over the shards that finished last.
    last : float or None
        When the last shard was finished, in seconds of the epoch.
    """

    done: int
    rows: int
    running: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    rows_per_s: float | None
    last: float | None


class Ledger:
    """Done-markers of one stage, one small file for each finished shard.

    Parameters
    ----------
    folder : Path
        Where the markers lie, one folder a stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mark(self, shard: int, *, rows: int, checksum: str, core_s: float, **extra: Any) -> bool:
        """Record that a shard was written in full: to be called last. Return False if it was marked before."""
        record = {"shard": shard, "rows": rows, "checksum": checksum, "core_s": core_s, **extra}
        record |= {"finished": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        return create_bytes(self._marker(shard), text.encode())

    @contextmanager
    def attempt(self, shard: int) -> Iterator[str]:
        """Tell for as long as it lasts that a shard is worked at, and afterwards if that failed; gives its token."""
        token = uuid4().hex
        claim = self.folder / _RUNNING / f"{shard:08d}-{token}.json"
        failure = self.folder / _FAILED / f"{shard:08d}.json"
        who = {"shard": shard, "attempt": token, "host": socket.gethostname(), "pid": os.getpid()}
        write_json(claim, who | {"since": time.time()}, lasting=False)
        try:
            yield token
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            write_json(failure, who | {"at": time.time(), "error": why}, lasting=False)
            raise
        else:
            if is_file(failure):
                remove(failure)
        finally:
            remove(claim)

    def is_done(self, shard: int) -> bool:
        """Tell whether a shard was marked."""
        return is_file(self._marker(shard))

    def records(self) -> dict[int, dict[str, Any]]:
        """Return the record of every finished shard."""
        found = map(json.loads, read_files(self.folder, "[0-9]*.json").values())
        return {record["shard"]: record for record in found}

    def pending(self, shards: int) -> list[int]:
        """Return the shards, of ``shards`` in all, that are not done."""
        done = self.records()
        return [shard for shard in range(shards) if shard not in done]

    def totals(self) -> tuple[int, float]:
        """Return the rows and core-seconds of the finished shards."""
        records: Sequence[dict[str, Any]] = list(self.records().values())
        return sum(r["rows"] for r in records), sum(r["core_s"] for r in records)

    def pace(self) -> Pace:
        """Say how the stage is getting on; claims of processes of this host that are gone do not count."""
        records = self.records()
        running = [claim for claim in self._notes(_RUNNING) if claim["shard"] not in records and _may_live(claim)]
        failed = [note for note in self._notes(_FAILED) if note["shard"] not in records]
        times = [record for record in records.values() if "seconds" in record]
        return Pace(
            done=len(records),
            rows=sum(record["rows"] for record in records.values()),
            running=running,
            failed=failed,
            rows_per_s=_rate(times),
            last=max((record["finished"] for record in records.values() if "finished" in record), default=None),
        )

    def forget(self, shard: int) -> None:
        """Take a shard's marker away, so that it is done again."""
        remove(self._marker(shard))

    def set_aside(self) -> None:
        """Take all markers away, and keep their records as those of :attr:`before`, the latest of each shard."""
        for record in self.records().values():
            write_json(self.before._marker(record["shard"]), record)
            self.forget(record["shard"])

    @property
    def before(self) -> Ledger:
        """What was done from inputs that have changed since, some of which may do still."""
        return Ledger(self.folder / _BEFORE)

    def clear(self) -> None:
        """Forget all markers."""
        remove(self.folder)

    def _marker(self, shard: int) -> Path:
        return self.folder / f"{shard:08d}.json"

    def _notes(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(data) for data in read_files(self.folder / kind, "[0-9]*.json").values()]


def _may_live(claim: dict[str, Any]) -> bool:
    return claim["host"] != socket.gethostname() or psutil.pid_exists(claim["pid"])


def _rate(records: list[dict[str, Any]]) -> float | None:
    """Rows per second over the shards that finished last without a pause between them."""
    latest = sorted(records, key=lambda record: record["finished"], reverse=True)[:_RECENT]
    taken: list[dict[str, Any]] = []
    for record in latest:
        if taken and taken[-1]["finished"] - record["finished"] > _PAUSE * max(record["seconds"], 1.0):
            break
        taken.append(record)
    if not taken:
        return None
    began = min(record["finished"] - record["seconds"] for record in taken)
    span = taken[0]["finished"] - began
    return sum(record["rows"] for record in taken) / span if span > 0 else None
