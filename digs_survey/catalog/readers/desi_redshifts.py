"""Redshifts of DESI: the Redrock file of a coadd, or a catalog for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.fits_files import Table, open_fits, table
from digs_survey.catalog.readers.reading import DAMAGE, Unusable
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.store.locations import store_errors

__all__ = ["FIT", "DesiRedshifts"]

_HDUS = ("REDSHIFTS", "ZBEST", "ZCATALOG")
FIT = {
    "z_err": ("ZERR", {"description": "error of the redshift by Redrock"}),
    "zwarn": ("ZWARN", {"description": "bits that warn of the redshift; 0 = none"}),
    "spectype": ("SPECTYPE", {"description": "class by Redrock: GALAXY, QSO or STAR"}),
    "subtype": ("SUBTYPE", {"description": "subclass by Redrock"}),
    "deltachi2": ("DELTACHI2", {"description": "difference in chi-square between the best redshift and the next"}),
}
"""Survey columns: their names in the files, and attributes."""
_PLACE = (("SURVEY", "SURVEY"), ("PROGRAM", "PROGRAM"), ("HEALPIX", "HPXPIXEL"), ("TILEID", "TILEID"))


class DesiRedshifts:
    """Redshifts by TARGETID.

    Where a catalog has several of one, those of the spectra's survey, programme and place count, and of these the one
    that ZCAT_PRIMARY marks.

    Attributes
    ----------
    fits : dict of str to ndarray, shape (entry,)
        ``z`` and the columns of :data:`FIT` that there are.
    """

    def __init__(self, found: Table) -> None:
        found.needs("TARGETID", "Z")
        self.targetid = found["TARGETID"].astype(np.int64)
        self.fits = {name: found[key] for name, (key, _) in FIT.items() if found.first(key)}
        self.fits["z"] = found["Z"].astype(np.float64)
        self._place = {key: found[name] for name, key in _PLACE if found.first(name)}
        self._primary = found["ZCAT_PRIMARY"].astype(bool) if found.first("ZCAT_PRIMARY") else None
        self._order = np.argsort(self.targetid, kind="stable")

    @classmethod
    def read(cls, path: Path) -> DesiRedshifts:
        """Read the file of one coadd; :class:`Unusable` if it cannot be used."""
        with open_fits(path, memmap=True) as hdus:
            name = next((name for name in _HDUS if name in hdus), 1)
            try:
                return cls(table(hdus, name))
            except Unusable as error:
                raise Unusable(f"redshifts {path.name}: {error}") from error

    @classmethod
    def read_catalog(cls, path: Path) -> DesiRedshifts:
        """Read what a user gives for all coadds; :class:`ConfigError` if it cannot be used."""
        try:
            return cls.read(path)
        except (CatalogError, *DAMAGE, *store_errors()) as error:
            found = str(error) or type(error).__name__
            expected = "expected a FITS catalog with TARGETID and Z"
            raise ConfigError(f"redshifts {path}: {expected}, found: {found}") from error

    def of(self, targetid: NDArray[np.int64], header: dict[str, Any]) -> NDArray[np.int64]:
        """Return the entries (target,) of targets in :attr:`fits`, -1 where there is none or more than one.

        Parameters
        ----------
        targetid : ndarray, shape (target,)
        header : dict
            Cards of the file of the spectra.
        """
        order = self._order
        known = {key: values for key, values in self._place.items() if key in header}
        if known:
            same = np.ones(order.size, dtype=bool)
            for key, values in known.items():
                same &= values == header[key]
            order = order[same[order]]
        rows = self._only(targetid, order)
        if self._primary is not None and (missing := rows < 0).any():
            rows[missing] = self._only(targetid[missing], order[self._primary[order]])
        return rows

    def _only(self, targetid: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the entries of targets among those of an order, -1 where there is not exactly one."""
        ids = self.targetid[order]
        low, high = np.searchsorted(ids, targetid, side="left"), np.searchsorted(ids, targetid, side="right")
        rows = np.full(targetid.size, -1, dtype=np.int64)
        one = high - low == 1
        rows[one] = order[low[one]]
        return rows
