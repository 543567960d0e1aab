r"""Attenuation within the elements of a grid, for laws of the dust whose curve differs from galaxy to galaxy.

Within an element the attenuation :math:`A(\lambda) = e^{-\tau(\lambda)}` is a polynomial through some nodes,

.. math:: A(\lambda) = \sum_j a_j T_j(x(\lambda)), \qquad a_j = \sum_k C_{jk} A(\lambda_k)

with Chebyshev's polynomials :math:`T_j` of the place :math:`x` in the element, from -1 to 1. The populations times each
:math:`T_j` are brought onto the grid once. For a galaxy the law is then evaluated at the nodes alone, whichever it is.

What an element sees of the spectrum, smoothing included, is cut into pieces where the curve or its slope jumps: most
elements are one piece. Their number of nodes is measured: so many that the largest optical depths and the ends of the
slope's range are met to the tolerance.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebpts1, chebvander
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from digs_survey.config import ModelConfig
from digs_survey.config.dust_laws import DUST_CONSTANTS
from digs_survey.prior import Prior
from digs_survey.sps.arrays import as_like, namespace
from digs_survey.sps.dust import birth_cloud_curve, dust_law, log_slope

__all__ = ["DustRanges", "ElementDust", "PackedDust"]

_UNSEEN = 1e-6
"""Share of an element's largest weight below which the attenuation may be anything."""
_FEWEST, _MOST, _PROBES = 2, 10, 25


class PackedDust(NamedTuple):
    """What the compiled loops take of an :class:`ElementDust`; ``to_terms`` is (term, node)."""

    base: NDArray[np.float32]
    tilt: NDArray[np.float32]
    log_slope: NDArray[np.float32]
    birth: NDArray[np.float32]
    to_terms: NDArray[np.float32]
    owners: NDArray[np.int64]


class DustRanges(NamedTuple):
    """Least and largest value of each parameter of the dust, equal where it is not free."""

    dust2: tuple[float, float]
    dust_index: tuple[float, float]
    dust1: tuple[float, float]

    @classmethod
    def of(cls, prior: Prior) -> DustRanges:
        """Return the ranges of a prior."""
        low, high = prior.bounds("dust2") or (0.0, 0.0)
        index, birth = (prior.bounds(name) or (DUST_CONSTANTS[name],) * 2 for name in ("dust_index", "dust1"))
        return cls((low, high), index, birth)


