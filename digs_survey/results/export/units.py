"""Units as the formats spell them."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["as_astropy", "as_fits", "as_vounit"]


def as_astropy(unit: str) -> Any:
    """Return astropy's unit; one that it does not know is kept as it stands, and "" is None."""
    from astropy.units import Unit

    return Unit(unit, parse_strict="silent") if unit else None


def as_fits(unit: str) -> str:
    """Return a unit in the spelling of the FITS standard, or in astropy's where the standard has none."""
    if not unit:
        return ""
    found = as_astropy(unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(found.to_string("fits"))
        except ValueError:
            return str(found.to_string())


def as_vounit(unit: str) -> str | None:
    """Return a unit in the spelling of VOUnits, or None where the standard as astropy reads it has none.

    A unit of a survey's own is quoted, as the standard says. ``dex(solMass)`` is None: logarithms have a syntax in
    VOUnits, but readers that check units refuse it.
    """
    from astropy.units import Unit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spelled = Unit(unit).to_string("vounit")
            Unit(spelled, format="vounit")
        except ValueError:
            return f"'{unit}'" if unit.isascii() and unit.isalpha() else None
    return str(spelled)
