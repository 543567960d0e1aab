"""Galactic extinction by the law of Fitzpatrick 1999, PASP 111, 63, for the diffuse medium, R_V = 3.1."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

__all__ = ["SFD_SCALE", "extinction_per_ebv"]

R_V = 3.1

SFD_SCALE = 0.86
"""E(B-V) of Schlegel, Finkbeiner & Davis 1998 times this is that of Schlafly & Finkbeiner 2011, ApJ 737, 103."""

_X0, _GAMMA = 4.596, 0.99
_C3, _C4 = 3.23, 0.41


def _ultraviolet(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A / E(B-V) at x = 1 / micron above 3.7, by the parameters of Fitzpatrick & Massa 1990."""
    c2 = -0.824 + 4.717 / R_V
    c1 = 2.030 - 3.007 * c2
    drude = x**2 / ((x**2 - _X0**2) ** 2 + x**2 * _GAMMA**2)
    rise = np.where(x >= 5.9, 0.5392 * (x - 5.9) ** 2 + 0.05644 * (x - 5.9) ** 3, 0.0)
    return c1 + c2 * x + _C3 * drude + _C4 * rise + R_V


@cache
def _spline() -> CubicSpline:
    """Cubic spline through the anchors of table 3 of the paper, as its author's program computes them."""
    infrared = np.array([0.0, 0.26469, 0.82925]) * R_V / 3.1
    optical = [
        -4.22809e-01 + 1.00270 * R_V + 2.13572e-04 * R_V**2,
        -5.13540e-02 + 1.00216 * R_V - 7.35778e-05 * R_V**2,
        7.00127e-01 + 1.00184 * R_V - 3.32598e-05 * R_V**2,
        1.19456 + 1.01707 * R_V - 5.46959e-03 * R_V**2 + 7.97809e-04 * R_V**3 - 4.45636e-05 * R_V**4,
    ]
    x = np.concatenate([[0.0], 1e4 / np.array([26500.0, 12200.0, 6000.0, 5470.0, 4670.0, 4110.0, 2700.0, 2600.0])])
    y = np.concatenate([infrared, optical, _ultraviolet(x[-2:])])
    return CubicSpline(x, y, bc_type="natural")


def extinction_per_ebv(wavelength: ArrayLike) -> NDArray[np.float64]:
    """Return A(lambda) / E(B-V), in mag per mag.

    Parameters
    ----------
    wavelength : array_like, shape (pixel,)
        Vacuum wavelengths in Angstrom, observed frame, above 910.
    """
    x = 1e4 / np.asarray(wavelength, dtype=np.float64)
    return np.where(x > 1e4 / 2700.0, _ultraviolet(x), _spline()(np.minimum(x, 1e4 / 2700.0)))
