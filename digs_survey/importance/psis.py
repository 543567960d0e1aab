r"""Pareto-smoothed importance sampling: how heavy the tail of importance weights is, and weights with it smoothed.

The largest weights of N draws follow a generalised Pareto distribution, whose shape k says how many moments
the weights have: those below order 1/k. Above k = 0.7 no practical number of draws gives a dependable average.
Vehtari, Simpson, Gelman, Yao & Gabry (2024), JMLR 25, 72 (arXiv:1507.02646).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MIN_ESS", "PARETO_K_LIMIT", "fit_pareto", "smooth_tail", "tail_length"]

MIN_ESS = 20.0
"""Effective sample size below which so few draws carry the weight that the shape of their tail cannot be told."""
PARETO_K_LIMIT = 0.7
"""Shape of the tail above which averages with the weights are not to be trusted (Vehtari et al. 2024)."""

_FEWEST = 5
"""Tails of fewer draws are not fitted."""
_FLAT = 1e-10
"""Weights that differ by less than this share of the largest one are all the same."""
_VANISHED = 1e-200
"""Where a quarter of the tail is smaller than this share of the largest weight, the rest of it is all there is."""


def tail_length(draws: int) -> int:
    """Number of the largest weights that make the tail: 3 sqrt(N), at most a fifth of them."""
    return min(math.ceil(0.2 * draws), math.ceil(3 * math.sqrt(draws)))


def fit_pareto(exceedances: ArrayLike) -> tuple[float, float]:
    r"""Fit a generalised Pareto distribution to values above a threshold.

    The estimator of Zhang & Stephens (2009), Technometrics 51, 316: with :math:`b = -k/\sigma` the likelihood is
    highest, for a given b, at :math:`k(b) = \overline{\log(1 - b x)}`, and b is averaged over that profile with
    a prior that the data scale.

    Parameters
    ----------
    exceedances : array_like, shape (n,)
        Values less the threshold, positive and increasing.

    Returns
    -------
    k, sigma : float
        Of the density :math:`(1 + k x / \sigma)^{-1/k - 1} / \sigma`; positive k is a heavy tail.
    """
    x = np.asarray(exceedances, dtype=float)
    n = x.size
    points = 30 + math.isqrt(n)
    quartile = x[int(n / 4 + 0.5) - 1]
    position = (np.arange(points) + 0.5) / points
    b = 1 / x[-1] + (1 - position**-0.5) / (3 * quartile)
    # b = 0 is the exponential distribution, the limit of k = -b sigma -> 0.
    b = np.where(b == 0, 1e-12 / x[-1], b)
    k = np.log1p(-b[:, None] * x).mean(axis=1)
    log_profile = n * (np.log(-b / k) - k - 1)
    weight = np.exp(log_profile - log_profile.max())
    mean_b = float((b * weight).sum() / weight.sum())
    shape = float(np.log1p(-mean_b * x).mean())
    return shape, -shape / mean_b


def smooth_tail(log_weights: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """Replace the largest weights of one galaxy by the quantiles of the Pareto distribution fitted to them.

    Parameters
    ----------
    log_weights : array_like, shape (draws,)
        Natural logs, up to a constant; -inf is a weight of zero.

    Returns
    -------
    smoothed : ndarray, shape (draws,)
        Log weights in the order of the draws; none is larger than the largest raw one.
    pareto_k : float
        Shape of the tail, drawn a little to 0.5 as the authors do for small tails; 0 where the largest weights are
        all the same, inf where there are too few of them to fit.
    """
    smoothed = np.array(log_weights, dtype=float)
    tail = tail_length(smoothed.size)
    if tail < _FEWEST:
        return smoothed, math.inf
    order = np.argsort(smoothed, kind="stable")
    largest = smoothed[order[-1]]
    threshold = np.exp(smoothed[order[-tail - 1]] - largest)
    excess = np.exp(smoothed[order[-tail:]] - largest) - threshold
    if excess[-1] < _FLAT:
        return smoothed, 0.0
    if not excess[int(tail / 4 + 0.5) - 1] > _VANISHED:
        return smoothed, math.inf
    k, sigma = fit_pareto(excess)
    k = (tail * k + 5) / (tail + 10)
    exceeded = -np.log1p(-(np.arange(tail) + 0.5) / tail)
    with np.errstate(over="ignore"):
        quantiles = threshold + sigma * (np.expm1(k * exceeded) / k if k else exceeded)
    smoothed[order[-tail:]] = largest + np.log(np.minimum(quantiles, 1.0))
    return smoothed, k
