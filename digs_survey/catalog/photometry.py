"""Fluxes through filters in a catalog: columns by a rule, read into maggies.

``phot_`` with the name of a filter is the flux, with an attribute ``units`` of maggies or of flux density per frequency
(1 maggie is 3631 Jy), and the same with ``_ivar`` its inverse variance, in that unit to the power -2. A galaxy lacks a
band where the flux is NaN or missing, or the inverse variance 0, NaN or missing; a catalog lacks it for all galaxies
where it has neither column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from astropy import units
from numpy.typing import NDArray

from digs_survey.catalog.schema import ampere_hint, parse_unit, same_unit
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.filters import unknown_filter
from digs_survey.spectra import MAGGIE

if TYPE_CHECKING:
    from digs_survey.catalog.catalog import Catalog

__all__ = ["PREFIX", "SUFFIX", "Photometry", "PhotometryColumns"]

PREFIX, SUFFIX = "phot_", "_ivar"
_MAGGIE = units.Unit("mgy")
_CGS = units.Unit("erg / (s cm2 Hz)")
_EXAMPLE = "such as 'nmgy' (nanomaggies) or 'uJy'"


@dataclass(frozen=True)
class Photometry:
    """Fluxes of a block of rows.

    Attributes
    ----------
    flux, ivar : ndarray of float64, shape (galaxy, band)
        Maggies and their inverse variance, both 0 where a galaxy lacks the band.
    bad : ndarray of bool, shape (galaxy,)
        Rows that hold an infinite flux, or a negative or infinite inverse variance; these bands are left out.
    """

    flux: NDArray[np.float64]
    ivar: NDArray[np.float64]
    bad: NDArray[np.bool_]


class PhotometryColumns:
    """The columns of a catalog for some filters.

    Parameters
    ----------
    catalog : Catalog
    filters : sequence of str
        sedpy's names, in the order of the bands.

    Attributes
    ----------
    missing : tuple of str
        Filters that the catalog has no columns for.

    Raises
    ------
    CatalogError
        Listing each column that breaks the rule: a flux without inverse variance or the reverse, units that are none of
        flux, and pairs of columns named after a filter that sedpy does not have.
    """

    def __init__(self, catalog: Catalog, filters: Sequence[str]) -> None:
        self._catalog, self._filters = catalog, tuple(filters)
        if problems := list(_violations(catalog, self._filters)):
            message = f"catalog {catalog.path} breaks the rules of photometry in {len(problems)} place(s):"
            raise CatalogError(message, problems)
        self.missing = tuple(name for name in filters if PREFIX + name not in catalog.survey_columns)
        self._scales = {
            name: _maggies(catalog.column_attrs(PREFIX + name)["units"]) for name in filters if name not in self.missing
        }

    def rows(self, start: int, stop: int) -> Photometry:
        """Read the photometry of rows ``start`` to ``stop`` (excluded)."""
        shape = stop - start, len(self._filters)
        flux, ivar = np.zeros(shape), np.zeros(shape)
        for band, name in enumerate(self._filters):
            if name in self._scales:
                scale = self._scales[name]
                flux[:, band] = self._catalog.column(PREFIX + name, start, stop) * scale
                ivar[:, band] = self._catalog.column(PREFIX + name + SUFFIX, start, stop) / scale**2
        wrong = np.isinf(flux) | np.isinf(ivar) | (ivar < 0)
        usable = ~wrong & np.isfinite(flux) & (ivar > 0)
        # An infinite flux without weight is a way to say that there is none.
        bad = wrong & ~(np.isnan(flux) | np.isnan(ivar) | (ivar == 0))
        return Photometry(np.where(usable, flux, 0.0), np.where(usable, ivar, 0.0), bad.any(axis=1))


def _violations(catalog: Catalog, filters: tuple[str, ...]) -> Iterator[str]:
    """Say what is wrong with the columns of some filters, and with pairs of columns of filters that do not exist."""
    columns = {name for name in catalog.survey_columns if name.startswith(PREFIX)}
    for name in sorted(columns):
        base = name.removeprefix(PREFIX).removesuffix(SUFFIX)
        if not name.endswith(SUFFIX) and f"{name}{SUFFIX}" in columns and (problem := unknown_filter(base)):
            yield f"{name}: {problem} Rename the column and {name}{SUFFIX}"
    for band in filters:
        flux, ivar = PREFIX + band, PREFIX + band + SUFFIX
        if flux not in columns and ivar not in columns:
            continue
        if flux not in columns:
            yield f"{ivar}: expected the flux in {flux} beside it, found none"
            continue
        if ivar not in columns:
            yield (
                f"{flux}: expected its inverse variance in {ivar}, found none; write 1 / error**2, and 0 where a "
                "galaxy lacks the band"
            )
        yield from _unit_violations(catalog, flux, ivar if ivar in columns else None)


def _unit_violations(catalog: Catalog, flux: str, ivar: str | None) -> Iterator[str]:
    found: dict[str, units.UnitBase] = {}
    for name in filter(None, (flux, ivar)):
        try:
            catalog.require_column(name, name)
        except ConfigError:
            yield f"{name}: expected numbers, found another type"
        text = catalog.column_attrs(name).get("units")
        if text is None:
            if name == flux:
                yield f"{flux}: expected attribute units, {_EXAMPLE}, found none"
            continue
        try:
            found[name] = parse_unit(text)
        except ValueError:
            yield f"{name}: expected units that astropy.units reads, {_EXAMPLE}, found {text!r}"
    if flux not in found:
        return
    unit, text = found[flux], catalog.column_attrs(flux)["units"]
    if not (unit.is_equivalent(_MAGGIE) or unit.is_equivalent(units.Jy)):
        yield f"{flux}: expected units of maggies or of Jy, {_EXAMPLE}, found {text!r}{ampere_hint(unit)}"
    elif not 0 < _maggies(text) < np.inf:
        yield f"{flux}: expected units with a positive scale, found {text!r}"
    elif ivar in found and not same_unit(found[ivar], unit**-2):
        yield (
            f"{ivar}: expected units {(unit**-2).to_string()}, those of {flux} to the power -2, found "
            f"{catalog.column_attrs(ivar)['units']!r}"
        )


def _maggies(text: str) -> float:
    """Maggies in one of a unit of flux."""
    unit = parse_unit(text)
    return float(unit.to(_MAGGIE)) if unit.is_equivalent(_MAGGIE) else float(unit.to(_CGS)) / MAGGIE
