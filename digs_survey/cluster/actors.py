"""A pool of Ray actors that works through numbered pieces: shards of the map, or blocks of simulations."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from digs_survey.cluster.dashboards import tell
from digs_survey.cluster.worker_wait import no_room, worker_wait_s
from digs_survey.errors import DigsError, MissingDependencyError, StageError
from digs_survey.store.targets import write_remedy

__all__ = ["run_on_actors"]

_RETRIES = 3
"""Fresh workers that a piece is given to after a worker died on it."""
_MAX_FAILURES = 3
"""Failed pieces after which the stage gives up: many failures have one cause."""
_PATIENCE_S = 60.0
_STALLED_S, _STALLED_TIMES = 900.0, 30.0
"""A worker has stalled when its piece has taken this long, and this many times longer than any finished piece."""

log = logging.getLogger(__name__)


class _MakeError(Protocol):
    """Makes the error for a piece that failed, or (None) for a worker that could not start."""

    def __call__(self, piece: int | None, why: str, /) -> StageError:
        """Return the error; the caller raises it."""


def run_on_actors(
    worker: type,
    task: Any,
    pieces: Sequence[int],
    workers: int,
    *,
    failed: _MakeError,
    on_error: Callable[[BaseException], None] = lambda error: None,
    stage: str = "map",
    tries: int = 1,
) -> Generator[tuple[int, Any], None, None]:
    """Keep every worker busy with one piece at a time; yield each finished piece with its result.

    A worker gets its first piece once it has started. A worker that the cluster has no room for therefore delays
    nothing. A piece that fails does not affect the others, until too many fail. A worker that dies or stalls is
    replaced, and the next free worker takes its piece.

    Parameters
    ----------
    worker : type
        Class of the actors. It is constructed from ``task``; ``ready()`` returns once it has started, and
        ``work(piece)`` does one piece.
    task : object
        What all pieces have in common; sent to each node once.
    pieces : sequence of int
        In the order in which workers take them.
    workers : int
        Actors of one core each.
    failed : callable
        Makes the errors.
    on_error : callable
        Called with every error of a worker.
    stage : str
        Named in the log.
    tries : int
        Number of times a piece may raise an error before it counts as failed. A dead worker does not count as a try.

    Raises
    ------
    MissingDependencyError
        No space is left on a disk, or no worker can start.
    StageError
        Pieces failed (the others are done), or workers died repeatedly on the same piece.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    pool = _Pool(worker, task, pieces)
    failures = _Failures(failed, stage, tries, workers, len(pieces))
    unfinished = len(pieces)
    try:
        pool.start(workers)
        while unfinished:
            job = pool.wait()
            if job is None:
                pool.check_started(stage)
                for stalled, timeout_s in pool.stalled():
                    log.warning("%s: piece %d goes to another worker after %.0f s", stage, stalled.piece, timeout_s)
                    pool.remove(stalled)
                    failures.count_dead_worker(stalled.piece, f"no answer for {timeout_s:.0f} s", None)
                    pool.replace(stalled)
                continue
            try:
                result = ray.get(job.answer)
            except RayTaskError as error:
                again = failures.count_error(job.piece, error)
                on_error(error)
                if again:
                    pool.put_last(job.piece)
                else:
                    unfinished -= 1
                if failures.too_many:
                    break
                log.warning("%s", failures.latest)
            except RayError as error:
                if getattr(error, "actor_init_failed", False):
                    raise failed(None, str(error)) from error
                on_error(error)
                pool.remove(job)
                failures.count_dead_worker(job.piece, f"{type(error).__name__}: {error}", error)
                pool.replace(job)
                continue
            else:
                if job.piece is not None:
                    unfinished -= 1
                    pool.note_duration(job)
                    yield job.piece, result
            pool.give_next_piece(job.worker)
    finally:
        pool.stop()
    failures.raise_any()


@dataclass(frozen=True)
class _Job:
    """What one worker does now: a piece, or (None) its own start.

    Attributes
    ----------
    worker : ray.actor.ActorHandle
    answer : ray.ObjectRef
        Of the call that is running.
    piece : int or None
    since : float
        Monotonic time in seconds.
    """

    worker: Any
    answer: Any
    piece: int | None
    since: float


