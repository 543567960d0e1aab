"""Populations on a catalog's grid, interpolated in metallicity and, where it is free, in the line spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from digs_survey.sps.arrays import as_like, namespace

if TYPE_CHECKING:
    from digs_survey.sps.compiled_spectra import PackedPart

__all__ = [
    "Part",
    "SpreadPanel",
    "SpreadPart",
    "chebyshev_terms",
    "directions",
    "even_shares",
    "importance",
    "inside",
    "lagrange_shares",
    "place_in",
    "products_of",
]

_LONG_FROM, _RESIDUE, _LONG_RESIDUE = 1_000, 3e-7, 2e-6
"""Share of the populations that sums of fewer vectors may leave out: :data:`_RESIDUE`, or :data:`_LONG_RESIDUE` where
elements times powers of the attenuation reach :data:`_LONG_FROM`.
"""
_SPREAD_RESIDUE = 3e-6
"""The same on long grids where the line spread is free, whose elements count by their importance."""
_HISTORY_RESIDUE = 1e-6
"""The same of populations as sums of fewer ones, before the line spread is known."""

_FAINT = 0.03
"""Flux of a population in an element, over its mean, below which an error is not more important still."""

Factors = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""For each power of the attenuation's offset, matrices (row, vector) and (vector, element)."""


class Part:
    """Populations on the grid, interpolated in metallicity and summed with weights.

    Between two nodes of metallicity the populations are sums of fewer vectors, for each power of the attenuation's
    offset: two products of matrices, the first narrow, in the place of one.

    Parameters
    ----------
    log_z : ndarray, shape (node,)
    degree : int
        Of the polynomial through the nodes of a panel.
    rows : ndarray, shape (node, age, power * element)
    powers : int
    """

    def __init__(self, log_z: NDArray[np.float64], degree: int, rows: NDArray[np.floating], powers: int) -> None:
        self.nodes, self.edges, self.ages = degree + 1, log_z[::degree].copy(), rows.shape[1]
        panels = [rows[i : i + degree + 1].reshape(-1, rows.shape[2]) for i in range(0, log_z.size - 1, degree)]
        self.panels = [_factors(panel, powers) for panel in panels]

    @property
    def share_count(self) -> int:
        """How many columns :meth:`shares` has."""
        return self.nodes

    def place(self, logzsol: Any) -> Any:
        """Return which panel each metallicity (n,) lies in."""
        return place_in(self.edges, logzsol)[0]

    def shares(self, logzsol: Any) -> Any:
        """Shares (n, node) of the nodes of its panel in each metallicity (n,)."""
        return even_shares(self.edges, self.nodes, logzsol)

    def packed(self, first_share: int) -> list[PackedPart]:
        """Return each panel for the compiled loops, to which the shares are columns from ``first_share`` on."""
        from digs_survey.sps.compiled_spectra import pack_part

        return [pack_part(first_share, self.nodes, self.ages, factors) for factors in self.panels]

    def __call__(self, weights: Any, logzsol: Any) -> list[Any]:
        """Sums (n, element) of each power for weights (n, age) and metallicities (n,)."""
        xp, panel = namespace(weights), self.place(logzsol)
        mixed = _mixed(self.shares(logzsol), weights[:, : self.ages])
        totals = _nothing(weights, self.panels[0])
        for k, factors in enumerate(self.panels):
            (chosen,) = xp.where(panel == k)
            if len(chosen):
                _sum(totals, chosen, mixed[chosen], factors)
        return totals


class SpreadPanel(NamedTuple):
    """Populations between some metallicities and line spreads: ``histories`` (node * age, sum) makes sums of them.

    Term d in log sigma has the first ``terms[d]`` of the sums. The rows of the factors are these, term by term.
    """

    histories: NDArray[np.float32]
    terms: NDArray[np.int64]
    factors: Factors


