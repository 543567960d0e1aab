"""The schema of ``catalog.zarr`` and what can be wrong with one of its rows.

A catalog that breaks its schema cannot be used, and every violation is listed. A row that is bad only
gets quality bits: it costs the other rows nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from astropy import units
from numpy.typing import NDArray

from digs_survey import formats
from digs_survey.catalog.column_names import name_violations
from digs_survey.catalog.decoding import StoredArray, numbers
from digs_survey.errors import CatalogError
from digs_survey.parameters import MAX_REDSHIFT
from digs_survey.quality import QualityFlag
from digs_survey.store.locations import check_reachable, exists

__all__ = [
    "FLUX_UNIT",
    "FORMAT_ATTRIBUTE",
    "ValidationReport",
    "ampere_hint",
    "open_group",
    "parse_unit",
    "redshift_quality",
    "same_unit",
    "schema_violations",
    "stored_arrays",
    "survey_arrays",
    "usable_elements",
]

FLUX_UNIT = units.erg / units.s / units.cm**2 / units.AA
"""What fluxes are converted to when they are read."""

FORMAT_ATTRIBUTE = "catalog_format"
"""Attribute of a catalog with the number of its format; those that others write may leave it out."""

_ROW_DIM, _WAVE_DIM = "galaxy", "wavelength"

SCHEMA: dict[str, tuple[tuple[str, ...], str, str]] = {
    "wavelength": ((_WAVE_DIM,), "fiu", "a number"),
    "flux": ((_ROW_DIM, _WAVE_DIM), "f", "floating point"),
    "ivar": ((_ROW_DIM, _WAVE_DIM), "f", "floating point"),
    "mask": ((_ROW_DIM, _WAVE_DIM), "iub", "integer (0 = good) or boolean (False = good)"),
    "redshift": ((_ROW_DIM,), "f", "floating point"),
    "galaxy_id": ((_ROW_DIM,), "iuSUTO", "integer or string"),
}
"""Required variables: dimensions, numpy kinds of their dtype, and these kinds in words."""

_SHORTEST = 50.0
"""Angstrom: no population of stars has a spectrum that ends at shorter wavelengths."""

_COLUMN_KINDS = "biufSUTO"


@dataclass(frozen=True)
class ValidationReport:
    """What validation found.

    Attributes
    ----------
    path : Path
    errors : list of str
        Violations of the schema; with any of them the catalog cannot be used.
    row_problems : dict of QualityFlag to ndarray of int
        Rows that get each quality bit (filled only if there are no errors).
    n_rows : int
    not_carried : list of str
        Variables that do not travel to the result tables, since they are not one value per galaxy.
    hints : list of str
        What makes many rows bad at once, and the remedy.
    """

    path: Path
    errors: list[str]
    row_problems: dict[QualityFlag, NDArray[np.int64]] = field(default_factory=dict)
    n_rows: int = 0
    not_carried: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the catalog keeps to the schema (its rows may still have problems)."""
        return not self.errors

    def raise_for_errors(self) -> None:
        """Raise a :class:`CatalogError` that lists every violation, if there is one."""
        if self.errors:
            message = f"catalog {self.path} breaks the schema in {len(self.errors)} place(s):"
            raise CatalogError(message, self.errors)

    def row_lines(self, limit: int = 10) -> list[str]:
        """Describe the row problems, one line a bit, naming at most ``limit`` rows each; then the hints."""
        lines = []
        for flag, rows in self.row_problems.items():
            named = ", ".join(str(row) for row in rows[:limit])
            more = f" and {rows.size - limit} more" if rows.size > limit else ""
            lines.append(f"{flag.name}: {rows.size} of {self.n_rows} rows: {named}{more}")
        return lines + self.hints


