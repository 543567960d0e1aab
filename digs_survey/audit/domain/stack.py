"""Residuals stacked over many spectra against wavelength, and where two stacks part.

Noise averages out in a stack, and what all spectra share does not: a line that the model lacks, a step in the flux
calibration. A right model leaves residuals too, since the posterior is not exact and pulls away from the prior's edges,
so that a stack is held against that of simulations, which have all of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.spectra import WavelengthGrid

__all__ = [
    "CLIP",
    "ERRORS",
    "MIN_SIGMA",
    "Stack",
    "band_ranges",
    "departing",
    "min_sigma",
    "observed_bands",
    "observed_ranges",
    "ranges",
]

ERRORS = 5.0
"""Standard errors by which stacks that part differ."""
MIN_SIGMA = 0.1
"""Noise by which they differ: many spectra find what moves no single posterior."""
CLIP = 3.0
"""Sigma at which a residual counts as much as any larger one, so that a few odd spectra do not make the mean."""
_BANDS = 16
"""Broad bands of as many elements each, in which residuals are added up: a fault of many elements that is too small in
each of them."""
_BAND_ERRORS, _BAND_MIN_SIGMA = 4.5, 0.3
"""As :data:`ERRORS` and :data:`MIN_SIGMA`, of a band: there are fewer of them, and the noise is that of the band."""
_MIN_SHARE = 0.5
"""Of a band's elements that a spectrum must have."""
_MIN_COUNT = 5
"""Spectra below which an element has no error."""
_OBSERVED_EDGES = np.geomspace(500.0, 2e5, 241)
"""Of bands in the observed frame, in Angstrom: 2.5 % wide."""


@dataclass(frozen=True)
class Stack:
    """Residuals of many spectra in each element; NaN where there are too few.

    Attributes
    ----------
    count : ndarray of int64, shape (wavelength,)
        Spectra in which the element is good.
    sigma : ndarray of float64, shape (wavelength,)
        Mean residual in units of the noise, each cut at 3.
    scatter : ndarray of float64, shape (wavelength,)
        Standard deviation of these.
    percent : ndarray of float64, shape (wavelength,)
        Median residual in per cent of the predicted flux.
    percent_error : ndarray of float64, shape (wavelength,)
        Its standard error, of a Gaussian with the same 16-84 % width.
    """

    count: NDArray[np.int64]
    sigma: NDArray[np.float64]
    scatter: NDArray[np.float64]
    percent: NDArray[np.float64]
    percent_error: NDArray[np.float64]

    @classmethod
    def of(cls, sigma: NDArray[np.floating], percent: NDArray[np.floating]) -> Stack:
        """Stack residuals (row, wavelength), in units of the noise and in per cent; NaN where not good."""
        count = np.isfinite(sigma).sum(axis=0)
        some = count >= _MIN_COUNT
        mean, scatter, middle, error = np.full((4, count.size), np.nan)
        if some.any():
            cut = np.clip(sigma[:, some].astype(float), -CLIP, CLIP)
            mean[some], scatter[some] = np.nanmean(cut, axis=0), np.nanstd(cut, axis=0, ddof=1)
            low, middle[some], high = np.nanquantile(percent[:, some].astype(float), (0.16, 0.5, 0.84), axis=0)
            error[some] = np.sqrt(np.pi / 2 / count[some]) * 0.5 * (high - low)
        return cls(count, mean, scatter, middle, error)

    @property
    def error(self) -> NDArray[np.float64]:
        """Standard error (wavelength,) of ``sigma``."""
        return self.scatter / np.sqrt(np.maximum(self.count, 1))


