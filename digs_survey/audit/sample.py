"""The rows of a catalog that the audit gives to emcee, read and prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.audit.agreement_predictors import read_predictors
from digs_survey.audit.select import Selection, mean_predictor, principal_position, select_rows, signal_to_noise
from digs_survey.catalog import Catalog, CatalogRows
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import SurveyConfig
from digs_survey.errors import RunDirectoryError
from digs_survey.identity import RunIdentity
from digs_survey.noise.observed_rows import prepare_for
from digs_survey.prior import Prior
from digs_survey.quality import NO_POSTERIOR
from digs_survey.sps.universe import age_of_universe

__all__ = ["Sample", "prepare_rows", "read_rows", "read_sample"]

_BLOCK = 4096


@dataclass(frozen=True)
class Sample:
    """The selected rows, in the order of the catalog.

    Attributes
    ----------
    selection : Selection
    prepared : PreparedRows
        At the amplitude of the simulations.
    galaxy_id : ndarray of int or str, shape (galaxy,)
    redshift, snr : ndarray of float64, shape (galaxy,)
    truth : ndarray of float64, shape (galaxy, parameter)
        The catalog's columns ``true_<parameter>``; NaN where it has none.
    """

    selection: Selection
    prepared: PreparedRows
    galaxy_id: NDArray[Any]
    redshift: NDArray[np.float64]
    snr: NDArray[np.float64]
    truth: NDArray[np.float64]

    def take(self, some: NDArray[np.intp]) -> Sample:
        """Return a random part of the sample, with weights that make it stand for all."""
        chosen = self.selection
        weight = chosen.weight[some] * (chosen.rows.size / max(1, some.size))
        return Sample(
            selection=Selection(chosen.rows[some], weight, chosen.stratum[some]),
            prepared=self.prepared.take(some),
            galaxy_id=self.galaxy_id[some],
            redshift=self.redshift[some],
            snr=self.snr[some],
            truth=self.truth[some],
        )


def read_sample(catalog: Catalog, posterior_path: Path, identity: RunIdentity, config: SurveyConfig) -> Sample:
    """Choose ``audit.galaxies`` rows that have a posterior, and read them.

    Parameters
    ----------
    catalog : Catalog
        Streamed once, for the S/N of its rows.
    posterior_path : Path
        ``posterior.zarr`` of the same catalog.
    identity : RunIdentity
        Of that dataset.
    config : SurveyConfig
        Its seed, audit and map sections are used.

    Raises
    ------
    RunDirectoryError
        If ``posterior_path`` has another number of rows than the catalog.
    """
    result: Any = zarr.open_group(str(posterior_path), mode="r")
    if result["quality"].shape[0] != catalog.n_rows:
        raise RunDirectoryError(
            f"{posterior_path}: expected the {catalog.n_rows} rows of {catalog.path}, found "
            f"{result['quality'].shape[0]}; run the map stage on this catalog"
        )
    prior = identity.prior
    middle = int(np.argmin(np.abs(result["quantile"][:] - 0.5)))
    medians = np.empty((catalog.n_rows, prior.ndim))
    snr, redshift = np.empty(catalog.n_rows), np.empty(catalog.n_rows)
    predictors: dict[str, NDArray[np.float32]] = {}
    for start in range(0, catalog.n_rows, _BLOCK):
        block = slice(start, min(start + _BLOCK, catalog.n_rows))
        medians[block] = result["percentiles"][block][:, :, middle]
        for name, values in read_predictors(result, block, prior, len(identity.grid)).items():
            predictors.setdefault(name, np.empty(catalog.n_rows, dtype=np.float32))[block] = values
        rows = catalog.rows(block.start, block.stop)
        usable = rows.good & np.isfinite(rows.flux) & np.isfinite(rows.ivar) & (rows.ivar > 0)
        redshift[block] = rows.redshift
        snr[block] = signal_to_noise(rows.flux, rows.ivar, usable)
    selection = select_rows(
        snr,
        principal_position(prior.cdf(medians)),
        (result["quality"][:] & NO_POSTERIOR) == 0,
        config.audit.galaxies,
        config.seed,
        redshift,
        mean_predictor(predictors),
    )
    return _read(catalog, selection, snr, identity, config)


def read_rows(catalog: Catalog, rows: NDArray[np.int64]) -> CatalogRows:
    """Read some rows of a catalog, those of a chunk at once.

    Parameters
    ----------
    catalog : Catalog
    rows : ndarray of int64, shape (n,)
        Increasing.
    """
    parts = [catalog.rows(0, 0)]
    for some in np.split(rows, np.flatnonzero(np.diff(rows // catalog.chunk_rows)) + 1):
        if some.size:
            block = catalog.rows(int(some[0]), int(some[-1]) + 1)
            chosen = some - some[0]
            parts.append(CatalogRows(*(getattr(block, field.name)[chosen] for field in fields(block))))
    return CatalogRows(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(CatalogRows))
    )


def prepare_rows(catalog: Catalog, rows: Sequence[int], identity: RunIdentity, config: SurveyConfig) -> PreparedRows:
    """Read rows, in any order, and prepare them as the map does."""
    order = np.argsort(np.asarray(rows, dtype=np.int64), kind="stable")
    prepared = _prepare(catalog, read_rows(catalog, np.asarray(rows, dtype=np.int64)[order]), identity, config)
    return prepared.take(np.argsort(order))


def _prepare(catalog: Catalog, raw: CatalogRows, identity: RunIdentity, config: SurveyConfig) -> PreparedRows:
    return prepare_for(identity.noise, identity.grid, identity.zred, config.map, raw, catalog.grid)


def _read(
    catalog: Catalog,
    selection: Selection,
    snr: NDArray[np.float64],
    identity: RunIdentity,
    config: SurveyConfig,
) -> Sample:
    raw, prior = read_rows(catalog, selection.rows), identity.prior
    prepared = _prepare(catalog, raw, identity, config)
    return Sample(
        selection=selection,
        prepared=prepared,
        galaxy_id=raw.galaxy_id,
        redshift=raw.redshift,
        snr=snr[selection.rows],
        truth=_truth(catalog, selection.rows, raw.redshift, prior),
    )


def _truth(
    catalog: Catalog, rows: NDArray[np.int64], redshift: NDArray[np.float64], prior: Prior
) -> NDArray[np.float64]:
    """True parameters (row, parameter) where the catalog has them; an age in Gyr tells its share of the universe's."""
    truth = np.full((rows.size, prior.ndim), np.nan)
    for k, name in enumerate(prior.names):
        column, unit = f"true_{name}", np.ones(rows.size)
        if name == "tage_tuniv" and column not in catalog.survey_columns:
            column, unit = "true_tage", age_of_universe(redshift)
        if column in catalog.survey_columns:
            for i, row in enumerate(rows.tolist()):
                truth[i, k] = float(catalog.column(column, row, row + 1)[0]) / unit[i]
    return truth
