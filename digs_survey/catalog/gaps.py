"""Gaps in spectra, filled by interpolation.

The network takes whole spectra. What a catalog masks is filled before inference, and simulations that lack
stretches are filled by the same function, so that training shows the network what it will be shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["fill", "fill_flux"]


def fill(values: ArrayLike, known: ArrayLike) -> NDArray[np.float64]:
    """Interpolate the unknown elements of each row linearly along the elements of that row.

    Parameters
    ----------
    values : array_like, shape (n, wavelength)
        What unknown elements hold does not matter.
    known : array_like of bool, shape (n, wavelength)

    Returns
    -------
    ndarray of float64, shape (n, wavelength)
        Beyond its last known element a row takes that element's value; rows without any hold NaN.
    """
    known = np.asarray(known, dtype=bool)
    filled = np.where(known, np.asarray(values, dtype=float), np.nan)
    rows = np.flatnonzero(known.any(axis=1) & ~known.all(axis=1))
    part, present = filled[rows], known[rows]
    count, element = known.shape[1], np.arange(known.shape[1])
    before = np.maximum.accumulate(np.where(present, element, -1), axis=1)
    after = np.minimum.accumulate(np.where(present, element, count)[:, ::-1], axis=1)[:, ::-1]
    row, gap = np.nonzero(~present)
    left, right = before[row, gap], after[row, gap]
    left, right = np.where(left < 0, right, left), np.where(right == count, left, right)
    low, high = part[row, left], part[row, right]
    part[row, gap] = (high - low) / np.maximum(right - left, 1) * (gap - left) + low
    filled[rows] = part
    return filled


def fill_flux(flux: NDArray[Any], good: ArrayLike, *, linear: bool = False) -> NDArray[Any]:
    """Fill gaps in spectra by interpolation along the elements, linear in log flux.

    Parameters
    ----------
    flux : ndarray, shape (..., wavelength)
        Positive where good, unless ``linear``.
    good : array_like of bool, shape (..., wavelength)
        Elements to keep.
    linear : bool
        Interpolate in flux itself, which may then be negative.

    Returns
    -------
    ndarray, shape (..., wavelength)
        A copy, of the same type; rows without a good element are as they were.
    """
    filled = flux.reshape(-1, flux.shape[-1]).copy()
    keep = np.asarray(good, dtype=bool).reshape(filled.shape)
    rows = np.flatnonzero(keep.any(axis=1) & ~keep.all(axis=1))
    part, kept = filled[rows], keep[rows]
    if linear:
        part[~kept] = fill(part, kept)[~kept]
    else:
        part[~kept] = np.exp(fill(np.log(np.where(kept, part, 1.0), dtype=float), kept)[~kept])
    filled[rows] = part
    return filled.reshape(flux.shape)
