r"""Simple stellar populations on a grid of metallicity and age, and what turns them into a galaxy.

A composite spectrum is a weighted sum of simple populations. The weight of the population of age
:math:`a_i` is the integral of the star formation rate (normalised to one solar mass formed) times its hat
function, linear in :math:`\log_{10} a`; everything younger than the first age counts as the first
population. Between metallicity nodes the flux is linear in :math:`\log_{10} Z`. This is FSPS's own recipe
(its ``sfh=4`` and ``zcontinuous=1``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc

from digs_survey.errors import ConfigError
from digs_survey.parameters import Prior

__all__ = [
    "AgeQuadrature",
    "HistoryWeights",
    "SSPGrid",
    "as_like",
    "calzetti_curve",
    "check_coverage",
    "delayed_tau",
    "delayed_tau_weights",
    "namespace",
]

_ORDER = 12


def _gauss(order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of Gauss-Legendre quadrature on 0 to 1."""
    points, weights = np.polynomial.legendre.leggauss(order)
    return 0.5 * (points + 1), 0.5 * weights


_POINTS, _POINT_WEIGHTS = _gauss(_ORDER)


@dataclass(frozen=True, eq=False)
class SSPGrid:
    """Spectra of simple stellar populations, per solar mass formed.

    Attributes
    ----------
    log_z : ndarray, shape (metallicity,)
        Nodes of log10 Z/Zsun, increasing.
    log_age : ndarray, shape (age,)
        Nodes of log10 age/yr, increasing.
    wavelength : ndarray, shape (wavelength,)
        Rest-frame vacuum wavelengths in Angstrom, increasing.
    spectra : ndarray, shape (metallicity, age, wavelength)
        Stellar luminosity density in Lsun/Angstrom/Msun.
    living_fraction : ndarray, shape (metallicity, age)
        Stellar mass that survives of each solar mass formed; the files of ``bc03`` leave remnants out.
    nebular : ndarray, shape (metallicity, young age, wavelength)
        Nebular continuum and lines of the first ages in Lsun/Angstrom/Msun. A line is a feature of a few
        elements which holds the line's luminosity. No ages (size 0) if the grid has no gas.
    line_wavelength : ndarray, shape (line,)
        Vacuum wavelengths of the lines in Angstrom.
    line_luminosity : ndarray, shape (metallicity, young age, line)
        Luminosities of the lines in Lsun/Msun.
    """

    log_z: NDArray[np.float64]
    log_age: NDArray[np.float64]
    wavelength: NDArray[np.float64]
    spectra: NDArray[np.floating]
    living_fraction: NDArray[np.float64]
    nebular: NDArray[np.floating]
    line_wavelength: NDArray[np.float64]
    line_luminosity: NDArray[np.float64]

    def __post_init__(self) -> None:  # noqa: D105
        z, age, wave = self.log_z.size, self.log_age.size, self.wavelength.size
        young = self.nebular.shape[1]
        expected = {
            "spectra": (z, age, wave),
            "living_fraction": (z, age),
            "nebular": (z, young, wave),
            "line_luminosity": (z, young, self.line_wavelength.size),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, found {getattr(self, name).shape}")

    def lnu(self) -> NDArray[np.floating]:
        """Stars and gas (metallicity, age, wavelength) together, in Lsun/Hz/Msun as Prospector has it."""
        # Not at the top: whether Prospector can be imported is found out where it is first needed.
        from prospect.sources.constants import lightspeed

        total = self.spectra.copy()
        total[:, : self.nebular.shape[1]] += self.nebular
        total *= (self.wavelength**2 / lightspeed).astype(total.dtype)
        return total

    def metallicity_weights(self, logzsol: float) -> tuple[int, float]:
        """Return the lower node and the weight of the upper one for log10 Z/Zsun = ``logzsol``.

        Raises
        ------
        ValueError
            If ``logzsol`` lies outside the nodes.
        """
        if not self.log_z[0] <= logzsol <= self.log_z[-1]:
            raise ValueError(f"logzsol: expected {self.log_z[0]:g} to {self.log_z[-1]:g}, found {logzsol:g}")
        lower = min(int(np.searchsorted(self.log_z, logzsol, side="right")) - 1, self.log_z.size - 2)
        return lower, float((logzsol - self.log_z[lower]) / (self.log_z[lower + 1] - self.log_z[lower]))


def check_coverage(prior: Prior, log_z: NDArray[np.float64], log_age: NDArray[np.float64], source: str) -> None:
    """Refuse a prior that reaches beyond the populations, whose nodes are given as in :class:`SSPGrid`.

    Raises
    ------
    ConfigError
        Naming the parameter, what the source covers and what was found.
    """
    for name, low, high in (("logzsol", log_z[0], log_z[-1]), ("tage", 0.0, 10 ** (log_age[-1] - 9))):
        i = prior.index(name)
        if prior.low[i] < low - 1e-6 or prior.high[i] > high + 1e-6 or (name == "tage" and prior.low[i] <= 0):
            raise ConfigError(
                f"prior.{name}: source {source!r} covers {low:.4g} to {high:.4g}, "
                f"found {prior.low[i]:g} to {prior.high[i]:g}"
            )


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

    def delayed_tau(self, tage: float, tau: float) -> NDArray[np.float64]:
        """Weights of the populations in a delayed-tau history; see :func:`delayed_tau_weights`."""
        if not (tage > 0 and tau > 0):
            raise ValueError(f"expected positive tage and tau in Gyr, found {tage:g} and {tau:g}")
        last = int(np.searchsorted(self._edges, tage, side="left")) - 1
        previous = max(last - 1, 0)
        weights = np.zeros(self._log_age.size + 1)

        def rate(age: NDArray[np.float64]) -> NDArray[np.float64]:
            time = (tage - age) / tau
            return time * np.exp(-time)

        formed = rate(self._age[:last])
        weights[:last] = np.einsum("ij,ij->i", formed, self._older[:last])
        weights[:previous] += np.einsum("ij,ij->i", formed[1:], self._younger[1:last])
        age, older, younger = self._piece(last, self._edges[last], tage)
        formed = rate(age)
        weights[last] += formed @ older
        weights[previous] += formed @ younger
        return weights[:-1] / (tau * gammainc(2, tage / tau))


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
    The same integrals as :class:`AgeQuadrature`, by Gauss-Legendre quadrature of the order that the shortest time
    needs in each interval of ages; divided by their own sum, so that a solar mass is formed exactly.
    """

    def __init__(self, log_age: ArrayLike, shortest_gyr: float) -> None:
        self._log_age = np.asarray(log_age, dtype=float)
        self._age = 10 ** (self._log_age - 9)
        self._edges = np.concatenate([[0.0], self._age])
        step = np.diff(self._edges) / shortest_gyr
        orders = np.maximum.accumulate(np.select([step < 0.03, step < 0.3, step < 1.0], [2, 3, 5], _ORDER))
        cuts = np.flatnonzero(np.diff(orders)) + 1
        self._groups = [
            (slice(int(part[0]), int(part[-1]) + 1), self._nodes(part, int(orders[part[0]])))
            for part in np.split(np.arange(step.size), cuts)
        ]

    def _nodes(self, pieces: NDArray[np.int64], order: int) -> list[tuple[NDArray[np.float64], ...]]:
        """Ages (piece,) in Gyr of each point of the rule, and its weights for the old and the young end."""
        points, weights = _gauss(order)
        low, width = self._edges[pieces], np.diff(self._edges)[pieces]
        found: list[tuple[NDArray[np.float64], ...]] = []
        for x, w in zip(points, weights, strict=True):
            age = low + width * x
            share = self._share(np, pieces, age)
            found.append((age, width * w * share, width * w * (1 - share)))
        return found

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
        edges = as_like(self._edges, tage)
        last = xp.searchsorted(edges, tage, side="left") - 1
        older = xp.zeros_like(tage[:, None] * edges[None, 1:])
        younger = xp.zeros_like(older)
        for part, nodes in self._groups:
            for age, old, young in nodes:
                formed = rate(xp.clip(tage[:, None] - as_like(age, tage), 0.0, None))
                older[:, part] += formed * as_like(old, tage)
                younger[:, part] += formed * as_like(young, tage)
        whole = edges[None, 1:] <= edges[last][:, None]
        older, younger = xp.where(whole, older, 0.0), xp.where(whole, younger, 0.0)
        older[:, :-1] += younger[:, 1:]
        low = edges[last]
        row = xp.arange(tage.shape[0])
        for x, w in zip(_POINTS, _POINT_WEIGHTS, strict=True):
            age = low + (tage - low) * float(x)
            formed = rate(((tage - low) * float(1 - x))[:, None])[:, 0] * (tage - low) * float(w)
            share = self._share(xp, last, age)
            older[row, last] += formed * share
            older[row, xp.where(last > 0, last - 1, 0)] += formed * (1 - share)
        return older / older.sum(-1)[:, None]


def delayed_tau(tau: Any) -> Callable[[Any], Any]:
    """Star formation rate t exp(-t/tau) for e-folding times (n,) in Gyr, at times (n, k) in Gyr."""
    xp, inverse = namespace(tau), 1 / tau[:, None]

    def rate(time: Any) -> Any:
        x = time * inverse
        return x * xp.exp(-x)

    return rate


def namespace(array: Any) -> Any:
    """Return the module, numpy or torch, whose functions take this array."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def as_like(values: NDArray[Any], like: Any) -> Any:
    """Return values as an array of the kind and type, and on the device, of another."""
    return namespace(like).asarray(values, dtype=like.dtype, device=like.device)


def delayed_tau_weights(log_age: ArrayLike, tage: float, tau: float) -> NDArray[np.float64]:
    r"""Weights of simple populations in a delayed-tau history, SFR(t) ~ t exp(-t/tau) for 0 < t < tage.

    Parameters
    ----------
    log_age : array_like, shape (age,)
        Nodes of log10 age/yr, increasing.
    tage, tau : float
        Age of the galaxy and e-folding time in Gyr, positive.

    Returns
    -------
    ndarray of float64, shape (age,)
        Solar masses in each population for one solar mass formed; they sum to 1. What is older than
        the last node counts as the last population.
    """
    return AgeQuadrature(log_age).delayed_tau(tage, tau)


def calzetti_curve(wavelength: ArrayLike) -> NDArray[np.float64]:
    """Optical depth at each wavelength (Angstrom) for unit ``dust2``, the optical depth at 5500 Angstrom.

    The starburst curve of Calzetti et al. 2000, ApJ 533, 682, eq. 4, divided by its R_V of 4.05, and
    continued beyond its ends. The coefficients are rounded as in FSPS's ``dust_type=2`` (0.1 % of the optical
    depth; it is 0.9983 at 5500 Angstrom), so that both sources have the same dust.
    """
    x = 1e4 / np.asarray(wavelength, dtype=float)
    blue = -2.156 + x * (1.509 + x * (-0.198 + x * 0.011))
    red = -1.857 + 1.040 * x
    return np.maximum(1.17 * np.where(x > 1e4 / 6300, blue, red) + 1.78, 0.0) / (0.44 * 4.05)