class SpreadPart:
    """Populations on the grid, interpolated in metallicity and in the line spread, and summed with weights.

    Parameters
    ----------
    log_z : ndarray, shape (node,)
    degree : int
        Of the polynomial through the nodes of a panel of metallicities.
    nodes : sequence of ndarray, each (spread node,)
        Log sigma at the nodes of each panel of line spreads, through which a polynomial goes.
    edges : ndarray, shape (panel + 1,)
        Log sigma between which the panels lie.
    powers : int
        Of the attenuation's offset.

    Notes
    -----
    Each panel of line spreads is filled by itself, so that one at a time is in memory.

    The wide product is as in :class:`Part`. Before it, a galaxy's weights times its shares of the metallicities become
    its weights of a few sums of populations. In log sigma a sum is a polynomial, kept as one of Chebyshev's; the weaker
    a sum is, the fewer of its terms count, and the others are left out. A galaxy's weights of the sums times the terms
    become its weights of the vectors that the wide product takes.
    """

    def __init__(
        self,
        log_z: NDArray[np.float64],
        degree: int,
        nodes: Sequence[NDArray[np.float64]],
        edges: NDArray[np.float64],
        powers: int,
    ) -> None:
        self.nodes, self.edges = degree + 1, log_z[::degree].copy()
        self.spread_nodes, self.spread_edges, self._powers = list(nodes), edges, powers
        count = (len(self.edges) - 1) * len(self.spread_nodes)
        self.panels: list[SpreadPanel] = [SpreadPanel(np.empty((0, 0), np.float32), np.empty(0, np.int64), [])] * count
        """Of each panel of metallicities those of the line spreads."""

    def fill(self, spread: int, rows: NDArray[np.floating]) -> None:
        """Take the populations (spread node, node, age, power * element) of one panel of line spreads."""
        self.ages = rows.shape[2]
        place = inside(self.spread_nodes[spread], *self.spread_edges[spread : spread + 2])
        to_terms = np.linalg.inv(chebvander(place, len(place) - 1))
        for panel in range(len(self.edges) - 1):
            first = panel * (self.nodes - 1)
            nodes = slice(first, first + self.nodes)
            self.panels[panel * len(self.spread_nodes) + spread] = _products(rows[:, nodes], to_terms, self._powers)

    @property
    def share_count(self) -> int:
        """How many columns :meth:`shares` has."""
        return self.nodes + max(map(len, self.spread_nodes))

    def place(self, logzsol: Any, log_sigma: Any) -> Any:
        """Return which panel each metallicity and log sigma (n,) lies in."""
        return place_in(self.edges, logzsol)[0] * len(self.spread_nodes) + place_in(self.spread_edges, log_sigma)[0]

    def shares(self, logzsol: NDArray[np.float64], *rest: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares (n, node) of the nodes of its panel in each metallicity, and the terms (n, term) in log sigma (n,)."""
        return np.concatenate([even_shares(self.edges, self.nodes, logzsol), self._of_rest(*rest)], axis=1)

    def _of_rest(self, log_sigma: Any) -> Any:
        """Chebyshev's polynomials (n, term) of the place of log sigma (n,) in its panel."""
        _, lower, width = place_in(self.spread_edges, log_sigma)
        return chebyshev_terms(inside(log_sigma, lower, lower + width), self.share_count - self.nodes)

    def packed(self, first_share: int) -> list[PackedPart]:
        """As :meth:`Part.packed`."""
        from digs_survey.sps.compiled_spectra import pack_part

        return [
            pack_part(first_share, self.nodes, self.ages, panel.factors, panel.histories, panel.terms)
            for panel in self.panels
        ]

    def __call__(self, weights: Any, logzsol: Any, *rest: Any) -> list[Any]:
        """Sums (n, element) of each power for weights (n, age), metallicities (n,) and logs of sigma (n,)."""
        xp, place = namespace(weights), self.place(logzsol, *rest)
        mixed = _mixed(even_shares(self.edges, self.nodes, logzsol), weights[:, : self.ages])
        of_rest = xp.asarray(self._of_rest(*rest), dtype=weights.dtype)
        totals = _nothing(weights, self.panels[0].factors)
        for k, panel in enumerate(self.panels):
            (chosen,) = xp.where(place == k)
            if len(chosen):
                sums = mixed[chosen] @ as_like(panel.histories, weights)
                terms = [of_rest[chosen, d, None] * sums[:, :count] for d, count in enumerate(panel.terms)]
                _sum(totals, chosen, xp.concatenate(terms, -1), panel.factors)
        return totals


def chebyshev_terms(place: Any, count: int) -> Any:
    """Chebyshev's polynomials (n, term) of places (n,) from -1 to 1."""
    xp = namespace(place)
    terms = [xp.ones_like(place), place]
    while len(terms) < count:
        terms.append(2 * place * terms[-1] - terms[-2])
    return xp.stack(terms[:count], -1)


def lagrange_shares(nodes: NDArray[np.float64], position: Any) -> Any:
    """Lagrange's polynomials (n, node) through nodes (node,), at positions (n,)."""
    order = range(len(nodes))
    shares = [math.prod((position - nodes[j]) / (nodes[k] - nodes[j]) for j in order if j != k) for k in order]
    return namespace(position).stack(shares, -1)


def place_in(edges: NDArray[np.float64], values: Any) -> tuple[Any, Any, Any]:
    """Return the panel of each value (n,), its lower edge and its width."""
    xp, at = namespace(values), as_like(edges, values)
    panel = xp.clip(xp.searchsorted(at, values, side="right") - 1, 0, len(edges) - 2)
    return panel, at[panel], at[panel + 1] - at[panel]


def even_shares(edges: NDArray[np.float64], nodes: int, values: Any) -> Any:
    """Shares (n, node) of the nodes, equal steps apart, of the panel in which each value (n,) lies."""
    _, lower, width = place_in(edges, values)
    return lagrange_shares(np.arange(nodes) / (nodes - 1), (values - lower) / width)


def _mixed(shares: Any, weights: Any) -> Any:
    """Products (n, share * weight) of shares (n, share) and weights (n, weight)."""
    shares = namespace(weights).asarray(shares, dtype=weights.dtype)
    return (shares[:, :, None] * weights[:, None, :]).reshape(len(weights), -1)


def _nothing(weights: Any, factors: Factors) -> list[Any]:
    xp = namespace(weights)
    return [xp.zeros((len(weights), rows.shape[1]), dtype=weights.dtype, device=weights.device) for _, rows in factors]


def _sum(totals: list[Any], chosen: Any, mixed: Any, factors: Factors) -> None:
    for total, (mixing, rows) in zip(totals, factors, strict=True):
        total[chosen] = mixed @ as_like(mixing, mixed) @ as_like(rows, mixed)


def inside(values: Any, low: Any, high: Any) -> Any:
    """Places of values between two ends, from -1 to 1."""
    return (2 * values - low - high) / (high - low)


def _products(rows: NDArray[np.floating], to_terms: NDArray[np.float64], powers: int) -> SpreadPanel:
    """Return a panel for populations (spread node, node, age, power * element).

    ``to_terms`` (term, spread node) makes a polynomial's terms of its values at the nodes.
    """
    spreads, width = rows.shape[0], rows.shape[3]
    wide = rows.reshape(spreads, -1, width).astype(np.float64)
    size = _sizes(np.abs(wide).mean(axis=(0, 2)))
    wide /= size[:, None]
    of_element = np.tile(importance(wide[..., : width // powers]), powers)
    wide *= of_element
    squares = np.zeros((size.size, size.size))
    for of_spread in wide:
        squares += of_spread @ of_spread.T
    allowed = _HISTORY_RESIDUE * math.sqrt(np.trace(squares))
    kept = directions(squares, allowed)
    sums = np.tensordot(to_terms, kept.T @ wide, 1)
    # Of each term the leading sums, so that all that are left out together are no more than is allowed.
    beyond = np.cumsum(np.square(sums).sum(axis=2)[:, ::-1], axis=1)[:, ::-1]
    terms = (beyond > allowed**2 / spreads).sum(axis=1)
    chosen = np.concatenate([of_term[:count] for of_term, count in zip(sums, terms, strict=True)])
    factors = products_of(chosen, of_element, powers)
    return SpreadPanel((size[:, None] * kept[:, : terms.max()]).astype(np.float32), terms, factors)


def products_of(rows: NDArray[np.float64], of_element: NDArray[np.float64], powers: int) -> Factors:
    """For each power, matrices whose product is its part of rows (row, power * element).

    ``of_element`` (power * element,) is what the rows were multiplied by; the products are freed of it.
    """
    allowed, factors = _allowed(rows, _SPREAD_RESIDUE), []
    for part, by in zip(np.split(rows, powers, axis=1), np.split(of_element, powers), strict=True):
        mixing = _mixing(part, allowed)
        factors.append((mixing.astype(np.float32), (mixing.T @ part / by).astype(np.float32)))
    return factors


def importance(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    """Importance of elements (element,) for flux (spread, population, element): large where some shine weakly."""
    bright = flux[:, np.abs(flux).max(axis=(0, 2)) > 0]
    return np.asarray(np.sqrt(np.mean(1 / np.maximum(bright, _FAINT) ** 2, axis=(0, 1))))


def directions(squares: NDArray[np.float64], allowed: float) -> NDArray[np.float64]:
    """Leading eigenvectors (row, vector) of products of rows (row, row) that leave out no more than a size of them."""
    strength, vectors = np.linalg.eigh(squares)
    beyond = np.sqrt(np.cumsum(np.maximum(strength, 0.0)))
    return np.ascontiguousarray(vectors[:, beyond > allowed][:, ::-1])


def _mixing(part: NDArray[np.float64], allowed: float) -> NDArray[np.float64]:
    """:func:`directions` of rows (row, column); the smaller of the two products gives them."""
    if part.shape[0] <= part.shape[1]:
        return directions(part @ part.T, allowed)
    mixing = part @ directions(part.T @ part, allowed)
    return np.ascontiguousarray(mixing / np.linalg.norm(mixing, axis=0))


def _sizes(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sizes of populations, 1 where there is nothing."""
    # Each population counts as much as any other, however bright a solar mass of it is.
    return np.where(size == 0, 1.0, size)


def _allowed(rows: NDArray[np.float64], of_long: float) -> float:
    """Return the size of what may be left out of rows (row, column); ``of_long`` is the share where they are long."""
    return (_RESIDUE if rows.shape[1] < _LONG_FROM else of_long) * float(np.linalg.norm(rows))


def _factors(rows: NDArray[np.floating], powers: int) -> Factors:
    """For each power, matrices whose product is its part of rows (row, power * element).

    What a product leaves out is a fixed share of all the rows, or less: small powers have few vectors, or none.
    """
    wide = np.asarray(rows, dtype=np.float64)
    size = _sizes(np.abs(wide).mean(axis=1, keepdims=True))
    allowed, found = _allowed(wide / size, _LONG_RESIDUE), []
    for part in np.split(wide / size, powers, axis=1):
        left, strength, right = np.linalg.svd(part, full_matrices=False)
        beyond = np.sqrt(np.cumsum(strength[::-1] ** 2))[::-1]
        count = int((beyond > allowed).sum())
        found.append(((size * left[:, :count] * strength[:count]).astype(np.float32), right[:count].astype(np.float32)))
    return found
