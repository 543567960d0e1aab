"""Shards spread over Dask: a cluster's workers by address, or processes on this machine's cores.

The only module that imports Dask. Workers get numbers of shards, a bounded number of tasks at a time, and return
nothing: they read and write files themselves, and the driver's memory does not grow with the number of shards.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from digs_survey.cluster.cores import usable_cores
from digs_survey.cluster.dashboards import dashboards_wanted, tell_dashboard
from digs_survey.errors import MissingDependencyError, StageError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

__all__ = ["ShardWork", "probe_dask", "run_shards"]

log = logging.getLogger(__name__)

Before = tuple[Callable[[], Any], Callable[[Any, int], None]]

CONNECT_TIMEOUT_S = 15.0
_STARTS = 3
"""Attempts to start workers on this machine."""
_IN_FLIGHT_PER_THREAD = 4
_MIN_IN_FLIGHT = 16
"""Enough waiting tasks that a cluster which grows with its queue does grow."""
_TASKS_PER_THREAD = 4
"""Tasks that each thread gets at least, as far as there are shards."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_LOCAL = {
    # A worker that ends together with its scheduler has nothing to report.
    "distributed.logging.distributed": "critical",
    "distributed.worker.profile.enabled": False,
    # Dask has each freed array given back to the system: every batch would fault its memory in anew.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}
"""Dask's settings where it runs on this machine."""


class ShardWork(Protocol):
    """The work of a stage whose unit is a shard; it is pickled to the workers, and should be small."""

    @property
    def path(self) -> Path:
        """The dataset that the shards belong to."""

    def rows(self, shard: int) -> slice:
        """Return the rows of a shard."""

    def make(self, shards: Sequence[int]) -> None:
        """Make shards one after the other: write each and mark it done.

        Raises
        ------
        StageError
            Naming the shard that failed; those before it are done.
        """


def run_shards(
    stage: str,
    work: ShardWork,
    pending: Sequence[int],
    *,
    shards_per_task: int = 1,
    address: str | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    before: Before | None = None,
) -> None:
    """Make shards on Dask workers, or in this process.

    Parameters
    ----------
    stage : str
        Name for messages.
    work : ShardWork
    pending : sequence of int
        The shards to make. Without any, no cluster is asked for.
    shards_per_task : int
        Shards of one task at most: more where a shard is made faster than Dask hands it out.
    address : str, optional
        A running Dask scheduler, like ``tcp://host:8786``; without it, this machine's cores are used.
    workers : int, optional
        Processes to start without an address (default: one for each core); with 0, the work is done in this
        process and Dask is left out.
    advance : callable
        Called with the number of rows of each task that finishes.
    before : (callable, callable), optional
        What one worker does before the shards are handed out; and what is called here with its result and the number
        of worker processes. If it fails there, the shards are made all the same, and tell why they cannot be.

    Raises
    ------
    MissingDependencyError
        If no scheduler answers at ``address``.
    StageError
        If a shard fails, with the worker's own error as its cause, or the worker of a task died four times.
    """
    if not pending:
        return

    def done(task: Sequence[int]) -> None:
        advance(sum(rows.stop - rows.start for rows in map(work.rows, task)))

    if address is None and workers == 0:
        if before is not None:
            _begin(stage, before, before[0], 1)
        for shards in _tasks(pending, shards_per_task, threads=1):
            work.make(shards)
            done(shards)
        return
    with _connect(stage, address, workers, len(pending)) as client:
        if before is not None:
            _begin(stage, before, client.submit(before[0], pure=False).result, max(1, len(client.nthreads())))
        tasks = _tasks(pending, shards_per_task, sum(client.nthreads().values()))
        for task in _run(stage, client, work, tasks):
            done(task)


def _begin(stage: str, before: Before, result: Callable[[], Any], processes: int) -> None:
    """Tell what one worker found before the work."""
    try:
        found = result()
    except Exception as error:
        log.info("%s: nothing was found out before the work: %s", stage, error)
    else:
        before[1](found, processes)


