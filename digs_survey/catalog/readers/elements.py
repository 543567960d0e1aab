"""Elements of a catalog before it is known how far its rows reach: equal steps, or the pixels of a spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Elements", "Pixels", "Steps", "continued", "native_elements", "steps_of"]

_UNEVEN = 1e-3
"""Largest departure from equal steps, in steps, of pixels that count as equal."""


class Elements(Protocol):
    """Numbered elements without end: which of them lie in a range, and where they are."""

    def covering(self, low: float, high: float) -> tuple[int, int]:
        """Return the first element, and the one after the last, of those that overlap a range in Angstrom."""

    def centres(self, first: int, stop: int) -> NDArray[np.float64]:
        """Return the centres (stop - first,) in Angstrom."""


@dataclass(frozen=True)
class Steps:
    """Elements at equal steps, in Angstrom or in log10 of it.

    Attributes
    ----------
    start : float
        Centre of element 0.
    step : float
    log : bool
        Whether both are log10 of Angstrom.
    """

    start: float
    step: float
    log: bool = False

    def covering(self, low: float, high: float) -> tuple[int, int]:
        """See :class:`Elements`."""
        ends = np.log10([low, high]) if self.log else np.array([low, high])
        at = (ends - self.start) / self.step + 0.5
        # Edges that agree up to rounding do not ask for one more element.
        first = int(np.floor(at[0] + _UNEVEN))
        return first, max(first + 1, int(np.ceil(at[1] - _UNEVEN)))

    def centres(self, first: int, stop: int) -> NDArray[np.float64]:
        """See :class:`Elements`."""
        at = self.start + self.step * np.arange(first, stop)
        return np.asarray(10.0**at if self.log else at, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of one spectrum, continued beyond both ends at the width of the last pixel there.

    Attributes
    ----------
    wavelength : ndarray of float64, shape (pixel,)
        Centres in Angstrom, increasing.
    """

    wavelength: NDArray[np.float64]

    def covering(self, low: float, high: float) -> tuple[int, int]:
        """See :class:`Elements`."""
        wave = self.wavelength
        edges = 0.5 * (wave[1:] + wave[:-1])
        slack = _UNEVEN * np.diff(wave)
        first = int(np.searchsorted(edges, low + slack[0], side="right"))
        stop = int(np.searchsorted(edges, high - slack[-1], side="left")) + 1
        if first == 0:
            first = int(np.floor((low - wave[0]) / (wave[1] - wave[0]) + 0.5 + _UNEVEN))
        if stop == wave.size:
            stop += int(np.ceil((high - wave[-1]) / (wave[-1] - wave[-2]) - 0.5 - _UNEVEN))
        return first, max(first + 1, stop)

    def centres(self, first: int, stop: int) -> NDArray[np.float64]:
        """See :class:`Elements`."""
        index = np.arange(first, stop)
        wave, last = self.wavelength, self.wavelength.size - 1
        inside = wave[np.clip(index, 0, last)]
        below = np.minimum(index, 0) * (wave[1] - wave[0])
        return inside + below + np.maximum(index - last, 0) * (wave[-1] - wave[-2])


@dataclass(frozen=True, eq=False)
class Continued:
    """The elements of a catalog, to the last bit, and others beyond both ends.

    Attributes
    ----------
    wavelength : ndarray of float64, shape (element,)
        Centres in Angstrom; the first is element 0.
    beyond : Elements
        The same elements up to rounding, and where they go on.
    """

    wavelength: NDArray[np.float64]
    beyond: Elements

    def covering(self, low: float, high: float) -> tuple[int, int]:
        """See :class:`Elements`."""
        return self.beyond.covering(low, high)

    def centres(self, first: int, stop: int) -> NDArray[np.float64]:
        """See :class:`Elements`."""
        found, index = self.beyond.centres(first, stop), np.arange(first, stop)
        known = (index >= 0) & (index < self.wavelength.size)
        found[known] = self.wavelength[index[known]]
        return found


def continued(wavelength: NDArray[np.float64]) -> Elements:
    """Return the elements of a catalog (element,), which go on as they do there."""
    return Continued(wavelength, native_elements(wavelength))


def steps_of(step: float, start: float | None) -> Steps:
    """Return elements of equal steps: one is centred on ``start``, or edges are multiples of the step (Angstrom)."""
    return Steps(step / 2 if start is None else start, step)


def native_elements(wavelength: NDArray[np.float64]) -> Elements:
    """Return the pixels of a spectrum (pixel,) as elements: equal steps where they are equal."""
    for log in (False, True):
        at = np.log10(wavelength) if log else wavelength
        step = (at[-1] - at[0]) / (at.size - 1)
        if np.abs(at - (at[0] + step * np.arange(at.size))).max() < _UNEVEN * step:
            return Steps(float(at[0]), float(step), log)
    return Pixels(wavelength)
