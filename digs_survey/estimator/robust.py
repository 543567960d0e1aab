"""Statistics that a few wild spectra do not spoil."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["clip_outliers"]

_WIDTHS = 8.0
"""Half-widths of the central 68 % from the median to which values are clipped: no Gaussian or uniform value is."""


def clip_outliers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip each column of values (n, ...) to its median plus and minus eight of its robust widths."""
    low, median, high = np.quantile(values, [0.16, 0.5, 0.84], axis=0)
    reach = _WIDTHS * 0.5 * (high - low)
    return np.clip(values, median - reach, median + reach)
