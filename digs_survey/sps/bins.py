r"""Star formation histories in bins of age: their edges, their rates, and what they weigh simple populations with.

The edges are Prospector's (``adjust_continuity_agebins``, ``zred_to_agebins``): 0, :data:`FIRST` and 100 Myr, equal
steps in log age up to 0.85 times the age of the universe, and that age. Within a bin the rate is constant.

``continuity`` (Leja et al. 2019, ApJ 876, 3): :math:`\log_{10}` of the rate in a bin over that in the next older one.
``dirichlet`` (Leja et al. 2017, ApJ 837, 170; Betancourt 2013, AIP Conf. Proc. 1443, 157): :math:`z_k` makes of the
rates the shares :math:`(1 - z_k) \prod_{j<k} z_j`, and the last of them is the product of all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.jit import loops
from digs_survey.parameters import BINNED
from digs_survey.sps.arrays import as_like, namespace

__all__ = ["FIRST", "BinWeights", "agebins", "bin_edges", "bin_rates", "binned_columns", "binned_weights"]

FIRST = 10**7.4772
"""End of the youngest bin in years, as Prospector writes it."""
_SECOND, _LAST = 8.0, 0.85
"""log10 of the end of the next bin in years, and where the oldest one begins, as a share of the universe's age."""
_LARGEST_RATIO = 10.0
"""Prospector takes a larger ratio, in dex, for this one."""


def binned_columns(sfh: str, names: tuple[str, ...]) -> list[int]:
    """Return where a history's parameters stand among names, the youngest bin first; none if it is not in bins."""
    stem = BINNED.get(sfh)
    return [k for k, name in enumerate(names) if stem is not None and name.rpartition("_")[0] == stem]


def bin_edges(tuniv: Any, bins: int) -> Any:
    """Return the edges (..., bin + 1) of the bins in Gyr, youngest first, for ages of the universe (...) in Gyr.

    Examples
    --------
    >>> bin_edges(np.array(13.7), 7).round(2).tolist()
    [0.0, 0.03, 0.1, 0.33, 1.08, 3.54, 11.64, 13.7]
    """
    xp = namespace(tuniv)
    zero = xp.zeros_like(tuniv)
    span = xp.log10(_LAST * tuniv) + 9 - _SECOND
    steps = [10 ** (_SECOND - 9 + span * (k / (bins - 3))) for k in range(bins - 2)]
    return xp.stack([zero, zero + FIRST / 1e9, *steps, tuniv], -1)


def bin_rates(sfh: str, values: Any, edges: Any) -> Any:
    """Star formation rates (..., bin), in solar masses a Gyr, of histories that form one solar mass.

    Parameters
    ----------
    sfh : {"continuity", "dirichlet"}
    values : array, shape (..., bin - 1)
        ``logsfr_ratios`` or ``z_fraction``.
    edges : array, shape (..., bin + 1)
        Of the bins in Gyr.
    """
    xp = namespace(values)
    first = xp.zeros_like(values[..., :1])
    if sfh == "continuity":
        log = -xp.cumsum(xp.clip(values, -_LARGEST_RATIO, _LARGEST_RATIO), -1) * math.log(10)
        log = xp.concatenate([first, log], -1)
        rates = xp.exp(log - xp.amax(log, -1)[..., None])
    else:
        older = xp.concatenate([first + 1, xp.cumprod(values, -1)], -1)
        rates = older * xp.concatenate([1 - values, first + 1], -1)
    return rates / (rates * (edges[..., 1:] - edges[..., :-1])).sum(-1)[..., None]


