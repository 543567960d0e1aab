"""The noise that a catalog's own inverse variances describe."""

from __future__ import annotations

import numpy as np

from digs_survey.catalog import Catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.config import SurveyConfig
from digs_survey.noise.donor_rows import catalog_donors
from digs_survey.noise.error_table import noise_table, row_errors
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.row_noise import RowNoise
from digs_survey.quality import NO_POSTERIOR
from digs_survey.spectra import WavelengthGrid

__all__ = ["survey_noise"]

_BLOCKS, _BLOCK_ROWS = 16, 256


def survey_noise(config: SurveyConfig, catalog: Catalog) -> NoiseModel:
    """Return the configured noise with a table of the catalog's errors, from blocks of rows spread over it.

    Raises
    ------
    CatalogError
        If the catalog is in the observed frame, or none of these rows has errors for half its elements.
    ConfigError
        With row noise: if too few rows of the catalog can be donors.
    """
    flux_transform = config.train.flux_transform
    noise = NoiseModel.from_config(config.noise, flux_transform=flux_transform)
    if isinstance(noise, RowNoise):
        donors = catalog_donors(
            noise,
            WavelengthGrid.from_config(config.grid),
            config.model.zred,
            catalog,
            seed=config.seed,
            min_good_fraction=config.map.min_good_fraction,
        )
        return noise.with_donors(donors)
    keeps_negative = noise.keeps_negative
    last = max(0, catalog.n_rows - _BLOCK_ROWS)
    errors, goods = [], []
    for start in np.unique(np.linspace(0, last, _BLOCKS).astype(int)):
        raw = catalog.rows(int(start), min(catalog.n_rows, int(start) + _BLOCK_ROWS))
        rows = prepare(
            raw,
            catalog.grid.frame,
            config.model.zred,
            config.map.min_good_fraction,
            keeps_negative=keeps_negative,
        )
        # Rows that cannot be inferred hold a stand-in for their flux.
        good = rows.good & ((rows.quality & NO_POSTERIOR) == 0)[:, None]
        errors.append(row_errors(config.noise, rows.flux, rows.ivar, good))
        goods.append(good)
    table = noise_table(config.noise, np.concatenate(errors, axis=1), np.concatenate(goods), config.seed)
    return NoiseModel.from_config(config.noise, table, flux_transform)
