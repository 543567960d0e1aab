r"""Many spectra at once, from a catalog's grid to a grid in the rest frame.

A galaxy at redshift z has the rest-frame flux density :math:`(1 + z) f_\lambda` at :math:`\lambda / (1 + z)`. Each
row is shifted so and rebinned by overlap, as :func:`~digs_survey.spectra.rebin_spectrum` does for one spectrum.

The loop is compiled without fast maths and takes each row by itself: a row gets the same bytes on every machine,
whatever rows come with it. It runs without the GIL, so that threads can take blocks of rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, DTypeLike, NDArray

from digs_survey.jit import cached

__all__ = ["to_rest_frame"]

_jit: Any = partial(njit, nogil=True, fastmath=False, error_model="numpy")
_cached_jit = cached(_jit)


@_jit
def _element(weighted, variance, covered, needed):  # type: ignore[no-untyped-def]
    """Mean and inverse variance of one element from its sums over pixels; zeros where they cannot be used."""
    if covered <= 0.0 or covered < needed:
        return 0.0, 0.0
    mean = weighted / covered
    inverse = 1.0 / (variance / (covered * covered))
    if not (np.isfinite(mean) and np.isfinite(inverse) and inverse > 0.0):
        return 0.0, 0.0
    return mean, inverse


@_jit
def _row(edges, flux, ivar, good, stretch, rest_edges, min_coverage, out_flux, out_ivar):  # type: ignore[no-untyped-def]
    """Fill one row of the output, which holds zeros, in one pass over the row's pixels and the elements."""
    elements = rest_edges.size - 1
    element, low, high = 0, rest_edges[0], rest_edges[1]
    weighted, variance, covered = 0.0, 0.0, 0.0
    right = edges[0] / stretch
    for pixel in range(flux.size):
        left, right = right, edges[pixel + 1] / stretch
        if right <= low:
            continue
        value, weight = flux[pixel] * stretch, ivar[pixel] / (stretch * stretch)
        usable = good[pixel] and np.isfinite(value) and np.isfinite(weight) and weight > 0.0
        while True:
            if usable:
                overlap = min(right, high) - max(left, low)
                if overlap > 0.0:
                    weighted += overlap * value
                    variance += overlap * overlap * (1.0 / weight)
                    covered += overlap
            if right < high:
                break
            found = _element(weighted, variance, covered, min_coverage * (high - low))
            out_flux[element], out_ivar[element] = found
            element += 1
            if element == elements:
                return
            low, high = high, rest_edges[element + 1]
            weighted, variance, covered = 0.0, 0.0, 0.0
    found = _element(weighted, variance, covered, min_coverage * (high - low))
    out_flux[element], out_ivar[element] = found


@_cached_jit
def _rows(edges, flux, ivar, good, stretch, rest_edges, min_coverage, out_flux, out_ivar):  # type: ignore[no-untyped-def]
    """Fill the rows whose ``stretch``, 1 + z, is finite and positive."""
    for n in range(flux.shape[0]):
        if np.isfinite(stretch[n]) and stretch[n] > 0.0:
            _row(edges, flux[n], ivar[n], good[n], stretch[n], rest_edges, min_coverage, out_flux[n], out_ivar[n])


def to_rest_frame(
    edges: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike,
    good: ArrayLike,
    redshift: ArrayLike,
    rest_edges: ArrayLike,
    min_coverage: float = 0.5,
    *,
    frame: str = "observed",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rebin spectra that share a grid onto elements in the rest frame, conserving flux.

    An element holds the overlap-weighted mean of the usable pixels, and the inverse variance that follows from the
    same weights. Elements that share a pixel have correlated errors, which ``ivar`` does not show.

    Parameters
    ----------
    edges : array_like, shape (pixel + 1,)
        Edges of the pixels in Angstrom, strictly increasing, in ``frame`` and in vacuum: convert those of an air grid
        with :func:`~digs_survey.spectra.air_to_vacuum` first.
    flux, ivar : array_like, shape (n, pixel)
        Flux density per wavelength of ``frame``, and its inverse variance in the flux unit to the power -2.
    good : array_like of bool, shape (n, pixel)
        Where a pixel may be used. Pixels also count as missing if flux or ivar is not finite, or ivar not positive.
    redshift : array_like, shape (n,)
        A row whose redshift is not finite, or not above -1, gets zeros. Ignored in the rest frame.
    rest_edges : array_like, shape (element + 1,)
        Edges of the elements in Angstrom, strictly increasing, in the rest frame and in vacuum.
    min_coverage : float
        Share of an element's width, from 0 to 1, that usable pixels must cover.
    frame : {"observed", "rest"}
        Frame of ``edges``, ``flux`` and ``ivar``. In the observed frame wavelengths are divided by 1 + z, flux is
        multiplied by it and ivar divided by its square; in the rest frame spectra are only rebinned.

    Returns
    -------
    flux, ivar : ndarray of float64, shape (n, element)
        Flux density per rest-frame wavelength and its inverse variance. Both are 0 where too little is covered, and
        where one of them leaves the range of float64; ivar is positive everywhere else.

    Raises
    ------
    ValueError
        If shapes do not fit together, edges do not increase, or ``frame`` or ``min_coverage`` is none of the above.
    """
    edges, rest_edges = _increasing("edges", edges), _increasing("rest_edges", rest_edges)
    flux, ivar, good = _frozen(flux), _frozen(ivar), _frozen(good, np.bool_)
    redshift = np.asarray(redshift, dtype=np.float64)
    if redshift.ndim != 1:
        raise ValueError(f"redshift: expected shape (n,), found {redshift.shape}")
    expected = (redshift.size, edges.size - 1)
    for name, array in (("flux", flux), ("ivar", ivar), ("good", good)):
        if array.shape != expected:
            raise ValueError(f"{name}: expected shape (n, pixel) = {expected}, found {array.shape}")
    if frame not in ("observed", "rest"):
        raise ValueError(f"frame: expected observed|rest, found {frame!r}")
    if not 0 <= min_coverage <= 1:
        raise ValueError(f"min_coverage: expected 0 to 1, found {min_coverage}")
    stretch = _frozen(1.0 + redshift if frame == "observed" else np.ones(redshift.size))
    shape = (redshift.size, rest_edges.size - 1)
    out_flux, out_ivar = np.zeros(shape), np.zeros(shape)
    _rows(edges, flux, ivar, good, stretch, rest_edges, float(min_coverage), out_flux, out_ivar)
    return out_flux, out_ivar


def _frozen(values: ArrayLike, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """One type, layout and mutability for all arrays, since numba compiles again for every other."""
    view = np.require(values, dtype, ["C", "A"]).view()
    view.setflags(write=False)
    return view


def _increasing(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = _frozen(values)
    if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all() or (np.diff(array) <= 0).any():
        raise ValueError(f"{name}: expected at least two finite, strictly increasing values in Angstrom")
    return array
