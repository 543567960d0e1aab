r"""Simple stellar populations on a grid of metallicity and age, and what turns them into a galaxy.

A composite spectrum is a weighted sum of simple populations. The weight of the population of age
:math:`a_i` is the integral of the star formation rate (normalised to one solar mass formed) times its hat
function, linear in :math:`\log_{10} a`; everything younger than the first age counts as the first
population. Between metallicity nodes the flux is linear in :math:`\log_{10} Z`. This is FSPS's own recipe
(its ``sfh=4`` and ``zcontinuous=1``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc

from digs_survey.errors import ConfigError
from digs_survey.parameters import Prior

__all__ = ["AgeQuadrature", "SSPGrid", "calzetti_curve", "check_coverage", "delayed_tau_weights"]

_ORDER = 12
_POINTS, _POINT_WEIGHTS = np.polynomial.legendre.leggauss(_ORDER)
_POINTS, _POINT_WEIGHTS = 0.5 * (_POINTS + 1), 0.5 * _POINT_WEIGHTS


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
        Stellar mass (remnants included) that survives of each solar mass formed.
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
