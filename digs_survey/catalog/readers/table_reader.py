"""Spectra in tables of any kind, by a column map: one pixel a row, one spectrum a row, or an image with a WCS.

Formats: FITS tables (also ESO's Phase 3, with arrays in one row), ECSV, CSV, HDF5, Parquet with list columns, and FITS
images with a linear or logarithmic wavelength axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.flux_units import error_factor, length_factor
from digs_survey.catalog.readers.reading import LeftOut, Unusable
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.catalog.readers.table_files import Source, sources
from digs_survey.catalog.readers.table_map import From, TableMap
from digs_survey.errors import DigsError
from digs_survey.store.locations import location

__all__ = ["TableReader", "wcs_wavelengths"]

_ANGSTROM = re.compile(r"^angstroms?$", re.I)


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
        with sources(path, self._map.hdu, self._map.layout, self._map.flux) as found:
            for source in found:
                yield from self._spectra(path, source)

    def _spectra(self, path: Path, source: Source) -> Iterator[Spectra | LeftOut]:
        columns = self._map
        flux = source.read(columns.flux)
        flux = flux if columns.layout == "arrays" else np.atleast_2d(flux)
        rows = len(flux)
        wavelength_unit = self._unit(source, columns.wavelength, columns.wavelength_unit, "wavelength")
        flux_unit = self._unit(source, columns.flux, columns.flux_unit, "flux")
        error, ivar = self._error(source, rows, flux_unit), self._ivar(source, rows, flux_unit)
        mask = self._like(source, columns.mask, rows)
        wave = self._wavelengths(source, flux)
        names = self._values(columns.galaxy_id, source, rows) if columns.galaxy_id else _names(path, source, rows)
        redshift = self._redshift(path, source, names)
        ebv = None if columns.ebv is None else self._values(columns.ebv, source, rows)
        survey = {
            name: (self._values(where, source, rows), self._described(where, source))
            for name, where in columns.columns.items()
        }
        # Rows of unequal length, or with wavelengths of their own, are blocks of one spectrum.
        shared = wave.dtype != object and wave.ndim == 1 and flux.dtype != object
        blocks = [np.arange(rows)] if shared else [np.array([row]) for row in range(rows)]
        for some in blocks:
            here = wave if shared or (wave.dtype != object and wave.ndim == 1) else np.asarray(wave[some[0]])
            real = np.flatnonzero(np.isfinite(here.astype(np.float64)))
            if here.ndim != 1 or real.size < 2:
                yield LeftOut("no wavelengths", some.size)
                continue

            def part(
                values: NDArray[Any] | None,
                name: str | int | None,
                some: NDArray[np.int64] = some,
                size: int = here.size,
                real: NDArray[np.int64] = real,
            ) -> NDArray[Any] | None:
                if values is None:
                    return None
                array = values[some] if shared else np.asarray(values[some[0]])
                if array.shape[-1:] != (size,):
                    raise Unusable(
                        f"{name}: expected {size} values, as there are wavelengths, found {array.shape[-1:]}"
                    )
                return array[..., real]

            try:
                made = Spectra(
                    here[real],
                    np.asarray(part(flux, columns.flux)),
                    error=part(error, columns.error),
                    ivar=part(ivar, columns.ivar),
                    mask=part(mask, columns.mask),
                    redshift=redshift[some],
                    galaxy_id=names[some],
                    ebv=None if ebv is None else ebv[some],
                    medium=columns.medium,
                    frame=columns.frame,
                    columns={name: (values[some], attrs) for name, (values, attrs) in survey.items()},
                    hdu=str(columns.flux if columns.layout == "image" else "" if columns.hdu is None else columns.hdu),
                    rows=some + source.first,
                    wavelength_unit=wavelength_unit,
                    flux_unit=flux_unit,
                )
            except DigsError as error_of_row:
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

    def _error(self, source: Source, rows: int, flux_unit: str) -> NDArray[Any] | None:
        """Return errors in the unit of the flux, or None."""
        error = self._like(source, self._map.error, rows)
        return None if error is None else error * self._factor(source, self._map.error, self._map.error_unit, flux_unit)

    def _ivar(self, source: Source, rows: int, flux_unit: str) -> NDArray[Any] | None:
        """Return inverse variances in the unit of the flux to the power -2, or None."""
        ivar = self._like(source, self._map.ivar, rows)
        return None if ivar is None else ivar * self._factor(source, self._map.ivar, self._map.ivar_unit, flux_unit, -2)

    def _factor(
        self, source: Source, name: str | int | None, given: str | None, flux_unit: str, power: int = 1
    ) -> float:
        """Return the factor from the unit of an error to that of the flux.

        The map's flux_unit is in the place of the file's. A unit of the file is therefore relative to the file's unit
        of flux, where it has one.
        """
        if given is not None:
            return error_factor(given, flux_unit, str(name), power)
        return error_factor(source.unit(name), source.unit(self._map.flux) or flux_unit, str(name), power)

    def _wavelengths(self, source: Source, flux: NDArray[Any]) -> NDArray[Any]:
        """Return wavelengths (pixel,) for all rows, or (row, pixel)."""
        columns = self._map
        if columns.wavelength is None:
            wave, medium = wcs_wavelengths(
                source.header, flux.shape[-1], log10=columns.wavelength_log10, unit=columns.wavelength_unit
            )
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
        """Return the unit of the map, or that of the file where the map has none."""
        if name is None:
            return "Angstrom"
        found = source.unit(name) if given is None else given
        if found is None:
            raise Unusable(f"{name}: expected a unit, found none in the file; give {what}_unit in the column map")
        return found

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
        values = source.read(where.column)
        if self._map.layout == "pixels" and values.ndim == 1 and values.size and (values == values[0]).all():
            values = values[:1]
        if values.shape != (rows,):
            raise Unusable(f"{where.column}: expected one value for each of {rows} spectra, found shape {values.shape}")
        return np.array(values.tolist()) if values.dtype == object else values

    @staticmethod
    def _described(where: From, source: Source) -> dict[str, str]:
        unit = where.units or (source.unit(where.column) if where.column is not None else None)
        told = {"units": unit, "description": where.description}
        return {key: value for key, value in told.items() if value}


def _names(path: Path, source: Source, rows: int) -> NDArray[Any]:
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    return np.array(
        [stem] if rows == 1 and not source.several else [f"{stem}_{source.first + row}" for row in range(rows)]
    )


def wcs_wavelengths(
    header: Mapping[str, Any], pixels: int, *, log10: bool = False, unit: str | None = None
) -> tuple[NDArray[np.float64], str | None]:
    """Return wavelengths (pixel,) in Angstrom by the first axis of a FITS header, and the medium if CTYPE1 says it.

    Steps are linear, or those of FITS's logarithmic axis (CTYPE1 ``WAVE-LOG``, ``AWAV-LOG``; Greisen et al. 2006, A&A
    446, 747), or log10 of the wavelength (DC-FLAG = 1, as IRAF writes, or ``log10``). The unit is the one that is
    given, or that of CUNIT1, or that of IRAF's WAT1_001.
    """
    step = header.get("CDELT1", header.get("CD1_1"))
    start = header.get("CRVAL1")
    if not isinstance(step, (int, float)) or not isinstance(start, (int, float)) or step == 0:
        raise Unusable("expected CRVAL1 and CDELT1 or CD1_1 in the header, found none")
    pixel = header.get("CRPIX1", 1.0)
    if not isinstance(pixel, (int, float)):
        raise Unusable(f"CRPIX1: expected a number, found {pixel!r}")
    away = np.arange(1, pixels + 1) - float(pixel)
    kind = str(header.get("CTYPE1", "")).strip().upper()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if log10 or header.get("DC-FLAG") == 1:
            at = 10.0 ** (start + step * away)
        elif kind.endswith("-LOG"):
            at = start * np.exp(step * away / start)
        else:
            at = start + step * away
    iraf = re.search(r"units=(\w+)", str(header.get("WAT1_001", "")))
    spelled = unit or str(header.get("CUNIT1") or "").strip() or (iraf.group(1) if iraf else "")
    if not spelled:
        raise Unusable("CUNIT1: expected a unit of length, found none; give wavelength_unit in the column map")
    factor = length_factor(_ANGSTROM.sub("Angstrom", spelled), "wavelength_unit" if unit else "CUNIT1")
    return np.asarray(at * factor, dtype=np.float64), {"AWAV": "air", "WAVE": "vacuum"}.get(kind[:4])
