"""Elements that simulated spectra lack, in contiguous stretches."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.config import MissingConfig

__all__ = ["missing_elements"]


def missing_elements(config: MissingConfig, uniform: ArrayLike, elements: int) -> NDArray[np.bool_]:
    """Choose the elements that spectra lack.

    A stretch may run over an end of the grid, and is cut there: so every element is as likely to be
    missing as any other. Stretches may overlap.

    Parameters
    ----------
    config : MissingConfig
    uniform : array_like, shape (..., config.columns)
        Random numbers in [0, 1): one for the number of stretches, then length and start of each.
    elements : int
        Elements of the grid.

    Returns
    -------
    ndarray of bool, shape (..., elements)
        True where missing.
    """
    u = np.asarray(uniform, dtype=float)
    missing = np.zeros((*u.shape[:-1], elements), dtype=bool)
    lacking = u[..., 0] < config.probability
    u = u[lacking]
    if not u.size:
        return missing
    count = 1 + np.floor(u[:, :1] / config.probability * config.stretches)
    shortest, longest = config.elements
    length = shortest + np.floor(u[:, 1::2] * (longest - shortest + 1))
    stop = 1 + np.floor(u[:, 2::2] * (elements + length - 1))
    stop = np.where(np.arange(config.stretches) < count, stop, -1)[..., None]
    element = np.arange(elements)
    missing[lacking] = ((stop - length[..., None] <= element) & (element < stop)).any(axis=1)
    return missing
