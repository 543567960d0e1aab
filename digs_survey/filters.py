"""Filters by the names that sedpy has for them: their transmission, and which name was meant."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.errors import ConfigError

__all__ = ["REST_ANGSTROM", "Filter", "filter_names", "load_filter", "unknown_filter"]

REST_ANGSTROM = (1216.0, 25_000.0)
"""What of a spectrum at rest the models describe: they have no intergalactic absorption, which begins at Lyman alpha,
and no emission of dust, which is seen from about 2.5 micron on."""
_NEAR = 3
"""Names that an error offers in place of one that sedpy does not have."""
_EDGE = 5e-4
"""Share of the transmission beyond each end of :attr:`Filter.span`."""


@dataclass(frozen=True, eq=False)
class Filter:
    """A filter's transmission.

    Attributes
    ----------
    name : str
        sedpy's.
    wavelength : ndarray, shape (point,)
        Observed wavelengths in Angstrom, increasing; as Prospector does, they are taken for vacuum's.
    transmission : ndarray, shape (point,)
        Detector signal for each photon, in any unit; linear between the points, and 0 beyond them.
    pivot, width : float
        Pivot wavelength, and the effective width (full width at half maximum of a Gaussian), in Angstrom.
    span : (float, float)
        Wavelengths in Angstrom between which all but 0.1 % of the transmission lies, over ln wavelength.
    """

    name: str
    wavelength: NDArray[np.float64]
    transmission: NDArray[np.float64]
    pivot: float
    width: float
    span: tuple[float, float]

    def at(self, wavelength: Any) -> NDArray[np.float64]:
        """Return the transmission (...) at observed wavelengths (...) in Angstrom."""
        return np.asarray(np.interp(wavelength, self.wavelength, self.transmission, left=0.0, right=0.0))


@cache
def filter_names() -> tuple[str, ...]:
    """Return the names of all filters that the installed sedpy has."""
    from sedpy.observate import list_available_filters

    return tuple(list_available_filters())


def unknown_filter(name: str) -> str:
    """Say what is wrong with the name of a filter; nothing if sedpy has it.

    Examples
    --------
    >>> unknown_filter("sdss_g0")
    ''
    >>> unknown_filter("sdss_g")
    "expected the name of a filter of sedpy, found 'sdss_g'; did you mean sdss_g0, sdss_z0 or sdss_u0?"
    """
    known = filter_names()
    if name in known:
        return ""
    by_fold = {other.casefold(): other for other in known}
    near = [by_fold[other] for other in difflib.get_close_matches(name.casefold(), by_fold, n=_NEAR, cutoff=0.4)]
    named = " or ".join([", ".join(near[:-1]), near[-1]] if near[1:] else near)
    more = f"did you mean {named}?" if near else "sedpy.observate.list_available_filters() lists them"
    return f"expected the name of a filter of sedpy, found {name!r}; {more}"


@cache
def load_filter(name: str) -> Filter:
    """Read a filter of sedpy.

    Raises
    ------
    ConfigError
        If sedpy has none of this name, with the nearest names.
    """
    if problem := unknown_filter(name):
        raise ConfigError(f"filter: {problem}")
    from sedpy.observate import Filter as Curve

    curve = Curve(name)
    # Wavelengths that occur twice are steps, of which sedpy's interpolation takes one side or the other.
    wavelength, first = np.unique(np.asarray(curve.wavelength, dtype=float), return_index=True)
    transmission = np.asarray(curve.transmission, dtype=float)[first]
    for values in (wavelength, transmission):
        values.setflags(write=False)
    span = _span(wavelength, transmission)
    return Filter(name, wavelength, transmission, float(curve.wave_pivot), float(curve.effective_width), span)


def _span(wavelength: NDArray[np.float64], transmission: NDArray[np.float64]) -> tuple[float, float]:
    """Wavelengths between which all but twice :data:`_EDGE` of the integral over ln wavelength lies."""
    log = np.linspace(np.log(wavelength[0]), np.log(wavelength[-1]), 20_001)
    light = np.interp(np.exp(log), wavelength, transmission)
    total = np.concatenate([[0.0], np.cumsum(0.5 * (light[1:] + light[:-1]))])
    low, high = np.exp(np.interp([_EDGE, 1 - _EDGE], total / total[-1], log))
    return float(low), float(high)
