r"""Quantiles of posterior draws: order statistics, and the smooth ones that few even draws give well.

Points of a Sobol sequence are even in the space of all parameters. In one parameter alone they leave gaps that their
neighbours make up for, which a single order statistic does not see. The smooth quantile of level p is the value at
:math:`\Phi^{-1}(p)` of a parabola, fitted by least squares to the order statistics against their normal scores nearby
(local polynomial regression; Fan & Gijbels 1996). It is exact for a Gaussian, a shift or a scale of one, and is a fixed
weighted mean of order statistics. ``python -m benchmarks.points`` measures what it gains.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from digs_survey.prior import Prior

__all__ = ["draw_quantiles", "ordered_quantiles", "positive_quantiles", "smooth_quantiles"]

_WIDTH, _WIDTH_DRAWS = 1.0, 512
"""Half-width, in normal scores, of what a parabola is fitted to, for so many draws or fewer; more draws need less."""
_LEAST_BEYOND = 8
"""Draws beyond a level, at least, for it to be smoothed; fewer tell nothing of the curve there."""


def draw_quantiles(theta: NDArray[np.float64], quantiles: tuple[float, ...]) -> NDArray[np.float64]:
    """Quantiles over the draws, interpolated linearly between order statistics.

    Parameters
    ----------
    theta : ndarray, shape (n, draws, ndim)
    quantiles : tuple of float
        Between 0 and 1.

    Returns
    -------
    ndarray, shape (n, ndim, quantile)
        As ``numpy.quantile`` gives; sorting contiguous draws once is several times faster.
    """
    ordered = np.sort(np.ascontiguousarray(theta.transpose(0, 2, 1)), axis=-1)
    position = np.asarray(quantiles) * (ordered.shape[-1] - 1)
    below, above = np.floor(position).astype(int), np.ceil(position).astype(int)
    return ordered[..., below] + (position - below) * (ordered[..., above] - ordered[..., below])


def smooth_quantiles(ordered: NDArray[np.floating], quantiles: ArrayLike) -> NDArray[np.float64]:
    """Smooth quantiles of sorted draws.

    Parameters
    ----------
    ordered : ndarray, shape (n, ndim, draws)
        Each parameter's draws in increasing order, best in a coordinate in which they are not far from Gaussian.
    quantiles : array_like, shape (quantile,) or (ndim, quantile)
        Between 0 and 1; the same for all parameters, or each parameter's own.

    Returns
    -------
    ndarray, shape (n, ndim, quantile)
        Within the draws. A level with fewer than 8 draws beyond it is interpolated between order statistics.
    """
    size, ndim, draws = ordered.shape
    levels = np.asarray(quantiles, dtype=float)
    levels = np.broadcast_to(levels, (ndim, levels.shape[-1]))
    found = np.empty((size, *levels.shape))
    for column in range(levels.shape[1]):
        same = (levels[:, column] == levels[0, column]).all()
        for parameters in [slice(None)] if same else [slice(k, k + 1) for k in range(ndim)]:
            start, weights = _weights(float(levels[parameters, column][0]), draws)
            # A sum along the draws of each row: of a product of matrices, the last digits depend on the other rows.
            near = ordered[:, parameters, start : start + weights.size] * weights
            found[:, parameters, column] = near.sum(axis=-1)
    return np.clip(found, ordered[..., :1], ordered[..., -1:])


def ordered_quantiles(u: NDArray[np.floating], quantiles: ArrayLike, prior: Prior) -> NDArray[np.float64]:
    """Return theta at the smooth quantiles of sorted draws of u.

    Parameters
    ----------
    u : ndarray, shape (n, ndim, draws)
        Unconstrained coordinates of the prior, each parameter's draws in increasing order.
    quantiles : array_like, shape (quantile,) or (ndim, quantile)
        Between 0 and 1; the same for all parameters, or each parameter's own.
    prior : Prior

    Returns
    -------
    ndarray, shape (n, ndim, quantile)
        In the parameters' units.
    """
    return prior.from_unconstrained(smooth_quantiles(u, quantiles).transpose(0, 2, 1)).transpose(0, 2, 1)


def positive_quantiles(values: NDArray[np.float64], quantiles: tuple[float, ...]) -> NDArray[np.float64]:
    """Smooth quantiles (n, quantity, quantile) of the logarithms of what is positive (n, draws, quantity), as such.

    A quantity that is 0 in a draw, as a rate before the galaxy began, has quantiles between its order statistics.
    """
    ordered = np.sort(np.ascontiguousarray(values.transpose(0, 2, 1)), axis=-1)
    found = np.exp(smooth_quantiles(np.log(np.maximum(ordered, np.finfo(float).tiny)), quantiles))
    rows, of = np.nonzero(ordered[..., 0] == 0)
    if rows.size:
        found[rows, of] = draw_quantiles(values[rows, :, of][..., None], quantiles)[:, 0]
    return found


@lru_cache(maxsize=1024)
def _weights(level: float, draws: int) -> tuple[int, NDArray[np.float64]]:
    """Return the first order statistic that counts for a level, and the weights of those from there on."""
    if min(level, 1 - level) * draws < _LEAST_BEYOND:
        position = level * (draws - 1)
        start = min(int(position), draws - 2)
        return start, np.array([1 - (position - start), position - start])
    # The error of a parabola is of third order in the width, and the scatter of even draws falls as their number.
    width = _WIDTH * min(1.0, (_WIDTH_DRAWS / draws) ** (1 / 4))
    x = (ndtri((np.arange(draws) + 0.5) / draws) - ndtri(level)) / width
    near = np.flatnonzero(np.abs(x) < 1)
    powers = np.vander(x[near], 3, increasing=True)
    nearness = (1 - x[near] ** 2)[:, None]
    weights = np.linalg.solve((powers * nearness).T @ powers, (powers * nearness).T)[0]
    weights.setflags(write=False)
    return int(near[0]), weights
