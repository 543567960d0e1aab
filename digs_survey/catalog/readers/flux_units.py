"""Units of flux densities in files, and the factors that bring fluxes and their errors to one unit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from astropy import units
from numpy.typing import NDArray

from digs_survey.catalog.schema import FLUX_UNIT, ampere_hint, parse_unit
from digs_survey.errors import CatalogError

__all__ = ["STORED_UNIT", "error_factor", "flux_factor", "header_flux_unit", "length_factor"]

STORED_UNIT = "1e-17 erg / (s cm2 Angstrom)"
"""Unit of flux in a block and in the catalogs that are made of blocks: float32 has room for it, and for its ivar."""


def flux_factor(text: str, wave: NDArray[np.float64], frame: str) -> NDArray[np.float64]:
    """Return the factors (pixel,) from a unit to :data:`STORED_UNIT`.

    Parameters
    ----------
    text : str
        A flux density per wavelength, or per frequency in the observed frame.
    wave : ndarray, shape (pixel,)
        Vacuum wavelengths in Angstrom.
    frame : {"observed", "rest"}

    Raises
    ------
    CatalogError
    """
    stored = units.Unit(STORED_UNIT)
    unit = _density(text)
    if unit.is_equivalent(FLUX_UNIT):
        factor = np.full(wave.size, unit.to(stored))
    elif frame == "rest":
        raise CatalogError(f"flux: expected a flux density per wavelength in the rest frame, found {text!r}")
    else:
        factor = unit.to(stored, 1.0, equivalencies=units.spectral_density(wave * units.AA))
    if not factor[0] > 0:
        raise CatalogError(f"flux: expected a unit with a positive scale, found {text!r}")
    return factor


def error_factor(text: str | None, flux: str, name: str, power: int = 1) -> float:
    """Return the factor from the unit of an error to the unit of its flux.

    Parameters
    ----------
    text : str or None
        Unit of the error; None is that of the flux.
    flux : str
        Unit of the flux.
    name : str
        What the error is called in its file, for messages.
    power : {1, -2}
        1 for a standard deviation, -2 for an inverse variance.

    Raises
    ------
    CatalogError
        The one does not convert to the other.
    """
    if text is None or (power == 1 and text == flux):
        return 1.0
    expected = _density(flux) ** power
    try:
        factor = float(_plain(text, name).to(expected))
    except units.UnitConversionError:
        expects = f"{flux!r}" if power == 1 else f"{flux!r} to the power -2"
        raise CatalogError(
            f"{name}: expected a unit that converts to that of the flux, {expects}, found {text!r}"
        ) from None
    if not factor > 0:
        raise CatalogError(f"{name}: expected a unit with a positive scale, found {text!r}")
    return factor


def length_factor(text: str, name: str = "wavelength") -> float:
    """Return the factor from a unit of length to Angstrom."""
    try:
        return float(_plain(text, name).to(units.AA))
    except units.UnitConversionError as error:
        raise CatalogError(f"{name}: expected a unit of length, found {text!r}") from error


def header_flux_unit(text: Any, where: str) -> str:
    """Return a header's unit of flux per wavelength, in a spelling that :mod:`astropy.units` reads."""
    spelled = re.sub(r"\bAng\b", "Angstrom", str(text).strip())
    unit = _plain(spelled, where)
    if not unit.is_equivalent(FLUX_UNIT):
        raise CatalogError(
            f"{where}: expected a flux density per wavelength, such as {STORED_UNIT!r}, found {text!r}"
            f"{ampere_hint(unit)}"
        )
    return spelled


def _density(text: str) -> units.UnitBase:
    """Read a unit of flux density, per wavelength or per frequency."""
    unit = _plain(text, "flux")
    if not (unit.is_equivalent(FLUX_UNIT) or unit.is_equivalent(units.Jy)):
        raise CatalogError(
            f"flux: expected a flux density, such as {STORED_UNIT!r} or 'uJy', found {text!r}{ampere_hint(unit)}"
        )
    return unit


def _plain(text: str, name: str) -> units.UnitBase:
    """Read a unit; those of magnitudes and of other logarithms are none of a flux density."""
    try:
        unit = parse_unit(text)
    except ValueError as error:
        raise CatalogError(f"{name}: expected a unit that astropy.units reads, found {text!r}") from error
    if not isinstance(unit, units.UnitBase):
        raise CatalogError(f"{name}: expected a unit that is no logarithm, found {text!r}; convert the values first")
    return unit
