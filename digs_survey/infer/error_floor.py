"""The error floor that a survey's own residuals ask for.

Errors in a catalog are those of photons and read-out. What the model gets wrong, and what the calibration leaves
beyond a smooth polynomial, scales with the flux instead. Of rows spread over the survey the best model is taken, with
its calibration polynomial fitted. The floor is the share of the flux with which half of the residuals are within 0.67
of their errors, as those of a Gaussian are. It is a median, so that lines that no model makes do not decide it.
Since the posterior knows the errors, a new floor gives other models: a few rounds settle it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from digs_survey.catalog import Catalog, CatalogRows
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MapConfig
from digs_survey.errors import StageError
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.robust import GAUSSIAN_MEDIAN
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import prepare_for
from digs_survey.noise.row_noise import RowNoise, smooth_flux
from digs_survey.quality import NO_POSTERIOR
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import one_thread

__all__ = ["FittedFloor", "fit_error_floor"]

_ROWS, _BLOCK = 128, 16
"""Rows that are looked at, in blocks spread over the catalog."""
_DRAWS, _ROUNDS, _START = 64, 3, 0.02
_MOST = 0.3
_BANDS = 8
_FEWEST = 200
"""Elements in a band below which it tells nothing."""


@dataclass(frozen=True)
class FittedFloor:
    """An error floor, and what it would be by wavelength.

    Attributes
    ----------
    floor : float
        As a share of the flux.
    rows : int
        Of the catalog that it was found from.
    bands : list of (float, float, float)
        Rest wavelengths in Angstrom between which, and the floor that the residuals there ask for.
    """

    floor: float
    rows: int
    bands: list[tuple[float, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the manifest."""
        bands = [{"from_angstrom": low, "to_angstrom": high, "floor": floor} for low, high, floor in self.bands]
        return {"floor": self.floor, "rows": self.rows, "bands": bands}

    def __str__(self) -> str:
        parts = ", ".join(f"{100 * floor:.1f} % at {low:.0f}-{high:.0f}" for low, high, floor in self.bands)
        return f"error floor {100 * self.floor:.2f} % of the flux, from the residuals of {self.rows} rows ({parts} Å)"


def fit_error_floor(posterior: FrozenPosterior, catalog: Catalog, settings: MapConfig) -> FittedFloor:
    """Fit the error floor of a catalog's rows.

    Parameters
    ----------
    posterior : FrozenPosterior
        Trained with row noise.
    catalog : Catalog
    settings : MapConfig
        Of the map; its ``error_floor`` is not used.

    Raises
    ------
    StageError
        If none of the rows that were looked at has a posterior.
    """
    noise = posterior.noise
    if not isinstance(noise, RowNoise):
        raise ValueError("expected a posterior that was trained with noise.kind = 'row'")
    likelihood, floor = SpectrumLikelihood.of_posterior(posterior), _START
    prepare = partial(_prepared, posterior, settings, catalog.grid, list(_spread_rows(catalog)))
    bare = prepare(0.0)
    for _ in range(_ROUNDS):
        residual, flux, inverse = _residuals(posterior, noise, likelihood, prepare(floor), bare)
        floor = _floor_of(residual, flux, inverse)
    wavelength = np.broadcast_to(posterior.grid.wavelength, inverse.shape)
    edges = np.linspace(posterior.grid.edges[0], posterior.grid.edges[-1], _BANDS + 1)
    bands = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (wavelength >= low) & (wavelength < high)
        if (inverse[inside] > 0).sum() >= _FEWEST:
            found = _floor_of(residual[inside], flux[inside], inverse[inside])
            bands.append((float(low), float(high), round(found, 5)))
    return FittedFloor(round(floor, 5), len(inverse), bands)


def _spread_rows(catalog: Catalog) -> Iterator[CatalogRows]:
    """Yield blocks of rows that are spread over a catalog, no row twice."""
    blocks = -(-catalog.n_rows // _BLOCK)
    for block in np.unique(np.linspace(0, blocks - 1, _ROWS // _BLOCK).astype(int)).tolist():
        yield catalog.rows(block * _BLOCK, min(catalog.n_rows, (block + 1) * _BLOCK))


def _prepared(
    posterior: FrozenPosterior, settings: MapConfig, grid: WavelengthGrid, blocks: list[CatalogRows], floor: float
) -> list[PreparedRows]:
    """Prepare blocks of rows with an error floor."""
    some = settings.model_copy(update={"error_floor": floor})
    about = posterior.noise, posterior.grid, posterior.model.zred, some
    return [prepare_for(*about, rows, grid) for rows in blocks]


def _residuals(
    posterior: FrozenPosterior,
    noise: RowNoise,
    likelihood: SpectrumLikelihood,
    blocks: list[PreparedRows],
    bare: list[PreparedRows],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Residuals of rows from their likeliest draws, smoothed flux, and inverse errors (row, wavelength).

    The draws are for rows with a floor, the rest is of the ``bare`` ones, without it.
    """
    found = []
    for seen, without in zip(blocks, bare, strict=True):
        known = np.flatnonzero((seen.quality & NO_POSTERIOR) == 0)
        with one_thread():
            for row, theta in zip(known, posterior.sample(seen.flux[known], _DRAWS), strict=True):
                if not np.isfinite(theta).all():
                    continue
                spectra = likelihood.spectra(theta, seen.flux[row])
                best = spectra[noise.log_likelihood(seen.flux[row], spectra).argmax()]
                flux, inverse, _ = split_observed(without.flux[[row]])
                flux, inverse = flux[:, : seen.elements], inverse[:, : seen.elements]
                model = noise.calibrated(seen.flux[[row]], best[None])[:, : seen.elements]
                found.append(((flux - model)[0], smooth_flux(flux, inverse)[0], inverse[0]))
    if not found:
        raise StageError("map.error_floor = 'fit': none of the rows that were looked at has a posterior; give a number")
    residual, flux, inverse = (np.array(part) for part in zip(*found, strict=True))
    return residual, flux, inverse


def _floor_of(residual: NDArray[np.float64], flux: NDArray[np.float64], inverse: NDArray[np.float64]) -> float:
    """Share of the flux that, added to the errors, has half of the residuals within those of a Gaussian."""
    known = (inverse > 0) & (flux > 0)
    over, share = np.abs(residual[known]) * inverse[known], flux[known] * inverse[known]

    def excess(floor: float) -> float:
        return float(np.median(over / np.sqrt(1 + (floor * share) ** 2))) - GAUSSIAN_MEDIAN

    if not known.any() or excess(0.0) <= 0:
        return 0.0
    return _MOST if excess(_MOST) > 0 else float(brentq(excess, 0.0, _MOST, xtol=1e-6))
