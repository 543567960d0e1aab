"""DESI spectra, by healpix or by tile: coadds, or the single exposures of each target, with their redshifts.

Format: https://desidatamodel.readthedocs.io, files ``coadd-*.fits``, ``spectra-*.fits`` and ``redrock-*.fits``.
Wavelengths are in vacuum, pixels of the three arms lie on one grid of 0.8 Angstrom, and a pixel counts if its mask is 0
and its inverse variance positive. Where arms overlap, the mean weighted by inverse variance is taken. The exposures of
a target in a ``spectra`` file are joined in the same way, as the pipeline makes coadds. Fluxes are through the fibre,
corrected by the pipeline to those of a point source, and are not corrected for Galactic extinction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.desi_arms import DesiArms
from digs_survey.catalog.readers.desi_redshifts import FIT, DesiRedshifts
from digs_survey.catalog.readers.fits_files import Table, open_fits, table
from digs_survey.catalog.readers.reading import LeftOut
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.store.locations import exists

__all__ = ["DesiReader"]

_BLOCK_ROWS = 512
_REDSHIFT_FILES = ("redrock-", "zbest-")
_SPECTRA_FILES = ("coadd-", "spectra-")
_BAD_FIBRE = sum(1 << bit for bit in (2, 8, 9, 16, 17, 18, 19, 20, 21))
"""Bits of FIBERSTATUS with which the pipeline takes no exposure into a coadd (fiberbitmasking.py of desispec).

