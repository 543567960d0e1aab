"""How far two samples of the same posteriors differ: the neural posterior's against emcee's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Agreement", "compare", "half_width"]


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


@dataclass(frozen=True)
class Agreement:
    """NPE against MCMC, galaxy by galaxy.

    Attributes
    ----------
    shift_sigma : ndarray of float64, shape (galaxy, parameter)
        (median of NPE - median of MCMC) / half the 16-84 % width of MCMC.
    width_ratio : ndarray of float64, shape (galaxy, parameter)
        Half the 16-84 % width of NPE over that of MCMC; above 1 where NPE is the wider.
    converged : ndarray of bool, shape (galaxy,)
        The rows that :meth:`summary` speaks of.
    """

    shift_sigma: NDArray[np.float64]
    width_ratio: NDArray[np.float64]
    converged: NDArray[np.bool_]

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Averages over the converged chains only; None where there is no converged chain."""
        keys = [*names, "all"]
        shift, ratio = np.abs(self.shift_sigma[self.converged]), self.width_ratio[self.converged]
        mean_shift: list[float | None] = [None] * len(keys)
        median_ratio: list[float | None] = [None] * len(keys)
        if self.converged.any():
            mean_shift = [*shift.mean(axis=0).tolist(), float(shift.mean())]
            median_ratio = [*np.median(ratio, axis=0).tolist(), float(np.median(ratio))]
        return {
            "converged": int(self.converged.sum()),
            "galaxies": int(self.converged.size),
            "mean_abs_shift_sigma": dict(zip(keys, mean_shift, strict=True)),
            "median_width_ratio": dict(zip(keys, median_ratio, strict=True)),
        }


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
    return Agreement(shift, ratio, np.asarray(converged, dtype=bool) & usable)