def departing(stack: Stack, reference: Stack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far a stack is from a reference: in units of the noise, and in standard errors, each (wavelength,).

    The scatter of few spectra is uncertain: the larger of both is taken for each.
    """
    difference = stack.sigma - reference.sigma
    with np.errstate(divide="ignore", invalid="ignore"):
        return difference, difference / _error(stack, reference)


def min_sigma(stack: Stack, references: list[Stack]) -> float | None:
    """Return the least departure from every reference, in units of the noise, that is seen in the median element."""
    needed = np.max([ERRORS * _error(stack, reference) for reference in references], axis=0)
    needed = needed[np.isfinite(needed)]
    return max(MIN_SIGMA, float(np.median(needed))) if needed.size else None


def _error(stack: Stack, reference: Stack) -> NDArray[np.float64]:
    counts = 1 / np.maximum(stack.count, 1) + 1 / np.maximum(reference.count, 1)
    return np.fmax(stack.scatter, reference.scatter) * np.sqrt(counts)


def ranges(
    stack: Stack,
    references: list[Stack],
    edges: NDArray[np.float64],
    least_errors: float = ERRORS,
    least_sigma: float = MIN_SIGMA,
) -> list[dict[str, Any]]:
    """Name the ranges of wavelength in which a stack departs from every reference, all in the same direction.

    Parameters
    ----------
    stack : Stack
    references : list of Stack
    edges : ndarray, shape (wavelength + 1,)
        Of the elements, in Angstrom.
    least_errors, least_sigma : float
        Standard errors and noise by which an element departs.

    Returns
    -------
    list of dict
        For each run of such elements: ``low`` and ``high`` (outer edges in Angstrom), ``elements``, and of the element
        that is furthest off ``wavelength``, ``sigma`` and ``errors`` (from the reference that is nearer) and, of the
        stack itself, ``percent``.
    """
    off = [departing(stack, reference) for reference in references]
    which = np.argmin([np.nan_to_num(np.abs(sigma)) for sigma, _ in off], axis=0)
    sigma, errors = (np.choose(which, [one[k] for one in off]) for k in range(2))
    parts = np.all(
        [(np.abs(s) > least_sigma) & (np.abs(e) > least_errors) & (np.sign(s) == np.sign(sigma)) for s, e in off],
        axis=0,
    )
    sign = np.where(parts, np.sign(sigma), 0)
    starts = [0, *(np.flatnonzero(np.diff(sign)) + 1)]
    found = []
    for first, stop in zip(starts, [*starts[1:], sign.size], strict=True):
        if sign[first]:
            worst = first + int(np.argmax(np.abs(sigma[first:stop])))
            found.append(
                {
                    "low": float(edges[first]),
                    "high": float(edges[stop]),
                    "elements": int(stop - first),
                    "wavelength": float(0.5 * (edges[worst] + edges[worst + 1])),
                    "sigma": float(sigma[worst]),
                    "errors": float(errors[worst]),
                    "percent": float(stack.percent[worst]),
                }
            )
    return found


def band_ranges(
    residuals: tuple[NDArray[np.floating], NDArray[np.floating]],
    references: list[tuple[NDArray[np.floating], NDArray[np.floating]]],
    grid: WavelengthGrid,
) -> list[dict[str, Any]]:
    """Name the broad bands in which spectra depart from every reference; see :func:`ranges`.

    Parameters
    ----------
    residuals : tuple of ndarray, each (row, wavelength)
        In units of the noise and in per cent, as :meth:`Stack.of` takes them.
    references : list of such tuples
    grid : WavelengthGrid

    Returns
    -------
    list of dict
        As :func:`ranges` gives them; ``elements`` counts those of the grid, and ``sigma`` is in units of the noise of
        a band.
    """
    count = len(grid)
    limits = np.unique(np.linspace(0, count, min(_BANDS, count) + 1).round().astype(int))
    band = np.repeat(np.arange(limits.size - 1), np.diff(limits))
    stacks = [Stack.of(*_in_bands(*one, band[None], limits.size - 1)) for one in (residuals, *references)]
    found = ranges(stacks[0], stacks[1:], grid.edges[limits], _BAND_ERRORS, _BAND_MIN_SIGMA)
    for one in found:
        one["elements"] = int(((grid.wavelength > one["low"]) & (grid.wavelength < one["high"])).sum())
    return found


def observed_bands(
    sigma: NDArray[np.floating], percent: NDArray[np.floating], redshift: NDArray[np.floating], grid: WavelengthGrid
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Add up residuals in bands of observed wavelength, where the faults of an instrument stay in place.

    Parameters
    ----------
    sigma, percent : ndarray, shape (row, wavelength)
        In units of the noise and in per cent, on the grid at rest; NaN where not good.
    redshift : ndarray, shape (row,)
    grid : WavelengthGrid
        In the rest frame.

    Returns
    -------
    tuple of ndarray of float32, each (row, band)
        The sums over the noise of each sum, and the means in per cent; NaN where a row has less than half of a band.
    """
    observed = grid.wavelength * (1 + redshift[:, None])
    band = np.clip(np.searchsorted(_OBSERVED_EDGES, observed) - 1, 0, _OBSERVED_EDGES.size - 2)
    total, change = _in_bands(sigma, percent, band, _OBSERVED_EDGES.size - 1)
    return total.astype(np.float32), change.astype(np.float32)


def observed_ranges(
    bands: tuple[NDArray[np.floating], NDArray[np.floating]],
    references: list[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> list[dict[str, Any]]:
    """Name the observed wavelengths at which spectra depart from every reference; see :func:`ranges`.

    Parameters
    ----------
    bands : tuple of ndarray, each (row, band)
        From :func:`observed_bands`.
    references : list of such tuples
    """
    stacks = [Stack.of(*one) for one in (bands, *references)]
    return ranges(stacks[0], stacks[1:], _OBSERVED_EDGES, _BAND_ERRORS, _BAND_MIN_SIGMA)


def _in_bands(
    sigma: NDArray[np.floating], percent: NDArray[np.floating], band: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums (row, band) of residuals over the noise of the sum, and means in per cent, for the band of each element."""
    good, rows = np.isfinite(sigma), len(sigma)
    place = (np.broadcast_to(band, good.shape) + count * np.arange(rows)[:, None]).ravel()

    def added(values: NDArray[Any]) -> NDArray[np.float64]:
        summed = np.bincount(place, weights=values.ravel(), minlength=rows * count)
        return np.asarray(summed.reshape(rows, count), dtype=float)

    number, whole = added(good), added(np.ones(good.shape))
    number = np.where((number > 0) & (number >= _MIN_SHARE * whole), number, np.nan)
    total = added(np.where(good, np.clip(sigma, -CLIP, CLIP), 0.0))
    return total / np.sqrt(number), added(np.where(good, percent, 0.0)) / number
