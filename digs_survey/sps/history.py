r"""Star formation histories as weights of simple populations.

A composite spectrum is a weighted sum of simple populations. The weight of the population of age
:math:`a_i` is the integral of the star formation rate (normalised to one solar mass formed) times its hat
function, linear in :math:`\log_{10} a`; everything younger than the first age counts as the first
population. This is FSPS's own recipe (its ``sfh`` 1, 3 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import BarycentricInterpolator
from scipy.linalg import block_diag

from digs_survey.jit import padded
from digs_survey.sps.arrays import as_like, namespace

if TYPE_CHECKING:
    from digs_survey.sps.compiled_spectra import PackedHistory

__all__ = [
    "AgeQuadrature",
    "HistoryWeights",
    "bin_weights",
    "formed_since",
    "mass_formed",
    "mass_weighted_age",
    "star_formation_rate",
]

POWERS = {"tau": 1, "delayed_tau": 2}
"""Of the incomplete gamma function that is the integral of the rate."""

_SERIES_BELOW, _SERIES_TERMS = 0.05, 6
_ORDER = 12
_PANEL, _PANEL_ORDER = 2.0, 9
"""Width in shortest times of a panel of age intervals, and the points that interpolate exp over it to 1e-8."""
_JOINED = 12
"""Intervals of neighbouring panels that are one product."""

_Panel = tuple[slice, float, NDArray[np.float64], NDArray[np.float64]]
"""Intervals, how far before its onset a history may be asked, points, and weights (point, 2, interval)."""


def _gauss(order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of Gauss-Legendre quadrature on 0 to 1."""
    points, weights = np.polynomial.legendre.leggauss(order)
    return 0.5 * (points + 1), 0.5 * weights


_POINTS, _POINT_WEIGHTS = _gauss(_ORDER)


def _order_for(width: float, tolerance: float = 1e-7) -> int:
    """Points of Gauss-Legendre quadrature that integrate exp over ``width`` to the relative tolerance."""
    for order in range(2, _ORDER):
        # The rule's remainder (Abramowitz & Stegun 25.4.30), for a derivative of 1.
        error = width ** (2 * order) * math.factorial(order) ** 4 / (2 * order + 1) / math.factorial(2 * order) ** 3
        if error < tolerance:
            return order
    return _ORDER


class AgeQuadrature:
    """Integrates star formation histories against the hat functions of an age grid.

    Parameters
    ----------
    log_age : array_like, shape (age,)
        Nodes of log10 age/yr, increasing.

    Notes
    -----
    Gauss-Legendre quadrature between neighbouring ages; the nodes that do not depend on the history are
    kept. Exact to about 1e-9 for steps up to 0.1 dex and ``tau`` down to 0.1 Gyr.
    """

    def __init__(self, log_age: ArrayLike) -> None:
        self._log_age = np.asarray(log_age, dtype=float)
        self._edges = np.concatenate([[0.0], 10 ** (self._log_age - 9), [np.inf]])
        whole = range(self._log_age.size)
        pieces = [self._piece(i, self._edges[i], self._edges[i + 1]) for i in whole]
        self._age, self._older, self._younger = (np.array(part) for part in zip(*pieces, strict=True))

    def _piece(self, i: int, low: float, high: float) -> tuple[NDArray[np.float64], ...]:
        """Ages (point,) in Gyr within piece ``i`` and their weights for the node at its old and young end."""
        age = low + (high - low) * _POINTS
        weights = (high - low) * _POINT_WEIGHTS
        if i == 0:
            return age, weights, 0 * weights
        if i == self._log_age.size:
            return age, 0 * weights, weights
        step = self._log_age[i] - self._log_age[i - 1]
        share = (np.log10(age) + 9 - self._log_age[i - 1]) / step
        return age, share * weights, (1 - share) * weights

    def __call__(self, rate: Callable[[Any], Any], tage: float) -> NDArray[np.float64]:
        """Weights (age,) of the populations for one solar mass formed.

        Parameters
        ----------
        rate : callable
            Star formation rate, in any unit, at times (1, k) in Gyr since the onset.
        tage : float
            Age of the galaxy in Gyr, positive.
        """
        if not tage > 0:
            raise ValueError(f"expected a positive tage in Gyr, found {tage:g}")
        last = int(np.searchsorted(self._edges, tage, side="left")) - 1
        previous = max(last - 1, 0)
        weights = np.zeros(self._log_age.size + 1)
        formed = rate((tage - self._age[:last]).reshape(1, -1)).reshape(last, _ORDER)
        weights[:last] = np.einsum("ij,ij->i", formed, self._older[:last])
        weights[:previous] += np.einsum("ij,ij->i", formed[1:], self._younger[1:last])
        age, older, younger = self._piece(last, self._edges[last], tage)
        formed = rate((tage - age)[None])[0]
        weights[last] += formed @ older
        weights[previous] += formed @ younger
        return weights[:-1] / weights.sum()


