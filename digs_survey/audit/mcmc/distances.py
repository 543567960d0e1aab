"""How far two samples of one galaxy's posterior are apart: each parameter by itself, and all of them together."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wasserstein_distance

from digs_survey.audit.mcmc.agreement import half_width
from digs_survey.importance.weights import weighted_quantiles

__all__ = ["classifier_accuracy", "sliced_distance", "wasserstein_sigma", "weighted_wasserstein_sigma"]

_DIRECTIONS = 128
_FOREST = {"n_estimators": 50, "min_samples_leaf": 5}
"""Finds what scikit-learn's default forest, grown to single draws, finds, and sooner."""


def wasserstein_sigma(npe: ArrayLike, mcmc: ArrayLike) -> NDArray[np.float64]:
    """Wasserstein-1 distance (parameter,) of each parameter's marginals, in half 16-84 % widths of the second sample.

    A shift by 1 sigma is a distance of 1; widths that differ by a share f, one of 0.8 f.

    Parameters
    ----------
    npe : array_like, shape (draw, parameter)
    mcmc : array_like, shape (mcmc_draw, parameter)
    """
    first, second = np.asarray(npe, dtype=float), np.asarray(mcmc, dtype=float)
    distance = [wasserstein_distance(a, b) for a, b in zip(first.T, second.T, strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array(distance) / half_width(second)


def weighted_wasserstein_sigma(theta: ArrayLike, log_weights: ArrayLike) -> NDArray[np.float64]:
    """Wasserstein-1 distance (parameter,) of draws from the same draws with weights, in half 16-84 % widths of these.

    What :func:`wasserstein_sigma` gives for very many draws with replacement by the weights.

    Parameters
    ----------
    theta : array_like, shape (draw, parameter)
    log_weights : array_like, shape (draw,)
        Natural logs, known up to a constant.
    """
    values, log_w = np.asarray(theta, dtype=float), np.asarray(log_weights, dtype=float)
    weight = np.exp(log_w - log_w.max())
    weight /= weight.sum()
    order = np.argsort(values, axis=0)
    # Both distribution functions change at the draws alone.
    apart = np.cumsum(1 / len(values) - weight[order], axis=0)[:-1]
    distance = (np.abs(apart) * np.diff(np.take_along_axis(values, order, axis=0), axis=0)).sum(axis=0)
    low, high = weighted_quantiles(values, log_w, (0.16, 0.84)).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return distance / (0.5 * (high - low))


def sliced_distance(npe: ArrayLike, mcmc: ArrayLike, seed: int) -> float:
    """Mean Wasserstein-1 distance over random directions, in the space in which the second sample has covariance 1.

    There every direction counts alike, narrow ones along a degeneracy too. It is not zero for samples of the same
    posterior: some 1.7 / sqrt(n) for two samples of n independent draws.

    Parameters
    ----------
    npe : array_like, shape (draw, parameter)
    mcmc : array_like, shape (mcmc_draw, parameter)
        Where all lie in one plane, the distance is NaN.
    seed : int
        Of the directions.
    """
    first, second = np.asarray(npe, dtype=float), np.asarray(mcmc, dtype=float)
    variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(second.T)))
    if variance[0] <= 0:
        return float("nan")
    centre, whiten = second.mean(axis=0), axes / np.sqrt(variance)
    directions = np.random.default_rng(seed).normal(size=(_DIRECTIONS, first.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ours, theirs = (directions @ ((sample - centre) @ whiten).T for sample in (first, second))
    return float(np.mean([wasserstein_distance(a, b) for a, b in zip(ours, theirs, strict=True)]))


def classifier_accuracy(npe: ArrayLike, mcmc: ArrayLike, seed: int) -> float:
    """Accuracy with which a random forest tells the two samples apart (sbi's C2ST): 0.5 if they are the same, up to 1.

    As many draws of each are used as the smaller sample has. Draws of a chain that resemble each other can be learned:
    of a chain with few independent draws the accuracy is too high.

    Parameters
    ----------
    npe : array_like, shape (draw, parameter)
    mcmc : array_like, shape (mcmc_draw, parameter)
    seed : int
    """
    import torch
    from sbi.utils.metrics import c2st

    first, second = np.asarray(npe, dtype=float), np.asarray(mcmc, dtype=float)
    rng, count = np.random.default_rng(seed), min(len(first), len(second))
    some = [torch.as_tensor(rng.permutation(sample)[:count]) for sample in (first, second)]
    return float(c2st(*some, seed=seed % 2**31, classifier_kwargs=_FOREST))
