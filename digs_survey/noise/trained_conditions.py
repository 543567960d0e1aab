"""Whether a row's errors, gaps and redshift are among those that a posterior was trained for.

A network knows nothing of conditions beyond those of its simulations, however well a row's spectrum fits. Three things
are compared: the signal-to-noise ratio of a row's typical element, its redshift, and its share of elements with data.
Of photometry it is the signal-to-noise ratio of the typical band, and which bands there are.
With noise of the older kinds a posterior is not shown the row's errors: there the row's own inverse variances must
agree with the noise that it was trained for.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.noise.donors import Donors
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed
from digs_survey.noise.row_noise import RowNoise
from digs_survey.sps.bands import Bands

__all__ = ["outside_conditions"]

_SNR_MARGIN = 1.3
"""Factor beyond the trained signal-to-noise ratios: these are means over a simulation's elements, and a row's is their
median, so that colours and sky lines move it."""
_SHARE_MARGIN = 0.05
"""Beyond the trained shares of good elements."""
_NOISE_FACTOR = 1.5
"""Where a posterior is not shown a row's errors: how far they may be from those that it was trained for."""
_TABLE_SHARE = 0.005
"""Share of a catalog's rows beyond whose quantiles errors are unusual: too few had them to train for."""


def outside_conditions(noise: NoiseModel, rows: PreparedRows) -> NDArray[np.bool_]:
    """Tell which rows (n,) have errors, gaps or a redshift unlike those of the simulations.

    Parameters
    ----------
    noise : NoiseModel
        That the posterior was trained for.
    rows : PreparedRows
        Rows without a posterior hold a stand-in; what is said of them means nothing.
    """
    if isinstance(noise, RowNoise):
        return _outside_row_noise(noise, rows)
    return _misjudged(noise, rows)


def _outside_row_noise(noise: RowNoise, rows: PreparedRows) -> NDArray[np.bool_]:
    flux, inverse, redshift = split_observed(rows.flux)
    elements = rows.elements
    z, donors, (low, high) = noise.redshifts, noise.donors, _snr_range(noise)
    good = rows.spectrum_good
    snr = _median(flux[:, :elements] * inverse[:, :elements], good)
    least, most = _drawn_shares(noise, redshift) if donors is None else _donated_shares(noise, donors, redshift)
    share = good.mean(axis=1)
    # A float32 of the training may be the redshift's neighbour.
    step = 1e-6 * (1 + redshift)
    spectrum = (snr < low / _SNR_MARGIN) | (snr > high * _SNR_MARGIN)
    spectrum |= (share < least - _SHARE_MARGIN) | (share > most + _SHARE_MARGIN)
    outside = (redshift < z.low - step) | (redshift > z.high + step)
    if rows.bands:
        # Of a row without a spectrum its photometry counts alone; one that must have a spectrum got its bit before.
        spectrum &= good.any(axis=1)
        outside |= _outside_photometry(noise.photometry, noise.photometry_bands, rows)
    return np.asarray(outside | spectrum)


def _outside_photometry(config: PhotometryConfig, bands: Bands | None, rows: PreparedRows) -> NDArray[np.bool_]:
    """Tell which rows (n,) have photometry unlike that of the simulations, or none where all of these have some."""
    flux, inverse, redshift = split_observed(rows.flux)
    good, floors = rows.good[:, rows.elements :], np.array(config.floors)
    snr = (flux * inverse)[:, rows.elements :]
    # The scatter is that of single bands, of which a row may have few.
    margin = _SNR_MARGIN * math.exp(2 * config.snr_scatter)
    low, high = (1 / np.hypot(1 / limit, floors) for limit in (config.snr[0] / margin, config.snr[1] * margin))
    has = good.any(axis=1)
    outside = has & ((_median(snr / low, good) < 1) | (_median(snr / high, good) > 1))
    if config.without_photometry == 0:
        outside |= ~has
    if config.missing_band == 0 and bands is not None:
        outside |= has & (bands.counted(redshift) & ~good).any(axis=1)
    return np.asarray(outside)


def _snr_range(noise: RowNoise) -> tuple[float, float]:
    """Least and greatest signal-to-noise ratio of simulations, error floor included."""
    observing = noise.config.observing
    low, high = observing.snr
    if noise.donors is not None:
        factor = observing.donor_snr_factor
        least, most = np.quantile(noise.donors.snr, [_TABLE_SHARE, 1 - _TABLE_SHARE])
        low, high = least * factor[0], most * factor[1]
    return float(1 / math.hypot(1 / low, observing.floor[1])), float(1 / math.hypot(1 / high, observing.floor[0]))


def _drawn_shares(noise: RowNoise, redshift: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and greatest share (n,) of good elements that ``noise.observing`` gives at redshifts (n,)."""
    config = noise.config.observing
    observed = noise.elements.wavelength * (1 + redshift[:, None])
    most = (observed >= config.blue_end_angstrom[0]) & (observed <= config.red_end_angstrom[1])
    least = (observed >= config.blue_end_angstrom[1]) & (observed <= config.red_end_angstrom[0])
    if config.masked_lines:
        least &= ~noise.lines
    share = least.mean(axis=1) - config.gaps * config.gap_share - config.bad_elements
    if config.missing_arm:
        share = share - np.max([_alone(observed, config.arms, k).mean(axis=1) for k in range(len(config.arms))], axis=0)
    return share, most.mean(axis=1)


def _alone(observed: NDArray[np.float64], arms: tuple[tuple[float, float], ...], arm: int) -> NDArray[np.bool_]:
    """Elements (n, wavelength) that one arm covers and no other does."""
    covers = [(observed >= low) & (observed <= high) for low, high in arms]
    others = [inside for k, inside in enumerate(covers) if k != arm]
    return covers[arm] & ~np.any(others, axis=0)


def _donated_shares(
    noise: RowNoise, donors: Donors, redshift: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and greatest share (n,) of good elements of the donors near redshifts (n,)."""
    lines = noise.lines.mean() if noise.config.observing.masked_lines else 0.0
    limits = donors.near_shares[donors.near(redshift, np.full(len(redshift), 0.5))]
    return limits[:, 0] - lines, limits[:, 1]


def _misjudged(noise: NoiseModel, rows: PreparedRows) -> NDArray[np.bool_]:
    """Tell which rows (n,) have errors that are not those of the noise; see the base class of noise."""
    flux = np.abs(rows.flux)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(rows.good, 1 / np.sqrt(rows.ivar), np.nan)
        if noise.config.kind != "fractional":
            # The share of the flux that stands for the model's own errors is in no catalog's errors.
            own = np.hypot(own, noise.config.fraction * flux)
        low, high = (_median(own / noise.sigma(flux, errors), rows.good) for errors in _usual(noise) or (None, None))
    return np.asarray((low < 1 / _NOISE_FACTOR) | (high > _NOISE_FACTOR))


@lru_cache(maxsize=8)
def _usual(noise: NoiseModel) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Least and greatest usual errors (terms, 1, wavelength) of a catalog; None where rows have the same."""
    if noise.config.kind != "catalog" or noise.table is None:
        return None
    low, high = np.quantile(noise.table, [_TABLE_SHARE, 1 - _TABLE_SHARE], axis=1)
    return low[:, None], high[:, None]


def _median(values: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Median (n,) over the good elements; 1 where there is none."""
    known = good.any(axis=1)
    found = np.ones(len(values))
    if known.any():
        found[known] = np.nanmedian(np.where(good[known], values[known], np.nan), axis=1)
    return found
