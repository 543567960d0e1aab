"""Noisy training pairs on disk, streamed shard by shard from the noiseless simulations."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.errors import StageError
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import open_or_create
from digs_survey.store.storage import ArraySpec, checksum, rows_of_shard, shard_count, write_shard

__all__ = ["augment"]


def augment(
    simulations_path: Path,
    out_path: Path,
    noise: NoiseModel,
    *,
    draws_per_spectrum: int,
    seed: int,
    ledger: Ledger,
    rows_per_shard: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write ``draws_per_spectrum`` noisy copies of every simulation; go on where an earlier call stopped.

    The dataset has ``theta`` (pair, parameter) float64, ``flux`` (pair, wavelength) float32 in the unit of
    the simulations, ``simulation`` (pair,) int64: the row of the simulations that a pair was made from,
    and ``wavelength`` and ``parameter``. Every draw is seeded by its row, so that shards do not matter.
    Memory is bounded by a shard.

    Parameters
    ----------
    simulations_path : Path
        Finished dataset of :func:`~digs_survey.simulate.simulation_set.simulate`.
    out_path : Path
        Kept if it was made by the same settings, replaced (and the ledger cleared) otherwise.
    noise : NoiseModel
    draws_per_spectrum : int
    seed : int
        Seed of the run.
    ledger : Ledger
    rows_per_shard : int
        Pairs in one shard.
    advance : callable
        Called with the number of pairs that were done before, and then of each shard that finishes.

    Raises
    ------
    StageError
        If the simulations are missing or not finished.
    """
    try:
        simulations = zarr.open_group(str(simulations_path), mode="r")
    except FileNotFoundError:
        raise StageError(f"augment: no simulations at {simulations_path}; run the simulate stage first") from None
    pairs = _array(simulations, "theta").shape[0] * draws_per_spectrum
    recipe = {
        "seed": seed,
        "draws_per_spectrum": draws_per_spectrum,
        "rows_per_shard": rows_per_shard,
        "noise": noise.to_dict(),
        "simulations": simulations.attrs["recipe"],
    }
    _lay_out(out_path, recipe, ledger, simulations, pairs)
    advance(ledger.totals()[0])
    for shard in ledger.pending(shard_count(pairs, rows_per_shard)):
        started = time.process_time()
        rows = rows_of_shard(shard, pairs, rows_per_shard)
        made = _pairs(simulations, noise, draws_per_spectrum, seed, rows)
        write_shard(out_path, shard, rows, made)
        count = rows.stop - rows.start
        ledger.mark(shard, rows=count, checksum=checksum(*made.values()), core_s=time.process_time() - started)
        advance(count)


def _pairs(simulations: zarr.Group, noise: NoiseModel, draws: int, seed: int, rows: slice) -> dict[str, NDArray[Any]]:
    simulation = np.arange(rows.start, rows.stop) // draws
    base = slice(int(simulation[0]), int(simulation[-1]) + 1)
    theta = np.asarray(_array(simulations, "theta")[base])
    flux = np.asarray(_array(simulations, "flux")[base], dtype=float)
    if not (flux > 0).all():
        raise StageError(
            f"augment: simulations {base.start} to {base.stop - 1} are not all there; finish the simulate stage first"
        )
    uniform = row_uniforms(seed, "augment", rows.start, rows.stop, noise.columns(flux.shape[1]))
    local = simulation - base.start
    noisy = noise.from_uniform(flux[local], uniform)
    return {"theta": theta[local], "flux": noisy.astype(np.float32), "simulation": simulation}


def _lay_out(path: Path, recipe: dict[str, Any], ledger: Ledger, simulations: zarr.Group, pairs: int) -> None:
    shard = recipe["rows_per_shard"]
    theta, flux = _array(simulations, "theta"), _array(simulations, "flux")
    copied = {name: _array(simulations, name) for name in ("wavelength", "parameter")}
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


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise StageError(f"{group.store_path}: expected an array {name!r}, found a group")
    return array
