"""Spectra in tables of any kind, by a column map: one pixel a row, one spectrum a row, or an image with a WCS.

Formats: FITS tables (also ESO's Phase 3, with arrays in one row), ECSV, CSV, HDF5, Parquet with list columns, and FITS
images with a linear or logarithmic wavelength axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.reading import LeftOut, Unusable
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.catalog.readers.table_files import Source, sources
from digs_survey.catalog.readers.table_map import From, TableMap
from digs_survey.errors import DigsError
from digs_survey.store.locations import location

__all__ = ["TableReader", "wcs_wavelengths"]


class TableReader:
    """Reads spectra by a column map.

    Parameters
    ----------
    columns : TableMap
    folder : Path
        Where the tables lie that the map names by a relative path.
    """

    def __init__(self, columns: TableMap, folder: Path) -> None:
        self._map = columns
        z = columns.redshift
        self._redshifts = None
        if isinstance(z, From) and z.table is not None:
            beside = folder / z.table
            self._redshifts = Redshifts(str(beside if beside.exists() else location(z.table)))

    def __call__(self, path: Path) -> Iterator[Spectra | LeftOut]:
        """Yield the spectra of a file."""
        with sources(path, self._map.hdu, self._map.layout) as found:
            for source in found:
                yield from self._spectra(path, source)

    def _spectra(self, path: Path, source: Source) -> Iterator[Spectra | LeftOut]:
        columns = self._map
        flux = source.read(columns.flux)
        flux = flux if columns.layout == "arrays" else np.atleast_2d(flux)
        rows = len(flux)
        error = self._like(source, columns.error, rows)
        ivar = self._like(source, columns.ivar, rows)
        mask = self._like(source, columns.mask, rows)
        wave = self._wavelengths(source, flux)
        names = self._values(columns.galaxy_id, source, rows) if columns.galaxy_id else _names(path, source, rows)
        redshift = self._redshift(path, source, names)
        ebv = None if columns.ebv is None else self._values(columns.ebv, source, rows)
        survey = {
            name: (self._values(where, source, rows), self._described(where, source))
            for name, where in columns.columns.items()
        }
        wavelength_unit = self._unit(source, columns.wavelength, columns.wavelength_unit, "wavelength")
        flux_unit = self._unit(source, columns.flux, columns.flux_unit, "flux")
        # Rows of unequal length, or with wavelengths of their own, are blocks of one spectrum.
        shared = wave.dtype != object and wave.ndim == 1 and flux.dtype != object
        blocks = [np.arange(rows)] if shared else [np.array([row]) for row in range(rows)]
        for some in blocks:

            def part(values: NDArray[Any] | None, some: NDArray[np.int64] = some) -> NDArray[Any] | None:
                return None if values is None else values[some] if shared else np.asarray(values[some[0]])

            here = wave if shared else np.asarray(wave if wave.ndim == 1 and wave.dtype != object else wave[some[0]])
            real = np.flatnonzero(np.isfinite(here.astype(np.float64)))
            if here.ndim != 1 or real.size < 2:
                yield LeftOut("no wavelengths", some.size)
                continue
            try:
                made = Spectra(
                    here[real],
                    _picked(part(flux), real),
                    error=None if error is None else _picked(part(error), real),
                    ivar=None if ivar is None else _picked(part(ivar), real),
                    mask=None if mask is None else _picked(part(mask), real),
                    redshift=redshift[some],
                    galaxy_id=names[some],
                    ebv=None if ebv is None else ebv[some],
                    medium=columns.medium,
                    frame=columns.frame,
                    columns={name: (values[some], attrs) for name, (values, attrs) in survey.items()},
                    hdu=str("" if columns.hdu is None else columns.hdu),
                    rows=some + source.first,
                    wavelength_unit=wavelength_unit,
                    flux_unit=flux_unit,
                )
            except (Unusable, DigsError) as error_of_row:
                yield LeftOut(str(error_of_row), some.size)
            else:
                yield made

    def _like(self, source: Source, name: str | int | None, rows: int) -> NDArray[Any] | None:
        """Return a column of the shape of flux, or None."""
        if name is None:
            return None
        values = source.read(name)
        values = values if self._map.layout == "arrays" else np.atleast_2d(values)
        if len(values) != rows:
            raise Unusable(f"{name}: expected {rows} rows, as {self._map.flux} has, found {len(values)}")
        return values

    def _wavelengths(self, source: Source, flux: NDArray[Any]) -> NDArray[Any]:
        """Return wavelengths (pixel,) for all rows, or (row, pixel)."""
        columns = self._map
        if columns.layout == "image":
            wave, medium = wcs_wavelengths(source.header, flux.shape[-1], log10=columns.wavelength_log10)
            if medium is not None and medium != columns.medium:
                raise Unusable(f"medium: the column map says {columns.medium}, CTYPE1 says {medium}")
            return wave
        wave = source.read(columns.wavelength)
        if wave.dtype != object and columns.layout == "arrays" and wave.ndim == 2 and (wave == wave[:1]).all():
            wave = wave[0]
        if not columns.wavelength_log10:
            return wave
        if wave.dtype != object:
            return 10.0**wave
        powers = np.empty(len(wave), dtype=object)
        powers[:] = [10.0 ** np.asarray(row, dtype=np.float64) for row in wave]
        return powers

    def _unit(self, source: Source, name: str | int | None, given: str | None, what: str) -> str:
        """Return the unit of the file, or that of the map where the file has none."""
        if self._map.layout == "image" and what == "wavelength":
            return "Angstrom"
        found = source.unit(name)
        if found is None and given is None:
            raise Unusable(f"{name}: expected a unit, found none in the file; give {what}_unit in the column map")
        return str(given if found is None or given is not None else found)

    def _redshift(self, path: Path, source: Source, names: NDArray[Any]) -> NDArray[np.float64]:
        if self._redshifts is not None:
            return np.array([self._redshifts.of(str(name), path) for name in names.tolist()])
        try:
            return self._values(self._map.redshift, source, names.size).astype(np.float64)
        except ValueError as error:
            raise Unusable(f"redshift: expected numbers ({error})") from error

    def _values(self, where: float | From, source: Source, rows: int) -> NDArray[Any]:
        """Return one value a spectrum."""
        if not isinstance(where, From):
            return np.full(rows, where)
        if where.header is not None:
            if where.header not in source.header:
                raise Unusable(f"header: expected {where.header}, found none")
            return np.full(rows, source.header[where.header])
        if where.column is None:
            raise Unusable("expected a column or a header card: tables are for redshifts")
        values = source.read(where.column)
        if values.shape[:1] != (rows,) or values.ndim != 1:
            raise Unusable(f"{where.column}: expected one value for each of {rows} spectra, found shape {values.shape}")
        return np.array(values.tolist()) if values.dtype == object else values

    @staticmethod
    def _described(where: From, source: Source) -> dict[str, str]:
        unit = where.units or (source.unit(where.column) if where.column is not None else None)
        told = {"units": unit, "description": where.description}
        return {key: value for key, value in told.items() if value}


def _picked(values: NDArray[Any] | None, real: NDArray[np.int64]) -> NDArray[Any]:
    """Return the pixels (..., pixel) whose wavelengths are numbers."""
    array = np.asarray(values)
    if array.shape[-1] <= real[-1]:
        raise Unusable(f"expected as many values as wavelengths, found {array.shape[-1]}")
    return array[..., real]


def _names(path: Path, source: Source, rows: int) -> NDArray[Any]:
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    return np.array(
        [stem] if rows == 1 and not source.first else [f"{stem}_{source.first + row}" for row in range(rows)]
    )


def wcs_wavelengths(
    header: Mapping[str, Any], pixels: int, *, log10: bool = False
) -> tuple[NDArray[np.float64], str | None]:
    """Return wavelengths (pixel,) in Angstrom by the first axis of a FITS header, and the medium if CTYPE1 says it.

    Steps are linear, or those of FITS's logarithmic axis (CTYPE1 ``WAVE-LOG``, ``AWAV-LOG``; Greisen et al. 2006, A&A
    446, 747), or log10 of the wavelength (DC-FLAG = 1, as IRAF writes, or ``log10``).
    """
    import astropy.units

    step = header.get("CDELT1", header.get("CD1_1"))
    start = header.get("CRVAL1")
    if not isinstance(step, (int, float)) or not isinstance(start, (int, float)) or step == 0:
        raise Unusable("expected CRVAL1 and CDELT1 or CD1_1 in the header, found none")
    away = np.arange(1, pixels + 1) - float(header.get("CRPIX1", 1.0))
    kind = str(header.get("CTYPE1", "")).strip().upper()
    if log10 or header.get("DC-FLAG") == 1:
        at = 10.0 ** (start + step * away)
    elif kind.endswith("-LOG"):
        at = start * np.exp(step * away / start)
    else:
        at = start + step * away
    try:
        unit = astropy.units.Unit(str(header.get("CUNIT1", "Angstrom")).strip() or "Angstrom")
        scale = unit.to(astropy.units.AA)
    except (ValueError, astropy.units.UnitConversionError) as error:
        raise Unusable(f"CUNIT1: expected a unit of length, found {header.get('CUNIT1')!r}") from error
    return at * scale, {"AWAV": "air", "WAVE": "vacuum"}.get(kind[:4])
