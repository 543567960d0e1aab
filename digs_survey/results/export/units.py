"""Units as the formats spell them."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["as_astropy", "as_fits", "as_vounit", "described"]


def as_astropy(unit: str) -> Any:
    """Return astropy's unit; one that it does not know is kept as it stands, and "" is None."""
    from astropy.units import Unit

    return Unit(unit, parse_strict="silent") if unit else None


def described(text: str, unit: str, spelled: str | None) -> str:
    """Return a description with the unit at its end, in brackets, where the format cannot spell it."""
    return f"{text} [{unit}]".lstrip() if unit and spelled is None else text


def as_fits(unit: str) -> str | None:
    """Return a unit in the spelling of the FITS standard, or None where the standard as astropy reads it has none.

    The standard spells a logarithm ``log(solMass)``, which astropy does not read, nor its own ``dex(solMass)``: either
    one brings a warning for each column.
    """
    from astropy.units import Unit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spelled = Unit(unit).to_string("fits")
            Unit(spelled, format="fits")
        except ValueError:
            return None
    return str(spelled)


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