def open_group(path: Path) -> zarr.Group:
    """Open a Zarr group (format 3 or 2) for reading; :class:`CatalogError` if there is none."""
    check_reachable(path)
    if not exists(path):
        raise CatalogError(f"catalog {path}: no such file or folder; expected a Zarr group")
    try:
        # Consolidated metadata are a copy, which nobody who changes an array keeps up to date.
        return zarr.open_group(str(path), mode="r", use_consolidated=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CatalogError(
            f"catalog {path}: expected a Zarr group (format 3 or 2), found none ({error}); FITS spectra are "
            "turned into one by `digs-survey ingest`"
        ) from error


def parse_unit(text: Any) -> units.UnitBase:
    """Read a unit by :mod:`astropy.units`; ``ValueError`` if it cannot be read."""
    if not isinstance(text, str):
        raise ValueError(f"expected a string, found {text!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", units.UnitsWarning)
        return units.Unit(text)


def stored_arrays(group: zarr.Group) -> dict[str, StoredArray]:
    """Return all arrays of a catalog by name, to be read as xarray shows them; identifiers must be text or integers."""
    return {name: StoredArray(name, array, strict=name == "galaxy_id") for name, array in sorted(group.arrays())}


def survey_arrays(arrays: Mapping[str, StoredArray]) -> tuple[list[str], list[str]]:
    """Return the names of the survey's own columns (one value per galaxy), and of all that is neither."""
    others = {name: array for name, array in arrays.items() if name not in SCHEMA}
    columns = [n for n, a in others.items() if a.dims == (_ROW_DIM,) and a.dtype.kind in _COLUMN_KINDS]
    return columns, [name for name in others if name not in columns]


def schema_violations(group: zarr.Group) -> list[str]:
    """List every violation of the schema that metadata and the wavelengths show; reads no spectra."""
    arrays = stored_arrays(group)
    found = [f"{n}: missing; expected dims {_dims(SCHEMA[n][0])}" for n in SCHEMA if n not in arrays]
    present = {name: arrays[name] for name in SCHEMA if name in arrays}
    if (number := group.attrs.get(FORMAT_ATTRIBUTE, formats.CATALOG)) != formats.CATALOG:
        found.append(f"{FORMAT_ATTRIBUTE}: expected {formats.CATALOG}, found {number}; write the catalog again")
    for name, array in present.items():
        found += _array_violations(name, array)
    columns, _ = survey_arrays(arrays)
    sizes = {name: arrays[name] for name in [*present, *columns]}
    for array in sizes.values():
        found += array.problems
    found += _size_violations(sizes)
    if "wavelength" in present:
        found += _wavelength_violations(present["wavelength"])
    found += _flux_unit_violations(present)
    found += name_violations(columns)
    return found


def _dims(names: tuple[str, ...] | None) -> str:
    return "none" if names is None else f"({', '.join(names)})"


def _array_violations(name: str, array: StoredArray) -> Iterator[str]:
    dims, kinds, words = SCHEMA[name]
    if array.dims != dims:
        yield f"{name}: expected dims {_dims(dims)}, found {_dims(array.dims)}"
    if array.is_time:
        yield f"{name}: expected {words}, found times"
    elif array.dtype.kind not in kinds:
        yield f"{name}: expected dtype {words}, found {array.dtype}"


def _size_violations(arrays: Mapping[str, StoredArray]) -> Iterator[str]:
    reference = {}
    if "flux" in arrays and len(arrays["flux"].shape) == 2:
        reference[_ROW_DIM] = ("flux", arrays["flux"].shape[0])
        if reference[_ROW_DIM][1] == 0:
            yield "flux: expected at least one galaxy, found no rows"
    if "wavelength" in arrays and len(arrays["wavelength"].shape) == 1:
        reference[_WAVE_DIM] = ("wavelength", arrays["wavelength"].shape[0])
    for name, array in arrays.items():
        dims = SCHEMA[name][0] if name in SCHEMA else (_ROW_DIM,)
        if len(array.shape) != len(dims):
            yield f"{name}: expected {len(dims)} dimension(s) {_dims(dims)}, found shape {array.shape}"
            continue
        for dim, size in zip(dims, array.shape, strict=True):
            other, expected = reference.get(dim, (name, size))
            if size != expected:
                yield f"{name}: expected {expected} along {dim}, as {other} has, found {size}"


def _wavelength_violations(array: StoredArray) -> Iterator[str]:
    for key, allowed in (("frame", ("rest", "observed")), ("medium", ("vacuum", "air"))):
        value = array.attrs.get(key)
        if value not in allowed:
            shown = "none" if value is None else repr(value)
            yield f"wavelength: expected attribute {key} = {' or '.join(map(repr, allowed))}, found {shown}"
    try:
        unit = parse_unit(array.attrs["units"])
        if unit != units.AA:
            found = f"{array.attrs['units']!r}{ampere_hint(unit)}"
            yield f"wavelength: expected units Angstrom, found {found}; convert the values"
    except KeyError:
        yield "wavelength: expected attribute units = 'Angstrom', found none"
    except ValueError as error:
        yield f"wavelength: expected units Angstrom, found {array.attrs['units']!r} ({_short(error)})"
    if len(array.shape) != 1 or array.dtype.kind not in "fiu":
        return
    if array.shape[0] < 2:
        yield f"wavelength: expected at least 2 elements, found {array.shape[0]}"
    try:
        wave = numbers(array[:])
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        yield f"wavelength: the values cannot be read ({error})"
        return
    wrong = np.flatnonzero(~(np.isfinite(wave) & (wave > 0)))
    if wrong.size:
        value = wave[wrong[0]]
        yield f"wavelength: expected finite, positive values, found {value} at element {_elements(wrong)}"
    elif wave.size and wave.max() < _SHORTEST:
        yield (
            f"wavelength: expected Angstrom, found values from {wave.min():g} to {wave.max():g}, below the spectra of "
            "stars; are they logarithms (write 10**values), or in micron or nm (convert them)?"
        )
    falling = np.flatnonzero(np.diff(wave) <= 0) + 1
    if falling.size:
        i = falling[0]
        yield (
            f"wavelength: expected increasing values, found {wave[i]:g} after {wave[i - 1]:g} "
            f"at element {_elements(falling)}"
        )


def _elements(where: NDArray[np.int64]) -> str:
    return f"{where[0]}" + (f" and {where.size - 1} more" if where.size > 1 else "")


def _short(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".")


def _flux_unit_violations(arrays: Mapping[str, StoredArray]) -> Iterator[str]:
    parsed: dict[str, units.UnitBase] = {}
    expected = {"flux": "such as '1e-17 erg / (s cm2 Angstrom)'", "ivar": "those of flux to the power -2"}
    for name in ("flux", "ivar"):
        text = arrays[name].attrs.get("units") if name in arrays else None
        if text is None:
            if name == "flux" and name in arrays:
                yield f"flux: expected attribute units, {expected[name]}, found none"
            continue
        try:
            parsed[name] = parse_unit(text)
        except ValueError as error:
            found = f"{text!r} ({_short(error)})"
            yield f"{name}: expected units that astropy.units reads, {expected[name]}, found {found}"
    flux, ivar = parsed.get("flux"), parsed.get("ivar")
    if flux is not None and not flux.is_equivalent(FLUX_UNIT):
        found = f"{arrays['flux'].attrs['units']!r}{ampere_hint(flux)}"
        yield f"flux: expected units convertible to {FLUX_UNIT}, found {found}"
    elif flux is not None and not 0 < flux.to(FLUX_UNIT) < np.inf:
        yield f"flux: expected units with a positive scale, found {arrays['flux'].attrs['units']!r}"
    elif flux is not None and ivar is not None and not same_unit(ivar, flux**-2):
        found = f"{arrays['ivar'].attrs['units']!r}{ampere_hint(ivar)}"
        yield f"ivar: expected units {(flux**-2).to_string()} ({expected['ivar']}), found {found}"


def ampere_hint(unit: units.UnitBase) -> str:
    """Return a hint where a unit has amperes, which nobody means here; else nothing."""
    return "; A is the ampere, write Angstrom or AA" if units.A in getattr(unit, "bases", ()) else ""


def same_unit(one: units.UnitBase, other: units.UnitBase) -> bool:
    """Tell whether two units are the same, up to rounding of their scales."""
    return one.is_equivalent(other) and bool(np.isclose(one.to(other), 1.0, rtol=1e-6))


def usable_elements(
    flux: NDArray[np.float64], ivar: NDArray[np.float64], good: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which elements can be used at all, and the quality bits of rows with unusable ones.

    Parameters
    ----------
    flux, ivar : ndarray, shape (galaxy, wavelength)
    good : ndarray of bool, shape (galaxy, wavelength)
        Elements that the catalog does not mask.

    Returns
    -------
    usable : ndarray of bool, shape (galaxy, wavelength)
        Unmasked, with finite flux and a finite, positive inverse variance.
    quality : ndarray of int64, shape (galaxy,)
        NONFINITE_FLUX, BAD_IVAR, and FEW_GOOD_ELEMENTS where nothing is usable.
    """
    finite = np.isfinite(flux)
    weighted = np.isfinite(ivar) & (ivar > 0)
    usable = good & finite & weighted
    quality = np.zeros(flux.shape[0], dtype=np.int64)
    quality[(good & ~finite).any(axis=1)] |= QualityFlag.NONFINITE_FLUX
    quality[(good & ~weighted).any(axis=1)] |= QualityFlag.BAD_IVAR
    quality[~usable.any(axis=1)] |= QualityFlag.FEW_GOOD_ELEMENTS
    return usable, quality


def redshift_quality(redshift: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return BAD_REDSHIFT where a redshift (galaxy,) is not finite, not positive or above MAX_REDSHIFT."""
    right = np.isfinite(redshift) & (redshift > 0) & (redshift <= MAX_REDSHIFT)
    return np.where(right, 0, int(QualityFlag.BAD_REDSHIFT)).astype(np.int64)
