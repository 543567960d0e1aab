r"""The least squares of :mod:`~digs_survey.estimator.row_fit`, compiled.

The columns of the basis, the residual and the calibration's columns are one matrix E. All sums over the elements with
data are blocks of :math:`E^T W E`, which is made in tiles of :data:`LANES` columns, and only on and below its diagonal.
With the Cholesky root L of the matrix of the normal equations, variances and solutions need :math:`L^{-1}` alone.
"""

from __future__ import annotations

import numpy as np

from digs_survey.simd import STRIDE, cached_jit, dense_of, jit

__all__ = ["LANES", "compile_all", "fit_row"]

LANES = 16
"""Columns of a tile."""
_dense = dense_of(LANES)


@jit
def _invert_root(matrix, inverse):  # type: ignore[no-untyped-def]
    """Write the inverse of the Cholesky root of a matrix (n, n), of which the upper triangle is read and overwritten.

    False if the matrix is not positive definite. NaN stays NaN.
    """
    size = matrix.shape[0]
    for k in range(size):
        if matrix[k, k] <= 0:
            return False
        scale = 1 / np.sqrt(matrix[k, k])
        above = matrix[k]
        for j in range(k, size):
            above[j] *= scale
        for i in range(k + 1, size):
            row, factor = matrix[i], above[i]
            for j in range(i, size):
                row[j] -= factor * above[j]
    inverse[:] = 0.0
    for i in range(size):
        row = inverse[i]
        row[i] = 1.0
        for k in range(i):
            above, factor = inverse[k], matrix[k, i]
            for j in range(k + 1):
                row[j] -= factor * above[j]
        for j in range(i + 1):
            row[j] /= matrix[i, i]
    return True


@jit
def _apply(root, vector, out):  # type: ignore[no-untyped-def]
    """Product of a lower triangular matrix (n, n) and a vector (n,)."""
    for i in range(root.shape[0]):
        total = 0.0
        for j in range(i + 1):
            total += root[i, j] * vector[j]
        out[i] = total


@jit
def _apply_transposed(root, vector, out):  # type: ignore[no-untyped-def]
    """Product of the transpose of a lower triangular matrix (n, n) and a vector (n,)."""
    out[:] = 0.0
    for i in range(root.shape[0]):
        row, factor = root[i], vector[i]
        for j in range(i + 1):
            out[j] += factor * row[j]


@cached_jit
def fit_row(basis, terms, mean, weight, residual, fits):  # type: ignore[no-untyped-def]
    """See :func:`digs_survey.estimator.row_fit.fit_row`; True first, or False where there is no Cholesky root."""
    some = np.flatnonzero(weight)
    depth, count, order = -(-max(some.size, 1) // STRIDE) * STRIDE, basis.shape[1], terms.shape[1]
    own = count + 1
    width = own + order
    tiles = -(-width // LANES)
    columns, weighted = np.zeros((width, depth)), np.zeros((tiles, depth * LANES))
    for k in range(some.size):
        e = some[k]
        for i in range(count):
            columns[i, k] = basis[e, i]
            weighted[i // LANES, k * LANES + i % LANES] = weight[e] * basis[e, i]
        columns[count, k] = residual[e]
        weighted[count // LANES, k * LANES + count % LANES] = weight[e] * residual[e]
    zeros, sums = np.zeros(width), np.zeros((tiles, width * LANES))
    for tile in range(tiles):
        _dense(columns, zeros, depth, weighted[tile], sums[tile], tile * LANES, own)
    normal, root = np.empty((count, count)), np.empty((count, count))
    right, precision = np.empty(count), np.empty(count)
    for j in range(count):
        for i in range(j, count):
            normal[j, i] = sums[j // LANES, i * LANES + j % LANES]
        normal[j, j] += 1
        precision[j], right[j] = normal[j, j], sums[j // LANES, count * LANES + j % LANES]
    square = sums[count // LANES, count * LANES + count % LANES]
    coefficients, variance, solved = np.zeros(count), np.zeros(count), np.empty(count)
    done = _invert_root(normal, root)
    _apply(root, right, solved)
    _apply_transposed(root, solved, coefficients)
    for i in range(count):
        for j in range(i + 1):
            variance[j] += root[i, j] * root[i, j]
    alone, spectrum = coefficients.copy(), np.zeros(depth)
    for k in range(some.size):
        spectrum[k] = mean[some[k]]
    inner, inner_root = np.empty((order, order)), np.empty((order, order))
    whitened, gain = np.empty((order, count)), np.empty((order, count))
    along, half, part, mixed = np.empty(order), np.empty(order), np.zeros(order), np.empty(count)
    for fit in range(fits if order else 0):
        if fit:
            for k in range(some.size):
                spectrum[k] = mean[some[k]]
            for i in range(count):
                column, factor = columns[i], coefficients[i]
                for k in range(depth):
                    spectrum[k] += factor * column[k]
        for k in range(some.size):
            for p in range(order):
                c = own + p
                columns[c, k] = spectrum[k] * terms[some[k], p]
                weighted[c // LANES, k * LANES + c % LANES] = weight[some[k]] * columns[c, k]
        for tile in range(tiles):
            _dense(columns, zeros, depth, weighted[tile], sums[tile], own, width)
        for p in range(order):
            row = (own + p) * LANES
            for j in range(count):
                mixed[j] = sums[j // LANES, row + j % LANES]
            _apply(root, mixed, whitened[p])
            _apply_transposed(root, whitened[p], gain[p])
            along[p] = sums[count // LANES, row + count % LANES]
            half[p] = along[p]
            for j in range(count):
                half[p] -= whitened[p, j] * solved[j]
        for p in range(order):
            for q in range(p, order):
                c = own + p
                total = sums[c // LANES, (own + q) * LANES + c % LANES] + (1.0 if p == q else 0.0)
                for j in range(count):
                    total -= whitened[p, j] * whitened[q, j]
                inner[p, q] = total
        done &= _invert_root(inner, inner_root)
        _apply(inner_root, half, part)
        _apply_transposed(inner_root, part.copy(), part)
        for j in range(count):
            coefficients[j] = alone[j]
            for p in range(order):
                coefficients[j] -= gain[p, j] * part[p]
    if order and fits:
        for p in range(order):
            mixed[:] = 0.0
            for q in range(p + 1):
                for j in range(count):
                    mixed[j] += inner_root[p, q] * gain[q, j]
            for j in range(count):
                variance[j] += mixed[j] * mixed[j]
        for p in range(order):
            square -= along[p] * part[p]
    for j in range(count):
        square -= right[j] * coefficients[j]
    return done, coefficients, variance, precision, square


def compile_all() -> None:
    """Compile the loop, or take it from numba's cache; raises what keeps numba from it."""
    fit_row(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), np.ones(1), np.ones(1), 1)
