"""Statistics that a few wild spectra do not spoil."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["GAUSSIAN_MEDIAN", "clip_outliers", "ordinary_rows"]

GAUSSIAN_MEDIAN = 0.6744897501960817
"""Median of the absolute value of a standard normal variate."""

_WIDTHS = 8.0
"""Half-widths of the central 68 % beyond which a value is an outlier: no Gaussian or uniform value is."""
_FEW = 0.01
"""Share of rows up to which those with outliers are exceptions, and not a part of the population."""


def _range(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, median, high = np.quantile(values, [0.16, 0.5, 0.84], axis=0)
    reach = _WIDTHS * 0.5 * (high - low)
    return median - reach, median + reach


def ordinary_rows(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which rows of values (n, k) have no outlier; all of them where more than one in a hundred has."""
    low, high = _range(values)
    ordinary = np.asarray(((values >= low) & (values <= high)).all(axis=1))
    return ordinary if ordinary.mean() >= 1 - _FEW else np.ones(len(values), dtype=bool)


def clip_outliers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring the outliers in each column of values (n, ...) to the end of the range of the others."""
    return np.clip(values, *_range(values))
