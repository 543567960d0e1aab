"""JWST NIRSpec spectra: ``*.spec.fits`` of msaexp and ``*_x1d.fits`` of the pipeline.

Formats: https://github.com/gbrammer/msaexp (HDU SPEC1D with wave, flux and err) and
https://jwst-pipeline.readthedocs.io (HDUs EXTRACT1D with WAVELENGTH, FLUX, FLUX_ERROR and DQ, one for each source or a
row for each). Wavelengths are in vacuum, flux is per frequency and is converted at each pixel. Neither file has a
redshift.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from digs_survey.catalog.readers.fits_files import Table, open_fits
from digs_survey.catalog.readers.flux_units import error_factor
from digs_survey.catalog.readers.reading import LeftOut, Unusable
from digs_survey.catalog.readers.redshifts import Redshifts
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.errors import DigsError

__all__ = ["JwstReader"]

_DO_NOT_USE = 1
_MSAEXP = ("WAVE", "FLUX", "ERR")
_PIPELINE = ("WAVELENGTH", "FLUX", "FLUX_ERROR")
_HEADER = {
    "grating": (("GRATING",), {"description": "disperser"}),
    "filter": (("FILTER",), {"description": "filter"}),
    "program": (("PROGRAM",), {"description": "JWST programme"}),
    "ra": (("SRCRA", "TARG_RA"), {"units": "deg", "description": "right ascension of the source"}),
    "dec": (("SRCDEC", "TARG_DEC"), {"units": "deg", "description": "declination of the source"}),
    "exposure_time": (("EFFEXPTM",), {"units": "s", "description": "effective exposure time"}),
}


class JwstReader:
    """Reads spectra; their redshifts are one number, or a table of them.

    Parameters
    ----------
    redshifts : Redshifts
    """

    def __init__(self, redshifts: Redshifts) -> None:
        self._redshifts = redshifts

    def __call__(self, path: Path) -> Iterator[Spectra | LeftOut]:
        """Yield the spectra of a file."""
        with open_fits(path) as hdus:
            found = [Table(hdu, hdu.name) for hdu in hdus if hdu.name in ("SPEC1D", "EXTRACT1D")]
            if not found:
                known = ", ".join(hdu.name or str(number) for number, hdu in enumerate(hdus))
                raise Unusable(f"expected an HDU SPEC1D (msaexp) or EXTRACT1D (x1d), found {known}")
            several = len(found) > 1
            for number, spectrum in enumerate(found):
                names = _MSAEXP if spectrum.name == "SPEC1D" else _PIPELINE
                spectrum.needs(*names)
                header = {**dict(hdus[0].header), **dict(spectrum.header)}
                hdu = f"{spectrum.name},{number + 1}" if several else spectrum.name
                yield from self._spectra(path, spectrum, names, header, hdu, several)

    def _spectra(
        self, path: Path, spectrum: Table, names: tuple[str, ...], header: dict[str, Any], hdu: str, several: bool
    ) -> Iterator[Spectra | LeftOut]:
        wave, flux, error = (np.atleast_2d(spectrum[name]) for name in names)
        rows_of = spectrum[names[0]].ndim == 2
        bad = np.atleast_2d(spectrum["DQ"] if spectrum.has("DQ") else np.zeros(flux.shape, dtype=int)) & _DO_NOT_USE
        units = []
        for name in names:
            if not spectrum.unit(name):
                raise Unusable(f"{spectrum.name}: {name}: expected a unit (TUNIT), found none")
            units.append(str(spectrum.unit(name)))
        error = error * error_factor(units[2], units[1], f"{spectrum.name}: {names[2]}")
        for row in range(flux.shape[0]):
            name = _name(path, header, spectrum, row, rows_of, several)
            here = np.flatnonzero(np.isfinite(wave[row]) & (wave[row] > 0))
            if here.size < 2:
                yield LeftOut("no wavelengths")
                continue
            columns: dict[str, tuple[Any, dict[str, str]]] = {}
            for key, (cards, attrs) in _HEADER.items():
                given = [header[card] for card in cards if header.get(card) is not None]
                if given:
                    columns[key] = given[0], attrs
            try:
                made = Spectra(
                    wave[row][here],
                    flux[row][here],
                    error=error[row][here],
                    mask=bad[row][here],
                    redshift=self._redshifts.of(name, path),
                    galaxy_id=name,
                    flux_unit=units[1],
                    wavelength_unit=units[0],
                    medium="vacuum",
                    columns=columns,
                    hdu=hdu,
                    rows=np.array([row]),
                )
            except DigsError as error_of_row:
                yield LeftOut(str(error_of_row))
            else:
                yield made


def _name(path: Path, header: dict[str, Any], spectrum: Table, row: int, rows_of: bool, several: bool) -> str:
    """Return the name of a spectrum: that of its file, and of its source where a file has several."""
    stem = path.name.removesuffix(".gz").removesuffix(".fits").removesuffix(".spec").removesuffix("_x1d")
    if rows_of:
        return f"{stem}_{spectrum['SOURCE_ID'][row] if spectrum.has('SOURCE_ID') else row}"
    given = [header.get(key) for key in ("SRCNAME", "SOURCEID", "EXTVER")]
    source = next((value for value in given if isinstance(value, (str, int)) and value != ""), 1)
    return f"{stem}_{source}" if several else stem
