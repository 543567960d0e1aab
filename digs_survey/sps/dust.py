r"""Attenuation curves of dust, as FSPS has them.

The optical depth of the diffuse dust, before all stars and gas, is

.. math:: \tau(\lambda) = \hat\tau_2\, (\lambda / 5500\,\mathrm{A})^n\, [b(\lambda) + n\, t(\lambda)]

with the slope :math:`n` of the laws that have one, ``dust_index``. Populations no older than 10 Myr are in birth
clouds (Charlot & Fall 2000, ApJ 539, 718), which add :math:`\hat\tau_1\, (\lambda / 5500\,\mathrm{A})^{-1}`. A star
between two nodes of age is shared out to both, and each share has the dust of its node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial.polynomial import polyval
from numpy.typing import ArrayLike, NDArray

from digs_survey.config import ModelConfig
from digs_survey.config.dust_laws import DustLawName, check_dust
from digs_survey.prior import Prior
from digs_survey.sps.grid import calzetti_curve

__all__ = [
    "BIRTH_INDEX",
    "LAWS",
    "LOG_ESCAPE_AGE",
    "DustLaw",
    "birth_cloud_curve",
    "clouded",
    "dust_law",
    "law_of_type",
    "log_slope",
]

BIRTH_INDEX = -1.0
"""Exponent of the birth clouds' curve: FSPS's ``dust1_index``."""
LOG_ESCAPE_AGE = 7.0
"""log10 age/yr of the oldest populations in birth clouds: FSPS's ``dust_tesc``."""

_V = 5500.0
_BUMP, _BUMP_WIDTH, _BUMP_AT_0, _BUMP_SLOPE, _CALZETTI_R_V = 2175.0, 350.0, 0.85, -1.9, 4.05
_MW_R_V = 3.1
_MW_EDGES = np.array([0.1, 1.1, 3.3, 5.9, 8.0, 12.0])
"""In 1/micron, between the pieces of the Milky Way's curve."""
_SMC_MICRON = np.array(
    "0.116 0.119 0.123 0.127 0.131 0.136 0.140 0.145 0.151 0.157 0.163 0.170 0.178 0.186 0.195 0.205 0.216 0.229 0.242 "
    "0.258 0.276 0.296 0.370 0.440 0.550 0.650 0.810 1.250 1.650 2.198".split(),
    dtype=float,
)
_SMC_CURVE = np.array(
    "6.992 6.436 6.297 6.074 5.795 5.575 5.272 5.000 4.776 4.472 4.243 4.013 3.866 3.637 3.489 3.293 3.161 2.947 2.661 "
    "2.428 2.220 2.000 1.672 1.374 1.000 0.801 0.567 0.131 0.169 0.016".split(),
    dtype=float,
)
"""A(lambda)/A(V) of the SMC bar: Gordon et al. 2003, ApJ 594, 279, table 4."""


class DustLaw(NamedTuple):
    """A law of the diffuse dust.

    Attributes
    ----------
    number : int
        FSPS's ``dust_type``.
    base, tilt : callable
        b and t of the module's docstring at wavelengths (...) in Angstrom.
    sloped : bool
        Whether the law has a ``dust_index``; n is 0 where it has none.
    breaks : ndarray, shape (break,)
        Wavelengths in Angstrom where the curve or its slope jumps.
    """

    number: int
    base: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    tilt: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    sloped: bool
    breaks: NDArray[np.float64]

    def curve(self, wavelength: ArrayLike, index: float = 0.0) -> NDArray[np.float64]:
        """Optical depth at wavelengths (...) in Angstrom for unit ``dust2`` and one ``dust_index``."""
        wave = np.asarray(wavelength, dtype=float)
        if not self.sloped:
            return self.base(wave)
        return (wave / _V) ** index * (self.base(wave) + index * self.tilt(wave))


def birth_cloud_curve(wavelength: ArrayLike) -> NDArray[np.float64]:
    """Optical depth of birth clouds at wavelengths (...) in Angstrom for unit ``dust1``."""
    return np.asarray((np.asarray(wavelength, dtype=float) / _V) ** BIRTH_INDEX)


def log_slope(wavelength: ArrayLike) -> NDArray[np.float64]:
    """What ``dust_index`` multiplies in the logarithm of the optical depth at wavelengths (...) in Angstrom."""
    return np.log(np.asarray(wavelength, dtype=float) / _V)


