r"""Whether a row's residuals point where an error of its redshift, or a step in its flux calibration, would take them.

Chi-square spreads over all elements, so that a fault with one shape can hide in it. A score test looks along that
shape alone. With white residuals :math:`r` from the mean of the predictive spectra, and a direction d (what the fault
adds to that mean, in units of the noise), what the parameters can imitate is taken out of d first: its projection on
the leading principal components of the predictive spectra, as many as there are parameters. With the rest
:math:`d_\perp`

.. math:: t = \frac{d_\perp \cdot r}{|d_\perp|}

is a standard normal if nothing is wrong, and does not depend on the posterior's own errors to first order (Rao 1948,
Proc. Camb. Phil. Soc. 44, 50; what is called the efficient score). The size of the fault is
:math:`d_\perp \cdot r / |d_\perp|^2`, with the error :math:`1/|d_\perp|`.

Shifts are the derivative by velocity and eight finite ones, up to 4,500 km/s; steps lie at 29 places of the grid. The
p-value of either kind is that of the largest :math:`|t|` times the number of directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.sparse import csr_array, vstack
from scipy.special import ndtr

from digs_survey.spectra import C_KMS, WavelengthGrid

if TYPE_CHECKING:
    from digs_survey.noise.model import NoiseModel

__all__ = ["ScoreTests", "Scores"]

_SPEEDS = (700.0, 1500.0, 2500.0, 4500.0)
"""Finite shifts in km/s, each in both directions."""
_STEPS = 29
"""Places of a step, evenly over the grid."""
_NEAR = 1e-3
"""Weight of an element in a shifted one, over the largest, below which it is left out."""
_KEPT = 0.05
"""Share of a direction's square that must be left when what parameters imitate is taken out."""


@dataclass(frozen=True)
class Scores:
    """What one row's tests say; NaN where no direction is left.

    Attributes
    ----------
    velocity, velocity_error : float
        Redshift of the spectrum less that of the catalog, times c / (1 + z), in km/s: good to first order, up to some
        500 km/s.
    shift_pvalue, step_pvalue : float
    """

    velocity: float
    velocity_error: float
    shift_pvalue: float
    step_pvalue: float


@dataclass(frozen=True)
class ScoreTests:
    """Score tests for rows on a grid.

    Attributes
    ----------
    grid : WavelengthGrid
    noise : NoiseModel
    parameters : int
        Directions in which the parameters may change a spectrum.
    """

    grid: WavelengthGrid
    noise: NoiseModel
    parameters: int

    def __call__(
        self,
        observed: NDArray[np.float64],
        good: NDArray[np.bool_],
        errors: NDArray[np.float64] | None,
        spectra: NDArray[np.float64],
    ) -> Scores:
        """Test one row.

        Parameters
        ----------
        observed : ndarray, shape (column,)
            What the posterior is shown.
        good : ndarray of bool, shape (wavelength,)
        errors : ndarray, shape (terms, wavelength), or None
        spectra : ndarray, shape (draws, wavelength)
            Noiseless, of draws of the row's posterior.
        """
        middle, draws, elements = spectra.mean(axis=0), len(spectra), len(self.grid)
        shifts = (self._shifts @ middle[:elements]).reshape(-1, elements)
        faults = np.concatenate([shifts, middle[:elements] * self._steps])
        # Photometry has neither fault, and tells what the parameters are.
        faults = np.pad(faults, [(0, 0), (0, middle.size - elements)])
        changes = np.concatenate([spectra - middle, faults])
        found = self.noise.linearised(changes, observed, middle, good, errors)
        residual, scaled, shared = (values.astype(np.float32) for values in found)
        if not all(np.isfinite(values).all() for values in (residual, scaled, shared)):
            return Scores(np.nan, np.nan, np.nan, np.nan)
        along, imitated = scaled[draws:], _leading(scaled[:draws], shared, self.parameters)
        few = np.concatenate([residual[None], imitated])
        # What elements share is taken out of the few vectors, in place of the many directions.
        few -= (few @ shared.T) @ shared
        products = (along @ np.concatenate([few, shared]).T).astype(np.float64)
        onto, with_imitated, with_shared = np.split(products, [1, len(few)], axis=1)
        whole = np.square(along, dtype=np.float64).sum(axis=1) - np.square(with_shared).sum(axis=1)
        left = whole - np.square(with_imitated).sum(axis=1)
        kept = left > _KEPT * whole
        score = onto[:, 0] - with_imitated @ (few[1:] @ residual)
        size = np.divide(score, left, out=np.zeros_like(left), where=kept)
        pull, count = np.abs(size) * np.sqrt(np.where(kept, left, 0.0)), len(shifts)
        velocity, error = (-float(size[0]), float(left[0] ** -0.5)) if kept[0] else (np.nan, np.nan)
        return Scores(velocity, error, _pvalue(pull[:count], kept[:count]), _pvalue(pull[count:], kept[count:]))

    @cached_property
    def _steps(self) -> NDArray[np.float64]:
        elements = len(self.grid)
        places = np.linspace(0, elements, _STEPS + 2)[1:-1].round()
        return np.array(np.arange(elements) >= places[:, None], dtype=float)

    @cached_property
    def _shifts(self) -> csr_array:
        """Matrix (shift * wavelength, wavelength) from mean flux to its derivative by velocity in km/s, and to its
        changes by finite shifts: by a cubic spline through the cumulative flux.
        """
        edges = np.asarray(self.grid.edges)
        width = np.diff(edges)[:, None]
        unit = np.eye(len(width))
        total = CubicSpline(edges, np.concatenate([np.zeros((1, len(width))), np.cumsum(unit * width, axis=0)]))
        parts = [np.diff(edges[:, None] * total(edges, 1), axis=0) / width - unit]
        for speed in [sign * speed for speed in _SPEEDS for sign in (1, -1)]:
            moved = np.clip(edges * (1 + speed / C_KMS), edges[0], edges[-1])
            wide = np.diff(moved)[:, None]
            # Where a shift leaves the grid nothing is known.
            inside = wide > 0.99 * width
            changed = np.divide(np.diff(total(moved), axis=0), wide, out=np.zeros_like(unit), where=inside)
            parts.append(np.where(inside, changed - unit, 0.0))
        parts[0] = parts[0] / C_KMS
        return vstack([csr_array(np.where(np.abs(part) > _NEAR * np.abs(part).max(), part, 0.0)) for part in parts])


def _leading(deviations: NDArray[np.float32], shared: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Vectors (at most count, wavelength) along which deviations (draws, wavelength) are largest.

    They are orthonormal in the noise's product; see :meth:`~digs_survey.noise.model.NoiseModel.linearised`.
    """
    common = deviations @ shared.T
    square, vectors = np.linalg.eigh((deviations @ deviations.T - common @ common.T).astype(np.float64))
    some = np.arange(len(square)) >= len(square) - count
    some &= square > 1e-9 * max(float(square[-1]), 1e-300)
    return np.asarray((vectors[:, some] / np.sqrt(square[some])).T.astype(np.float32) @ deviations)


def _pvalue(score: NDArray[np.float64], kept: NDArray[np.bool_]) -> float:
    """Chance of so large a score in any of the directions that are kept, at most."""
    if not kept.any():
        return np.nan
    return min(1.0, 2 * int(kept.sum()) * float(ndtr(-score[kept].max())))
