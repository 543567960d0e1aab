"""DESI coadds, by healpix or by tile, with the redshifts of Redrock.

Format: https://desidatamodel.readthedocs.io, files ``coadd-*.fits`` and ``redrock-*.fits``. Wavelengths are in vacuum,
pixels of the three arms lie on one grid of 0.8 Angstrom, and a pixel counts if its mask is 0 and its inverse variance
positive. Where arms overlap, the mean weighted by inverse variance is taken. Fluxes are through the fibre, corrected by
the pipeline to those of a point source, and are not corrected for Galactic extinction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.fits_files import Table, image, open_fits, table
from digs_survey.catalog.readers.flux_units import header_flux_unit
from digs_survey.catalog.readers.reading import DAMAGE, LeftOut, Unusable
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.store.locations import exists, store_errors

__all__ = ["DesiReader"]

_BLOCK_ROWS = 512
_REDSHIFT_FILES = ("redrock-", "zbest-")
_REDSHIFT_HDUS = ("REDSHIFTS", "ZBEST", "ZCATALOG")
_FIT = {
    "z_err": ("ZERR", {"description": "error of the redshift by Redrock"}),
    "zwarn": ("ZWARN", {"description": "bits that warn of the redshift; 0 = none"}),
    "spectype": ("SPECTYPE", {"description": "class by Redrock: GALAXY, QSO or STAR"}),
    "subtype": ("SUBTYPE", {"description": "subclass by Redrock"}),
    "deltachi2": ("DELTACHI2", {"description": "difference in chi-square between the best redshift and the next"}),
}
_BANDS = ("G", "R", "Z", "W1", "W2")
_MAP: dict[str, tuple[str, dict[str, str]]] = {
    "ra": ("TARGET_RA", {"units": "deg", "description": "right ascension of the target"}),
    "dec": ("TARGET_DEC", {"units": "deg", "description": "declination of the target"}),
    "ebv": ("EBV", {"units": "mag", "description": "Galactic E(B-V) by Schlegel, Finkbeiner & Davis 1998"}),
    "coadd_fiberstatus": ("COADD_FIBERSTATUS", {"description": "bits of the fibre; 0 = good"}),
    "morphtype": ("MORPHTYPE", {"description": "morphological type in the Legacy Surveys"}),
    "photsys": ("PHOTSYS", {"description": "photometric system of the Legacy Surveys: N or S"}),
    "maskbits": ("MASKBITS", {"description": "bits of the Legacy Surveys' photometry"}),
    "desi_target": ("DESI_TARGET", {"description": "bits of dark-time targets"}),
    "bgs_target": ("BGS_TARGET", {"description": "bits of targets of the Bright Galaxy Survey"}),
    **{
        f"flux_{band.lower()}": (f"FLUX_{band}", {"units": "nanomaggy", "description": f"{band} flux of the target"})
        for band in _BANDS
    },
    **{
        f"flux_ivar_{band.lower()}": (
            f"FLUX_IVAR_{band}",
            {"units": "nanomaggy^-2", "description": f"inverse variance of the {band} flux"},
        )
        for band in _BANDS
    },
    **{
        f"{kind}_{band.lower()}": (
            f"{kind.upper()}_{band}",
            {"units": "nanomaggy", "description": f"{band} flux in the fibre, {what}"},
        )
        for kind, what in (("fiberflux", "of the target"), ("fibertotflux", "of all sources"))
        for band in _BANDS[:3]
    },
}
"""Survey columns: their names in FIBERMAP, and attributes."""
_HEADER = {
    "survey": ("SURVEY", {"description": "part of DESI: main, sv1, sv3, special ..."}),
    "program": ("PROGRAM", {"description": "observing programme: dark, bright ..."}),
    "healpix": ("HPXPIXEL", {"description": "healpix of the coadd, nested, nside 64"}),
    "tileid": ("TILEID", {"description": "tile of the coadd"}),
}


class DesiReader:
    """Reads coadds; their redshifts come from a catalog, or from the Redrock file of the same name.

    Parameters
    ----------
    files : sequence of path-like
        All files that will be read: Redrock's among them are used for the coadds, wherever these are.
    redshifts : path-like, optional
        A redshift catalog (``zcatalog``, ``zall-pix``, a Redrock file ...) with TARGETID and Z, for all coadds.
    """

    def __init__(self, files: Sequence[Path] = (), redshifts: Path | None = None) -> None:
        self._given = {path.name: path for path in files if path.name.startswith(_REDSHIFT_FILES)}
        self._catalog = None if redshifts is None else _read_catalog(redshifts)

    def __call__(self, path: Path) -> Iterator[Spectra | LeftOut]:
        """Yield the spectra of a coadd."""
        if path.name.startswith(_REDSHIFT_FILES):
            return
        with open_fits(path) as hdus:
            fibermap = table(hdus, "FIBERMAP")
            fibermap.needs("TARGETID", "OBJTYPE")
            if not fibermap.has("COADD_FIBERSTATUS"):
                raise Unusable("FIBERMAP: expected that of a coadd, found single exposures; give the coadd-*.fits")
            header = {key: value for hdu in (hdus[0], hdus["FIBERMAP"]) for key, value in hdu.header.items()}
            arms = _Arms(hdus, fibermap.rows)
            targetid, objtype = fibermap["TARGETID"].astype(np.int64), fibermap["OBJTYPE"]
            target = objtype == "TGT"
            for kind in np.unique(objtype[~target]):
                what = f"fibre is on no target (OBJTYPE {kind})" if kind else "fibre is on no target (OBJTYPE is empty)"
                yield LeftOut(what, int((objtype == kind).sum()), fault=False)
            redshifts = self._catalog or self._beside(path)
            if redshifts is None:
                name = f"{_REDSHIFT_FILES[0]}{path.name.removeprefix('coadd-')}"
                missing = f"no redshifts: expected {name} beside it or among the files, or a catalog of redshifts"
                yield LeftOut(missing, max(1, int(target.sum())))
                return
            rows, fitted = redshifts.of(targetid, header)
            if lacking := int((target & (rows < 0)).sum()):
                yield LeftOut("no redshift of this TARGETID, or several", lacking)
            star = np.zeros(target.size, dtype=bool)
            if "spectype" in fitted:
                star = target & (rows >= 0) & (fitted["spectype"][rows] == "STAR")
            if star.any():
                yield LeftOut("star (SPECTYPE STAR)", int(star.sum()), fault=False)
            keep = np.flatnonzero(target & (rows >= 0) & ~star)
            for start in range(0, keep.size, _BLOCK_ROWS):
                some = keep[start : start + _BLOCK_ROWS]
                yield self._block(arms, fibermap, header, fitted, some, rows[some], targetid[some])

    def _block(
        self,
        arms: _Arms,
        fibermap: Table,
        header: dict[str, Any],
        fitted: dict[str, NDArray[Any]],
        some: NDArray[np.int64],
        rows: NDArray[np.int64],
        targetid: NDArray[np.int64],
    ) -> Spectra:
        flux, ivar = arms.joined(some)
        columns: dict[str, tuple[NDArray[Any], dict[str, str]]] = {}
        for name, (key, attrs) in _MAP.items():
            if fibermap.first(key):
                columns[name] = fibermap[key][some], attrs
        for name, (_, attrs) in _FIT.items():
            if name in fitted:
                columns[name] = fitted[name][rows], attrs
        for name, (key, attrs) in _HEADER.items():
            if key in header:
                columns[name] = np.full(some.size, header[key]), attrs
        return Spectra(
            arms.wavelength,
            flux,
            ivar=ivar,
            redshift=fitted["z"][rows],
            galaxy_id=targetid,
            flux_unit=arms.unit,
            medium="vacuum",
            ebv=columns["ebv"][0] if "ebv" in columns else None,
            columns=columns,
            hdu=arms.names,
            rows=some,
        )

    def _beside(self, path: Path) -> _Redshifts | None:
        """Return the redshifts of the file that has the coadd's name, among all files or in its folder."""
        plain = path.name.removesuffix(".gz")
        names = [f"{kind}{plain.removeprefix('coadd-')}{end}" for kind in _REDSHIFT_FILES for end in ("", ".gz")]
        for name in names:
            if name in self._given:
                return _read_redshifts(self._given[name])
            if exists(path.parent / name):
                return _read_redshifts(path.parent / name)
        return None


