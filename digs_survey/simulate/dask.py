"""Noiseless spectra of prior draws, computed by Dask workers one whole shard at a time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from digs_survey.config import SurveyConfig
from digs_survey.errors import MissingDependencyError, StageError
from digs_survey.parameters import Prior
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.template import open_or_create, recorded_recipe
from digs_survey.spectra import WavelengthGrid
from digs_survey.storage import ArraySpec, Ledger, checksum, shard_count, shard_rows, write_shard

if TYPE_CHECKING:
    from distributed import Client

    from digs_survey.sps.batched import BatchedModel
    from digs_survey.sps.prospector import ProspectorSimulator

__all__ = ["FLUX_UNIT", "draw_theta", "engine_check", "probe_dask", "simulate"]

FLUX_UNIT = "erg / (s cm2 Angstrom)"
"""Unit of simulated flux, as :mod:`astropy.units` reads it."""

CONNECT_TIMEOUT_S = 15.0
_CHECK_EVERY, _CHECK_AT_LEAST, _CHECK_LIMIT = 100, 200, 0.005
"""With engine "auto", Prospector computes one row in so many, at least so many; and what ends the run."""
_IN_FLIGHT_PER_THREAD = 2
_MIN_IN_FLIGHT = 16
"""Enough waiting shards that a cluster which grows with its queue does grow."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

_simulator_lock = threading.Lock()
"""Prospector's model keeps its parameters in itself, and a cluster's worker may have several threads."""


def draw_theta(prior: Prior, seed: int, stream: str, start: int, stop: int) -> NDArray[np.float64]:
    """Draw the parameters of the simulations ``start`` to ``stop`` from the prior.

    Parameters
    ----------
    prior : Prior
    seed : int
        Seed of the run.
    stream : str
        "simulate" or "calibration"; draws of different streams are independent.
    start, stop : int
        Range of rows; any range is a slice of the whole.

    Returns
    -------
    ndarray of float64, shape (stop - start, ndim)
        In the units of the parameters.
    """
    return prior.from_unit_cube(row_uniforms(seed, f"theta/{stream}", start, stop, prior.ndim))