class ElementDust:
    """The attenuation of a law within each element.

    Parameters
    ----------
    model : ModelConfig
    prior : Prior
    wavelength : ndarray, shape (wavelength,)
        Of the populations.
    matrix : csr_array, shape (wavelength, element)
        From there to the grid, with the widest line spread.
    tolerance : float
        Largest error of the attenuation, relative, at any wavelength that an element sees.

    Attributes
    ----------
    pieces : int
        The first are those of the elements, in their order.
    powers : int
        Terms of the polynomial.
    two : bool
        Whether stars in birth clouds have dust of their own.
    """

    def __init__(
        self, model: ModelConfig, prior: Prior, wavelength: NDArray[np.float64], matrix: csr_array, tolerance: float
    ) -> None:
        self._law = dust_law(model, prior)
        self._ranges = ranges = DustRanges.of(prior)
        self.two = ranges.dust1 != (0.0, 0.0)
        self._wavelength = wavelength
        self._cut(matrix)
        lowest, highest = self._ends(matrix)
        self._middle, self._half = 0.5 * (lowest + highest), np.maximum(0.5 * (highest - lowest), 1e-6 * highest)
        self.powers, sizes = self._choose(tolerance)
        nodes = self._middle + self._half * chebpts1(self.powers)[:, None]
        self._base, self._tilt, self._log_slope = self._law.base(nodes), self._law.tilt(nodes), log_slope(nodes)
        if not self._law.sloped:
            self._tilt, self._log_slope = np.zeros_like(nodes), np.zeros_like(nodes)
        self._birth = birth_cloud_curve(nodes)
        # Populations are kept as sums of fewer vectors: of terms that are small, fewer still.
        self._sizes = sizes
        self._to_terms = _to_terms(self.powers) / sizes[:, None]

    def _cut(self, matrix: csr_array) -> None:
        """Number the pieces: the first of each element, then those beyond a break."""
        entries = coo_array(matrix)
        piece_of = np.searchsorted(self._law.breaks, self._wavelength, side="right")
        seen = self._seen(entries)
        of_entry, elements = piece_of[entries.row], matrix.shape[1]
        self._first, last = np.full(elements, len(self._law.breaks)), np.zeros(elements, dtype=np.int64)
        np.minimum.at(self._first, entries.col[seen], of_entry[seen])
        np.maximum.at(last, entries.col[seen], of_entry[seen])
        self._last, more = last, last - self._first
        self._beyond = elements + np.cumsum(more) - more
        self.owners = np.repeat(np.arange(elements), more)
        self.elements, self.pieces = elements, elements + len(self.owners)
        self._segment = piece_of

    @staticmethod
    def _seen(entries: coo_array) -> NDArray[np.bool_]:
        size = np.abs(entries.data)
        largest = np.zeros(entries.shape[1])
        np.maximum.at(largest, entries.col, size)
        return np.asarray(size > _UNSEEN * largest[entries.col])

    def _piece(self, entries: coo_array) -> NDArray[np.int64]:
        """Piece of each entry (wavelength, element) of a matrix."""
        first = self._first[entries.col]
        step = np.clip(self._segment[entries.row], first, self._last[entries.col]) - first
        return np.where(step == 0, entries.col, self._beyond[entries.col] + step - 1)

    def _ends(self, matrix: csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest wavelength (piece,) that each piece sees."""
        entries = coo_array(matrix)
        seen = self._seen(entries)
        piece, at = self._piece(entries)[seen], self._wavelength[entries.row[seen]]
        low, high = np.full(self.pieces, np.inf), np.full(self.pieces, -np.inf)
        np.minimum.at(low, piece, at)
        np.maximum.at(high, piece, at)
        # Between two breaks may lie no sample of the populations.
        empty = low > high
        middle = np.median(at)
        return np.where(empty, middle, low), np.where(empty, middle, high)

    def _choose(self, tolerance: float) -> tuple[int, NDArray[np.float64]]:
        """Return how many nodes are needed, and the size of each term relative to the first."""
        x = np.linspace(-1, 1, _PROBES)
        at = self._middle + self._half * x[:, None]
        for powers in range(_FEWEST, _MOST + 1):
            nodes = self._middle + self._half * chebpts1(powers)[:, None]
            worst, sizes = 0.0, np.full(powers, 1e-12)
            for corner in self._corners():
                terms = _to_terms(powers) @ self._attenuation(nodes, *corner)
                exact = self._attenuation(at, *corner)
                worst = max(worst, float(np.abs(chebvander(x, powers - 1) @ terms / exact - 1).max()))
                sizes = np.maximum(sizes, np.abs(terms / terms[0]).max(axis=1))
            if worst < tolerance:
                break
        return powers, sizes

    def _corners(self) -> list[tuple[float, float, float]]:
        """Depths and slopes whose attenuation is steepest."""
        slopes = np.linspace(*self._ranges.dust_index, 3) if self._law.sloped else [0.0]
        return list(itertools.product([self._ranges.dust2[1]], np.unique(slopes), np.unique(self._ranges.dust1)))

    def _attenuation(
        self, wavelength: NDArray[np.float64], dust2: float, index: float, dust1: float
    ) -> NDArray[np.float64]:
        return np.exp(-dust2 * self._law.curve(wavelength, index) - dust1 * birth_cloud_curve(wavelength))

    def ways(self, matrix: csr_array) -> list[csr_array]:
        """Return, for each term, the matrix (wavelength, piece) that brings its share of a spectrum to the pieces.

        Parameters
        ----------
        matrix : csr_array, shape (wavelength, element)
            Of any line spread.
        """
        entries = coo_array(matrix)
        piece = self._piece(entries)
        place = (self._wavelength[entries.row] - self._middle[piece]) / self._half[piece]
        # What is seen lies between -1 and 1. Beyond, where the polynomial may be anything, it is kept from growing.
        terms = chebvander(np.clip(place, -1, 1), self.powers - 1) * self._sizes
        shape = matrix.shape[0], self.pieces
        return [csr_array((entries.data * terms[:, j], (entries.row, piece)), shape=shape) for j in range(self.powers)]

    def __call__(self, light: list[list[Any]], dust2: Any, dust_index: Any = None, dust1: Any = None) -> Any:
        """Attenuated flux (n, element).

        Parameters
        ----------
        light : list of list of ndarray or torch.Tensor, each (n, piece)
            For all stars, or for those without and those with a birth cloud: the terms.
        dust2, dust_index, dust1 : ndarray or torch.Tensor, shape (n,)
            ``dust_index`` and ``dust1`` where they are free.
        """
        like = light[0][0]
        xp = namespace(like)

        def column(values: Any) -> Any:
            return xp.asarray(values, dtype=like.dtype)[:, None]

        total = xp.zeros_like(like)
        index = DUST_CONSTANTS["dust_index"] if dust_index is None else column(dust_index)
        birth = DUST_CONSTANTS["dust1"] if dust1 is None else column(dust1)
        for k in range(self.powers):
            base, tilt, slope, cloud = (
                as_like(values[k], like) for values in (self._base, self._tilt, self._log_slope, self._birth)
            )
            kept = _at_node(light[0], self._to_terms[:, k])
            if len(light) > 1:
                kept = kept + xp.exp(-birth * cloud) * _at_node(light[1], self._to_terms[:, k])
            total = total + kept * xp.exp(-column(dust2) * xp.exp(index * slope) * (base + index * tilt))
        flux = total[:, : self.elements]
        if len(self.owners):
            gather = np.zeros((len(self.owners), self.elements))
            gather[np.arange(len(self.owners)), self.owners] = 1
            flux = flux + total[:, self.elements :] @ as_like(gather, like)
        return flux

    def depths(self, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
        """dust2, dust_index and dust1 (n, 3) of galaxies for the compiled loops, from the columns (n,) of theta."""
        rest = (columns.get(name, DUST_CONSTANTS[name]) for name in ("dust_index", "dust1"))
        return np.stack(np.broadcast_arrays(columns["dust2"], *rest), axis=1).astype(np.float32)

    @cached_property
    def packed(self) -> PackedDust:
        """What the compiled loops take."""
        values = self._base, self._tilt, self._log_slope, self._birth, self._to_terms
        base, tilt, slope, birth, to_terms = (np.ascontiguousarray(array, dtype=np.float32) for array in values)
        return PackedDust(base, tilt, slope, birth, to_terms, self.owners)


def _at_node(terms: list[Any], weights: NDArray[np.float64]) -> Any:
    return sum(float(weight) * term for weight, term in zip(weights, terms, strict=True))


def _to_terms(count: int) -> NDArray[np.float64]:
    """Matrix (term, node) from values at Chebyshev's nodes to the terms of the polynomial through them."""
    return np.asarray(np.linalg.inv(chebvander(chebpts1(count), count - 1)))