def dust_law(model: ModelConfig, prior: Prior | None = None) -> DustLaw:
    """Return the law of a model.

    Raises
    ------
    ConfigError
        If the prior has a parameter that the law does not have.
    """
    if prior is not None:
        check_dust(model.dust_law, prior.names)
    return LAWS[model.dust_law]


def law_of_type(number: int) -> DustLaw:
    """Return the law that FSPS has under a ``dust_type``."""
    return next(law for law in LAWS.values() if law.number == number)


def clouded(log_age: NDArray[np.float64]) -> int:
    """Return how many populations, of log10 age/yr (age,), are in birth clouds."""
    return int(np.searchsorted(log_age, LOG_ESCAPE_AGE, side="right"))


def _flat(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones_like(wavelength)


def _none(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.zeros_like(wavelength)


def _bump(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drude profile at 2175 Angstrom over R_V (Kriek & Conroy 2013, ApJ 775, L16, eq. 2 and 3)."""
    squared = (wavelength * _BUMP_WIDTH) ** 2
    return squared / ((wavelength**2 - _BUMP**2) ** 2 + squared) / _CALZETTI_R_V


def _kriek_conroy(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    return calzetti_curve(wavelength) + _BUMP_AT_0 * _bump(wavelength)


def _kriek_conroy_tilt(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    return _BUMP_SLOPE * _bump(wavelength)


def _milky_way(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """A(lambda)/A(V) of Cardelli, Clayton & Mathis 1989, ApJ 345, 245, eq. 2 to 5, made continuous at 3.3/micron."""
    x = 1e4 / wavelength
    joint = _MW_EDGES[2]
    step = _optical(joint) - _ultraviolet(joint)
    curved = -0.04473 * (x - 5.9) ** 2 - 0.009779 * (x - 5.9) ** 3
    curved = curved + (0.2130 * (x - 5.9) ** 2 + 0.1207 * (x - 5.9) ** 3) / _MW_R_V
    far = np.minimum(x, _MW_EDGES[5]) - 8
    pieces = [
        (0.574 - 0.527 / _MW_R_V) * x**1.61,
        _optical(x),
        _ultraviolet(x) + (joint / x) ** 6 * step,
        _ultraviolet(x) + curved,
        polyval(far, [-1.073, -0.628, 0.137, -0.070]) + polyval(far, [13.67, 4.257, -0.42, 0.374]) / _MW_R_V,
    ]
    chosen = np.searchsorted(_MW_EDGES[1:5], x, side="right")
    return np.where(x < _MW_EDGES[0], 0.0, np.choose(chosen, pieces))


def _optical(x: Any) -> Any:
    """From 1.1 to 3.3/micron."""
    y = x - 1.82
    a = polyval(y, [1, 0.17699, -0.50447, -0.02427, 0.72085, 0.01979, -0.77530, 0.32999])
    b = polyval(y, [0, 1.41338, 2.28305, 1.07233, -5.38434, -0.62251, 5.30260, -2.09002])
    return a + b / _MW_R_V


def _ultraviolet(x: Any) -> Any:
    """From 3.3 to 5.9/micron, and a part of what is beyond."""
    a = 1.752 - 0.316 * x - 0.104 / ((x - 4.67) ** 2 + 0.341)
    b = -3.09 + 1.825 * x + 1.206 / ((x - 4.62) ** 2 + 0.263)
    return a + b / _MW_R_V


def _small_cloud(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.interp(wavelength, _SMC_ANGSTROM, _SMC_CURVE, right=0.0)


_CALZETTI_BREAKS = np.array([6300.0, 1.17 * 1.04e4 / (1.17 * 1.857 - 1.78)])
"""Where its two parts meet, 0.6 % apart, and where it ends."""
_SMC_ANGSTROM = 1e4 * _SMC_MICRON
LAWS: dict[DustLawName, DustLaw] = {
    "power_law": DustLaw(0, _flat, _none, True, np.empty(0)),
    "mw": DustLaw(1, _milky_way, _none, False, 1e4 / _MW_EDGES[::-1]),
    "calzetti": DustLaw(2, calzetti_curve, _none, False, _CALZETTI_BREAKS),
    "kriek_conroy": DustLaw(4, _kriek_conroy, _kriek_conroy_tilt, True, _CALZETTI_BREAKS),
    "smc": DustLaw(5, _small_cloud, _none, False, _SMC_ANGSTROM),
}
