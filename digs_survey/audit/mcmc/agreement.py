"""How far two samples of the same posteriors differ: the neural posterior's against emcee's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Agreement", "compare", "half_width", "median_of"]


def half_width(draws: ArrayLike) -> NDArray[np.float64]:
    """Half the distance from the 16th to the 84th percentile, over the last axis but one.

    Parameters
    ----------
    draws : array_like, shape (..., draw, parameter)

    Returns
    -------
    ndarray of float64, shape (..., parameter)
    """
    low, high = np.quantile(np.asarray(draws, dtype=float), (0.16, 0.84), axis=-2)
    return 0.5 * (high - low)


def median_of(values: NDArray[np.floating]) -> float | None:
    """Median of the finite values; None where there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else None


@dataclass(frozen=True)
class Agreement:
    """NPE against MCMC, galaxy by galaxy.

    Attributes
    ----------
    shift_sigma : ndarray of float64, shape (galaxy, parameter)
        (median of NPE - median of MCMC) / half the 16-84 % width of MCMC.
    width_ratio : ndarray of float64, shape (galaxy, parameter)
        Half the 16-84 % width of NPE over that of MCMC; above 1 where NPE is the wider.
    width : ndarray of float64, shape (galaxy, parameter)
        Half the 16-84 % width of MCMC, in the parameter's unit.
    converged : ndarray of bool, shape (galaxy,)
        The rows that :meth:`summary` speaks of.
    """

    shift_sigma: NDArray[np.float64]
    width_ratio: NDArray[np.float64]
    width: NDArray[np.float64]
    converged: NDArray[np.bool_]

    def summary(self, names: Sequence[str], weight: ArrayLike | None = None) -> dict[str, Any]:
        """Averages over the converged chains only; None where there are too few of them.

        ``mean_width_ratio`` is the mean over galaxies of the ratio of widths, ``ratio_of_mean_widths`` the ratio of
        the mean widths, in which well constrained galaxies count for less. Each mean stands with its standard error
        over galaxies (``..._error``; jackknife, None for a single galaxy). ``all`` is the mean over parameters.

        Parameters
        ----------
        names : sequence of str
        weight : array_like, shape (galaxy,), optional
            One over the probability with which each was selected: ``survey`` then holds the same means as estimates
            for the whole catalog (Hajek's), with their errors.
        """
        keys = [*names, "all"]
        shift, ratio = np.abs(self.shift_sigma[self.converged]), self.width_ratio[self.converged]
        width = self.width[self.converged]
        means = {
            "mean_abs_shift_sigma": (shift, np.ones_like(shift)),
            "mean_width_ratio": (ratio, np.ones_like(ratio)),
            "ratio_of_mean_widths": (ratio * width, width),
        }
        summary: dict[str, Any] = {"converged": len(shift), "galaxies": int(self.converged.size)}
        targets = [(summary, np.ones(len(shift)))]
        if weight is not None:
            summary["survey"] = {}
            targets.append((summary["survey"], np.asarray(weight, dtype=float)[self.converged]))
        for name, (above, below) in means.items():
            for target, share in targets:
                value, error = _ratio_of_sums(above * share[:, None], below * share[:, None])
                target[name] = dict(zip(keys, value, strict=True))
                target[f"{name}_error"] = dict(zip(keys, error, strict=True))
        median = [*np.median(ratio, axis=0).tolist(), float(np.median(ratio))] if len(ratio) else [None] * len(keys)
        return summary | {"median_width_ratio": dict(zip(keys, median, strict=True))}


def _ratio_of_sums(
    above: NDArray[np.float64], below: NDArray[np.float64]
) -> tuple[list[float | None], list[float | None]]:
    """Ratios of sums over galaxies for each parameter and their mean, and the jackknife's standard errors of both."""

    def ratios(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
        each = over / under
        return np.concatenate([each, each.mean(axis=-1, keepdims=True)], axis=-1)

    count, keys = len(above), above.shape[1] + 1
    nothing: list[float | None] = [None] * keys
    if count == 0:
        return nothing, nothing
    total, weight = above.sum(axis=0), below.sum(axis=0)
    if count == 1:
        return ratios(total, weight).tolist(), nothing
    without = ratios(total - above, weight - below)
    error = np.sqrt((count - 1) * np.square(without - without.mean(axis=0)).mean(axis=0))
    return ratios(total, weight).tolist(), error.tolist()


def compare(npe: ArrayLike, mcmc: ArrayLike, converged: ArrayLike) -> Agreement:
    """Compare the draws of both samplers.

    Parameters
    ----------
    npe : array_like, shape (galaxy, draw, parameter)
    mcmc : array_like, shape (galaxy, mcmc_draw, parameter)
        NaN for a chain that failed.
    converged : array_like of bool, shape (galaxy,)
    """
    neural, chain = np.asarray(npe, dtype=float), np.asarray(mcmc, dtype=float)
    width = half_width(chain)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = (np.median(neural, axis=1) - np.median(chain, axis=1)) / width
        ratio = half_width(neural) / width
    usable = np.isfinite(shift).all(axis=1) & np.isfinite(ratio).all(axis=1)
    return Agreement(shift, ratio, width, np.asarray(converged, dtype=bool) & usable)