def probe_dask(address: str | None = None) -> str:
    """Start or reach Dask, run one task there, and say what was found."""
    with _connect("Dask", address, workers=1, shards=1) as client:
        answer = client.submit(os.getpid, pure=False).result(timeout=60)
        where = "started on this machine" if address is None else f"reached at {address}"
        return f"{where}: {sum(client.nthreads().values())} worker threads, a task ran in process {answer}"


@contextmanager
def _connect(stage: str, address: str | None, workers: int | None, shards: int) -> Iterator[Client]:
    """Connect to a scheduler, or start worker processes on this machine, no more than there are shards."""
    import dask
    from distributed import Client

    with ExitStack() as stack:
        if address is not None:
            try:
                client = stack.enter_context(Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False))
            except (OSError, ValueError) as error:
                raise MissingDependencyError(
                    f"Dask scheduler {address}: expected an answer within {CONNECT_TIMEOUT_S:g} s, "
                    f"found {error}; start the scheduler, correct the address, "
                    "or leave it away to use this machine's cores"
                ) from error
            tell_dashboard("Dask dashboard", client.dashboard_link)
            yield client
            return
        watched = dashboards_wanted()
        stack.enter_context(dask.config.set(_LOCAL))
        cluster = stack.enter_context(
            _started(
                stage,
                n_workers=min(workers or usable_cores(), shards),
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": watched},
                silence_logs=logging.CRITICAL,
                env=_ONE_THREAD,
            )
        )
        client = stack.enter_context(Client(cluster, set_as_default=False))
        if watched:
            tell_dashboard("Dask dashboard", client.dashboard_link)
        yield client


def _started(stage: str, **settings: Any) -> LocalCluster:
    """Start worker processes on this machine; once more, where one of them dies before it is up."""
    from distributed import LocalCluster

    for attempt in range(1, _STARTS + 1):
        try:
            return LocalCluster(**settings)
        except RuntimeError as error:
            why = f"a Dask worker on this machine died before it was up ({error})"
            if attempt == _STARTS:
                raise StageError(
                    f"{stage}: {why}; check available memory, and in a script keep the work below "
                    "if __name__ == '__main__', since worker processes import the script. The same command goes on"
                ) from error
            log.warning("%s: %s; starting again", stage, why)
    raise AssertionError("unreachable")


def _run(stage: str, client: Client, work: ShardWork, tasks: list[list[int]]) -> Iterator[Sequence[int]]:
    """Keep a bounded number of tasks, each of some shards, with the workers; yield the shards of each that finishes."""
    from distributed import as_completed

    queue = deque(tasks)
    running: dict[Any, Sequence[int]] = {}
    finished = as_completed(loop=client.loop)

    def fill() -> int:
        """Hand out tasks, and return how many may be out; Dask takes many in one call as cheaply as one."""
        limit = max(_MIN_IN_FLIGHT, _IN_FLIGHT_PER_THREAD * sum(client.nthreads().values()))
        handed = [queue.popleft() for _ in range(min(len(queue), limit - len(running)))]
        futures = client.map(work.make, handed, pure=False)
        running.update({future.key: task for future, task in zip(futures, handed, strict=True)})
        finished.update(futures)
        return limit

    limit = fill()
    for future in finished:
        task = running.pop(future.key)
        # A finished task has nothing to bring, and asking for it is a round trip to its worker.
        if future.status != "finished":
            error = future.exception()
            client.cancel(list(finished.futures))
            if isinstance(error, StageError):
                raise error
            raise _lost(stage, error, work, task) from error
        if queue and len(running) <= limit // 2:
            limit = fill()
        yield task


def _tasks(pending: Sequence[int], most: int, threads: int) -> list[list[int]]:
    """Group shards into tasks of at most ``most``, so that each thread gets several tasks."""
    size = max(1, min(most, len(pending) // (_TASKS_PER_THREAD * max(1, threads))))
    return [list(pending[i : i + size]) for i in range(0, len(pending), size)]


def _lost(stage: str, error: BaseException, work: ShardWork, task: Sequence[int]) -> StageError:
    """Say which rows a lost worker had."""
    first, last = work.rows(task[0]).start, work.rows(task[-1]).stop - 1
    return StageError(
        f"{stage}: the worker of rows {first} to {last} of {work.path} was lost: {error}; finished shards are kept, "
        "and the same command goes on from them"
    )
