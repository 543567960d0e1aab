"""The arms of DESI's spectra on one grid of pixels, and their line spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.fits_files import find_hdu, image, middle_plane
from digs_survey.catalog.readers.flux_units import error_factor, header_flux_unit
from digs_survey.catalog.readers.reading import Unusable

__all__ = ["DesiArms"]

_SPREAD_EVERY = 64
"""Pixels from one measurement of the line spread to the next: it changes slowly."""


class DesiArms:
    """The arms of a file.

    Parameters
    ----------
    hdus : HDUList
    rows : int
        Rows of the fibre map.

    Attributes
    ----------
    arms : list of str
        B, R and Z.
    wavelength : ndarray of float64, shape (pixel,)
        Of the common grid, in Angstrom.
    unit : str
        Of the flux.
    """

    def __init__(self, hdus: Any, rows: int) -> None:
        self.arms = [hdu.name.removesuffix("_WAVELENGTH") for hdu in hdus if hdu.name.endswith("_WAVELENGTH")]
        if not self.arms:
            raise Unusable("expected HDUs B_WAVELENGTH, R_WAVELENGTH and Z_WAVELENGTH, found none")
        waves = {arm: image(hdus, f"{arm}_WAVELENGTH", 1).astype(np.float64) for arm in self.arms}
        self.step, self.wavelength, self._where = _common_pixels(waves)
        self.unit = ""
        self._values: dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, float]] = {}
        self._spread: dict[str, NDArray[np.float64]] = {}
        for arm, wave in waves.items():
            unit = header_flux_unit(find_hdu(hdus, f"{arm}_FLUX").header.get("BUNIT"), f"{arm}_FLUX: BUNIT")
            if unit != (self.unit or unit):
                raise Unusable(f"{arm}_FLUX: BUNIT: expected {self.unit!r} as in the other arms, found {unit!r}")
            self.unit = unit
            factor = error_factor(find_hdu(hdus, f"{arm}_IVAR").header.get("BUNIT"), unit, f"{arm}_IVAR: BUNIT", -2)
            kinds = [kind for kind in ("FLUX", "IVAR", "MASK") if kind != "MASK" or f"{arm}_MASK" in hdus]
            found = {kind: image(hdus, f"{arm}_{kind}", 2, copy=False) for kind in kinds}
            for kind, value in found.items():
                if value.shape != (rows, wave.size):
                    raise Unusable(f"{arm}_{kind}: expected shape {(rows, wave.size)}, found {value.shape}")
            self._values[arm] = found["FLUX"], found["IVAR"], found.get("MASK"), factor
            if f"{arm}_RESOLUTION" in hdus:
                self._spread[arm] = self._line_spread(hdus, f"{arm}_RESOLUTION", (rows, wave.size))

    @property
    def hdu_names(self) -> str:
        """The HDUs of the fluxes."""
        return ",".join(f"{arm}_FLUX" for arm in self.arms)

    def joined(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64], used: dict[str, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Join arms, and the exposures of each target, weighted by inverse variance.

        Parameters
        ----------
        rows : ndarray of int, shape (exposure,)
            Rows of the file, those of a target together.
        starts : ndarray of int, shape (target,)
            Where in ``rows`` each target begins.
        used : dict of str to ndarray of bool, shape (exposure,)
            Which of the exposures count, for each arm.

        Returns
        -------
        flux, ivar : ndarray of float64, shape (target, pixel)
            0 where no exposure of any arm has a good pixel.
        """
        shape = (starts.size, self.wavelength.size)
        weighted, weight = np.zeros(shape), np.zeros(shape)
        for arm, (flux, ivar, mask, factor) in self._values.items():
            value, w = flux[rows].astype(np.float32), factor * ivar[rows].astype(np.float64)
            bad = ~np.isfinite(value) | ~(w > 0) | ~np.isfinite(w) | ~used[arm][:, None]
            if mask is not None:
                bad |= mask[rows] != 0
            w[bad] = 0.0
            value[bad] = 0.0
            product = value * w
            if starts.size < rows.size:
                product, w = np.add.reduceat(product, starts, axis=0), np.add.reduceat(w, starts, axis=0)
            weighted[:, self._where[arm]] += product
            weight[:, self._where[arm]] += w
        return np.divide(weighted, weight, out=np.zeros(shape), where=weight > 0), weight

    def line_spreads(self, rows: NDArray[np.int64], starts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return the sigma of the line spread (target,) in Angstrom for each arm that has one, NaN where unknown.

        It is the median over the pixels of an exposure, and the mean over a target's exposures.
        """
        found = {}
        for arm, spread in self._spread.items():
            known = np.isfinite(spread[rows])
            total = np.add.reduceat(np.where(known, spread[rows], 0.0), starts)
            count = np.add.reduceat(known.astype(float), starts)
            found[arm] = np.divide(total, count, out=np.full(starts.size, np.nan), where=count > 0)
        return found

    def _line_spread(self, hdus: Any, name: str, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Return the median sigma (row,) in Angstrom of a resolution matrix, NaN where there is none.

        The matrix has, for each pixel, the shares of a line there that it and its neighbours get: (row, neighbour,
        pixel), itself in the middle. Sigma is that of the Gaussian whose peak is the pixel's own share. It differs by
        up to 1.5 % from the second moment of all shares, and asks for an eleventh of the file's largest HDUs only.
        """
        found = tuple(find_hdu(hdus, name).shape or ())
        if len(found) != 3 or (found[0], found[2]) != shape:
            raise Unusable(f"{name}: expected shape ({shape[0]}, neighbours, {shape[1]}), found {found}")
        share = middle_plane(hdus, name)[:, ::_SPREAD_EVERY].astype(np.float64)
        good = np.isfinite(share) & (share > 0) & (share <= 1)
        peak = np.ma.median(np.ma.masked_array(np.where(good, share, 1.0), ~good), axis=1)
        return self.step / (np.sqrt(2 * np.pi) * np.ma.filled(peak.astype(np.float64), np.nan))


def _common_pixels(
    waves: dict[str, NDArray[np.float64]],
) -> tuple[float, NDArray[np.float64], dict[str, slice]]:
    """Return the step, the wavelengths of the pixels of all arms, and where the pixels of each are among these."""
    for arm, wave in waves.items():
        if wave.size < 2 or not np.isfinite(wave).all() or (np.diff(wave) <= 0).any():
            raise Unusable(f"{arm}_WAVELENGTH: expected increasing values")
    step = float(np.median(np.diff(next(iter(waves.values())))))
    first = min(wave[0] for wave in waves.values())
    where = {}
    for arm, wave in waves.items():
        at = (wave - first) / step
        if np.abs(at - np.rint(at)).max() > 1e-3 or (np.diff(np.rint(at)) != 1).any():
            raise Unusable(f"{arm}_WAVELENGTH: expected pixels on the grid of the other arms, steps of {step:g}")
        where[arm] = slice(int(np.rint(at[0])), int(np.rint(at[-1])) + 1)
    pixels = max(part.stop for part in where.values())
    if pixels > 10 * sum(wave.size for wave in waves.values()):
        reach = f"{first:g} to {first + step * pixels:g} Angstrom"
        raise Unusable(f"expected arms beside each other, found pixels from {reach}")
    return step, first + step * np.arange(pixels), where
