r"""Faults planted in posteriors, to see whether the audit finds them.

A test that never fails tells nothing. Each :class:`Fault` turns draws of a posterior into draws of a wrong one, whose
fault is known and of a size that would matter to users; an audit that does not find it there would not have found it
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

__all__ = ["NARROW", "SHIFT_SIGMA", "WIDE", "Fault", "pairing_fault", "standard_faults"]

NARROW, WIDE = 0.8, 1.2
"""Factors on the width."""
SHIFT_SIGMA = 0.3

Draws = NDArray[np.float64]
"""Draws of posteriors, shape (simulation, draw, parameter)."""


@dataclass(frozen=True)
class Fault:
    """A fault and how it is planted.

    Attributes
    ----------
    name : str
        In words, as tables and reports show it.
    plant : callable
        From right draws (simulation, draw, parameter), of any prior, and a random generator to wrong ones. They may
        lie outside the prior.
    """

    name: str
    plant: Callable[[Draws, np.random.Generator], Draws]


def standard_faults(names: Sequence[str]) -> list[Fault]:
    """Return the faults that any set of draws can be given.

    All widths 20 % too small or too large; and, in one parameter at a time, a shift of 0.3 sigma and a lost
    correlation with the others.

    Parameters
    ----------
    names : sequence of str
        Of the parameters.
    """
    found = [
        Fault("20 % too narrow", lambda draws, rng: _rescaled(draws, NARROW)),
        Fault("20 % too wide", lambda draws, rng: _rescaled(draws, WIDE)),
    ]
    for k, name in enumerate(names):
        found.append(Fault(f"{name} shifted by {SHIFT_SIGMA:g} sigma", _shifted(k)))
    if len(names) > 1:
        found += [Fault(f"{name} without correlation", _unlinked(k)) for k, name in enumerate(names)]
    return found


def pairing_fault(prior_draws: Callable[[int], NDArray[np.float64]], table: int = 10_000, pool: int = 400_000) -> Fault:
    """Return the posterior of an estimator that was trained on pairs which do not match.

    Training pairs are (theta drawn, spectrum of the table's row nearest to it in plain Euclidean distance), as in the
    code of Khullar et al. (2022, arXiv:2211.09126). What such an estimator learns is the right posterior, over the
    rows of the table, followed by a random one of the thetas that the row stands for.

    Parameters
    ----------
    prior_draws : callable
        Gives so many theta (n, parameter) of the prior.
    table : int
        Rows of the table.
    pool : int
        Thetas that are sorted by their nearest row.
    """
    rows = KDTree(prior_draws(table))
    thetas = prior_draws(pool)
    nearest = rows.query(thetas)[1]
    ordered = thetas[np.argsort(nearest, kind="stable")]
    count = np.bincount(nearest, minlength=table)
    first = np.cumsum(count) - count

    def plant(draws: Draws, rng: np.random.Generator) -> Draws:
        flat = draws.reshape(-1, draws.shape[-1])
        row = rows.query(flat)[1]
        member = first[row] + (rng.random(row.size) * count[row]).astype(int)
        some = count[row] > 0
        return np.where(some[:, None], ordered[np.minimum(member, pool - 1)], flat).reshape(draws.shape)

    return Fault("theta paired with the nearest row of a table", plant)


def _rescaled(draws: Draws, factor: float) -> Draws:
    middle = np.median(draws, axis=1, keepdims=True)
    return middle + factor * (draws - middle)


def _shifted(parameter: int) -> Callable[[Draws, np.random.Generator], Draws]:
    def plant(draws: Draws, rng: np.random.Generator) -> Draws:
        wrong = draws.copy()
        low, high = np.quantile(draws[..., parameter], (0.16, 0.84), axis=1)
        wrong[..., parameter] += SHIFT_SIGMA * 0.5 * (high - low)[:, None]
        return wrong

    return plant


def _unlinked(parameter: int) -> Callable[[Draws, np.random.Generator], Draws]:
    def plant(draws: Draws, rng: np.random.Generator) -> Draws:
        wrong = draws.copy()
        wrong[..., parameter] = rng.permuted(draws[..., parameter], axis=1)
        return wrong

    return plant
