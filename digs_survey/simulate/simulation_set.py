"""Noiseless spectra of prior draws, computed by Dask workers one whole shard at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from digs_survey import formats
from digs_survey.cluster.dask_session import run_shards
from digs_survey.config import SurveyConfig
from digs_survey.errors import ConfigError
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.simulate.shard import SpectrumShards
from digs_survey.simulate.trial import Trial, chosen_engine, told_estimate
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bands import Bands
from digs_survey.sps.param_file import ParamFile, needs_file
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import open_or_create
from digs_survey.store.storage import ArraySpec, shard_count

__all__ = ["FLUX_UNIT", "engine_check", "simulate"]

log = logging.getLogger(__name__)

FLUX_UNIT = "erg / (s cm2 Angstrom)"
"""Unit of simulated flux, as :mod:`astropy.units` reads it."""

_TASK_ROWS = 40_000
"""Batched spectra of one task at most: they are made faster than Dask hands out shards one by one."""


def simulate(
    config: SurveyConfig,
    grid: WavelengthGrid,
    path: Path,
    *,
    count: int,
    stream: str,
    ledger: Ledger,
    noise: NoiseModel | None = None,
    address: str | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    say: Callable[[str], None] = log.info,
    param_file: ParamFile | None = None,
) -> None:
    """Write noiseless spectra of prior draws as a Zarr dataset; go on where an earlier call stopped.

    The dataset has ``theta`` (simulation, parameter) float64, ``flux`` (simulation, wavelength) float32 in
    erg/s/cm2/Angstrom, with row noise ``redshift`` (simulation,), ``wavelength`` in Angstrom and ``parameter``. With
    photometry it has ``photometry`` (simulation, band) in maggies, and ``light`` (simulation, coarse_wavelength), which
    is what the bands are of. It opens with ``xarray.open_zarr(path, consolidated=False)``. Its bytes do not depend on
    the number of workers.

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
    noise : NoiseModel, optional
        Needed where its donors give the redshifts of simulations, or where they have photometry.
    address : str, optional
        A running Dask scheduler, like ``tcp://host:8786``; without it, this machine's cores are used.
    workers : int, optional
        Processes to start without an address (default: one for each core); with 0, the work is done in this
        process and Dask is left out. The bytes are the same.
    advance : callable
        Called with the number of rows that were done before, and then of each task that finishes.
    say : callable
        Takes one line before the work begins, where spectra are not made in batches: why, and how long it will take.
    param_file : ParamFile, optional
        The file that the model is of, if it is of one.

    Raises
    ------
    ConfigError
        If the model is that of a parameter file which is not given, or ``simulate.engine = "batched"`` is asked for,
        and the model's spectra cannot be made so.
    MissingDependencyError
        If no scheduler answers at ``address``.
    StageError
        If a shard fails, with the worker's own error as its cause.
    """
    path, ledger = path.absolute(), Ledger(ledger.folder.absolute())
    identity = RunIdentity.of_config(config, grid, noise)
    if config.model.param_file is not None and param_file is None:
        raise ConfigError(needs_file(config.model.param_file))
    engine, why = chosen_engine(config, identity.prior, grid)
    recipe = {
        "format": formats.SIMULATIONS,
        **identity.key("seed", "model", "prior", "grid"),
        "stream": stream,
        "count": count,
        "rows_per_shard": config.simulate.rows_per_shard,
        "sampling": config.simulate.sampling if stream == "simulate" else "random",
        "engine": engine,
    }
    recipe |= identity.noise.redshift_key
    bands = identity.noise.photometry_bands
    if bands is not None:
        recipe["photometry"] = [list(part) if isinstance(part, tuple) else part for part in bands.key]
    _lay_out(path, recipe, ledger, identity.prior, grid, bands)
    advance(ledger.totals()[0])
    redshifts = identity.noise.redshifts
    work = SpectrumShards(path, ledger.folder, recipe, count, config, grid, redshifts, bands, param_file)
    size = config.simulate.rows_per_shard
    pending = ledger.pending(shard_count(count, size))
    left = sum(rows.stop - rows.start for rows in map(work.rows, pending))

    def tell(trial: Trial, processes: int) -> None:
        say(told_estimate(stream, why, trial, left, size, processes))

    run_shards(
        "simulate",
        work,
        pending,
        shards_per_task=_TASK_ROWS // size if engine == "batched" else 1,
        address=address,
        workers=workers,
        advance=advance,
        before=(work.trial, tell) if engine == "prospector" else None,
    )


def engine_check(ledger: Ledger) -> dict[str, float]:
    """Return how many spectra Prospector computed as a check, and the largest relative difference it found."""
    records = [record for record in ledger.records().values() if "checked" in record]
    if not records:
        return {}
    return {
        "prospector_checked": sum(record["checked"] for record in records),
        "prospector_max_difference": max(record["max_difference"] for record in records),
    }


def _lay_out(
    path: Path, recipe: dict[str, Any], ledger: Ledger, prior: Prior, grid: WavelengthGrid, bands: Bands | None
) -> None:
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
    if "redshift" in recipe:
        about = {"description": "redshift, which the ages follow where the prior has tage_tuniv"}
        arrays["redshift"] = ArraySpec(("simulation",), (count,), "float64", shard, attrs=about)
    values = {"wavelength": grid.wavelength, "parameter": np.array(prior.names)}
    if bands is not None:
        about = {"units": "mgy", "description": "noiseless maggies at the distance of model.zred"}
        arrays["photometry"] = ArraySpec(("simulation", "band"), (count, len(bands)), "float32", shard, attrs=about)
        about = {"units": FLUX_UNIT, "description": "noiseless hat means of f_lambda at the distance of model.zred"}
        shape = count, len(bands.grid)
        arrays["light"] = ArraySpec(("simulation", "coarse_wavelength"), shape, "float32", shard, attrs=about)
        about = {"units": "Angstrom", "frame": "rest", "medium": "vacuum"}
        arrays["coarse_wavelength"] = ArraySpec(("coarse_wavelength",), shape[1:], "float64", attrs=about)
        arrays["band"] = ArraySpec(("band",), (len(bands),), "str")
        values |= {"coarse_wavelength": bands.grid.wavelength, "band": np.array(bands.names)}
    open_or_create(path, recipe, ledger, arrays, values)
