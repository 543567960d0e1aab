"""SDSS spectra: ``spec`` files of SDSS, BOSS, eBOSS and SDSS-V, full and lite, and ``spPlate`` files.

Formats: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html and
.../PLATE4/spPlate.html. Flux is in 1e-17 erg/s/cm2/Angstrom, wavelengths are log10 of Angstrom in vacuum, heliocentric,
on one grid of steps of 1e-4 for all plates. The redshift of a ``spec`` file is in its HDU 2; that of an ``spPlate``
file in the ``spZbest`` file of the same name. Pixels with ``ivar`` = 0 or :data:`BRIGHTSKY` are not used. Fluxes are
those through the fibre, and are not corrected for Galactic extinction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.fits_files import Table, image, open_fits, table
from digs_survey.catalog.readers.flux_units import header_flux_unit
from digs_survey.catalog.readers.reading import LeftOut, Unusable
from digs_survey.catalog.readers.spectra_block import Spectra

__all__ = ["BRIGHTSKY", "SdssReader"]

BRIGHTSKY = 1 << 23
"""Bit of ``and_mask``: in every exposure the sky outshone the object by far.

By www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php the very bad conditions already have ``ivar`` = 0,
and of the other bits this is the one to look at: near strong sky lines the errors cannot be trusted.
"""

_FLUX_UNIT = "1E-17 erg/cm^2/s/Ang"
_LOG_STEP = 1e-4
_KMS_PER_PIXEL = 69.03
_RA = {"units": "deg", "description": "right ascension of the fibre, J2000"}
_DEC = {"units": "deg", "description": "declination of the fibre, J2000"}
_COLUMNS: dict[str, tuple[tuple[str, ...], type, dict[str, str]]] = {
    "ra": (
        ("PLUG_RA", "RA", "RACAT", "FIBER_RA"),
        float,
        _RA,
    ),
    "dec": (
        ("PLUG_DEC", "DEC", "DECCAT", "FIBER_DEC"),
        float,
        _DEC,
    ),
    "plate": (("PLATE", "FIELD"), int, {"description": "SDSS plate, or field of SDSS-V"}),
    "mjd": (("MJD",), int, {"units": "d", "description": "modified Julian date of the observation"}),
    "fiberid": (("FIBERID", "FIBER_ID"), int, {"description": "SDSS fibre"}),
    "z_err": (("Z_ERR",), float, {"description": "error of the redshift; negative if the fit failed"}),
    "zwarning": (("ZWARNING",), int, {"description": "bits that warn of the redshift; 0 = none"}),
    "class": (("CLASS",), str, {"description": "class by the redshift pipeline: GALAXY, QSO or STAR"}),
    "subclass": (("SUBCLASS",), str, {"description": "subclass by the redshift pipeline"}),
    "sn_median": (
        ("SN_MEDIAN_ALL", "SN_MEDIAN"),
        float,
        {"description": "median signal-to-noise ratio per pixel of the whole spectrum"},
    ),
    "ebv": (("SFD_EBV", "EBV"), float, {"units": "mag", "description": "Galactic E(B-V)"}),
    "ebv_type": (("EBV_TYPE",), str, {"description": "source of the EBV of SDSS-V, where it has no SFD_EBV"}),
}
"""Survey columns: their names (the first that holds one value a row counts), type and attributes."""

_NO_QSO = {name: (f"{name}_NOQSO",) for name in ("Z", "Z_ERR", "ZWARNING", "CLASS", "SUBCLASS")}
_LINE_SPREAD = {"units": "km / s", "description": "line spread of the spectrograph (sigma), median of the good pixels"}


class SdssReader:
    """Reads ``spec`` and ``spPlate`` files.

    Parameters
    ----------
    files : sequence of path-like
        All files that will be read: ``spZbest`` files among them are used for the plates, wherever these are.
    z_noqso : bool
        Take redshift and class of the fit without quasar templates, where there is one: recommended for galaxies that
        BOSS and eBOSS targeted as such.
    """

    def __init__(self, files: Sequence[Path] = (), *, z_noqso: bool = False) -> None:
        self._zbest = {path.name: path for path in files if path.name.startswith("spZbest-")}
        self._z_noqso = z_noqso

    def __call__(self, path: Path) -> Iterator[Spectra | LeftOut]:
        """Yield the spectra of a file."""
        if path.name.startswith("spZbest-"):
            return
        with open_fits(path) as hdus:
            unit = header_flux_unit(hdus[0].header.get("BUNIT", _FLUX_UNIT), "BUNIT")
            if not hdus[0].header.get("VACUUM", True):
                raise Unusable("VACUUM: expected vacuum wavelengths, found VACUUM = F")
            if "COEFF0" in hdus[0].header and getattr(hdus[0], "shape", None) and len(hdus[0].shape) == 2:
                yield from self._plate(path, hdus, unit)
            else:
                yield from self._spec(hdus, unit)

    def _spec(self, hdus: Any, unit: str) -> Iterator[Spectra | LeftOut]:
        coadd, record = table(hdus, 1), table(hdus, 2)
        coadd.needs("FLUX", "LOGLAM", "IVAR", "AND_MASK")
        if record.rows != 1:
            raise Unusable(f"HDU 2: expected one row, found {record.rows}")
        bad = (coadd["AND_MASK"] & BRIGHTSKY) != 0
        spread = coadd["WDISP"] if coadd.has("WDISP") else None
        wave = _wavelengths(coadd["LOGLAM"])
        names = [_name(record, 0)]
        yield from self._spectra(
            wave, coadd["FLUX"][None], coadd["IVAR"][None], bad[None], spread, record, names, unit, "1"
        )

    def _plate(self, path: Path, hdus: Any, unit: str) -> Iterator[Spectra | LeftOut]:
        flux, ivar, mask = image(hdus, 0, 2), image(hdus, 1, 2), image(hdus, 2, 2)
        header = hdus[0].header
        plugmap = table(hdus, 5)
        with open_fits(self._redshifts(path)) as others:
            record = table(others, 1)
            if not record.rows == flux.shape[0] == plugmap.rows:
                raise Unusable(f"expected {flux.shape[0]} redshifts and fibres, found {record.rows} and {plugmap.rows}")
            wave = _wavelengths(header["COEFF0"] + header["COEFF1"] * np.arange(flux.shape[1]))
            spread = image(hdus, 4, 2) if len(hdus) > 4 else None
            sky = plugmap["OBJTYPE"] == "SKY" if plugmap.has("OBJTYPE") else np.zeros(flux.shape[0], dtype=bool)
            if sky.any():
                yield LeftOut("sky fibre (OBJTYPE SKY)", int(sky.sum()), fault=False)
            names = [_name(record, row) for row in range(record.rows)]
            bad = (mask & BRIGHTSKY) != 0
            yield from self._spectra(wave, flux, ivar, bad, spread, record, names, unit, "0", ~sky)

    def _spectra(
        self,
        wave: NDArray[np.float64],
        flux: NDArray[Any],
        ivar: NDArray[Any],
        bad: NDArray[np.bool_],
        spread: NDArray[Any] | None,
        record: Table,
        names: list[str],
        unit: str,
        hdu: str,
        wanted: NDArray[np.bool_] | None = None,
    ) -> Iterator[Spectra | LeftOut]:
        redshift, columns = self._fits(record)
        star = columns["class"][0] == "STAR" if "class" in columns else np.zeros(len(names), dtype=bool)
        wanted = np.ones(len(names), dtype=bool) if wanted is None else wanted
        if (star & wanted).any():
            yield LeftOut("star (CLASS STAR)", int((star & wanted).sum()), fault=False)
        if spread is not None:
            columns["line_spread"] = _line_spread(np.broadcast_to(spread, flux.shape), ivar), _LINE_SPREAD
        keep = np.flatnonzero(wanted & ~star)
        if not keep.size:
            return
        yield Spectra(
            wave,
            flux,
            ivar=ivar,
            mask=bad,
            redshift=redshift,
            galaxy_id=np.array(names),
            flux_unit=unit,
            medium="vacuum",
            ebv=_ebv(columns, record),
            columns=columns,
            hdu=hdu,
        ).take(keep)

    def _fits(self, record: Table) -> tuple[NDArray[np.float64], dict[str, tuple[NDArray[Any], dict[str, str]]]]:
        """Return redshifts (row,) and the survey columns, of the fit with or without quasars."""
        record.needs("Z")
        noqso = np.zeros(record.rows, dtype=bool)
        if self._z_noqso and record.has("CLASS_NOQSO") and record.has("Z_NOQSO"):
            noqso = record["CLASS_NOQSO"] != ""

        def values(*keys: str) -> NDArray[Any] | None:
            key = record.first(*keys)
            if key is None:
                return None
            other = f"{key}_NOQSO"
            return np.where(noqso, record[other], record[key]) if noqso.any() and record.has(other) else record[key]

        columns: dict[str, tuple[NDArray[Any], dict[str, str]]] = {}
        for name, (keys, kind, attrs) in _COLUMNS.items():
            found = values(*keys)
            if found is not None and (found.dtype.kind == "U") == (kind is str):
                columns[name] = found.astype(kind), attrs
        redshift = np.where(noqso, record["Z_NOQSO"], record["Z"]) if noqso.any() else record["Z"]
        return redshift.astype(np.float64), columns

    def _redshifts(self, path: Path) -> Path:
        plain = path.name.removesuffix(".gz").replace("spPlate-", "spZbest-", 1)
        for name in (plain, f"{plain}.gz"):
            if name in self._zbest:
                return self._zbest[name]
            for beside in (path.parent / name, *sorted(path.parent.glob(f"*/{name}"))):
                if beside.is_file():
                    return beside
        raise Unusable(f"no redshifts: expected {plain} beside it, in a folder beside it, or among the files")


def _wavelengths(loglam: NDArray[Any]) -> NDArray[np.float64]:
    """Return Angstrom; on SDSS's common grid exactly, since float32 has room for a hundredth of a pixel only."""
    at = np.asarray(loglam, dtype=np.float64)
    if at.ndim != 1 or at.size < 2 or not np.isfinite(at).all() or (np.diff(at) <= 0).any() or at[-1] > 6:
        raise Unusable("LOGLAM: expected at least two increasing values, log10 of Angstrom; the file is damaged")
    common = np.rint(at / _LOG_STEP)
    return 10.0 ** (common * _LOG_STEP if np.abs(at / _LOG_STEP - common).max() < 0.05 else at)


