"""Whether spectra drawn from the posterior look like the observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from digs_survey.simulate.noise import NoiseModel

__all__ = ["BAND", "chi_square", "predictive_band", "residual_percent", "standard_residuals"]

BAND = (0.16, 0.5, 0.84)


def standard_residuals(
    observed: ArrayLike,
    model: ArrayLike,
    noise: NoiseModel,
    good: ArrayLike,
    relative: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Residuals in units of the noise about the model: standard normal if the model is the truth.

    Parameters
    ----------
    observed, model : array_like, shape (..., wavelength)
    noise : NoiseModel
        Where it is Gaussian in log10 flux, the residual is one of log10 flux.
    good : array_like of bool, shape (..., wavelength)
    relative : array_like, shape (..., wavelength), optional
        For catalog noise: 1-sigma error over flux of the observation.

    Returns
    -------
    ndarray of float64, shape (..., wavelength)
        NaN where not good.
    """
    data, mean = np.asarray(observed, dtype=float), np.asarray(model, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        if noise.space == "log10":
            residual = np.log(data / mean) / np.log1p(noise.fraction)
        else:
            width = None if relative is None else np.asarray(relative, dtype=float)
            residual = (data - mean) / noise.sigma(mean, width)
    return np.where(np.asarray(good, dtype=bool), residual, np.nan)


def chi_square(residuals: ArrayLike) -> NDArray[np.float64]:
    """Sum of squares (...) of standard residuals (..., wavelength) over the elements that are not NaN.

    NaN if no element is left.
    """
    values = np.asarray(residuals, dtype=float)
    return np.where(np.isfinite(values).any(axis=-1), np.nansum(values**2, axis=-1), np.nan)


def residual_percent(observed: ArrayLike, model: ArrayLike, good: ArrayLike) -> NDArray[np.float64]:
    """Residuals (..., wavelength) in per cent of the model's flux; NaN where not good."""
    ratio = np.asarray(observed, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = ratio / np.asarray(model, dtype=float)
    return np.where(np.asarray(good, dtype=bool), 100 * (ratio - 1), np.nan)


def predictive_band(spectra: ArrayLike) -> NDArray[np.float64]:
    """Percentiles 16, 50, 84 (3, wavelength) of noiseless spectra (draw, wavelength) of posterior draws."""
    return np.quantile(np.asarray(spectra, dtype=float), BAND, axis=0)
