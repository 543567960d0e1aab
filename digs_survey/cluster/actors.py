"""Pieces of work handed out to Ray actors: what spreads the shards of the map, and the simulations of the audit."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from digs_survey.errors import DigsError, MissingDependencyError, StageError
from digs_survey.store.retry import is_full

__all__ = ["run_on_actors"]

_RETRIES = 3
"""Fresh workers that a piece is given to after a worker died on it."""
_MOST_FAILURES = 3
"""Pieces that may fail before the stage gives up: many that fail have one cause."""
_PATIENCE_S = 60.0
_STALLED_S, _STALLED_TIMES = 900.0, 30.0
"""A piece is taken from a worker that has had it for so long, and so many times longer than any piece has taken."""

log = logging.getLogger(__name__)


class _Failure(Protocol):
    """Makes the error for a piece that failed, or (None) for a worker that could not start."""

    def __call__(self, piece: int | None, why: str, /) -> StageError:
        """Return it."""


@dataclass
class _Running:
    """What a worker is at: a piece, or (None) its start."""

    worker: Any
    piece: int | None
    since: float


def run_on_actors(
    worker: type,
    task: Any,
    pieces: Sequence[int],
    workers: int,
    *,
    failed: _Failure,
    told: Callable[[BaseException], None] = lambda error: None,
    stage: str = "map",
    tries: int = 1,
) -> Generator[tuple[int, Any], None, None]:
    """Keep every worker busy with one piece at a time; yield each piece that finishes, and what came of it.

    A worker is given its first piece when it has started, so that one for which the cluster has no room
    holds nothing up. A piece that fails leaves the others alone, until too many do.

    Parameters
    ----------
    worker : type
        Of the actors: made of ``task``, ``ready()`` answers once it has started, and ``work(piece)`` does a piece.
    task : object
        What all pieces have in common; sent to each node once.
    pieces : sequence of int
        In the order in which they are given out.
    workers : int
        Actors of one core each.
    failed : callable
        Makes the errors.
    told : callable
        Called with every error.
    stage : str
        That the log names.
    tries : int
        How often a piece is tried that raises an error, before it counts as failed. One whose worker dies is tried
        again anyway.

    Raises
    ------
    MissingDependencyError
        No space is left.
    StageError
        Pieces failed (the others are done), or workers died on one again and again.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    actor: Any = ray.remote(num_cpus=1)(worker)
    # The same for all workers, and as long as a catalog has duplicates.
    shared = ray.put(task)
    queue, unfinished = deque(pieces), len(pieces)
    losses: Counter[int | None] = Counter()
    raised: Counter[int | None] = Counter()
    failures: list[tuple[StageError, BaseException]] = []
    running: dict[Any, _Running] = {}
    longest = 0.0

    def hire() -> None:
        hand = actor.remote(shared)
        running[hand.ready.remote()] = _Running(hand, None, time.monotonic())

    def lose(lost: _Running, why: str, error: BaseException | None) -> None:
        """Replace a worker, and give its piece to the next one unless that happened too often."""
        ray.kill(lost.worker)
        losses[lost.piece] += 1
        if losses[lost.piece] > _RETRIES * (workers if lost.piece is None else 1):
            why = f"{losses[lost.piece]} workers died, the last one with {why}"
            raise failed(lost.piece, why) from error
        if lost.piece is not None:
            queue.appendleft(lost.piece)
        hire()

    for _ in range(workers):
        hire()
    try:
        while unfinished:
            finished, _ = ray.wait(list(running), timeout=_PATIENCE_S)
            now = time.monotonic()
            if not finished:
                if all(work.piece is None for work in running.values()):
                    log.warning("%s: no worker started for %g s; is a core free?", stage, _PATIENCE_S)
                limit = max(_STALLED_S, _STALLED_TIMES * longest)
                for reference, work in list(running.items()):
                    if work.piece is not None and now - work.since > limit:
                        log.warning("%s: piece %d is given to another worker after %.0f s", stage, work.piece, limit)
                        lose(running.pop(reference), f"no answer for {limit:.0f} s", None)
                continue
            work = running.pop(finished[0])
            try:
                result = ray.get(finished[0])
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, BaseException) else error
                failure = failed(work.piece, _told(cause))
                if is_full(cause):
                    raise MissingDependencyError(f"{failure}; free some space first") from cause
                told(error)
                raised[work.piece] += 1
                if work.piece is not None and raised[work.piece] < tries:
                    queue.append(work.piece)
                else:
                    failures.append((failure, cause))
                    unfinished -= 1
                if work.piece is None or len(failures) == min(_MOST_FAILURES, len(pieces)):
                    break
                log.warning("%s", failure)
            except RayError as error:
                if getattr(error, "actor_init_failed", False):
                    raise failed(None, str(error)) from error
                told(error)
                lose(work, f"{type(error).__name__}: {error}", error)
                continue
            else:
                if work.piece is not None:
                    unfinished -= 1
                    longest = max(longest, now - work.since)
                    yield work.piece, result
            if queue:
                piece = queue.popleft()
                running[work.worker.work.remote(piece)] = _Running(work.worker, piece, time.monotonic())
    finally:
        for work in running.values():
            ray.kill(work.worker)
    if failures:
        first, cause = failures[0]
        if len(failures) == 1:
            raise first from cause
        raise StageError(
            "\n".join([f"{stage}: several pieces failed:", *(f"  - {error}" for error, _ in failures)])
        ) from cause


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, DigsError) else f"{type(error).__name__}: {error}"
