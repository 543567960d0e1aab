"""Noiseless spectra of prior draws, computed by Dask workers one whole shard at a time."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digs_survey.cluster.dashboards import dashboards_wanted, tell_dashboard
from digs_survey.config import SurveyConfig
from digs_survey.errors import MissingDependencyError, StageError
from digs_survey.parameters import Prior
from digs_survey.simulate.shard import Shards, in_batches
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import open_or_create
from digs_survey.store.storage import ArraySpec, shard_count

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

__all__ = ["FLUX_UNIT", "engine_check", "probe_dask", "simulate"]

FLUX_UNIT = "erg / (s cm2 Angstrom)"
"""Unit of simulated flux, as :mod:`astropy.units` reads it."""

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0
_STARTS = 3
"""Attempts to start workers on this machine."""
_IN_FLIGHT_PER_THREAD = 4
_MIN_IN_FLIGHT = 16
"""Enough waiting tasks that a cluster which grows with its queue does grow."""
_TASK_ROWS, _TASKS_PER_THREAD = 40_000, 4
"""Batched spectra of one task at most, and tasks that each thread gets at least, as far as there are shards."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_LOCAL = {
    # A worker that ends together with its scheduler has nothing to report.
    "distributed.logging.distributed": "critical",
    "distributed.worker.profile.enabled": False,
    # Dask has each freed array given back to the system: every batch would fault its memory in anew.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}
"""Dask's settings where it runs on this machine."""


