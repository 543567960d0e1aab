"""The least squares of :mod:`~digs_survey.estimator.fitted_features` for one row, which batches are too wide for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

__all__ = ["Fit", "fit_row"]

Array = NDArray[np.float64]


class Fit(NamedTuple):
    """What a fit gives for each row; numpy arrays of one row, or torch tensors of many.

    Attributes
    ----------
    coefficients, variance, precision : (..., column)
        Posterior means and variances; the diagonal of the matrix of the normal equations without the calibration.
    square : (...)
        Chi-square of the best fit, with the priors' part.
    term, term_variance : (...)
        Posterior mean and variance of the calibration's first coefficient; 0 and 1 without calibration.
    """

    coefficients: Any
    variance: Any
    precision: Any
    square: Any
    term: Any
    term_variance: Any


def fit_row(basis: Array, terms: Array, mean: Array, weight: Array, residual: Array, fits: int) -> Fit:
    """Fit the coefficients of a basis to one row, with the calibration marginalised.

    Parameters
    ----------
    basis : ndarray, shape (wavelength, column)
    terms : ndarray, shape (wavelength, term)
        Of the calibration polynomial, each by the standard deviation of its coefficient; there may be none.
    mean : ndarray, shape (wavelength,)
    weight, residual : ndarray, shape (wavelength,)
        Inverse variances, 0 where there is no data, and the row's flux less the mean.
    fits : int
        With the calibration multiplying the spectrum of the fit before.

    Returns
    -------
    Fit
    """
    some = np.flatnonzero(weight)
    basis, terms, mean, weight, residual = basis[some], terms[some], mean[some], weight[some], residual[some]
    scaled = np.sqrt(weight)[:, None] * basis
    normal = scaled.T @ scaled
    normal[np.diag_indices_from(normal)] += 1
    right = (weight * residual) @ basis
    covariance = _inverse(normal)
    alone = covariance @ right
    coefficients, variance, spectrum = alone, np.diagonal(covariance), mean
    gain, inner, along, part = np.zeros((len(right), 0)), np.zeros((0, 0)), np.zeros(0), np.zeros(0)
    for _ in range(fits if terms.shape[1] else 0):
        columns = spectrum[:, None] * terms
        weighted = weight[:, None] * columns
        along = residual @ weighted
        cross = basis.T @ weighted
        gain = covariance @ cross
        inner = _inverse(columns.T @ weighted + np.eye(len(along)) - cross.T @ gain)
        part = inner @ (along - cross.T @ alone)
        coefficients = alone - gain @ part
        spectrum = mean + basis @ coefficients
    variance = variance + ((gain @ inner) * gain).sum(axis=1)
    square = (weight * residual) @ residual - right @ coefficients - along @ part
    first = (part[0], inner[0, 0]) if part.size else (0.0, 1.0)
    return Fit(coefficients, variance, normal.diagonal().copy(), np.asarray(square), *map(np.asarray, first))


def _inverse(matrix: Array) -> Array:
    """Inverse of a symmetric positive definite matrix, by its Cholesky root."""
    root, failed = lapack.dpotrf(matrix, lower=1)
    if failed:
        raise np.linalg.LinAlgError("the matrix of the normal equations is not positive definite")
    lower, _ = lapack.dpotri(root, lower=1)
    return np.asarray(np.tril(lower) + np.tril(lower, -1).T)
