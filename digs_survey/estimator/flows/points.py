"""The standard-normal points that a posterior makes its draws from: shared by all galaxies, or of one row."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

from digs_survey.simulate.seeding import row_uniforms

__all__ = ["base_points", "row_points"]

_TAIL = 1e-9
"""Least probability on either side of a base point."""


@lru_cache(maxsize=32)
def base_points(draws: int, ndim: int, seed: int, member: int = 0) -> NDArray[np.float32]:
    """Standard-normal points (ndim, draws): scrambled Sobol through the inverse CDF, shared by all galaxies.

    The first points of a longer set are the shorter one. Each member of an ensemble has a scramble of its own.
    """
    bits = int(np.ceil(np.log2(draws)))
    cube = qmc.Sobol(ndim, scramble=True, rng=np.random.default_rng([seed, member])).random_base2(bits)[:draws]
    points = np.ascontiguousarray(_standard_normal(cube.T))
    points.setflags(write=False)
    return points


def row_points(draws: int, ndim: int, seed: int, row: int, member: int = 0, first: int = 0) -> NDArray[np.float32]:
    """Standard-normal points (ndim, draws) that belong to one row: independent of those of other rows.

    So are those of each member of an ensemble, and those that are drawn from another number ``first`` on.
    """
    uniform = row_uniforms(seed, f"posterior/{member}/{first}", row, row + 1, ndim * draws)
    return _standard_normal(uniform.reshape(ndim, draws))


def _standard_normal(cube: NDArray[np.float64]) -> NDArray[np.float32]:
    return ndtri(np.clip(cube, _TAIL, 1 - _TAIL)).astype(np.float32)
