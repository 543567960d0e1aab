"""Populations on a catalog's grid, interpolated in metallicity and, where it is free, in the line spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.sps.arrays import as_like, namespace

__all__ = ["Part", "SpreadPart", "lagrange_shares"]

_COMPRESSED_FROM, _RESIDUE = 1_000, 3e-6
"""Length of populations on the grid from which on they are kept as sums of fewer vectors, and what these leave out, as
a share of the populations."""
_HISTORY_RESIDUE = 1e-6
"""As :data:`_RESIDUE`, of the populations as sums of fewer ones, before the line spread is known."""


class Part:
    """Rows of populations on the grid, interpolated in metallicity and summed with weights.

    Parameters
    ----------
    log_z : ndarray, shape (node,)
    degree : int
        Of the polynomial through the nodes of a panel.
    rows : ndarray, shape (node, age, term * element)
    """

    def __init__(self, log_z: NDArray[np.float64], degree: int, rows: NDArray[np.floating]) -> None:
        self._degree, self._edges, self._ages = degree, log_z[::degree].copy(), rows.shape[1]
        panels = [rows[i : i + degree + 1].reshape(-1, rows.shape[2]) for i in range(0, log_z.size - 1, degree)]
        # Two products of matrices, the first narrow, in the place of one.
        self._mixing: list[NDArray[np.float32]] | None = None
        if rows.shape[2] >= _COMPRESSED_FROM:
            factors = [_factors(panel) for panel in panels]
            self._mixing, self._rows = [left for left, _ in factors], [right for _, right in factors]
        else:
            self._rows = list(np.stack(panels).astype(np.float32))

    def __call__(self, weights: Any, logzsol: Any) -> Any:
        """Sums (n, term * element) for weights (n, age) and metallicities (n,)."""
        xp = namespace(weights)
        edges, rows = as_like(self._edges, logzsol), [as_like(panel, weights) for panel in self._rows]
        panel = xp.clip(xp.searchsorted(edges, logzsol, side="right") - 1, 0, len(rows) - 1)
        shares = self._shares((logzsol - edges[panel]) / (edges[panel + 1] - edges[panel]))
        shares, weights = xp.asarray(xp.stack(shares, -1), dtype=weights.dtype), weights[:, : self._ages]
        total = xp.zeros((len(weights), rows[0].shape[-1]), dtype=weights.dtype, device=weights.device)
        for k in range(len(rows)):
            (chosen,) = xp.where(panel == k)
            if len(chosen):
                mixed = shares[chosen][:, :, None] * weights[chosen][:, None, :]
                mixed = mixed.reshape(len(chosen), -1)
                if self._mixing is not None:
                    mixed = mixed @ as_like(self._mixing[k], weights)
                total[chosen] = mixed @ rows[k]
        return total

    def _shares(self, position: Any) -> list[Any]:
        """Lagrange's polynomials through equal steps from 0 to 1, at positions (n,)."""
        steps = range(self._degree + 1)
        return [math.prod((self._degree * position - j) / (k - j) for j in steps if j != k) for k in steps]


class SpreadPart:
    """Rows of populations on the grid, interpolated in metallicity and in the line spread, and summed with weights.

    Parameters
    ----------
    log_z : ndarray, shape (node,)
    degree : int
        Of the polynomial through the nodes of a panel of metallicities.
    nodes : sequence of ndarray, each (spread node,)
        Log sigma at the nodes of each panel of line spreads, through which a polynomial goes.
    edges : ndarray, shape (panel + 1,)
        Log sigma between which the panels lie.

    Notes
    -----
    Each panel of line spreads is filled by itself, so that one at a time is in memory.

    The wide product is as in :class:`Part`. Before it, a galaxy's weights times its shares of the metallicities become
    its weights of a few sums of populations, and these times its shares of the line spreads become its weights of the
    vectors that the wide product takes.
    """

    def __init__(
        self,
        log_z: NDArray[np.float64],
        degree: int,
        nodes: Sequence[NDArray[np.float64]],
        edges: NDArray[np.float64],
    ) -> None:
        self._degree, self._edges = degree, log_z[::degree].copy()
        self._nodes, self._spread_edges = list(nodes), edges
        self._products: dict[tuple[int, int], list[NDArray[np.float32]]] = {}

    def fill(self, spread: int, rows: NDArray[np.floating]) -> None:
        """Take the populations (spread node, node, age, term * element) of one panel of line spreads."""
        self._ages, self._width = rows.shape[2:]
        for panel in range(len(self._edges) - 1):
            nodes = slice(panel * self._degree, (panel + 1) * self._degree + 1)
            self._products[panel, spread] = _products(rows[:, nodes])

    def __call__(self, weights: Any, logzsol: Any, log_sigma: Any) -> Any:
        """Sums (n, term * element) for weights (n, age), metallicities (n,) and logs of sigma (n,)."""
        xp, weights = namespace(weights), weights[:, : self._ages]
        panel, lower, width = _place(self._edges, logzsol)
        steps = np.arange(self._degree + 1) / self._degree
        shares = xp.asarray(lagrange_shares(steps, (logzsol - lower) / width), dtype=weights.dtype)
        spread, _, _ = _place(self._spread_edges, log_sigma)
        total = xp.zeros((len(weights), self._width), dtype=weights.dtype, device=weights.device)
        for (k, m), (histories, *products) in self._products.items():
            (chosen,) = xp.where((panel == k) & (spread == m))
            if len(chosen):
                mixed = (shares[chosen][:, :, None] * weights[chosen][:, None, :]).reshape(len(chosen), -1)
                mixed = mixed @ as_like(histories, weights)
                of_spread = xp.asarray(lagrange_shares(self._nodes[m], log_sigma[chosen]), dtype=weights.dtype)
                mixed = (of_spread[:, :, None] * mixed[:, None, :]).reshape(len(chosen), -1)
                for product in products:
                    mixed = mixed @ as_like(product, weights)
                total[chosen] = mixed
        return total


