"""Wavelength grids and flux-conserving resampling.

Flux densities are per wavelength (f_lambda). A grid's elements are contiguous bins whose edges lie midway
between neighbouring centres; the flux of an element is the mean flux density over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from digs_survey.config import GridConfig, grid_centres

__all__ = ["WavelengthGrid", "air_to_vacuum", "rebin_matrix", "rebin_spectrum", "vacuum_to_air"]

C_KMS = 299_792.458
MAGGIE = 3631e-23
"""Flux density of one maggie in erg/s/cm2/Hz (AB system)."""
_SAME_GRID = 1e-3
"""Share of an element's width by which the wavelengths of one grid may differ: float32 has such differences, and no
spectrum changes by them."""


def flam_of_maggie(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return f_lambda in erg/s/cm2/Angstrom of one maggie at wavelengths (...) in Angstrom, both observed.

    Examples
    --------
    >>> f"{flam_of_maggie(np.array(5000.0)):.4g}"
    '4.354e-09'
    """
    return MAGGIE * C_KMS * 1e13 / wavelength**2


@dataclass(frozen=True, eq=False)
class WavelengthGrid:
    """The wavelength elements of a catalog.

    Attributes
    ----------
    wavelength : ndarray of float64, shape (wavelength,)
        Centres in Angstrom, strictly increasing.
    frame : {"rest", "observed"}
    medium : {"vacuum", "air"}
    """

    wavelength: NDArray[np.float64]
    frame: str = "rest"
    medium: str = "vacuum"

    def __post_init__(self) -> None:
        wave = np.array(self.wavelength, dtype=np.float64)
        if wave.ndim != 1 or wave.size < 2 or not np.isfinite(wave).all() or (np.diff(wave) <= 0).any() or wave[0] <= 0:
            raise ValueError("wavelength: expected at least two positive, strictly increasing values in Angstrom")
        if self.frame not in ("rest", "observed") or self.medium not in ("vacuum", "air"):
            raise ValueError(f"frame {self.frame!r} / medium {self.medium!r}: expected rest|observed, vacuum|air")
        wave.setflags(write=False)
        object.__setattr__(self, "wavelength", wave)

    @classmethod
    def from_config(cls, config: GridConfig) -> WavelengthGrid:
        """Build the grid that a configuration describes."""
        return cls(grid_centres(config), config.frame, config.medium)

    @classmethod
    def from_array(cls, wavelength: Any) -> WavelengthGrid:
        """Build the grid of a stored array of wavelengths, whose attributes give its frame and medium."""
        return cls(np.asarray(wavelength[:]), str(wavelength.attrs["frame"]), str(wavelength.attrs["medium"]))

    def __len__(self) -> int:
        return self.wavelength.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WavelengthGrid) and not self.difference(other)

    def difference(self, other: WavelengthGrid) -> str:
        """Say how another grid differs from this one; nothing if they are the same.

        Wavelengths are the same up to 1e-3 of an element's width.

        Returns
        -------
        str
            Such as "medium air, not vacuum", with this grid's value first, or the largest difference of wavelengths.
        """
        for name in ("frame", "medium"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine}, not {theirs}"
        if len(self) != len(other):
            return f"{len(self)} elements, not {len(other)}"
        apart = np.abs(self.wavelength - other.wavelength)
        width = np.minimum(np.diff(self.edges), np.diff(other.edges))
        if (apart <= _SAME_GRID * width).all():
            return ""
        i = int(np.argmax(apart))
        return (
            f"wavelengths that differ by up to {apart[i]:.3g} Angstrom ({self.wavelength[i]:.10g}, not "
            f"{other.wavelength[i]:.10g}, at element {i}); up to {_SAME_GRID:g} of an element would do"
        )

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges (wavelength + 1,) of the elements in Angstrom."""
        mid = 0.5 * (self.wavelength[1:] + self.wavelength[:-1])
        first = 1.5 * self.wavelength[0] - 0.5 * self.wavelength[1]
        last = 1.5 * self.wavelength[-1] - 0.5 * self.wavelength[-2]
        return np.concatenate([[first], mid, [last]])

    def __str__(self) -> str:
        wave = self.wavelength
        step = np.diff(wave)
        steps = f"{step[0]:g}" if np.allclose(step, step[0]) else f"{step.min():g} to {step.max():g}"
        span = f"{wave.size} elements, {wave[0]:g} to {wave[-1]:g} Angstrom in steps of {steps}"
        return f"{span}, {self.frame} frame, {self.medium}"

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as plain values, for cards and manifests."""
        return {"wavelength_angstrom": self.wavelength.tolist(), "frame": self.frame, "medium": self.medium}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WavelengthGrid:
        """Rebuild a grid from :meth:`to_dict`."""
        return cls(np.array(data["wavelength_angstrom"]), data["frame"], data["medium"])


