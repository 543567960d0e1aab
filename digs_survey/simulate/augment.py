"""Noisy training pairs on disk, made from the noiseless simulations by Dask workers, one whole shard at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from digs_survey import formats
from digs_survey.cluster.dask_session import run_shards
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.pair_shard import PairShards, open_simulations, stored_array
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import open_or_create
from digs_survey.store.storage import ArraySpec, shard_count

__all__ = ["augment"]

_TASK_ROWS = 40_000
"""Pairs of one task at most: shards are made faster than Dask hands them out one by one."""


def augment(
    simulations_path: Path,
    out_path: Path,
    noise: NoiseModel,
    *,
    draws_per_spectrum: int,
    seed: int,
    ledger: Ledger,
    rows_per_shard: int,
    address: str | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write ``draws_per_spectrum`` noisy copies of every simulation; go on where an earlier call stopped.

    The dataset has ``theta`` (pair, parameter) float64, ``flux`` (pair, wavelength) float32 in the unit of
    the simulations, ``simulation`` (pair,) int64: the row of the simulations that a pair was made from,
    and ``wavelength`` and ``parameter``. Pair i is made from simulation i // draws_per_spectrum. Every draw is seeded
    by its row, so that the bytes do not depend on the number of workers, nor the values on the size of shards. A
    worker holds one shard of pairs and one of simulations.

    Parameters
    ----------
    simulations_path : Path
        Finished dataset of :func:`~digs_survey.simulate.simulation_set.simulate`; with a cluster, a path that its
        workers see too, as ``out_path`` and the ledger.
    out_path : Path
        Kept if it was made by the same settings, replaced (and the ledger cleared) otherwise.
    noise : NoiseModel
    draws_per_spectrum : int
    seed : int
        Seed of the run.
    ledger : Ledger
        Shards in it are done already; workers mark the others.
    rows_per_shard : int
        Pairs in one shard.
    address : str, optional
        A running Dask scheduler, like ``tcp://host:8786``; without it, this machine's cores are used.
    workers : int, optional
        Processes to start without an address (default: one for each core); with 0, the work is done in this
        process and Dask is left out.
    advance : callable
        Called with the number of pairs that were done before, and then of each task that finishes.

    Raises
    ------
    MissingDependencyError
        If no scheduler answers at ``address``.
    StageError
        If the simulations are missing, or a shard fails, with the worker's own error as its cause: of simulations
        that cannot be used, the error names shard and rows.
    """
    simulations_path, out_path = simulations_path.absolute(), out_path.absolute()
    ledger = Ledger(ledger.folder.absolute())
    simulations = open_simulations(simulations_path)
    pairs = stored_array(simulations, "theta").shape[0] * draws_per_spectrum
    recipe = {
        "format": formats.PAIRS,
        "seed": seed,
        "draws_per_spectrum": draws_per_spectrum,
        "rows_per_shard": rows_per_shard,
        "noise": noise.to_dict(),
        "simulations": simulations.attrs["recipe"],
    }
    _lay_out(out_path, recipe, ledger, simulations, pairs)
    advance(ledger.totals()[0])
    shards = PairShards(out_path, ledger.folder, recipe, pairs, simulations_path)
    pending = ledger.pending(shard_count(pairs, rows_per_shard))
    if pending:
        shards.keep_noise(noise)
    run_shards(
        "augment",
        shards,
        pending,
        shards_per_task=_TASK_ROWS // rows_per_shard,
        address=address,
        workers=workers,
        advance=advance,
    )


def _lay_out(path: Path, recipe: dict[str, Any], ledger: Ledger, simulations: zarr.Group, pairs: int) -> None:
    shard = recipe["rows_per_shard"]
    theta, flux = stored_array(simulations, "theta"), stored_array(simulations, "flux")
    copied = {name: stored_array(simulations, name) for name in ("wavelength", "parameter")}
    attrs = {name: dict(array.attrs) for name, array in {**copied, "theta": theta, "flux": flux}.items()}
    attrs["flux"]["description"] = "f_lambda with the survey's noise"
    arrays = {
        "theta": ArraySpec(("pair", "parameter"), (pairs, theta.shape[1]), "float64", shard, attrs=attrs["theta"]),
        "flux": ArraySpec(("pair", "wavelength"), (pairs, flux.shape[1]), "float32", shard, attrs=attrs["flux"]),
        "simulation": ArraySpec(
            ("pair",),
            (pairs,),
            "int64",
            shard,
            attrs={"description": "row of the simulations that made the pair"},
        ),
        "wavelength": ArraySpec(("wavelength",), (flux.shape[1],), "float64", attrs=attrs["wavelength"]),
        "parameter": ArraySpec(("parameter",), (theta.shape[1],), "str"),
    }
    open_or_create(path, recipe, ledger, arrays, {name: np.asarray(array[:]) for name, array in copied.items()})