class _Pool:
    """Actors, the job of each, and the queue of pieces that no worker has."""

    def __init__(self, worker: type, task: Any, pieces: Sequence[int]) -> None:
        import ray

        self._ray = ray
        self._actor: Any = ray.remote(num_cpus=1)(worker)
        # The same for all workers, and as long as a catalog has duplicates.
        self._task = ray.put(task)
        self._queue = deque(pieces)
        self._jobs: dict[Any, _Job] = {}
        self._finished_at = 0.0
        self._longest_s = 0.0

    def start(self, workers: int) -> None:
        """Start so many actors."""
        for _ in range(workers):
            actor = self._actor.remote(self._task)
            self._begin(actor, actor.ready.remote(), None)

    def give_next_piece(self, worker: Any) -> None:
        """Let a free worker begin the next piece, if there is one."""
        if self._queue:
            piece = self._queue.popleft()
            self._begin(worker, worker.work.remote(piece), piece)

    def wait(self) -> _Job | None:
        """Return a job that finished or failed, and forget it; None if there was none for a while."""
        finished, _ = self._ray.wait(list(self._jobs), timeout=_PATIENCE_S)
        self._finished_at = time.monotonic()
        return self._jobs.pop(finished[0]) if finished else None

    def note_duration(self, job: _Job) -> None:
        """Remember how long a piece took that :meth:`wait` has just returned."""
        self._longest_s = max(self._longest_s, self._finished_at - job.since)

    def check_started(self, stage: str) -> None:
        """Say so if every worker still waits for a core.

        Raises
        ------
        MissingDependencyError
            If that has lasted for :func:`worker_wait_s`.
        """
        if any(job.piece is not None for job in self._jobs.values()):
            return
        waited_s = self._finished_at - max(job.since for job in self._jobs.values())
        if waited_s > worker_wait_s():
            raise no_room(stage, [{"CPU": 1}])
        tell(f"{stage}: no worker has started for {waited_s:.0f} s; is a core of the Ray cluster free?")

    def stalled(self) -> list[tuple[_Job, float]]:
        """Return the jobs whose pieces take far too long, each with the limit in seconds."""
        timeout_s = max(_STALLED_S, _STALLED_TIMES * self._longest_s)
        jobs = self._jobs.values()
        return [(job, timeout_s) for job in jobs if job.piece is not None and self._finished_at - job.since > timeout_s]

    def remove(self, job: _Job) -> None:
        """End a worker that died or stalled."""
        self._jobs.pop(job.answer, None)
        self._ray.kill(job.worker)

    def replace(self, removed: _Job) -> None:
        """Start a new worker; the piece of the removed one is the next to be done."""
        if removed.piece is not None:
            self._queue.appendleft(removed.piece)
        self.start(1)

    def put_last(self, piece: int | None) -> None:
        """Queue a piece behind all others."""
        if piece is not None:
            self._queue.append(piece)

    def stop(self) -> None:
        """End the workers that are still at work."""
        for job in self._jobs.values():
            self._ray.kill(job.worker)

    def _begin(self, worker: Any, answer: Any, piece: int | None) -> None:
        self._jobs[answer] = _Job(worker, answer, piece, time.monotonic())


class _Failures:
    """Errors of pieces and deaths of workers: what is tried once more, and when the stage gives up."""

    def __init__(self, make_error: _MakeError, stage: str, tries: int, workers: int, pieces: int) -> None:
        self._make_error, self._stage, self._tries = make_error, stage, tries
        self._max_starts = _RETRIES * workers
        self._max_failures = min(_MAX_FAILURES, pieces)
        self._deaths: Counter[int | None] = Counter()
        self._errors: Counter[int | None] = Counter()
        self._failed: list[tuple[StageError, BaseException]] = []
        self._no_start = False
        self.latest: StageError | None = None

    def count_dead_worker(self, piece: int | None, why: str, error: BaseException | None) -> None:
        """Count a worker that died on a piece or (None) before it had started.

        Raises
        ------
        StageError
            Too many did.
        """
        self._deaths[piece] += 1
        if self._deaths[piece] > (self._max_starts if piece is None else _RETRIES):
            why = f"{self._deaths[piece]} workers died, the last one with {why}"
            raise self._make_error(piece, why) from error

    def count_error(self, piece: int | None, error: Any) -> bool:
        """Count an error that a worker raised (a RayTaskError); return whether to try the piece once more.

        Raises
        ------
        MissingDependencyError
            A disk is full or read-only, which no other attempt can change.
        """
        cause = error.cause if isinstance(error.cause, BaseException) else error
        self.latest = self._make_error(piece, _describe(cause))
        if remedy := write_remedy(cause):
            raise MissingDependencyError(f"{self.latest}; {remedy}") from cause
        self._errors[piece] += 1
        if piece is not None and self._errors[piece] < self._tries:
            return True
        self._no_start |= piece is None
        self._failed.append((self.latest, cause))
        return False

    @property
    def too_many(self) -> bool:
        """Whether the stage gives up."""
        return self._no_start or len(self._failed) >= self._max_failures

    def raise_any(self) -> None:
        """Raise one error for all pieces that failed; do nothing if none did."""
        if not self._failed:
            return
        first, cause = self._failed[0]
        if len(self._failed) == 1:
            raise first from cause
        lines = [f"{self._stage}: several pieces failed:", *(f"  - {error}" for error, _ in self._failed)]
        raise StageError("\n".join(lines)) from cause


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, DigsError) else f"{type(error).__name__}: {error}"