class HistoryWeights:
    """Weights of the populations for many star formation histories at once; numpy and torch alike.

    Parameters
    ----------
    log_age : array_like, shape (age,)
        Nodes of log10 age/yr, increasing.
    shortest_gyr : float
        Time over which a history may change much: the smallest e-folding time that is asked for.

    Notes
    -----
    The same integrals as :class:`AgeQuadrature`. Neighbouring intervals of ages that are short against the shortest
    time share a few points, through which the rate is a polynomial whose integrals with their hat functions are
    known; a long interval has Gauss-Legendre quadrature of its own. Weights are divided by their own sum, so that a
    solar mass is formed exactly.
    """

    def __init__(self, log_age: ArrayLike, shortest_gyr: float) -> None:
        self._log_age = np.asarray(log_age, dtype=float)
        self._edges = np.concatenate([[0.0], 10 ** (self._log_age - 9)])
        panels = []
        first, widths = 0, np.diff(self._edges) / shortest_gyr
        while first < widths.size:
            last = first + 1
            while last < widths.size and (self._edges[last + 1] - self._edges[first]) / shortest_gyr <= _PANEL:
                last += 1
            alone = last == first + 1
            order = _order_for(widths[first]) if alone else _PANEL_ORDER
            panels.append(self._panel(slice(first, last), order))
            first = last
        # The rate is asked for at the points of all panels together: a few of them take longer to begin than to end.
        self._before = np.concatenate([np.full(age.size, before) for _, before, age, _ in panels])
        self._ages = np.concatenate([age for _, _, age, _ in panels])
        self._panels = panels
        # Panels that are small are one product, most of whose factors are zero: that takes less than many products.
        self._parts, self._weights, asked = [], [], 0
        for joined in _joined(panels):
            count = sum(age.size for _, _, age, _ in joined)
            part = slice(joined[0][0].start, joined[-1][0].stop)
            self._parts.append((part, slice(asked, asked + count)))
            ends = [block_diag(*(weights[:, end] for _, _, _, weights in joined)) for end in (0, 1)]
            self._weights.append(np.concatenate(ends, axis=1))
            asked += count
        self._rule = _gauss(_order_for(widths.max()))
        self._known: dict[tuple[Any, Any], list[Any]] = {}

    def _panel(self, part: slice, order: int) -> _Panel:
        """Return a panel of intervals; its weights are those for the old and for the young end of each."""
        low, high = self._edges[part.start], self._edges[part.stop]
        age = low + (high - low) * _gauss(order)[0]
        weights = np.empty((order, 2, part.stop - part.start))
        for k, piece in enumerate(range(part.start, part.stop)):
            width = self._edges[piece + 1] - self._edges[piece]
            if weights.shape[2] == 1:
                inner, mass, shape = age, width * _gauss(order)[1], np.eye(order)
            else:
                inner, mass = self._edges[piece] + width * _POINTS, width * _POINT_WEIGHTS
                shape = BarycentricInterpolator(age, np.eye(order))(inner).T
            share = self._share(np, np.full(inner.size, piece), inner)
            weights[:, :, k] = np.stack([shape @ (mass * share), shape @ (mass * (1 - share))], axis=1)
        return part, 0.0 if weights.shape[2] == 1 else high - low, age, weights

    def packed(self, rate: int) -> PackedHistory:
        """Return what the compiled loops take; ``rate`` is one of theirs."""
        from digs_survey.sps.compiled_spectra import PackedHistory

        rows, old, young, point, at = [], [], [], 0, 0
        for part, _, age, weights in self._panels:
            ends = [padded(weights[:, end].T).ravel() for end in (0, 1)]
            rows.append([part.start, part.stop - part.start, point, age.size, at])
            old.append(ends[0])
            young.append(ends[1])
            point, at = point + age.size, at + ends[0].size
        values = self._edges, self._ages, self._before, np.concatenate(old), np.concatenate(young), *self._rule
        edges, ages, before, older, younger, points, mass = (value.astype(np.float32) for value in values)
        return PackedHistory(rate, edges, ages, before, np.array(rows), older, younger, points, mass)

    def _constants(self, like: Any) -> list[Any]:
        """What does not depend on the history, as :func:`as_like` gives it; made once for each kind of array."""
        kind = like.dtype, like.device
        if kind not in self._known:
            self._known[kind] = [
                as_like(values, like) for values in (self._edges, self._ages, self._before, *self._weights)
            ]
        return self._known[kind]

    def _share(self, xp: Any, piece: Any, age: Any) -> Any:
        """Share of the older node of each interval; in the first interval there is no younger one."""
        nodes = as_like(self._log_age, age)
        below = nodes[xp.where(piece > 0, piece - 1, 0)]
        step = xp.where(piece > 0, nodes[piece] - below, 1.0)
        return xp.where(piece > 0, (xp.log10(age) + 9 - below) / step, 1.0)

    def __call__(self, rate: Callable[[Any], Any], tage: Any) -> Any:
        """Solar masses (n, age) in each population for one solar mass formed.

        Parameters
        ----------
        rate : callable
            Star formation rate, in any unit, at times (n, k) in Gyr since the onset of each history.
        tage : array, shape (n,)
            Age of each galaxy in Gyr, positive and at most the last node.
        """
        xp = namespace(tage)
        edges, ages, before, *panels = self._constants(tage)
        # An age may lie beyond the last node by the rounding of its power of ten.
        last = xp.clip(xp.searchsorted(edges, tage, side="left") - 1, 0, len(edges) - 2)
        older = xp.zeros_like(tage[:, None] * edges[None, 1:])
        younger = xp.zeros_like(older)
        formed = rate(xp.maximum(tage[:, None] - ages, -before))
        for (part, at), weights in zip(self._parts, panels, strict=True):
            both = formed[:, at] @ weights
            older[:, part], younger[:, part] = both[:, : part.stop - part.start], both[:, part.stop - part.start :]
        whole = edges[None, 1:] <= edges[last][:, None]
        older, younger = xp.where(whole, older, 0.0), xp.where(whole, younger, 0.0)
        older[:, :-1] += younger[:, 1:]
        # The interval in which the history began counts from there on.
        points, mass = (as_like(values, tage) for values in self._rule)
        low, row = edges[last][:, None], xp.arange(tage.shape[0])
        span = tage[:, None] - low
        formed = rate(span * (1 - points)) * span * mass
        share = self._share(xp, last[:, None], low + span * points)
        older[row, last] += (formed * share).sum(-1)
        older[row, xp.where(last > 0, last - 1, 0)] += (formed * (1 - share)).sum(-1)
        return older / older.sum(-1)[:, None]


