"""One process at a time in a run directory, wherever that lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from digs_survey.run.local_lock import local_lock
from digs_survey.run.remote_lock import RemoteLock
from digs_survey.store.locations import is_remote

__all__ = ["run_lock"]


@contextmanager
def run_lock(run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes out of a run directory: by an flock on a file system, by an object on an object store.

    Parameters
    ----------
    run_dir : Path
        Exists already.
    say : callable
        Called with one line if the process before this one did not end properly, and one if that is waited for.

    Raises
    ------
    RunDirectoryError
        If another process works there, which shows a sign of life; the message names it.
    """
    with RemoteLock(run_dir, say) if is_remote(run_dir) else local_lock(run_dir, say):
        yield
