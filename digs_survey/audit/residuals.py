"""Whether spectra drawn from the posterior look like the observation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BAND", "chi_square", "predictive_band", "residual_percent"]

BAND = (0.16, 0.5, 0.84)


def chi_square(residuals: ArrayLike) -> NDArray[np.float64]:
    """Sum of squares (...) of independent standard residuals (..., wavelength) over the elements that are not NaN.

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