def rebin_matrix(wavelength: ArrayLike, edges: ArrayLike) -> csr_array:
    """Return the matrix that averages a finely sampled spectrum over elements.

    The spectrum is taken as linear between its samples and integrated exactly, so that flux is conserved.

    Parameters
    ----------
    wavelength : array_like, shape (fine,)
        Sample positions, strictly increasing, which must cover the edges.
    edges : array_like, shape (element + 1,)
        Edges of the elements, strictly increasing, in the same unit.

    Returns
    -------
    csr_array, shape (element, fine)
        ``matrix @ spectrum`` is the mean flux density over each element.
    """
    wave = np.asarray(wavelength, dtype=float)
    edges = np.asarray(edges, dtype=float)
    if edges[0] < wave[0] or edges[-1] > wave[-1]:
        raise ValueError(
            f"elements reach from {edges[0]:g} to {edges[-1]:g}, the spectrum only from {wave[0]:g} to {wave[-1]:g}"
        )
    knots = np.union1d(wave, edges)
    left, right = knots[:-1], knots[1:]
    inside = (left >= edges[0]) & (right <= edges[-1])
    left, right = left[inside], right[inside]
    element = np.searchsorted(edges, left, side="right") - 1
    segment = np.clip(np.searchsorted(wave, left, side="right") - 1, 0, wave.size - 2)
    span = wave[segment + 1] - wave[segment]
    width = right - left
    upper = (0.5 * (left + right) - wave[segment]) / span
    weight = width / (edges[element + 1] - edges[element])
    return csr_array(
        (
            np.concatenate([weight * (1 - upper), weight * upper]),
            (np.concatenate([element, element]), np.concatenate([segment, segment + 1])),
        ),
        shape=(edges.size - 1, wave.size),
    )


def rebin_spectrum(
    pixel_edges: ArrayLike, flux: ArrayLike, ivar: ArrayLike, edges: ArrayLike, min_coverage: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """Rebin an observed spectrum onto wider elements, conserving flux and carrying its inverse variance.

    Each element is the overlap-weighted mean of the pixels with ``ivar > 0``; its variance is
    propagated with the same weights. (Weights by overlap and not by inverse variance, so that the
    element holds the mean flux density of the model as well.)

    Parameters
    ----------
    pixel_edges : array_like, shape (pixel + 1,)
        Edges of the pixels in Angstrom.
    flux, ivar : array_like, shape (pixel,)
        Flux density and inverse variance; ``ivar = 0`` (or NaN) marks a bad pixel.
    edges : array_like, shape (element + 1,)
        Edges of the elements in Angstrom, same frame and medium.
    min_coverage : float
        Share of an element's width that good pixels must cover; the element is masked otherwise.

    Returns
    -------
    flux, ivar : ndarray of float64, shape (element,)
        0 where masked.
    mask : ndarray of uint8, shape (element,)
        0 good, 1 masked.
    """
    pixel_edges, edges = np.asarray(pixel_edges, dtype=float), np.asarray(edges, dtype=float)
    flux, ivar = np.asarray(flux, dtype=float), np.asarray(ivar, dtype=float)
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    knots = np.union1d(np.clip(pixel_edges, edges[0], edges[-1]), edges)
    middle, width = 0.5 * (knots[1:] + knots[:-1]), np.diff(knots)
    pixel = np.searchsorted(pixel_edges, middle, side="right") - 1
    on_pixels = (pixel >= 0) & (pixel < flux.size)
    element = np.searchsorted(edges, middle, side="right") - 1
    use = on_pixels & good[np.clip(pixel, 0, flux.size - 1)]
    overlap = csr_array((width[use], (element[use], pixel[use])), shape=(edges.size - 1, flux.size))
    covered = overlap.sum(axis=1)
    masked = covered < min_coverage * np.diff(edges)
    scale = np.where(masked, 1.0, covered)
    mean = overlap @ np.where(good, flux, 0.0) / scale
    variance = overlap.power(2) @ np.divide(1.0, ivar, out=np.zeros_like(ivar), where=good) / scale**2
    inverse = np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0)
    masked |= inverse <= 0
    return np.where(masked, 0.0, mean), np.where(masked, 0.0, inverse), masked.astype(np.uint8)


def vacuum_to_air(wavelength: ArrayLike) -> NDArray[np.float64]:
    """Air wavelength of a vacuum wavelength (Angstrom, above 2000), by Morton 2000, ApJS 130, 403, eq. 8."""
    wave = np.asarray(wavelength, dtype=float)
    s2 = (1e4 / wave) ** 2
    index = 1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2)
    return wave / index


def air_to_vacuum(wavelength: ArrayLike) -> NDArray[np.float64]:
    """Vacuum wavelength of an air wavelength (Angstrom, above 2000): the inverse of :func:`vacuum_to_air`."""
    air = np.asarray(wavelength, dtype=float)
    wave = air.copy()
    for _ in range(4):
        wave = air * (wave / vacuum_to_air(wave))
    return wave
