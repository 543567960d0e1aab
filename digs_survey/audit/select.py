r"""Which rows of a catalog the audit looks at: a stratified probability sample.

Rows are sorted into cells of signal-to-noise, of position in the posterior's own space, of redshift and of the
mean predictor of a disagreement with emcee, and each occupied cell gets an equal share of the sample, so that rare
kinds of galaxies
are looked at too. The inclusion probability of every row is known and positive; its inverse is the row's weight, with
which an average over the sample estimates the average over the catalog (Horvitz & Thompson 1952).

The rows are drawn by systematic sampling with unequal probabilities (Madow 1949): lay the probabilities
:math:`\pi_i`, which add up to the sample size, end to end, and take the rows on which the points
:math:`u, u + 1, u + 2, \ldots` fall. This also holds for samples smaller than the number of cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Selection", "mean_predictor", "principal_position", "select_rows", "signal_to_noise"]

_TERCILES = (1 / 3, 2 / 3)


@dataclass(frozen=True)
class Selection:
    """A probability sample of rows.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Rows of the catalog, increasing.
    weight : ndarray of float64, shape (n,)
        One over the inclusion probability of each row; they add up, on average, to the eligible rows.
    stratum : ndarray of int64, shape (n,)
        Cell of each row: 27 * (tercile of the mean predictor) + 9 * (tercile of redshift) + 3 * (tercile of S/N) +
        (tercile of position).
    """

    rows: NDArray[np.int64]
    weight: NDArray[np.float64]
    stratum: NDArray[np.int64]


def signal_to_noise(flux: ArrayLike, ivar: ArrayLike, good: ArrayLike) -> NDArray[np.float64]:
    """Median signal-to-noise of the good elements of each row.

    Parameters
    ----------
    flux, ivar : array_like, shape (row, wavelength)
    good : array_like of bool, shape (row, wavelength)

    Returns
    -------
    ndarray of float64, shape (row,)
        NaN where no element is good.
    """
    use = np.asarray(good, dtype=bool)
    weight = np.where(use, np.asarray(ivar, dtype=float), 0.0)
    ratio = np.where(use, np.asarray(flux, dtype=float), np.nan) * np.sqrt(weight)
    result = np.full(len(ratio), np.nan)
    some = use.any(axis=1)
    result[some] = np.nanmedian(ratio[some], axis=1)
    return result


def principal_position(medians: ArrayLike) -> NDArray[np.float64]:
    """Position of each row along the direction in which posterior medians differ the most.

    Parameters
    ----------
    medians : array_like, shape (row, parameter)
        Posterior medians, in units that make the parameters comparable (the prior's CDF).

    Returns
    -------
    ndarray of float64, shape (row,)
        NaN where a median is not finite. The sign of the direction has no meaning.
    """
    points = np.asarray(medians, dtype=float)
    finite = np.isfinite(points).all(axis=1)
    position = np.full(len(points), np.nan)
    if finite.any():
        centred = points[finite] - points[finite].mean(axis=0)
        _, directions = np.linalg.eigh(centred.T @ centred)
        position[finite] = centred @ directions[:, -1]
    return position


def mean_predictor(found: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64]:
    """Mean (row,) of predictors, each in its standard deviations; NaN where one is not finite.

    Parameters
    ----------
    found : mapping of str to ndarray, shape (row,)
        From :func:`~digs_survey.audit.agreement_predictors.read_predictors`.
    """
    total = np.zeros(len(next(iter(found.values()))))
    for values in found.values():
        one = np.where(np.isfinite(values), values, np.nan).astype(float)
        if np.isfinite(one).any() and (spread := np.nanstd(one)) > 0:
            one = (one - np.nanmean(one)) / spread
        total += one / len(found)
    return total


def select_rows(
    snr: ArrayLike,
    position: ArrayLike,
    eligible: ArrayLike,
    count: int,
    seed: int,
    redshift: ArrayLike | None = None,
    predictor: ArrayLike | None = None,
) -> Selection:
    """Draw a stratified sample of the eligible rows.

    Parameters
    ----------
    snr : array_like, shape (row,)
        Signal-to-noise of each row.
    position : array_like, shape (row,)
        Position of each row's posterior, for example from :func:`principal_position`.
    eligible : array_like of bool, shape (row,)
        Rows that have a posterior. Of these, rows whose S/N or position is not finite are left out too.
    count : int
        Rows to draw; all of them if there are fewer.
    seed : int
        The run's seed.
    redshift : array_like, shape (row,), optional
    predictor : array_like, shape (row,), optional
        From :func:`mean_predictor`. Both are finite where ``eligible``; left out, all rows are in one tercile.
    """
    ratio, place = np.asarray(snr, dtype=float), np.asarray(position, dtype=float)
    candidates = np.flatnonzero(np.asarray(eligible, dtype=bool) & np.isfinite(ratio) & np.isfinite(place))
    cell = 3 * _tercile(ratio[candidates]) + _tercile(place[candidates])
    for step, values in ((9, redshift), (27, predictor)):
        if values is not None:
            cell += step * _tercile(np.asarray(values, dtype=float)[candidates])
    if candidates.size <= count:
        return Selection(candidates, np.ones(candidates.size), cell)
    probability = _equal_shares(cell, count)
    rng = np.random.default_rng([seed, *b"select"])
    order = np.lexsort([rng.random(candidates.size), cell])
    reach = np.cumsum(probability[order])
    points = rng.random() + np.arange(count)
    chosen = np.sort(order[np.searchsorted(reach * (count / reach[-1]), points, side="right")])
    return Selection(candidates[chosen], 1 / probability[chosen], cell[chosen])


def _tercile(values: NDArray[np.float64]) -> NDArray[np.int64]:
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    return np.searchsorted(np.quantile(values, _TERCILES), values, side="left").astype(np.int64)


def _equal_shares(cell: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Inclusion probabilities that give each occupied cell the same expected number, none above 1."""
    _, member, size = np.unique(cell, return_inverse=True, return_counts=True)
    share = np.zeros(size.size)
    open_cells = np.ones(size.size, dtype=bool)
    while True:
        share[open_cells] = (count - size[~open_cells].sum()) / open_cells.sum()
        full = open_cells & (share >= size)
        if not full.any():
            break
        share[full] = size[full]
        open_cells &= ~full
    return (share / size)[member]