class _Arms:
    """The arms of a coadd on one grid of pixels."""

    def __init__(self, hdus: Any, rows: int) -> None:
        found = [hdu.name.removesuffix("_WAVELENGTH") for hdu in hdus if hdu.name.endswith("_WAVELENGTH")]
        if not found:
            raise Unusable("expected HDUs B_WAVELENGTH, R_WAVELENGTH and Z_WAVELENGTH, found none")
        self.names = ",".join(f"{arm}_FLUX" for arm in found)
        waves = [image(hdus, f"{arm}_WAVELENGTH", 1).astype(np.float64) for arm in found]
        for arm, wave in zip(found, waves, strict=True):
            if wave.size < 2 or not np.isfinite(wave).all() or (np.diff(wave) <= 0).any():
                raise Unusable(f"{arm}_WAVELENGTH: expected increasing values")
        step = float(np.median(np.diff(waves[0])))
        first = min(wave[0] for wave in waves)
        self._where = []
        for arm, wave in zip(found, waves, strict=True):
            at = (wave - first) / step
            if np.abs(at - np.rint(at)).max() > 1e-3 or (np.diff(np.rint(at)) != 1).any():
                raise Unusable(f"{arm}_WAVELENGTH: expected pixels on the grid of the other arms, steps of {step:g}")
            self._where.append(slice(int(np.rint(at[0])), int(np.rint(at[-1])) + 1))
        self.wavelength = first + step * np.arange(max(where.stop for where in self._where))
        self.unit = ""
        self._arms = []
        for arm, wave in zip(found, waves, strict=True):
            unit = header_flux_unit(hdus[f"{arm}_FLUX"].header.get("BUNIT"), f"{arm}_FLUX: BUNIT")
            if unit != (self.unit or unit):
                raise Unusable(f"{arm}_FLUX: BUNIT: expected {self.unit!r} as in the other arms, found {unit!r}")
            self.unit = unit
            mask = f"{arm}_MASK"
            values = [image(hdus, f"{arm}_{kind}", 2) for kind in ("FLUX", "IVAR")]
            values.append(image(hdus, mask, 2) if mask in hdus else np.zeros(values[0].shape, np.uint8))
            for kind, value in zip(("FLUX", "IVAR", "MASK"), values, strict=True):
                if value.shape != (rows, wave.size):
                    raise Unusable(f"{arm}_{kind}: expected shape {(rows, wave.size)}, found {value.shape}")
            self._arms.append(values)

    def joined(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return flux and inverse variance (row, pixel) of some rows; 0 where no arm has a good pixel."""
        shape = (rows.size, self.wavelength.size)
        weighted, weight = np.zeros(shape), np.zeros(shape)
        for where, (flux, ivar, mask) in zip(self._where, self._arms, strict=True):
            value, w = flux[rows], ivar[rows].astype(np.float64)
            w[(mask[rows] != 0) | ~np.isfinite(value) | ~(w > 0) | ~np.isfinite(w)] = 0.0
            weighted[:, where] += np.where(w > 0, value, 0.0) * w
            weight[:, where] += w
        return np.divide(weighted, weight, out=np.zeros(shape), where=weight > 0), weight


class _Redshifts:
    """Redshifts by TARGETID; where a catalog has several of one, those of the coadd's survey, programme and place."""

    _PLACE = (("SURVEY", "SURVEY"), ("PROGRAM", "PROGRAM"), ("HEALPIX", "HPXPIXEL"), ("TILEID", "TILEID"))

    def __init__(self, found: Table) -> None:
        found.needs("TARGETID", "Z")
        self.targetid = found["TARGETID"].astype(np.int64)
        self.fits = {name: found[key] for name, (key, _) in _FIT.items() if found.first(key)}
        self.fits["z"] = found["Z"].astype(np.float64)
        self._place = {key: found[name] for name, key in self._PLACE if found.first(name)}
        self._order = np.argsort(self.targetid, kind="stable")

    def of(self, targetid: NDArray[np.int64], header: dict[str, Any]) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Return the rows (target,) of targets in :attr:`fits`, -1 where there is none or more than one."""
        order = self._order
        known = {key: values for key, values in self._place.items() if key in header}
        if known:
            same = np.ones(order.size, dtype=bool)
            for key, values in known.items():
                same &= values == header[key]
            order = order[same[order]]
        ids = self.targetid[order]
        low, high = np.searchsorted(ids, targetid, side="left"), np.searchsorted(ids, targetid, side="right")
        rows = np.full(targetid.size, -1, dtype=np.int64)
        one = high - low == 1
        rows[one] = order[low[one]]
        return rows, self.fits


def _read_redshifts(path: Path) -> _Redshifts:
    with open_fits(path) as hdus:
        name = next((name for name in _REDSHIFT_HDUS if name in hdus), 1)
        try:
            return _Redshifts(table(hdus, name))
        except Unusable as error:
            raise Unusable(f"redshifts {path.name}: {error}") from error


def _read_catalog(path: Path) -> _Redshifts:
    """Read the redshifts that a user gives for all coadds; :class:`ConfigError` if they cannot be used."""
    try:
        return _read_redshifts(path)
    except (CatalogError, *DAMAGE, *store_errors()) as error:
        found = str(error) or type(error).__name__
        raise ConfigError(f"redshifts {path}: expected a FITS catalog with TARGETID and Z, found: {found}") from error
