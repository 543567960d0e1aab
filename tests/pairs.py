"""Analytic simulations on disk, and noisy pairs of them, for tests of augmentation and of training on pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from estimators import GRID, simulations

from digs_survey import formats
from digs_survey.config import SurveyConfig
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.augment import augment
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import ArraySpec, create_dataset


def write_simulations(path: Path, config: SurveyConfig, count: int, rows_per_shard: int = 50, seed: int = 0) -> Path:
    """Write ``count`` noiseless spectra as the simulate stage does."""
    theta, flux = simulations(config, count, seed)
    prior = config.make_prior()
    arrays = {
        "theta": ArraySpec(("simulation", "parameter"), theta.shape, "float64", rows_per_shard),
        "flux": ArraySpec(
            ("simulation", "wavelength"),
            flux.shape,
            "float32",
            rows_per_shard,
            attrs={"units": "erg / (s cm2 Angstrom)"},
        ),
        "wavelength": ArraySpec(
            ("wavelength",),
            (len(GRID),),
            "float64",
            attrs={"units": "Angstrom", "frame": GRID.frame, "medium": GRID.medium},
        ),
        "parameter": ArraySpec(("parameter",), (prior.ndim,), "str"),
    }
    recipe = {
        "format": formats.SIMULATIONS,
        **RunIdentity.of_config(config, GRID).key("model", "prior", "grid"),
        "stream": "simulate",
        "count": count,
        "seed": seed,
    }
    values = {"theta": theta, "flux": flux, "wavelength": GRID.wavelength, "parameter": np.array(prior.names)}
    create_dataset(path, arrays, values, {"recipe": recipe})
    return path


def make_pairs(folder: Path, config: SurveyConfig, count: int, noise: NoiseModel | None = None) -> tuple[Path, Path]:
    """Write simulations and the pairs that ``config`` asks for, in shards of 60; return both datasets."""
    simulated, pairs = write_simulations(folder / "simulations.zarr", config, count), folder / "pairs.zarr"
    augment(
        simulated,
        pairs,
        noise or NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform),
        draws_per_spectrum=config.augment.draws_per_spectrum,
        seed=config.seed,
        ledger=Ledger(folder / "ledger" / "augment"),
        rows_per_shard=60,
        workers=0,
    )
    return simulated, pairs