def lagrange_shares(nodes: NDArray[np.float64], position: Any) -> Any:
    """Lagrange's polynomials (n, node) through nodes (node,), at positions (n,)."""
    order = range(len(nodes))
    shares = [math.prod((position - nodes[j]) / (nodes[k] - nodes[j]) for j in order if j != k) for k in order]
    return namespace(position).stack(shares, -1)


def _place(edges: NDArray[np.float64], values: Any) -> tuple[Any, Any, Any]:
    """Return the panel of each value (n,), its lower edge and its width."""
    xp, at = namespace(values), as_like(edges, values)
    panel = xp.clip(xp.searchsorted(at, values, side="right") - 1, 0, len(edges) - 2)
    return panel, at[panel], at[panel + 1] - at[panel]


def _products(rows: NDArray[np.floating]) -> list[NDArray[np.float32]]:
    """Return matrices whose product takes a galaxy's weights to its spectrum, in the order that they are applied.

    The first has shape (node * age, sum); between it and the next a galaxy's share of each line spread comes in, so
    that the next has (spread node * sum) rows; the last has (term * element) columns.
    """
    spreads, width = rows.shape[0], rows.shape[3]
    wide = rows.reshape(spreads, -1, width).astype(np.float64)
    size = _sizes(np.abs(wide).mean(axis=(0, 2)))
    wide /= size[:, None]
    squares = np.zeros((size.size, size.size))
    for of_spread in wide:
        squares += of_spread @ of_spread.T
    kept = _directions(squares, _HISTORY_RESIDUE)
    sums = (kept.T @ wide).reshape(-1, width)
    products = [(size[:, None] * kept).astype(np.float32)]
    if width < _COMPRESSED_FROM:
        return [*products, sums.astype(np.float32)]
    mixing = _directions(sums @ sums.T, _RESIDUE)
    return [*products, mixing.astype(np.float32), (mixing.T @ sums).astype(np.float32)]


def _directions(squares: NDArray[np.float64], residue: float) -> NDArray[np.float64]:
    """Leading eigenvectors (row, vector) of products of rows (row, row) that leave out a share ``residue`` of them."""
    strength, vectors = np.linalg.eigh(squares)
    beyond = np.sqrt(np.cumsum(np.maximum(strength, 0.0)))
    return np.ascontiguousarray(vectors[:, beyond > residue * beyond[-1]][:, ::-1])


def _sizes(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sizes of populations, 1 where there is nothing."""
    # Each population counts as much as any other, however bright a solar mass of it is.
    return np.where(size == 0, 1.0, size)


def _factors(rows: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrices (row, vector) and (vector, column) whose product is rows (row, column), to :data:`_RESIDUE`."""
    wide = np.asarray(rows, dtype=np.float64)
    size = _sizes(np.abs(wide).mean(axis=1, keepdims=True))
    left, strength, right = np.linalg.svd(wide / size, full_matrices=False)
    beyond = np.sqrt(np.cumsum(strength[::-1] ** 2))[::-1]
    count = int((beyond > _RESIDUE * beyond[0]).sum())
    return (size * left[:, :count] * strength[:count]).astype(np.float32), right[:count].astype(np.float32)
