"""``catalog.zarr``: the spectra of a survey, one row a galaxy, as every stage reads them.

The schema (dims ``galaxy``, ``wavelength``): ``flux`` and ``ivar`` (galaxy, wavelength), ``mask`` (galaxy,
wavelength; 0 = good), ``redshift`` and ``galaxy_id`` (galaxy,), ``wavelength`` in Angstrom with attributes
``frame`` (rest or observed) and ``medium`` (vacuum or air); units as attributes that :mod:`astropy.units`
reads. Any other variable with one value per galaxy is the survey's own and travels to the result tables.
Values are those that xarray shows (:mod:`~digs_survey.catalog.decoding`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.catalog.decoding import NotTextError, StoredArray, numbers
from digs_survey.catalog.photometry import PhotometryColumns
from digs_survey.catalog.schema import (
    FLUX_UNIT,
    ValidationReport,
    open_group,
    parse_unit,
    redshift_quality,
    schema_violations,
    stored_arrays,
    survey_arrays,
    usable_elements,
)
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.quality import QualityFlag
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import location
from digs_survey.store.retry import retry_io

__all__ = ["Catalog", "CatalogRows", "validate_catalog"]

log = logging.getLogger(__name__)

_BLOCK_BYTES = 8 * 2**20
_DAMAGE = (ValueError, RuntimeError, KeyError, IndexError)
"""What Zarr and its codecs raise on bytes that are not what was written."""


@dataclass(frozen=True)
class CatalogRows:
    """A block of rows in the units that the package computes in.

    Attributes
    ----------
    flux, ivar : ndarray of float64, shape (galaxy, wavelength)
        f_lambda in erg/s/cm2/Angstrom and its inverse variance.
    good : ndarray of bool, shape (galaxy, wavelength)
        Where the catalog's mask is 0; the values there may still be unusable.
    redshift : ndarray of float64, shape (galaxy,)
    galaxy_id : ndarray of int or str, shape (galaxy,)
    quality : ndarray of int64, shape (galaxy,)
        Bits of :class:`~digs_survey.quality.QualityFlag`.
    maggies, maggies_ivar : ndarray of float64, shape (galaxy, band)
        Photometry and its inverse variance, both 0 where a galaxy lacks a band; without bands where the catalog was
        opened for no filters.
    """

    flux: NDArray[np.float64]
    ivar: NDArray[np.float64]
    good: NDArray[np.bool_]
    redshift: NDArray[np.float64]
    galaxy_id: NDArray[Any]
    quality: NDArray[np.int64]
    maggies: NDArray[np.float64]
    maggies_ivar: NDArray[np.float64]


class Catalog:
    """A catalog that keeps to the schema, opened for reading; see :meth:`open`."""

    def __init__(self, path: Path, group: zarr.Group, filters: Sequence[str] = ()) -> None:
        self.path = path
        self._arrays = stored_arrays(group)
        self._attrs = dict(group.attrs)
        wave = self._arrays["wavelength"]
        self.grid = WavelengthGrid(numbers(wave[:]), str(wave.attrs["frame"]), str(wave.attrs["medium"]))
        self.n_rows: int = self._arrays["flux"].shape[0]
        columns, self.not_carried = survey_arrays(self._arrays)
        self.survey_columns: tuple[str, ...] = tuple(columns)
        self._scale = float(parse_unit(self._arrays["flux"].attrs["units"]).to(FLUX_UNIT))
        self._photometry = PhotometryColumns(self, filters) if filters else None

    @classmethod
    def open(cls, path: Path | str, filters: Sequence[str] = ()) -> Catalog:
        """Open a catalog after checking its schema; cheap, since only metadata and wavelengths are read.

        Parameters
        ----------
        path : Path or str
        filters : sequence of str
            Of the photometry that rows are to have; the catalog may lack columns of some of them.

        Raises
        ------
        CatalogError
            Listing every violation of the schema, and of the rules of photometry where there are filters.
        """
        path = location(path)
        group = open_group(path)
        ValidationReport(path, schema_violations(group)).raise_for_errors()
        return cls(path, group, filters)

    def rows(self, start: int, stop: int) -> CatalogRows:
        """Read the spectra of rows ``start`` to ``stop`` (excluded).

        Rows in a damaged part of the catalog get UNREADABLE, and nothing of them is good. The first call also reads
        all of ``galaxy_id``, to know which rows share one, unless :attr:`duplicate_rows` was set.

        Raises
        ------
        CatalogError
            If identifiers are damaged, without which a row is nobody's.
        """
        part = slice(start, stop)
        damaged = np.zeros(stop - start, dtype=bool)
        flux = numbers(self._read_or_mark("flux", part, np.nan, damaged)) * self._scale
        ivar = numbers(self._read_or_mark("ivar", part, 0, damaged)) / self._scale**2
        good = np.ma.filled(self._read_or_mark("mask", part, 1, damaged), 1) == 0
        redshift = numbers(self._read_or_mark("redshift", part, np.nan, damaged))
        good[damaged] = False
        quality = usable_elements(flux, ivar, good)[1] | redshift_quality(redshift)
        quality[damaged] |= QualityFlag.UNREADABLE
        low, high = np.searchsorted(self.duplicate_rows, [start, stop])
        quality[self.duplicate_rows[low:high] - start] |= QualityFlag.DUPLICATE_ID
        maggies, maggies_ivar = np.zeros((2, stop - start, 0))
        if self._photometry is not None:
            bands = self._photometry.rows(start, stop)
            maggies, maggies_ivar = bands.flux, bands.ivar
            quality[bands.bad] |= QualityFlag.BAD_PHOTOMETRY
        return CatalogRows(flux, ivar, good, redshift, self.galaxy_id(start, stop), quality, maggies, maggies_ivar)

    @property
    def missing_filters(self) -> tuple[str, ...]:
        """Filters that the catalog was opened for and has no columns of."""
        return () if self._photometry is None else self._photometry.missing

    @property
    def chunk_rows(self) -> int:
        """Rows of spectra that are read at once, however few of them are wanted."""
        return int(self._arrays["flux"].chunks[0])

    def galaxy_id(self, start: int, stop: int) -> NDArray[Any]:
        """Read the identifiers of rows ``start`` to ``stop`` (excluded): integers or strings.

        Raises
        ------
        CatalogError
            If a row has none, or one of bytes that are no text.
        """
        values = self._read("galaxy_id", slice(start, stop))
        missing = np.flatnonzero(np.ma.getmaskarray(values))
        if missing.size:
            raise CatalogError(
                f"galaxy_id: expected an identifier in every row of {self.path}, found row {start + missing[0]}"
                f"{_and_more(missing)} marked as missing (_FillValue or missing_value); give each row one"
            )
        return np.ma.getdata(values)

    def find(self, galaxy_id: str) -> NDArray[np.int64]:
        """Return the rows (in order) with an identifier, given as text; reads all of ``galaxy_id``.

        Blanks at either end do not count, since readers of FITS and ECSV do not keep them.
        """
        rows = []
        for block in _blocks(self._arrays["galaxy_id"]):
            values = self.galaxy_id(block.start, block.stop)
            wanted: Any = galaxy_id.strip(" ")
            if values.dtype.kind == "U":
                values = np.char.strip(values, " ")
            else:
                try:
                    wanted = int(galaxy_id)
                except ValueError:
                    break
            rows.append(np.flatnonzero(values == wanted) + block.start)
        return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)

    def redshift(self, start: int, stop: int) -> NDArray[np.float64]:
        """Read the redshifts of rows ``start`` to ``stop`` (excluded)."""
        return numbers(self._read("redshift", slice(start, stop)))

    def columns(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Read the survey's own columns of rows ``start`` to ``stop`` (excluded).

        Missing values are NaN in columns of floats, and masked in those of integers, booleans and text.
        """
        return {name: self._read(name, slice(start, stop)) for name in self.survey_columns}

    def column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read one of the survey's own columns of rows ``start`` to ``stop`` (excluded).

        Numbers are floats, NaN where they are missing; text is as :meth:`columns` gives it.
        """
        values = self._read(name, slice(start, stop))
        return values if values.dtype.kind == "U" else numbers(values)

    def require_column(self, name: str, setting: str) -> None:
        """Refuse a setting that names a column which the catalog has not, or not of numbers."""
        if name not in self.survey_columns or self._arrays[name].dtype.kind not in "biuf":
            known = ", ".join(n for n in self.survey_columns if self._arrays[n].dtype.kind in "biuf") or "none"
            raise ConfigError(f"{setting}: expected one of the catalog's columns of numbers ({known}), found {name!r}")

    def column_attrs(self, name: str) -> dict[str, Any]:
        """Return the attributes of a variable, ``units`` and ``description`` among them where given."""
        return dict(self._arrays[name].attrs)

    @cached_property
    def duplicate_rows(self) -> NDArray[np.int64]:
        """Rows (in order) whose ``galaxy_id`` another row has as well; blanks at either end do not count."""
        # Hashes of strings, since 8 bytes a row fit into memory whatever the length of the identifiers.
        keys = np.empty(self.n_rows, dtype=np.int64)
        for block in _blocks(self._arrays["galaxy_id"]):
            values = self.galaxy_id(block.start, block.stop)
            if values.dtype.kind == "U":
                keys[block] = [hash(text.strip(" ")) for text in values.tolist()]
            else:
                keys[block] = values.astype(np.int64)
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        repeated = np.concatenate([same, [False]]) | np.concatenate([[False], same])
        return np.sort(order[repeated])

    def fingerprint(self) -> str:
        """SHA-256 of all metadata and values, however they are cut into chunks; reads the whole catalog."""
        digest = hashlib.sha256(json.dumps(self._attrs, sort_keys=True, default=str).encode())
        for name, array in sorted(self._arrays.items()):
            head = [name, array.shape, str(array.dtype), self.column_attrs(name)]
            digest.update(json.dumps(head, sort_keys=True, default=str).encode())
            for block in _blocks(array):
                try:
                    value = self._read(name, block)
                except CatalogError:
                    value = np.array(["damaged"])
                if value.dtype.kind == "U":
                    digest.update(json.dumps(value.tolist()).encode())
                elif isinstance(value, np.ma.MaskedArray):
                    digest.update(value.filled(0).tobytes() + np.ma.getmaskarray(value).tobytes())
                else:
                    digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def state(self) -> str:
        """SHA-256 over the names, sizes and times of all files; while it stays, so does the fingerprint.

        Like make and git it trusts that who changes a file changes its size, its time or (in an object store) its tag.
        """
        store, root = fsspec.url_to_fs(str(self.path))
        found = store.find(root, detail=True)
        told = [[n, i["size"], str(i.get("ETag") or i.get("etag") or i.get("mtime"))] for n, i in found.items()]
        return hashlib.sha256(json.dumps(sorted(told)).encode()).hexdigest()

    def check_rows(self) -> tuple[dict[QualityFlag, NDArray[np.int64]], list[str], list[str]]:
        """Read every row, block by block: the rows of each quality bit, what cannot be read, and why rows are bad."""
        quality = np.zeros(self.n_rows, dtype=np.int64)
        infinite = 0
        unreadable: dict[str, None] = {}
        for block in _blocks(self._arrays["flux"]):
            try:
                rows = self.rows(block.start, block.stop)
                quality[block] = rows.quality
                infinite += int((np.isinf(rows.ivar) & rows.good).any(axis=1).sum())
                self.columns(block.start, block.stop)
            except CatalogError as error:
                unreadable[str(error)] = None
        flagged = {flag: np.flatnonzero(quality & flag) for flag in QualityFlag}
        hints = [_overflow(infinite)] if infinite and self._arrays["ivar"].dtype.itemsize < 8 else []
        return {flag: rows for flag, rows in flagged.items() if rows.size}, list(unreadable), hints

    def _read(self, name: str, part: slice) -> NDArray[Any]:
        where = f"{name}: rows {part.start} to {part.stop - 1} of {self.path}"
        try:
            return retry_io(self._arrays[name].__getitem__, part)
        except NotTextError as error:
            raise CatalogError(
                f"{where}: expected text, found bytes of another encoding ({error}); write text, or name the encoding "
                "in the attribute _Encoding of the array, for example 'latin-1'"
            ) from error
        except _DAMAGE as error:
            raise CatalogError(f"{where} cannot be read ({error}); write the catalog again") from error

    def _read_or_mark(self, name: str, part: slice, fill: float, damaged: NDArray[np.bool_]) -> NDArray[Any]:
        """Read values; where a chunk of them is damaged, ``fill`` takes its place and its rows are marked."""
        try:
            return self._read(name, part)
        except CatalogError:
            array = self._arrays[name]
            values = np.full((part.stop - part.start, *array.shape[1:]), fill, dtype=array.dtype)
            chunk = array.chunks[0]
            for start in range(part.start - part.start % chunk, part.stop, chunk):
                some = slice(max(start, part.start), min(start + chunk, part.stop))
                here = slice(some.start - part.start, some.stop - part.start)
                try:
                    values[here] = np.ma.filled(self._read(name, some), fill)
                except CatalogError as error:
                    log.warning("%s", error)
                    damaged[here] = True
            return values


def validate_catalog(path: Path | str) -> ValidationReport:
    """Check a catalog in full: its schema, that every row can be read, and what is wrong with rows.

    Rows are streamed in blocks. Nothing is raised: ``report.raise_for_errors()`` does that.
    """
    path = location(path)
    try:
        group = open_group(path)
    except CatalogError as error:
        return ValidationReport(path, [str(error)])
    errors = schema_violations(group)
    if errors:
        return ValidationReport(path, errors)
    catalog = Catalog(path, group)
    problems, unreadable, hints = catalog.check_rows()
    return ValidationReport(path, unreadable, problems, catalog.n_rows, catalog.not_carried, hints)


def _blocks(array: StoredArray) -> Iterator[slice]:
    width = int(np.prod(array.shape[1:], dtype=int)) * array.itemsize
    rows = max(1, _BLOCK_BYTES // max(1, width))
    for start in range(0, array.shape[0], rows):
        yield slice(start, min(start + rows, array.shape[0]))


def _and_more(rows: NDArray[np.int64]) -> str:
    return f" and {rows.size - 1} more" if rows.size > 1 else ""


def _overflow(rows: int) -> str:
    return (
        f"ivar: infinite in unmasked elements of {rows} rows: float32 holds nothing above 3.4e38; write flux in a "
        "scaled unit, such as '1e-17 erg / (s cm2 Angstrom)', and ivar in that unit to the power -2"
    )
