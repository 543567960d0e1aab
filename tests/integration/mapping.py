"""A posterior with random weights and a small catalog: the plumbing of the map needs no training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import xarray as xr
from identities import identity_of

from digs_survey.catalog import write_catalog
from digs_survey.config import SurveyConfig, TrainConfig, load_config
from digs_survey.estimator.features import Features
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import build_estimator
from digs_survey.infer.map_catalog import map_catalog
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger

ROWS = 150
ZRED = 1e-5
PRIOR = Prior()
GRID = WavelengthGrid(np.arange(4000.0, 5000.0, 50.0))


def spectra(theta):
    """Smooth positive spectra: mass is the amplitude, every other parameter bends them in its own way."""
    x = np.linspace(-1, 1, len(GRID))
    shapes = np.stack([x, x**2, np.sin(3 * x), np.cos(5 * x)])
    return 10 ** (theta[:, :1] - 18 + 0.2 * PRIOR.cdf(theta)[:, 1:] @ shapes)


def flux_of(rows, seed):
    rng = np.random.default_rng(seed)
    theta = PRIOR.from_unit_cube(rng.uniform(size=(rows, PRIOR.ndim)))
    return spectra(theta) * (1 + 0.05 * rng.normal(size=(rows, len(GRID)))), theta


def make_model(folder):
    """Folder of a frozen posterior with random weights: plumbing needs no training."""
    flux, theta = flux_of(2000, seed=1)
    network = TrainConfig(hidden_features=12, transforms=2, embedding_features=8, embedding_layers=1, components=6)
    config = SurveyConfig(train=network)
    features = Features(len(GRID), network, PRIOR)
    features.fit(flux, spectra(theta), theta)
    estimator = build_estimator(network, features, seed=3)
    freeze_posterior(folder, [estimator], config, GRID, NoiseModel.from_config(config.noise), training={})
    return folder


def make_catalog(path, spoil=lambda flux, mask: None, grid=GRID):
    flux = flux_of(ROWS, seed=2)[0] / 1e-8
    mask = np.zeros(flux.shape, dtype=np.uint8)
    mask[17, 4:6] = 1
    ivar = 1 / (0.05 * flux) ** 2
    spoil(flux, mask)
    ra = np.linspace(0, 90, ROWS)
    write_catalog(
        path,
        grid=grid,
        flux=flux,
        ivar=ivar,
        mask=mask,
        redshift=np.full(ROWS, ZRED),
        galaxy_id=np.array([f"J{k:05d}+{'ab' * (k % 3)}" for k in range(ROWS)]),
        flux_unit="1e-8 erg / (s cm2 Angstrom)",
        columns={
            "ra": (ra, {"units": "deg", "description": "right ascension"}),
            "field": (np.array(["north", "südlich"])[np.arange(ROWS) % 2], {}),
        },
        rows_per_shard=40,
    )
    return path


def run(folder, catalog, model, *, shard=7, workers=1, draws=200, address=None, config=None):
    """Map into ``folder``; return the dataset, the ledger and what ``advance`` was called with."""
    config = config or load_config(
        None, [f"map.rows_per_shard={shard}", f"map.workers={workers}", f"map.draws={draws}"]
    )
    out, ledger, calls = folder / "posterior.zarr", Ledger(folder / "ledger" / "map"), []
    map_catalog(identity_of(model, catalog), catalog, out, config, ledger=ledger, address=address, advance=calls.append)
    return SimpleNamespace(out=out, table=folder / "percentiles.parquet", ledger=ledger, calls=calls, config=config)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def values(path):
    with xr.open_zarr(path, consolidated=False) as data:
        return data.load()