class BinWeights:
    """Weights of simple populations for many histories in bins, each with edges of its own; numpy and torch alike.

    Parameters
    ----------
    log_age : array_like, shape (age,)
        Nodes of log10 age/yr, increasing.

    Notes
    -----
    The integrals are those of :func:`~digs_survey.sps.history.bin_weights`, in double precision. An interval between
    two nodes counts with the rate at its younger end. For each edge within it, what is older gets the difference
    between the two rates.
    """

    def __init__(self, log_age: ArrayLike) -> None:
        self._log_age = np.asarray(log_age, dtype=float)
        self._nodes = np.concatenate([[0.0], 10 ** (self._log_age - 9)])
        self._steps = np.append(np.inf, np.diff(self._log_age) * np.log(10))
        width = np.diff(self._nodes)
        self._older = self._part(np, self._nodes[:-1], np.arange(width.size), *self._constants(self._nodes))
        self._younger = width - self._older

    def _constants(self, like: Any) -> tuple[Any, Any]:
        return as_like(self._nodes, like), as_like(self._steps, like)

    @staticmethod
    def _part(xp: Any, age: Any, piece: Any, nodes: Any, steps: Any) -> Any:
        """Integral of the older node's share from an age in an interval to the interval's older end."""
        low, high, step = nodes[piece], nodes[piece + 1], steps[piece]
        safe = xp.where(piece > 0, low, high)
        end = high * (xp.log(high / safe) - 1)
        begin = age * (xp.log(xp.where(piece > 0, age, safe) / safe) - 1)
        return xp.where(piece > 0, (end - begin) / step, high - age)

    def __call__(self, rates: Any, edges: Any) -> Any:
        """Solar masses (n, age) in each population.

        Parameters
        ----------
        rates : array of float64, shape (n, bin)
            Star formation rates in solar masses a Gyr.
        edges : array of float64, shape (n, bin + 1)
            Of the bins in Gyr, from 0 to at most the last node.
        """
        compiled = loops("digs_survey.sps.compiled_bins")
        if compiled is not None and isinstance(rates, np.ndarray):
            weights = np.zeros((len(rates), self._log_age.size))
            compiled.weigh_bins(self._nodes, self._steps, self._older, self._younger, rates, edges, weights)
            return weights
        xp = namespace(rates)
        nodes, steps = self._constants(rates)
        # Rates after the last edge are 0.
        after = xp.concatenate([rates[:, 1:], xp.zeros_like(rates[:, :1])], -1)
        of_interval = rates[:, :1] + xp.zeros_like(nodes[None, :-1])
        for k in range(rates.shape[1]):
            inside = nodes[None, :-1] >= edges[:, k + 1, None]
            of_interval = xp.where(inside, after[:, k, None], of_interval)
        older = of_interval * as_like(self._older, rates)
        younger = of_interval * as_like(self._younger, rates)
        row = xp.arange(rates.shape[0])
        last = self._log_age.size - 1
        for k in range(rates.shape[1]):
            edge = xp.asarray(edges[:, k + 1], copy=True)
            piece = xp.clip(xp.searchsorted(nodes, edge, side="left") - 1, 0, last)
            part = self._part(xp, edge, piece, nodes, steps)
            change = after[:, k] - rates[:, k]
            older[row, piece] += change * part
            younger[row, piece] += change * (nodes[piece + 1] - edge - part)
        older[:, :-1] += younger[:, 1:]
        return older

    def integrals(self, values: NDArray[np.float64], node: NDArray[np.int64], age: NDArray[np.float64]) -> Any:
        """Integrals (...) up to ages (...) in Gyr of values (node, age), linear in log age between populations.

        What is younger than the first population has its value. ``node`` (...) says which row of values counts.
        """
        whole = values * self._older
        whole[:, 1:] += values[:, :-1] * self._younger[1:]
        before = np.concatenate([np.zeros((len(values), 1)), np.cumsum(whole, axis=1)], axis=1)
        piece = np.clip(np.searchsorted(self._nodes, age) - 1, 0, self._log_age.size - 1)
        older = self._older[piece] - self._part(np, age, piece, self._nodes, self._steps)
        younger = age - self._nodes[piece] - older
        return before[node, piece] + values[node, piece] * older + values[node, np.maximum(piece - 1, 0)] * younger


def binned_weights(sfh: str, weights: BinWeights, names: tuple[str, ...], theta: Any) -> Any:
    """Solar masses (n, age) in each population for one solar mass formed, for theta (n, ndim) with ``tage`` in Gyr."""
    columns = binned_columns(sfh, names)
    edges = bin_edges(theta[:, names.index("tage")], len(columns) + 1)
    return weights(bin_rates(sfh, theta[:, columns], edges), edges)


def agebins(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bins (bin, 2) in log10 years that Prospector calls ``agebins``, for edges (bin + 1,) in Gyr."""
    log = np.log10(np.append(1.0, edges[1:] * 1e9))
    return np.stack([log[:-1], log[1:]], axis=1)
