"""From rows of a catalog to what a posterior is shown of them, whichever kind of noise it was trained with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog import CatalogRows
from digs_survey.catalog.prepare import PreparedRows, prepare, reference_factor
from digs_survey.catalog.schema import redshift_quality, usable_elements
from digs_survey.config import MapConfig
from digs_survey.noise.band_noise import with_band_floor
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import join_observed
from digs_survey.noise.row_noise import RowNoise, with_floor
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.spectra import WavelengthGrid, air_to_vacuum

__all__ = ["RowBands", "observed_rows", "prepare_for"]

_LIMIT = 1e30
"""Flux and errors beyond it, and errors below its inverse, are no measurement: their squares may leave the range of
numbers. In the unit of the flux, at the posterior's distance."""
_BRIGHTEST = 1e6
"""Median absolute fluxes of a row beyond which an element counts as that bright in the smoothed flux, whose cumulative
sums keep 16 digits: a brighter one would take those of the elements after it."""


@dataclass(frozen=True)
class RowBands:
    """Photometry of rows, at the posterior's distance.

    Attributes
    ----------
    maggies, inverse_error : ndarray of float64, shape (n, band)
        With the floors in the errors; both 0 where a row lacks the band.
    alone : bool
        Whether the posterior knows rows that have no spectrum.
    """

    maggies: NDArray[np.float64]
    inverse_error: NDArray[np.float64]
    alone: bool

    @classmethod
    def of(cls, noise: RowNoise, maggies: NDArray[np.float64], inverse_error: NDArray[np.float64]) -> RowBands:
        """Return the photometry of rows for a posterior's noise."""
        return cls(maggies, inverse_error, noise.photometry.without_spectrum > 0)

    def checked(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return fluxes and inverse errors (n, band), and which rows (n,) had one that is no measurement."""
        size, inverse = np.abs(self.maggies), self.inverse_error
        known = (inverse > 1 / _LIMIT) & (inverse < _LIMIT) & (size < _LIMIT)
        wild = np.asarray(((inverse != 0) & ~known).any(axis=1))
        return np.where(known, self.maggies, 0.0), np.where(known, inverse, 0.0), wild


def prepare_for(
    noise: NoiseModel,
    trained: WavelengthGrid,
    zred: float,
    settings: MapConfig,
    rows: CatalogRows,
    grid: WavelengthGrid,
) -> PreparedRows:
    """Bring rows of a catalog to what a posterior takes; each row is treated by itself.

    Parameters
    ----------
    noise : NoiseModel
        Of the posterior.
    trained : WavelengthGrid
        The posterior's elements.
    zred : float
        Redshift of its reference distance.
    settings : MapConfig
        Its ``min_good_fraction``, ``error_floor`` and ``mask_lines`` are used.
    rows : CatalogRows
    grid : WavelengthGrid
        The catalog's.
    """
    if noise.band_count not in (0, rows.maggies.shape[1]):
        raise ValueError(
            f"rows: expected {noise.band_count} bands, as the noise has, found {rows.maggies.shape[1]}; open the "
            "catalog for the filters of the noise"
        )
    least = settings.min_good_fraction
    if not isinstance(noise, RowNoise):
        return prepare(rows, grid.frame, zred, least, keeps_negative=noise.keeps_negative)
    from digs_survey.catalog.rest_frame import to_rest_frame

    quality = rows.quality | redshift_quality(rows.redshift)
    usable, bits = usable_elements(rows.flux, rows.ivar, rows.good)
    quality |= bits
    known = (quality & QualityFlag.BAD_REDSHIFT) == 0
    redshift = np.where(known, rows.redshift, 1.0)
    if grid == trained:
        flux, ivar = np.where(usable, rows.flux, 0.0), np.where(usable, rows.ivar, 0.0)
    else:
        edges = air_to_vacuum(grid.edges) if grid.medium == "air" else grid.edges
        wanted = air_to_vacuum(trained.edges) if trained.medium == "air" else trained.edges
        flux, ivar = to_rest_frame(edges, rows.flux, rows.ivar, usable, redshift, wanted, frame=grid.frame)
    if settings.mask_lines:
        ivar[:, noise.lines] = 0.0
    factor = reference_factor(redshift, zred)[:, None]
    with np.errstate(over="ignore"):
        flux = flux * factor
    bands = None
    if noise.photometry_bands is not None:
        weight = np.where(noise.photometry_bands.counted(redshift), rows.maggies_ivar, 0.0)
        maggies, inverse = np.where(weight > 0, rows.maggies * factor, 0.0), np.sqrt(weight) / factor
        with np.errstate(over="ignore", invalid="ignore"):
            inverse = with_band_floor(maggies, inverse, np.array(noise.photometry.floors))
        bands = RowBands.of(noise, maggies, inverse)
    return observed_rows(flux, np.sqrt(ivar) / factor, redshift, quality, settings, bands)


def observed_rows(
    flux: NDArray[np.float64],
    inverse_error: NDArray[np.float64],
    redshift: NDArray[np.float64],
    quality: NDArray[np.int64],
    settings: MapConfig,
    bands: RowBands | None = None,
) -> PreparedRows:
    """Add the error floor to rows on the posterior's grid, at its distance, and set the bits of those that lack data.

    Parameters
    ----------
    flux, inverse_error : ndarray, shape (n, wavelength)
        0 where there is no data.
    redshift : ndarray, shape (n,)
    quality : ndarray of int64, shape (n,)
        Bits that are known already.
    settings : MapConfig
    bands : RowBands, optional
    """
    if settings.error_floor == "fit":
        raise ValueError("map.error_floor: expected the number that was fitted")
    wild = ~(np.abs(flux) < _LIMIT)
    extreme = (inverse_error != 0) & ~((inverse_error > 1 / _LIMIT) & (inverse_error < _LIMIT))
    quality = quality | np.where(wild.any(axis=1), QualityFlag.NONFINITE_FLUX, 0)
    quality = quality | np.where(extreme.any(axis=1), QualityFlag.BAD_IVAR, 0)
    unusable = wild | extreme
    flux, inverse_error = np.where(unusable, 0.0, flux), np.where(unusable, 0.0, inverse_error)
    inverse = with_floor(_within_reason(flux, inverse_error > 0), inverse_error, settings.error_floor)
    good = inverse > 0
    few = ~good.any(axis=1) | (good.mean(axis=1) < settings.min_good_fraction)
    if bands is not None:
        seen, weight, bad = bands.checked()
        quality = quality | np.where(bad, QualityFlag.BAD_PHOTOMETRY, 0)
        # The posterior knows rows without a spectrum, and none with little of one.
        alone = few & (weight > 0).any(axis=1) & bands.alone
        flux, inverse = (np.where(alone[:, None], 0.0, part) for part in (flux, inverse))
        few &= ~alone
        # A catalog gives the bit to each row without any element.
        quality = np.where(alone, quality & ~int(QualityFlag.FEW_GOOD_ELEMENTS), quality)
        flux, inverse = np.concatenate([flux, seen], axis=1), np.concatenate([inverse, weight], axis=1)
        good = inverse > 0
    # Of a row without a redshift nobody knows which elements it has.
    few &= (quality & QualityFlag.BAD_REDSHIFT) == 0
    quality = quality | np.where(few, QualityFlag.FEW_GOOD_ELEMENTS, 0)
    observed = join_observed(flux, inverse, redshift)
    # A stand-in, which nothing is computed of.
    observed[(quality & NO_POSTERIOR) != 0] = 1.0
    return PreparedRows(observed, inverse**2, good, quality, 0 if bands is None else bands.maggies.shape[1])


def _within_reason(flux: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Flux (n, wavelength) with what is :data:`_BRIGHTEST` or more times as bright as the row's elements clipped."""
    limit = np.full((len(flux), 1), np.inf)
    for row in np.flatnonzero(good.any(axis=1)):
        limit[row] = _BRIGHTEST * np.median(np.abs(flux[row, good[row]])) or np.inf
    return np.clip(flux, -limit, limit)