def simulate(
    config: SurveyConfig,
    grid: WavelengthGrid,
    path: Path,
    *,
    count: int,
    stream: str,
    ledger: Ledger,
    address: str | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write noiseless spectra of prior draws as a Zarr dataset; go on where an earlier call stopped.

    The dataset has ``theta`` (simulation, parameter) float64, ``flux`` (simulation, wavelength) float32 in
    erg/s/cm2/Angstrom, ``wavelength`` in Angstrom and ``parameter``, and opens with
    ``xarray.open_zarr(path, consolidated=False)``. Its bytes do not depend on the number of workers.

    Parameters
    ----------
    config : SurveyConfig
        Its seed, model, prior and simulate sections are used.
    grid : WavelengthGrid
        The elements of the spectra.
    path : Path
        The dataset; with a cluster, a path that its workers see too. Kept if it was made by the same
        settings, replaced (and the ledger cleared) otherwise.
    count : int
        Number of simulations.
    stream : str
        "simulate" or "calibration": independent of each other. Calibration tests count on independent draws,
        so that only "simulate" follows ``simulate.sampling``; every other stream is random.
    ledger : Ledger
        Shards in it are done already; workers mark the others.
    address : str, optional
        A running Dask scheduler, like ``tcp://host:8786``; without it, this machine's cores are used.
    workers : int, optional
        Processes to start without an address (default: one for each core); with 0, the work is done in this
        process and Dask is left out. The bytes are the same.
    advance : callable
        Called with the number of rows that were done before, and then of each task that finishes.

    Raises
    ------
    MissingDependencyError
        If no scheduler answers at ``address``.
    StageError
        If a shard fails, with the worker's own error as its cause.
    """
    path, ledger = path.absolute(), Ledger(ledger.folder.absolute())
    prior = config.make_prior()
    recipe = {
        "seed": config.seed,
        "stream": stream,
        "count": count,
        "rows_per_shard": config.simulate.rows_per_shard,
        "sampling": config.simulate.sampling if stream == "simulate" else "random",
        "engine": "batched" if in_batches(config) else "prospector",
        "model": config.model.model_dump(mode="json"),
        "prior": prior.to_dict(),
        "grid": grid.to_dict(),
    }
    _lay_out(path, recipe, ledger, prior, grid)
    advance(ledger.totals()[0])
    pending = ledger.pending(shard_count(count, config.simulate.rows_per_shard))
    shards = Shards(config, grid, path, ledger.folder, recipe)
    if not pending:
        return
    if address is None and workers == 0:
        for shard in pending:
            shards.simulate([shard])
            advance(shards.size(shard))
        return
    with _connect(address, workers, len(pending)) as client:
        for done in _run(client, shards, pending):
            advance(sum(shards.size(shard) for shard in done))


def engine_check(ledger: Ledger) -> dict[str, float]:
    """Return how many spectra Prospector computed as a check, and the largest relative difference it found."""
    records = [record for record in ledger.records().values() if "checked" in record]
    if not records:
        return {}
    return {
        "prospector_checked": sum(record["checked"] for record in records),
        "prospector_max_difference": max(record["max_difference"] for record in records),
    }


def probe_dask(address: str | None = None) -> str:
    """Start or reach Dask, run one task there, and say what was found."""
    with _connect(address, workers=1, shards=1) as client:
        answer = client.submit(os.getpid, pure=False).result(timeout=60)
        where = "started on this machine" if address is None else f"reached at {address}"
        return f"{where}: {sum(client.nthreads().values())} worker threads, a task ran in process {answer}"


def _lay_out(path: Path, recipe: dict[str, Any], ledger: Ledger, prior: Prior, grid: WavelengthGrid) -> None:
    count, shard = recipe["count"], recipe["rows_per_shard"]
    units = {p.name: p.unit for p in prior.parameters}
    arrays = {
        "theta": ArraySpec(
            ("simulation", "parameter"),
            (count, prior.ndim),
            "float64",
            shard,
            attrs={"parameter_units": units, "description": "parameters drawn from the prior"},
        ),
        "flux": ArraySpec(
            ("simulation", "wavelength"),
            (count, len(grid)),
            "float32",
            shard,
            attrs={"units": FLUX_UNIT, "description": "noiseless f_lambda at the distance of model.zred"},
        ),
        "wavelength": ArraySpec(
            ("wavelength",),
            (len(grid),),
            "float64",
            attrs={"units": "Angstrom", "frame": grid.frame, "medium": grid.medium},
        ),
        "parameter": ArraySpec(("parameter",), (prior.ndim,), "str"),
    }
    values = {"wavelength": grid.wavelength, "parameter": np.array(prior.names)}
    open_or_create(path, recipe, ledger, arrays, values)


@contextmanager
def _connect(address: str | None, workers: int | None, shards: int) -> Iterator[Client]:
    """Connect to a scheduler, or start worker processes on this machine, no more than there are shards."""
    import dask
    from dask.system import CPU_COUNT
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
                n_workers=min(workers or CPU_COUNT, shards),
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


def _started(**settings: Any) -> LocalCluster:
    """Start worker processes on this machine; once more, where one of them dies before it is up."""
    from distributed import LocalCluster

    for attempt in range(1, _STARTS + 1):
        try:
            return LocalCluster(**settings)
        except RuntimeError as error:
            why = f"a Dask worker on this machine died before it was up ({error})"
            if attempt == _STARTS:
                raise StageError(f"simulate: {why}; is there memory enough? The same command goes on") from error
            log.warning("simulate: %s; starting again", why)
    raise AssertionError("unreachable")


def _run(client: Client, shards: Shards, pending: list[int]) -> Iterator[Sequence[int]]:
    """Keep a bounded number of tasks, each of some shards, with the workers; yield the shards of each that finishes."""
    from distributed import as_completed

    queue = deque(_tasks(shards, pending, sum(client.nthreads().values())))
    running: dict[Any, Sequence[int]] = {}
    finished = as_completed(loop=client.loop)

    def fill() -> int:
        """Hand out tasks, and return how many may be out; Dask takes many in one call as cheaply as one."""
        limit = max(_MIN_IN_FLIGHT, _IN_FLIGHT_PER_THREAD * sum(client.nthreads().values()))
        tasks = [queue.popleft() for _ in range(min(len(queue), limit - len(running)))]
        futures = client.map(shards.simulate, tasks, pure=False)
        running.update({future.key: task for future, task in zip(futures, tasks, strict=True)})
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
            raise _lost(error, shards, task) from error
        if queue and len(running) <= limit // 2:
            limit = fill()
        yield task


def _tasks(shards: Shards, pending: list[int], threads: int) -> list[list[int]]:
    """Group shards into tasks: batches of spectra are made faster than Dask hands out shards one by one."""
    size = 1
    if shards.recipe["engine"] == "batched":
        most = _TASK_ROWS // shards.recipe["rows_per_shard"]
        size = max(1, min(most, len(pending) // (_TASKS_PER_THREAD * max(1, threads))))
    return [pending[i : i + size] for i in range(0, len(pending), size)]


def _lost(error: BaseException, shards: Shards, task: Sequence[int]) -> StageError:
    """Say which rows a lost worker had."""
    first, last = shards.rows(task[0]).start, shards.rows(task[-1]).stop - 1
    return StageError(
        f"simulate: the worker of rows {first} to {last} of {shards.path} was lost: {error}; finished shards are kept, "
        "and the same command goes on from them"
    )
