r"""Noise that neighbouring elements share, as resampling leaves it: a short kernel over white noise.

With weights :math:`k_0, k_1 \ldots k_m` for an element and its neighbours on either side, and :math:`n` white,

.. math:: e_i = \sum_{j=-m}^{m} k_{|j|}\, n_{i+j} \Big/ \Big(\sum_{j=-m}^{m} k_{|j|}^2\Big)^{1/2}

has unit variance in every element (:math:`n` goes on beyond the ends of the grid), and a correlation matrix
that depends on the distance of two elements alone and vanishes beyond :math:`2m`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky_banded
from scipy.linalg.lapack import dtbtrs

__all__ = ["Correlation"]


class Correlation:
    """Correlation between elements that a symmetric kernel makes.

    Parameters
    ----------
    kernel : sequence of float
        Weight of the element itself, of its nearest neighbours, of the next ones and so on.

    Attributes
    ----------
    reach : int
        Neighbours on either side that the kernel takes in; 0 for white noise.
    coefficients : ndarray of float64, shape (2 reach + 1,)
        Correlation of two elements at distance 0, 1 ... 2 reach; zero beyond.
    """

    def __init__(self, kernel: Sequence[float]) -> None:
        half = np.asarray(kernel, dtype=float)
        self.reach = half.size - 1
        full = np.concatenate([half[:0:-1], half])
        self._weights = [float(weight) for weight in full / np.sqrt((full**2).sum())]
        self.coefficients = np.correlate(self._weights, self._weights, "full")[2 * self.reach :]

    def smooth(self, normal: Any) -> Any:
        """Correlated normals (..., wavelength) from white ones (..., wavelength + 2 reach), array or tensor."""
        if self.reach == 0:
            return normal
        elements = normal.shape[-1] - 2 * self.reach
        return sum(weight * normal[..., j : j + elements] for j, weight in enumerate(self._weights))

    def whiten(
        self, residual: NDArray[np.float64], good: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Turn correlated residuals of unit variance into independent ones.

        Parameters
        ----------
        residual : ndarray, shape (..., wavelength)
        good : ndarray of bool, shape (..., wavelength)
            Elements that count.

        Returns
        -------
        white : ndarray, shape (..., wavelength)
            Independent standard normals if the residuals have this correlation; 0 where not good.
        log_det : ndarray, shape (...)
            Natural log of the determinant of the good elements' correlation matrix.
        """
        white, log_det = np.where(good, residual, 0.0), np.zeros(residual.shape[:-1])
        if self.reach == 0:
            return white, log_det
        # Views, through which white and log_det are filled.
        rows, determinants = white.reshape(-1, white.shape[-1]), log_det.reshape(-1)
        masked_alike: dict[bytes, list[int]] = {}
        for row, mask in enumerate(good.reshape(rows.shape)):
            masked_alike.setdefault(mask.tobytes(), []).append(row)
        for packed, alike in masked_alike.items():
            kept = np.flatnonzero(np.frombuffer(packed, dtype=bool))
            if kept.size:
                factor = cholesky_banded(self._banded(kept), lower=True)
                determinants[alike] = 2 * np.log(factor[0]).sum()
                same = np.ix_(np.array(alike), kept)
                rows[same] = dtbtrs(factor, rows[same].T, uplo="L")[0].T
        return white, log_det

    def _banded(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Correlation matrix of some elements in increasing order, as LAPACK's lower bands."""
        far = 2 * self.reach + 1
        known = np.append(self.coefficients, 0.0)
        bands = np.zeros((min(far, kept.size), kept.size))
        for distance in range(len(bands)):
            apart = kept[distance:] - kept[: kept.size - distance]
            bands[distance, : apart.size] = known[np.minimum(apart, far)]
        return bands