Broken fibre, position missing or 100 micron off, fibre, trace, flat or arc bad, many columns bad, many pixels rejected.
"""
_BAD_AMPLIFIER = {"B": 1 << 22, "R": 1 << 23, "Z": 1 << 24}
"""Bits for one arm only."""
_BANDS = ("G", "R", "Z", "W1", "W2")
_MAP: dict[str, tuple[str, dict[str, str]]] = {
    "ra": ("TARGET_RA", {"units": "deg", "description": "right ascension of the target"}),
    "dec": ("TARGET_DEC", {"units": "deg", "description": "declination of the target"}),
    "ebv": ("EBV", {"units": "mag", "description": "Galactic E(B-V) by Schlegel, Finkbeiner & Davis 1998"}),
    "coadd_fiberstatus": ("COADD_FIBERSTATUS", {"description": "bits of the fibre; 0 = good"}),
    "coadd_numexp": ("COADD_NUMEXP", {"description": "exposures in the coadd"}),
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
    """Reads coadds and exposures; redshifts come from a catalog, or from the Redrock file of the same name.

    Parameters
    ----------
    files : sequence of path-like
        All files that will be read: Redrock's among them are used for the spectra, wherever these are. A file of
        exposures whose coadd is among them is passed over.
    redshifts : path-like, optional
        A redshift catalog (``zcatalog``, ``zall-pix``, a Redrock file ...) with TARGETID and Z, for all files.
    """

    def __init__(self, files: Sequence[Path] = (), redshifts: Path | None = None) -> None:
        self._given = {path.name: path for path in files if path.name.startswith(_REDSHIFT_FILES)}
        self._coadds = {_tail(path) for path in files if path.name.startswith("coadd-")}
        self._catalog = None if redshifts is None else DesiRedshifts.read_catalog(redshifts)

    def __call__(self, path: Path) -> Iterator[Spectra | LeftOut]:
        """Yield the spectra of a file."""
        if path.name.startswith(_REDSHIFT_FILES):
            return
        if path.name.startswith("spectra-") and _tail(path) in self._coadds:
            yield LeftOut("the coadd of these exposures is among the files", fault=False)
            return
        with open_fits(path) as hdus:
            fibermap = table(hdus, "FIBERMAP")
            fibermap.needs("TARGETID", "OBJTYPE")
            exposures = not fibermap.has("COADD_FIBERSTATUS")
            if exposures:
                fibermap.needs("FIBERSTATUS")
            header = {key: value for hdu in (hdus[0], hdus["FIBERMAP"]) for key, value in hdu.header.items()}
            arms = DesiArms(hdus, fibermap.rows)
            targetid, objtype = fibermap["TARGETID"].astype(np.int64), fibermap["OBJTYPE"]
            target = objtype == "TGT"
            for kind in np.unique(objtype[~target]):
                what = f"fibre is on no target (OBJTYPE {kind})" if kind else "fibre is on no target (OBJTYPE is empty)"
                yield LeftOut(what, int((objtype == kind).sum()), fault=False)
            redshifts = self._catalog or self._beside(path)
            if redshifts is None:
                name = f"{_REDSHIFT_FILES[0]}{_tail(path)}"
                missing = f"no redshifts: expected {name} beside it or among the files, or a catalog of redshifts"
                yield LeftOut(missing, max(1, int(target.sum())))
                return
            rows = redshifts.of(targetid, header)
            if lacking := int((target & (rows < 0)).sum()):
                yield LeftOut("no redshift of this TARGETID, or several", lacking)
            star = np.zeros(target.size, dtype=bool)
            if "spectype" in redshifts.fits:
                star = target & (rows >= 0) & (redshifts.fits["spectype"][rows] == "STAR")
            if star.any():
                yield LeftOut("star (SPECTYPE STAR)", int(star.sum()), fault=False)
            keep = np.flatnonzero(target & (rows >= 0) & ~star)
            for some, starts in _blocks(keep, targetid if exposures else None):
                yield self._block(arms, fibermap, header, redshifts.fits, some, starts, rows[some[starts]], exposures)

    def _block(
        self,
        arms: DesiArms,
        fibermap: Table,
        header: dict[str, Any],
        fitted: dict[str, NDArray[Any]],
        some: NDArray[np.int64],
        starts: NDArray[np.int64],
        entries: NDArray[np.int64],
        exposures: bool,
    ) -> Spectra:
        first = some[starts]
        columns: dict[str, tuple[NDArray[Any], dict[str, str]]] = {}
        for name, (key, attrs) in _MAP.items():
            if fibermap.first(key):
                columns[name] = fibermap[key][first], attrs
        used = {arm: np.ones(some.size, dtype=bool) for arm in arms.arms}
        if exposures:
            status = fibermap["FIBERSTATUS"][some].astype(np.int64)
            used = {arm: (status & (_BAD_FIBRE | _BAD_AMPLIFIER.get(arm, 0))) == 0 for arm in arms.arms}
            for name, values in _of_exposures(status, np.any(list(used.values()), axis=0), starts).items():
                columns[name] = values, _MAP[name][1]
        flux, ivar = arms.joined(some, starts, used)
        for arm, spread in arms.line_spreads(some, starts).items():
            description = f"line spread of the {arm} arm (sigma), median over its pixels, from the resolution matrix"
            columns[f"line_spread_{arm.lower()}"] = spread, {"units": "Angstrom", "description": description}
        for name, (_, attrs) in FIT.items():
            if name in fitted:
                columns[name] = fitted[name][entries], attrs
        for name, (key, attrs) in _HEADER.items():
            if key in header:
                columns[name] = np.full(starts.size, header[key]), attrs
        return Spectra(
            arms.wavelength,
            flux,
            ivar=ivar,
            redshift=fitted["z"][entries],
            galaxy_id=fibermap["TARGETID"][first].astype(np.int64),
            flux_unit=arms.unit,
            medium="vacuum",
            ebv=columns["ebv"][0] if "ebv" in columns else None,
            columns=columns,
            hdu=arms.hdu_names,
            rows=first,
        )

    def _beside(self, path: Path) -> DesiRedshifts | None:
        """Return the redshifts of the file that has the same name, among all files or in its folder."""
        for name in [f"{kind}{_tail(path)}{end}" for kind in _REDSHIFT_FILES for end in ("", ".gz")]:
            if name in self._given:
                return DesiRedshifts.read(self._given[name])
            if exists(path.parent / name):
                return DesiRedshifts.read(path.parent / name)
        return None


def _tail(path: Path) -> str:
    """Return what follows the kind in a file's name: SURVEY-PROGRAM-HEALPIX.fits, or PETAL-TILE-NIGHT.fits."""
    name = path.name.removesuffix(".gz")
    return next((name.removeprefix(kind) for kind in _SPECTRA_FILES if name.startswith(kind)), name)


def _blocks(
    keep: NDArray[np.int64], targetid: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield some hundred rows at a time, and where among them each target begins.

    Rows of a target come together, targets in the order of their first rows. Without ``targetid`` each row is one.
    """
    if targetid is None:
        starts = np.arange(keep.size)
    else:
        _, first, number = np.unique(targetid[keep], return_index=True, return_inverse=True)
        place = first[number]
        order = np.argsort(place, kind="stable")
        keep = keep[order]
        starts = np.flatnonzero(np.diff(place[order], prepend=-1) != 0)
    ends = np.append(starts[1:], keep.size)
    begin = 0
    while begin < starts.size:
        stop = max(begin + 1, int(np.searchsorted(ends, starts[begin] + _BLOCK_ROWS, side="right")))
        yield keep[starts[begin] : ends[stop - 1]], starts[begin:stop] - starts[begin]
        begin = stop


def _of_exposures(
    status: NDArray[np.int64], used: NDArray[np.bool_], starts: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Return the columns of a coadd (target,) from FIBERSTATUS (exposure,): bits of all exposures that are used."""
    count = np.add.reduceat(used.astype(np.int64), starts)
    common = np.bitwise_and.reduceat(np.where(used, status, -1), starts)
    return {
        "coadd_fiberstatus": np.where(count > 0, common, np.bitwise_or.reduceat(status, starts)),
        "coadd_numexp": count,
    }
