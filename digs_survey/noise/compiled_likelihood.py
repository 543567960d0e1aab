r"""The likelihood of one row under noise of kind "row" for many models, compiled; a model in each lane.

The residuals r and the calibration's terms V, both over the errors, are those of
:mod:`~digs_survey.noise.row_likelihood`. Chi-square with the calibration integrated out is
:math:`r'r - (V'r)' (1 + V'V)^{-1} V'r`, and the determinant of its covariance is that of :math:`1 + V'V`. One
Cholesky factor gives both.
"""

from __future__ import annotations

import numpy as np

from digs_survey.simd import cached_jit, dense_of, padded

__all__ = ["compile_all", "goodness"]

_LANES = 32
_dense = dense_of(_LANES)


@cached_jit
def goodness(observed, inverse, models, terms, products):  # type: ignore[no-untyped-def]
    """Chi-square and the logarithm of the determinant (draws,) of one row for each model; and which are possible.

    Parameters
    ----------
    observed, inverse : ndarray of float64, shape (wavelength,)
        Flux, and inverse errors, 0 where there is no data.
    models : ndarray of float64, shape (draws, wavelength)
    terms : ndarray of float64, shape (term, padded wavelength)
        Calibration terms, each by the standard deviation of its coefficient.
    products : ndarray of float64, shape (term * (term + 1) / 2, padded wavelength)
        Of terms i and j <= i, in the order of the lower triangle.
    """
    draws, elements = models.shape
    order, depth = terms.shape
    chi2, log_det, possible = np.empty(draws), np.empty(draws), np.ones(draws, np.bool_)
    square, along = np.zeros(depth * _LANES), np.zeros(depth * _LANES)
    inner, onto = np.zeros(products.shape[0] * _LANES), np.zeros(order * _LANES)
    zeros, total = np.zeros(products.shape[0] + order), np.zeros(_LANES)
    factor, solved = np.zeros((order, order)), np.zeros(order)
    for first in range(0, draws, _LANES):
        used = min(_LANES, draws - first)
        total[:] = 0.0
        for e in range(elements):
            of_square, of_along = square[e * _LANES :], along[e * _LANES :]
            if inverse[e] > 0:
                for n in range(_LANES):
                    flux = models[first + min(n, used - 1), e]
                    scaled = flux * inverse[e]
                    residual = observed[e] * inverse[e] - scaled
                    total[n] += residual * residual
                    of_square[n], of_along[n] = scaled * scaled, scaled * residual
                for n in range(used):
                    if not (models[first + n, e] > 0 and models[first + n, e] < np.inf):
                        possible[first + n] = False
            else:
                for n in range(_LANES):
                    of_square[n], of_along[n] = 0.0, 0.0
        _dense(products, zeros, elements, square, inner, 0, products.shape[0])
        _dense(terms, zeros, elements, along, onto, 0, order)
        for n in range(used):
            reduction, determinant = 0.0, 0.0
            for i in range(order):
                value = onto[i * _LANES + n]
                for j in range(i + 1):
                    s = inner[(i * (i + 1) // 2 + j) * _LANES + n] + (1.0 if i == j else 0.0)
                    for k in range(j):
                        s -= factor[i, k] * factor[j, k]
                    factor[i, j] = np.sqrt(s) if i == j else s / factor[j, j]
                for k in range(i):
                    value -= factor[i, k] * solved[k]
                solved[i] = value / factor[i, i]
                reduction += solved[i] * solved[i]
                determinant += 2 * np.log(factor[i, i])
            chi2[first + n], log_det[first + n] = total[n] - reduction, determinant
    return chi2, log_det, possible


def compile_all() -> None:
    """Compile the loop, or take it from numba's cache; raises what keeps numba from it."""
    one = padded(np.ones((1, 1)))
    goodness(np.ones(1), np.ones(1), np.ones((1, 1)), one, one)
