"""Spectra that share their pixels, in one unit, medium and frame: what every reader yields and every user can make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.catalog.decoding import plain_strings, text_values
from digs_survey.catalog.readers.flux_units import flux_factor, length_factor
from digs_survey.errors import CatalogError
from digs_survey.spectra import WavelengthGrid, air_to_vacuum

__all__ = ["Columns", "Spectra"]

Columns = Mapping[str, tuple[ArrayLike, Mapping[str, Any]]]
"""Survey columns: values (n,) and attributes ``units`` and ``description``, by name."""

_AIR_FROM = 2000.0
_AT_MOST = 1e10


class Spectra:
    """Spectra on the same pixels, converted to vacuum wavelengths and f_lambda.

    Parameters
    ----------
    wavelength : array_like, shape (pixel,)
        Centres of the pixels, strictly increasing or strictly decreasing.
    flux : array_like, shape (pixel,) or (n, pixel)
        Flux density per wavelength or per frequency, in ``flux_unit``.
    redshift : float or array_like, shape (n,)
        A row without a positive redshift is left out of the catalog, and listed.
    galaxy_id : int, str or array_like of these, shape (n,)
    ivar, error : array_like, shape of ``flux``
        Inverse variance or standard deviation of ``flux``: one of the two. A pixel with ivar 0, or with an error that
        is not positive, is not used.
    mask : array_like, shape of ``flux``, optional
        0 (or False) = good.
    flux_unit : str
        As :mod:`astropy.units` reads it, for example ``"1e-17 erg / (s cm2 Angstrom)"`` or ``"uJy"``.
    medium : {"vacuum", "air"}
        Of ``wavelength``. Below 2000 Angstrom both are the same.
    wavelength_unit : str
    frame : {"observed", "rest"}
        At rest: wavelength / (1 + z), flux * (1 + z), ivar / (1 + z)^2, and only per wavelength.
    ebv : float or array_like, shape (n,), optional
        Galactic E(B-V) in mag, for the correction of Galactic extinction.
    columns : mapping of name to (values, attributes), optional
        Survey columns: one value a spectrum, with ``units`` and ``description``.
    hdu, rows
        Where the spectra are in their file; readers fill them.

    Attributes
    ----------
    wavelength : ndarray of float64, shape (pixel,)
        Angstrom in vacuum, increasing.
    flux, ivar : ndarray of float64, shape (n, pixel)
        In :data:`~digs_survey.catalog.readers.flux_units.STORED_UNIT` and its inverse square; 0 where not good.
    good : ndarray of bool, shape (n, pixel)

    Raises
    ------
    CatalogError
        Shapes that do not fit together, a unit that is none of a flux density, or wavelengths that are not monotonic.

    Examples
    --------
    >>> import numpy as np, digs_survey as ds
    >>> wave = np.arange(3600.0, 9800.0, 2.0)
    >>> ds.Spectra(wave, np.ones((3, wave.size)), redshift=[0.1, 0.2, 0.3], galaxy_id=[1, 2, 3],
    ...            error=np.full((3, wave.size), 0.1), flux_unit="1e-17 erg / (s cm2 Angstrom)", medium="air")
    <3 spectra, 3100 pixels from 3601.0 to 9800.7 Angstrom, observed frame>
    """

    def __init__(
        self,
        wavelength: ArrayLike,
        flux: ArrayLike,
        *,
        redshift: ArrayLike,
        galaxy_id: ArrayLike,
        flux_unit: str,
        medium: str,
        ivar: ArrayLike | None = None,
        error: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        wavelength_unit: str = "Angstrom",
        frame: str = "observed",
        ebv: ArrayLike | None = None,
        columns: Columns | None = None,
        hdu: str = "",
        rows: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        if medium not in ("vacuum", "air") or frame not in ("observed", "rest"):
            raise CatalogError(f"medium {medium!r}, frame {frame!r}: expected vacuum or air, and observed or rest")
        if (ivar is None) == (error is None):
            raise CatalogError("spectra: expected either ivar or error")
        wave = _angstrom(wavelength, wavelength_unit, medium)
        flux = np.atleast_2d(np.asarray(flux, dtype=np.float64))
        factor = flux_factor(flux_unit, wave, frame)
        if ivar is None:
            sigma = np.atleast_2d(np.asarray(error, dtype=np.float64))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                ivar = np.where(sigma > 0, sigma**-2.0, 0.0)
        ivar = np.atleast_2d(np.asarray(ivar, dtype=np.float64))
        n = flux.shape[0]
        good = np.ones(flux.shape, dtype=bool) if mask is None else np.atleast_2d(np.asarray(mask)) == 0
        for name, array in (("flux", flux), ("ivar or error", ivar), ("mask", good)):
            if array.shape != (n, wave.size):
                raise CatalogError(
                    f"{name}: expected shape {(n, wave.size)}, as flux and wavelength, found {array.shape}"
                )
        with np.errstate(over="ignore", invalid="ignore"):
            flux, ivar = flux * factor, ivar / factor**2
        good = good & np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
        order = slice(None, None, -1 if wave[0] > wave[-1] else 1)
        self.wavelength = wave[order]
        self.good = good[:, order]
        self.flux = np.where(good, flux, 0.0)[:, order]
        self.ivar = np.where(good, ivar, 0.0)[:, order]
        self.frame, self.hdu = frame, hdu
        self.redshift = _column("redshift", np.asarray(redshift, dtype=np.float64), n)
        self.galaxy_id = _column("galaxy_id", text_values("galaxy_id", galaxy_id), n)
        if self.galaxy_id.dtype.kind not in "iuU":
            raise CatalogError(f"galaxy_id: expected integers or strings, found {self.galaxy_id.dtype}")
        if self.galaxy_id.dtype == np.uint64 and (self.galaxy_id > np.iinfo(np.int64).max).any():
            self.galaxy_id = self.galaxy_id.astype(str)
        self.ebv = None if ebv is None else _column("ebv", np.asarray(ebv, dtype=np.float64), n)
        self.rows = np.arange(n) if rows is None else np.asarray(rows, dtype=np.int64)
        self.columns = {
            name: (_column(name, plain_strings(values, strict=False), n), dict(attrs))
            for name, (values, attrs) in (columns or {}).items()
        }

    def __len__(self) -> int:
        return self.redshift.size

    def __repr__(self) -> str:
        first, last = self.wavelength[[0, -1]]
        pixels = f"{self.wavelength.size} pixels from {first:.1f} to {last:.1f} Angstrom"
        return f"<{len(self)} spectra, {pixels}, {self.frame} frame>"

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges (pixel + 1,) of the pixels in Angstrom, midway between their centres."""
        return WavelengthGrid(self.wavelength).edges

    def take(self, rows: NDArray[Any] | slice) -> Spectra:
        """Return some of the spectra."""
        part = copy(self)
        for name in ("flux", "ivar", "good", "redshift", "galaxy_id", "rows"):
            setattr(part, name, getattr(self, name)[rows])
        part.ebv = None if self.ebv is None else self.ebv[rows]
        part.columns = {name: (values[rows], attrs) for name, (values, attrs) in self.columns.items()}
        return part

    def stretch(self, frame: str) -> NDArray[np.float64]:
        """Return the factors (n,) by which flux grows, and wavelengths shrink, on the way to a frame."""
        if frame == self.frame:
            return np.ones(len(self))
        return 1 + self.redshift if frame == "rest" else 1 / (1 + self.redshift)