def simulate(
    config: SurveyConfig,
    grid: WavelengthGrid,
    path: Path,
    *,
    count: int,
    stream: str,
    ledger: Ledger,
    address: str | None = None,
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
        "simulate" or "calibration": independent draws.
    ledger : Ledger
        Shards in it are done already; workers mark the others.
    address : str, optional
        A running Dask scheduler, like ``tcp://host:8786``; without it, this machine's cores are used.
    advance : callable
        Called with the number of rows that were done before, and then of each shard that finishes.

    Raises
    ------
    MissingDependencyError
        If no scheduler answers at ``address``.
    StageError
        If a shard fails, with the worker's own error as its cause.
    """
    path, ledger = Path(path).absolute(), Ledger(ledger.folder.absolute())
    prior = config.make_prior()
    rows_per_shard = config.simulate.rows_per_shard
    recipe = {
        "seed": config.seed,
        "stream": stream,
        "count": count,
        "rows_per_shard": rows_per_shard,
        "engine": "batched" if _in_batches(config) else "prospector",
        "model": config.model.model_dump(mode="json"),
        "prior": prior.to_dict(),
        "grid": grid.to_dict(),
    }
    _lay_out(path, recipe, ledger, prior, grid)
    advance(ledger.totals()[0])
    pending = ledger.pending(shard_count(count, rows_per_shard))
    if not pending:
        return
    task = _Task(config, grid, path, ledger.folder, stream, count, rows_per_shard, recipe)
    with _connect(address, len(pending)) as client:
        for rows in _run(client, task, pending):
            advance(rows)


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
    with _connect(address, shards=1) as client:
        answer = client.submit(os.getpid, pure=False).result(timeout=60)
        where = "started on this machine" if address is None else f"reached at {address}"
        return f"{where}: {sum(client.nthreads().values())} worker threads, a task ran in process {answer}"


@dataclass(frozen=True)
class _Task:
    """What a worker needs besides the number of the shard."""

    config: SurveyConfig
    grid: WavelengthGrid
    path: Path
    ledger: Path
    stream: str
    count: int
    rows_per_shard: int
    recipe: dict[str, Any]

    def rows(self, shard: int) -> slice:
        return shard_rows(shard, self.count, self.rows_per_shard)


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
def _connect(address: str | None, shards: int) -> Iterator[Client]:
    """Connect to a scheduler, or start one process for each core of this machine."""
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

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
            yield client
            return
        # A worker that ends together with its scheduler has nothing to report.
        stack.enter_context(dask.config.set({"distributed.logging.distributed": "critical"}))
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=min(CPU_COUNT, shards),
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,
                env=_ONE_THREAD,
            )
        )
        yield stack.enter_context(Client(cluster, set_as_default=False))


def _run(client: Client, task: _Task, pending: list[int]) -> Iterator[int]:
    """Keep a bounded number of shards with the workers; yield the rows of each that finishes."""
    from distributed import as_completed

    queue = iter(pending)
    running: dict[Any, int] = {}
    finished = as_completed(loop=client.loop)

    def fill() -> None:
        limit = max(_MIN_IN_FLIGHT, _IN_FLIGHT_PER_THREAD * sum(client.nthreads().values()))
        while len(running) < limit and (shard := next(queue, None)) is not None:
            future = client.submit(_write_shard, task, shard, pure=False)
            running[future.key] = shard
            finished.add(future)

    fill()
    for future in finished:
        shard = running.pop(future.key)
        try:
            done = future.result()
        except Exception as error:
            client.cancel(list(finished.futures))
            rows = task.rows(shard)
            raise StageError(
                f"simulate: shard {shard} (rows {rows.start} to {rows.stop - 1}) of {task.path} failed: "
                f"{error}; finished shards are kept, and the same command goes on from them"
            ) from error
        fill()
        yield done


def _write_shard(task: _Task, shard: int) -> int:
    """Compute, check and write one shard, then mark it done; runs in a worker."""
    with _simulator_lock:
        started = time.process_time()
        rows = task.rows(shard)
        prior = task.config.make_prior()
        theta = draw_theta(prior, task.config.seed, task.stream, rows.start, rows.stop)
        flux, check = _spectra(task, prior, theta, rows.start)
        _check(theta, flux, prior, rows.start)
        if recorded_recipe(task.path) != task.recipe:
            raise StageError(f"{task.path} was replaced by another run while shard {shard} was computed")
        write_shard(task.path, shard, rows, {"theta": theta, "flux": flux})
        core_seconds = time.process_time() - started
        Ledger(task.ledger).mark(
            shard, rows=len(theta), checksum=checksum(theta, flux), core_seconds=core_seconds, **check
        )
        return len(theta)


def _in_batches(config: SurveyConfig) -> bool:
    return config.simulate.engine != "prospector"


def _spectra(
    task: _Task, prior: Prior, theta: NDArray[np.float64], first: int
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Compute the spectra of a shard, and what the ledger keeps of their check."""
    grid = tuple(task.grid.wavelength), task.grid.frame, task.grid.medium
    what = task.config.model.model_dump_json(), prior, *grid
    if not _in_batches(task.config):
        return _simulator(*what).spectra(theta).astype(np.float32), {}
    # How a matrix product is shared among threads changes its last digits.
    with threadpool_limits(1):
        flux = _batched(*what).spectra(theta)
    if task.config.simulate.engine == "batched":
        return flux.astype(np.float32), {}
    every = max(1, min(_CHECK_EVERY, task.count // _CHECK_AT_LEAST))
    rows = np.flatnonzero((first + np.arange(len(theta))) % every == 0)
    difference = np.abs(flux[rows] / _simulator(*what).spectra(theta[rows]) - 1).max(axis=1, initial=0.0)
    if (difference > _CHECK_LIMIT).any():
        worst = int(rows[difference.argmax()])
        raise StageError(
            f"simulation {first + worst} ({_values(prior, theta[worst])}): the batched spectrum and Prospector's "
            f"differ by {difference.max():.2%}, more than {_CHECK_LIMIT:.1%}; use simulate.engine = 'prospector', "
            "and report it"
        )
    return flux.astype(np.float32), {"checked": len(rows), "max_difference": float(difference.max(initial=0.0))}


@lru_cache(maxsize=1)
def _simulator(model: str, prior: Prior, wavelength: tuple[float, ...], frame: str, medium: str) -> ProspectorSimulator:
    """Build the simulator once for each process."""
    from digs_survey.config import ModelConfig
    from digs_survey.sps.prospector import ProspectorSimulator

    return ProspectorSimulator(
        ModelConfig.model_validate_json(model), prior, WavelengthGrid(np.array(wavelength), frame, medium)
    )


@lru_cache(maxsize=1)
def _batched(model: str, prior: Prior, wavelength: tuple[float, ...], frame: str, medium: str) -> BatchedModel:
    """Build the batched model once for each process."""
    from digs_survey.config import ModelConfig
    from digs_survey.sps.batched import BatchedModel

    return BatchedModel.from_config(
        ModelConfig.model_validate_json(model), prior, WavelengthGrid(np.array(wavelength), frame, medium)
    )


def _values(prior: Prior, theta: NDArray[np.float64]) -> str:
    return ", ".join(f"{name}={value:.6g}" for name, value in zip(prior.names, theta, strict=True))


def _check(theta: NDArray[np.float64], flux: NDArray[np.float32], prior: Prior, first: int) -> None:
    bad = np.flatnonzero(~(np.isfinite(flux) & (flux > 0)).all(axis=1))
    if bad.size:
        row = int(bad[0])
        wrong = flux[row][~(np.isfinite(flux[row]) & (flux[row] > 0))]
        raise StageError(
            f"simulation {first + row} ({_values(prior, theta[row])}): expected finite, positive flux in every "
            f"element, found {wrong[0]} ({bad.size} such spectra in the shard); "
            "narrow the prior or the grid to what the stellar populations cover"
        )