def _joined(panels: list[_Panel]) -> Iterator[list[_Panel]]:
    """Runs of neighbouring panels with at most so many intervals in all; a larger one by itself."""
    run: list[_Panel] = []
    for panel in panels:
        if run and panel[0].stop - run[0][0].start > _JOINED:
            yield run
            run = []
        run.append(panel)
    yield run


def star_formation_rate(sfh: str, tau: Any) -> Callable[[Any], Any]:
    """Return the rate, in any unit, of histories of one family at times (n, k) in Gyr since the onset.

    Parameters
    ----------
    sfh : {"delayed_tau", "tau", "constant"}
        t exp(-t/tau), exp(-t/tau), or 1.
    tau : array, shape (n,)
        e-folding times in Gyr; of a constant rate only the array's kind counts.
    """
    xp = namespace(tau)
    if sfh == "constant":
        return lambda time: xp.ones_like(time)
    inverse = 1 / tau[:, None]

    def exponential(time: Any) -> Any:
        return xp.exp(-time * inverse)

    def delayed(time: Any) -> Any:
        x = time * inverse
        return x * xp.exp(-x)

    return delayed if sfh == "delayed_tau" else exponential


def mass_formed(sfh: str, time: Any, tau: Any) -> Any:
    """Integral of the rate up to times (n,) in Gyr, in a unit that is the same for one tau; arguments as above."""
    if sfh == "constant":
        return time
    return _gamma(POWERS[sfh], time / tau)