def _angstrom(wavelength: ArrayLike, unit: str, medium: str) -> NDArray[np.float64]:
    wave = np.asarray(wavelength, dtype=np.float64)
    if wave.ndim != 1 or wave.size < 2:
        raise CatalogError(f"wavelength: expected one dimension and two values or more, found shape {wave.shape}")
    wave = wave * length_factor(unit)
    if not np.isfinite(wave).all() or wave.min() <= 0:
        where = int(np.flatnonzero(~(np.isfinite(wave) & (wave > 0)))[0])
        raise CatalogError(f"wavelength: expected positive numbers, found {wave[where]:g} at pixel {where}")
    if wave.max() > _AT_MOST:
        raise CatalogError(
            f"wavelength: expected at most {_AT_MOST:g} Angstrom, found {wave.max():g}: is its unit right?"
        )
    steps = np.diff(wave)
    if not ((steps > 0).all() or (steps < 0).all()):
        where = int(np.flatnonzero(np.sign(steps) != np.sign(steps[0]) if steps[0] else steps == 0)[0]) + 1
        raise CatalogError(
            f"wavelength: expected increasing (or decreasing) values, found {wave[where]:g} after {wave[where - 1]:g} "
            f"Angstrom at pixel {where}"
        )
    if medium == "air":
        wave = np.where(wave >= _AIR_FROM, air_to_vacuum(np.maximum(wave, _AIR_FROM)), wave)
    return wave


def _column(name: str, values: NDArray[Any], n: int) -> NDArray[Any]:
    """Bring one value a spectrum to shape (n,): one spectrum may have it without a dimension."""
    if values.ndim == 0 and n == 1:
        values = values[None]
    if values.shape != (n,):
        raise CatalogError(f"{name}: expected one value for each of {n} spectra, found shape {values.shape}")
    if values.dtype.kind in "iufb" and not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return values