def _name(record: Table, row: int) -> str:
    """Return PLATE-MJD-FIBER, or FIELD-MJD-CATALOGID of SDSS-V."""
    if record.first("CATALOGID") and not record.first("PLATE"):
        record.needs("FIELD", "MJD")
        field, mjd = (int(record[key][row]) for key in ("FIELD", "MJD"))
        return f"{field:06d}-{mjd:05d}-{record['CATALOGID'][row]}"
    record.needs("PLATE", "MJD", "FIBERID")
    plate, mjd, fiber = (int(record[key][row]) for key in ("PLATE", "MJD", "FIBERID"))
    return f"{plate:04d}-{mjd:05d}-{fiber:04d}"


def _ebv(columns: Mapping[str, tuple[NDArray[Any], Any]], record: Table) -> NDArray[np.float64] | None:
    """Return E(B-V) by Schlegel et al. 1998 (row,): NaN where SDSS-V has it by another map, None if there is none."""
    if "ebv" not in columns:
        return None
    ebv = columns["ebv"][0].astype(np.float64)
    if "ebv_type" not in columns or record.first("SFD_EBV"):
        return ebv
    return np.where(np.char.startswith(np.char.upper(columns["ebv_type"][0]), "SFD"), ebv, np.nan)


def _line_spread(pixels: NDArray[Any], ivar: NDArray[Any]) -> NDArray[np.float64]:
    """Return the median line spread (row,) in km/s from that in pixels (row, pixel); NaN where there is none."""
    good = (ivar > 0) & np.isfinite(pixels) & (pixels > 0)
    found = [np.median(row[use]) if use.any() else np.nan for row, use in zip(pixels, good, strict=True)]
    return _KMS_PER_PIXEL * np.array(found, dtype=np.float64)