def formed_since(sfh: str, time_gyr: Any, tage: Any, tau: Any) -> Any:
    """Share (n,) of the mass that galaxies of age ``tage`` (n,) in Gyr have formed within the last ``time_gyr``.

    A sum of positive terms, so that rates far down an exponential keep their digits.
    """
    if sfh == "constant":
        return np.minimum(time_gyr / tage, 1.0)
    before, span = np.clip(tage - time_gyr, 0, None) / tau, np.minimum(time_gyr, tage) / tau
    late = _gamma(1, span)
    if sfh == "delayed_tau":
        late = before * late + _gamma(2, span)
    return np.exp(-before) * late / mass_formed(sfh, tage, tau)


def mass_weighted_age(sfh: str, tage: Any, tau: Any) -> Any:
    """Mean age (n,) in Gyr of the mass that galaxies of age ``tage`` (n,) in Gyr have formed."""
    if sfh == "constant":
        return tage / 2
    power, x = POWERS[sfh], tage / tau
    return tage - tau * power * _gamma(power + 1, x) / _gamma(power, x)


def _gamma(power: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Regularised lower incomplete gamma function of 1, 2 or 3: :math:`1 - e^{-x} \sum_{k<power} x^k / k!`.

    Several times faster than scipy's for any power. Where its terms cancel, their series takes over.
    """
    value = -np.expm1(-x)
    if power == 1:
        return value
    decay, term = np.exp(-x), x.copy()
    for k in range(1, power):
        value -= term * decay
        term = term * x / (k + 1)
    small = x < _SERIES_BELOW
    if small.any():
        some = x[small]
        terms = [(-some) ** j / (math.factorial(j) * (power + j)) for j in range(_SERIES_TERMS)]
        value[small] = some**power / math.factorial(power - 1) * sum(terms)
    return value


def bin_weights(log_age: ArrayLike, agebins: ArrayLike) -> NDArray[np.float64]:
    """Weights of simple populations for a constant rate within each of some bins of age.

    Those of a galaxy that formed the masses ``m`` (n, bin) are ``m @ bin_weights(log_age, agebins)``.

    Parameters
    ----------
    log_age : array_like, shape (age,)
        Nodes of log10 age/yr, increasing.
    agebins : array_like, shape (bin, 2)
        log10 of the youngest and the oldest age of each bin in years, as Prospector's parameter of this name.

    Returns
    -------
    ndarray of float64, shape (bin, age)
        Solar masses in each population for one solar mass formed in the bin; rows sum to 1. What is older
        than the last node counts as the last population.

    Raises
    ------
    ValueError
        If a bin is empty.
    """
    nodes, bins = np.asarray(log_age, dtype=float), np.asarray(agebins, dtype=float)
    if bins.ndim != 2 or bins.shape[1] != 2 or not (bins[:, 0] < bins[:, 1]).all():
        raise ValueError(f"agebins: expected (bin, 2) with the younger age first, found {bins.tolist()}")
    # Prospector's first bin begins at 1 yr and means 0.
    edges = np.where(bins <= 0, 0.0, 10**bins)
    low, high = edges[:, :1], edges[:, 1:]
    weights = np.zeros((len(bins), nodes.size))
    pieces = np.concatenate([[0.0], 10**nodes, [np.inf]])
    for i in range(nodes.size + 1):
        a, b = np.clip(low, pieces[i], pieces[i + 1]), np.clip(high, pieces[i], pieces[i + 1])
        width = (b - a)[:, 0]
        if i in (0, nodes.size):
            weights[:, max(i - 1, 0)] += width
            continue
        # The integral of log10(age) is age * (log10(age) - log10(e)).
        part = [x * (np.log10(x) - math.log10(math.e) - nodes[i - 1]) for x in (a, b)]
        older = (part[1] - part[0])[:, 0] / (nodes[i] - nodes[i - 1])
        weights[:, i] += older
        weights[:, i - 1] += width - older
    return weights / (high - low)
