"""A burst on top of a star formation history: a share of the mass that formed in one moment.

As in FSPS, the stars of the burst are a simple population of its age, linear in log10 age between two nodes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from digs_survey.sps.arrays import as_like, namespace

__all__ = ["PackedBurst", "burst_age", "burst_place", "no_burst", "with_burst"]


class PackedBurst(NamedTuple):
    """What the compiled loops take: empty arrays where there is no burst.

    ``share`` (n,) of the mass is in the burst; ``older`` (n,) of it in the population after ``lower`` (n,).
    """

    share: NDArray[np.float32]
    lower: NDArray[np.int64]
    older: NDArray[np.float32]


def no_burst() -> PackedBurst:
    """Return what the compiled loops take of histories without a burst."""
    return PackedBurst(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32))


def burst_age(tage: Any, fage_burst: Any) -> Any:
    """Age (n,) in Gyr of the burst, for ages of galaxies (n,) and the share of them that had passed before it."""
    return tage * (1 - fage_burst)


def burst_place(log_age: NDArray[np.float64], age_gyr: Any) -> tuple[Any, Any]:
    """Return the population (n,) below each age (n,) in Gyr, and the share (n,) of the next one.

    Younger than all populations counts as the first.
    """
    xp = namespace(age_gyr)
    nodes = as_like(log_age, age_gyr)
    place = xp.log10(xp.clip(age_gyr, 10 ** (float(log_age[0]) - 9), 10 ** (float(log_age[-1]) - 9))) + 9
    lower = xp.clip(xp.searchsorted(nodes, place, side="right") - 1, 0, len(log_age) - 2)
    return lower, xp.clip((place - nodes[lower]) / (nodes[lower + 1] - nodes[lower]), 0, 1)


def with_burst(weights: Any, log_age: NDArray[np.float64], share: Any, age_gyr: Any) -> Any:
    """Weights (n, age) of the populations with a burst.

    Parameters
    ----------
    weights : array, shape (n, age)
        For one solar mass formed, without the burst.
    log_age : ndarray, shape (age,)
        log10 age/yr of the populations.
    share : array, shape (n,)
        Of the mass that formed in the burst.
    age_gyr : array, shape (n,)
    """
    xp = namespace(weights)
    lower, older = burst_place(log_age, age_gyr)
    row = xp.arange(weights.shape[0])
    share, older = (xp.asarray(values, dtype=weights.dtype) for values in (share, older))
    weights = weights * (1 - share)[:, None]
    weights[row, lower] += share * (1 - older)
    weights[row, lower + 1] += share * older
    return weights
