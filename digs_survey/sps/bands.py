r"""Fluxes through filters, as a linear operator on a galaxy's spectrum at rest.

A filter of transmission T counts photons. A galaxy at redshift z, whose rest-frame flux density (per rest-frame
Angstrom) is :math:`g(\lambda)`, has in maggies (AB, 1 is 3631 Jy)

.. math:: m = \frac{1}{1 + z} \int g(e^x) S(x + \ln(1 + z)) \, dx \Big/ Z, \qquad S(y) = e^{2y} T(e^y),

with the zero point :math:`Z = c \, f_0 \int T(e^y) dy`: in :math:`x = \ln\lambda` a redshift is a shift.

The spectrum is held on a coarse grid of step h in x by its means over hat functions,
:math:`c_k = \frac{1}{h} \int g \, \Lambda_k \, dx`. These are positive where the spectrum is, and keep how much light a
line has and where it is. The response S is replaced by the piecewise linear function that is nearest to it in the mean
square (:math:`G^{-1} \int S \Lambda`, with the hats' products G): its product with g is then a sum over c. A
smooth spectrum has an error of fourth order in h, and a line only that of S at the line. Responses are tabulated for
shifts by parts of an element, between which they are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solveh_banded
from scipy.signal import fftconvolve

from digs_survey.errors import ConfigError
from digs_survey.filters import REST_ANGSTROM, Filter, load_filter
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import as_like, as_numpy, namespace

__all__ = ["STEP", "BandKey", "Bands", "redshift_nodes"]

BandKey = tuple[tuple[str, ...], tuple[float, float], tuple[float, float], float]

STEP = 0.005
"""Step of the coarse grid in ln wavelength."""
_SHIFTS = 16
"""Parts of an element by which tabulated responses are shifted."""
_CELLS = 8
"""Cells of the quadrature in each such part."""
_BEYOND = 12
"""Elements beyond a filter's ends: from one to the next the inverse of the hats' products falls by 3.7."""
_ROUNDING = 1e-9


class Bands:
    """Filters before galaxies of a range of redshifts.

    Parameters
    ----------
    names : sequence of str
        sedpy's.
    redshift : (float, float)
        Least and greatest redshift.
    rest_angstrom : (float, float)
        Rest-frame wavelengths that may be used: where a filter reaches beyond them, its band does not count for a
        galaxy (:meth:`counted`).
    step : float
        Of the coarse grid, in ln wavelength.

    Attributes
    ----------
    filters : tuple of Filter
    grid : WavelengthGrid
        Nodes of the coarse grid, rest frame: all that the bands see at these redshifts.
    key : tuple
        Of what it was made: ``Bands(*key)`` is the same.

    Raises
    ------
    ConfigError
        If sedpy does not have a filter, or a band counts at none of these redshifts.
    """

    def __init__(
        self,
        names: Sequence[str],
        redshift: tuple[float, float],
        rest_angstrom: tuple[float, float] = REST_ANGSTROM,
        step: float = STEP,
    ) -> None:
        self.key: BandKey = tuple(names), redshift, rest_angstrom, step
        self.filters: tuple[Filter, ...] = tuple(load_filter(name) for name in names)
        if not self.filters:
            raise ConfigError("photometry.filters: expected at least one filter, found none")
        self._step, self._spans = step, np.log([band.span for band in self.filters])
        shifts = np.log1p(np.array(redshift))
        lowest, highest = np.log(rest_angstrom)
        for band, (begin, end) in zip(self.filters, self._spans, strict=True):
            if max(end - highest, shifts[0]) > min(begin - lowest, shifts[1]):
                raise ConfigError(_never(band, redshift, rest_angstrom))
        low = max(lowest, self._spans[:, 0].min() - shifts[1])
        high = min(highest, self._spans[:, 1].max() - shifts[0])
        self._ends = low, high
        self._first = int(np.floor(low / step)) - _BEYOND
        last = int(np.ceil(high / step)) + _BEYOND
        self.grid = WavelengthGrid(np.exp(step * np.arange(self._first, last + 1)))
        tables = [_responses(band, step) for band in self.filters]
        width = max(table.shape[1] for _, table in tables)
        self._starts = np.array([start for start, _ in tables])
        self._responses = np.stack([np.pad(table, [(0, 0), (0, width - table.shape[1])]) for _, table in tables])

    def __len__(self) -> int:
        return len(self.filters)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the filters."""
        return tuple(band.name for band in self.filters)

    def counted(self, redshift: ArrayLike) -> NDArray[np.bool_]:
        """Return which bands (n, band) may be used of galaxies at redshifts (n,)."""
        shift = np.log1p(np.asarray(redshift, dtype=float))[:, None]
        low, high = self._ends
        inside = (self._spans[:, 0] - shift >= low - _ROUNDING) & (self._spans[:, 1] - shift <= high + _ROUNDING)
        return np.asarray(inside)

    def maggies(self, light: Any, redshift: Any) -> Any:
        """Return the fluxes of galaxies through the filters.

        Parameters
        ----------
        light : ndarray or torch.Tensor, shape (n, element)
            Hat means of the spectra on :attr:`grid`, in erg/s/cm2 per rest-frame Angstrom.
        redshift : ndarray or torch.Tensor, shape (n,)
            Of any kind of array.

        Returns
        -------
        ndarray or torch.Tensor, shape (n, band)
            Maggies. Of a band that does not count, what the grid holds of it.
        """
        places, weights = self._window(as_numpy(redshift), light.shape[-1])
        xp = namespace(light)
        rows = xp.arange(len(light), device=light.device)[:, None, None]
        seen = light[rows, xp.asarray(places, device=light.device)]
        return (seen * as_like(weights, light)).sum(-1)

    def matrix(self, redshift: ArrayLike) -> NDArray[np.float64]:
        """Return the operators (n, band, element) of :meth:`maggies` for galaxies at redshifts (n,)."""
        places, weights = self._window(np.asarray(redshift, dtype=float), len(self.grid))
        matrix = np.zeros((*places.shape[:2], len(self.grid)))
        n, band = np.ogrid[: len(places), : len(self)]
        np.add.at(matrix, (n[..., None], band[..., None], places), weights)
        return matrix

    def table(self, light: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (1 + z) times the maggies (node, band, k) of spectra (element, k) at :func:`redshift_nodes`.

        Between the nodes they are linear in ln(1 + z), as the responses are.
        """
        redshift = redshift_nodes(self.key[1], self._step)
        parts = [self.matrix(some) @ light for some in np.array_split(redshift, 1 + len(redshift) // 256)]
        return np.concatenate(parts) * (1 + redshift)[:, None, None]

    def _window(self, redshift: NDArray[np.float64], elements: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Elements that each band sees of a galaxy, and their weights (n, band, element of the window)."""
        if elements != len(self.grid):
            raise ValueError(f"light: expected {len(self.grid)} elements, as the coarse grid has, found {elements}")
        shift = np.log1p(redshift) / self._step
        whole = np.floor(shift).astype(np.int64)
        part = (shift - whole) * _SHIFTS
        lower = np.minimum(part.astype(np.int64), _SHIFTS - 1)
        share = (part - lower)[:, None, None]
        tables = self._responses.transpose(1, 0, 2)
        weights = ((1 - share) * tables[lower] + share * tables[lower + 1]) / (1 + redshift)[:, None, None]
        places = self._starts[:, None] + np.arange(tables.shape[2]) - (whole + self._first)[:, None, None]
        outside = (places < 0) | (places >= elements)
        return np.where(outside, 0, places), np.where(outside, 0.0, weights)


def redshift_nodes(redshift: tuple[float, float], step: float = STEP) -> NDArray[np.float64]:
    """Redshifts (node,) from the least to the greatest or just beyond, at which shifts of the bands are tabulated."""
    low, high = np.log1p(redshift) / step * _SHIFTS
    return np.asarray(np.expm1(np.arange(np.floor(low), np.ceil(high) + 1) * step / _SHIFTS))


def _responses(band: Filter, step: float) -> tuple[int, NDArray[np.float64]]:
    """A filter's weights of hat means, for shifts by parts of an element.

    Returns
    -------
    start : int
        Place of the first element on the lattice of all multiples of the step.
    weights : ndarray, shape (shift + 1, element)
        Row i is for a spectrum whose elements lie i parts above those places.
    """
    from sedpy.observate import Filter as Curve
    from sedpy.observate import lightspeed

    ends = np.log(band.wavelength[[0, -1]]) / step
    start, stop = int(np.floor(ends[0])) - _BEYOND, int(np.ceil(ends[1])) + _BEYOND + 1
    fine, count = _SHIFTS * _CELLS, stop - start
    # Middles of cells, from one element below the first to two above the last.
    at = (start - 1 + (np.arange((count + 3) * fine) + 0.5) / fine) * step
    wavelength = np.exp(at)
    transmission = band.at(wavelength)
    hat = 1 - np.abs((np.arange(2 * fine) + 0.5) / fine - 1)
    seen = fftconvolve(transmission * wavelength**2, hat, mode="valid") * (step / fine)
    # Sample p of the result is the hat about the edge of cells start * fine + p.
    places = _CELLS * np.arange(_SHIFTS + 1)[:, None] + fine * np.arange(count)
    # Products of hats with themselves and their neighbours.
    products = np.stack([np.full(count, step / 6), np.full(count, 2 * step / 3)])
    nearest = solveh_banded(products, seen[places].T).T
    zero_point = Curve.ab_gnu * lightspeed * transmission.sum() * step / fine
    return start, nearest * step / zero_point


def _never(band: Filter, redshift: tuple[float, float], rest: tuple[float, float]) -> str:
    return (
        f"photometry.filters: {band.name} sees {band.span[0]:.5g} to {band.span[1]:.5g} Angstrom, and at no redshift "
        f"from {redshift[0]:g} to {redshift[1]:g} only what lies within {rest[0]:g} to {rest[1]:g} Angstrom at rest; "
        "leave the filter out"
    )
