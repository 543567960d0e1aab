"""The least squares of :mod:`~digs_survey.estimator.fitted_features` for one row, which batches are too wide for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

__all__ = ["fit_row"]

Array = NDArray[np.float64]


def fit_row(
    basis: Array, terms: Array, mean: Array, weight: Array, residual: Array, fits: int
) -> tuple[Array, Array, Array, Array]:
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
    coefficients, variance, precision : ndarray, shape (column,)
        Posterior means and variances; the diagonal of the matrix of the normal equations without the calibration.
    square : ndarray, shape ()
        Chi-square of the best fit, with the priors' part.
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
    return coefficients, variance, normal.diagonal().copy(), np.asarray(square)


def _inverse(matrix: Array) -> Array:
    """Inverse of a symmetric positive definite matrix, by its Cholesky root."""
    root, failed = lapack.dpotrf(matrix, lower=1)
    if failed:
        raise np.linalg.LinAlgError("the matrix of the normal equations is not positive definite")
    lower, _ = lapack.dpotri(root, lower=1)
    return np.asarray(np.tril(lower) + np.tril(lower, -1).T)
