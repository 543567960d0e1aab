r"""Rows of a catalog whose errors, gaps and redshift simulations take together.

A donor with flux :math:`F_e`, error :math:`S_e` and amplitude :math:`A = \sum_e (F_e / S_e) / \sum_e (1 / S_e)`, over
its elements with data, is kept as :math:`q_e = A / S_e`, which is 0 where it has none. A simulation of flux
:math:`f_e` with this donor has the errors

.. math:: \sigma_e = \frac{a}{q_e\,j}, \quad a = \frac{\sum_e q_e f_e}{\sum_e q_e} ,

so that its mean signal-to-noise ratio is the donor's times j, drawn by ``noise.observing.donor_snr_factor``. Twice the
flux has twice the errors: mass stays a pure scale.

A simulation has a redshift before it has a donor. The redshift is that of a random donor, moved a little; the donor is
then a random one among those near in redshift. Its arrays are used as they are, on the elements at rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.store.storage import checksum

__all__ = ["LEAST_DETECTION", "Donors", "Redshifts", "donor_shape"]

LEAST_DETECTION = 5.0
"""Least amplitude of a donor in units of its own error. Errors relative to a fainter amplitude are not reliable."""
_NEAR, _MOVED = 0.01, 0.005
"""In ln(1 + z): how far a donor may be from a simulation, and how far a simulation is moved from a donor."""


@dataclass(frozen=True, eq=False)
class Redshifts:
    """Which redshifts simulations have: uniform over a range, or those of donors.

    Attributes
    ----------
    low, high : float
    donors : ndarray, shape (donor,), or None
        Sorted.
    """

    low: float
    high: float
    donors: NDArray[np.float64] | None = None

    @property
    def columns(self) -> int:
        """Random numbers that a redshift takes."""
        return 1 if self.donors is None else 2

    @property
    def key(self) -> list[float] | str:
        """What decides the redshifts, for keys and recipes."""
        return [self.low, self.high] if self.donors is None else f"donors {checksum(self.donors)}"

    def from_uniform(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Redshifts (n,) for random numbers (n, self.columns) between 0 and 1."""
        if self.donors is None:
            return self.low + (self.high - self.low) * uniform[:, 0]
        donor = self.donors[(uniform[:, 0] * self.donors.size).astype(int)]
        moved = (1 + donor) * np.exp(_MOVED * (2 * uniform[:, 1] - 1)) - 1
        return np.clip(moved, self.low, self.high)


@dataclass(frozen=True, eq=False)
class Donors:
    """Donors, sorted by redshift.

    Attributes
    ----------
    table : ndarray of float64, shape (donor, wavelength + 1)
        The q of each element, and last the redshift; in single precision, as a frozen posterior keeps them.
    """

    table: NDArray[np.float64]

    @classmethod
    def of(cls, shape: ArrayLike, redshift: ArrayLike) -> Donors:
        """Sort donors of shapes (donor, wavelength), from :func:`donor_shape`, with redshifts (donor,)."""
        z = np.asarray(redshift, dtype=float)
        table = np.concatenate([np.asarray(shape, dtype=float), z[:, None]], axis=1)
        return cls(table[np.argsort(z, kind="stable")].astype(np.float32).astype(np.float64))

    @cached_property
    def redshifts(self) -> Redshifts:
        """Of simulations that are to have these donors."""
        z = self.table[:, -1]
        return Redshifts(float(z[0]), float(z[-1]), np.ascontiguousarray(z))

    @cached_property
    def _place(self) -> NDArray[np.float64]:
        return np.asarray(np.log1p(self.table[:, -1]))

    @cached_property
    def snr(self) -> NDArray[np.float64]:
        """Mean signal-to-noise ratio (donor,) of the elements with data."""
        shape = self.table[:, :-1]
        return np.asarray(shape.sum(axis=1) / (shape > 0).sum(axis=1))

    @cached_property
    def good_share(self) -> NDArray[np.float64]:
        """Share (donor,) of the elements that have data."""
        return np.asarray((self.table[:, :-1] > 0).mean(axis=1))

    @cached_property
    def near_shares(self) -> NDArray[np.float64]:
        """Least and greatest good share (donor, 2) among the donors that a simulation near each one may get."""
        near = zip(*self.neighbours(self.table[:, -1]), strict=True)
        return np.array([[self.good_share[a:b].min(), self.good_share[a:b].max()] for a, b in near])

    def neighbours(self, redshift: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First donor, and the one after the last, near redshifts (n,): at least the nearest."""
        place, known = np.log1p(redshift), self._place
        first, last = np.searchsorted(known, place - _NEAR), np.searchsorted(known, place + _NEAR, side="right")
        after = np.minimum(np.searchsorted(known, place), known.size - 1)
        before = np.maximum(after - 1, 0)
        nearest = np.where(np.abs(known[after] - place) < np.abs(known[before] - place), after, before)
        alone = last == first
        return np.where(alone, nearest, first), np.where(alone, nearest + 1, last)

    def near(self, redshift: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.intp]:
        """Random donors (n,) near redshifts (n,), for random numbers (n,) in [0, 1)."""
        first, last = self.neighbours(redshift)
        return first + (uniform * (last - first)).astype(int)

    def shape_of(self, row: NDArray[np.intp]) -> NDArray[np.float64]:
        """The q (n, wavelength) of some donors."""
        return np.asarray(self.table[row, :-1])


def donor_shape(
    flux: NDArray[np.float64], inverse_error: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What simulations take of observed rows, and how well these are detected.

    Parameters
    ----------
    flux, inverse_error : ndarray, shape (n, wavelength)
        0 where there is no data.

    Returns
    -------
    shape : ndarray, shape (n, wavelength)
        The q of the module's docstring.
    detection : ndarray, shape (n,)
        The amplitude in units of its own error; 0 where a row has no data.
    """
    count = (inverse_error > 0).sum(axis=1)
    total, weight = (flux * inverse_error).sum(axis=1), inverse_error.sum(axis=1)
    amplitude = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    detection = np.divide(total, np.sqrt(count), out=np.zeros_like(total), where=count > 0)
    return inverse_error * amplitude[:, None], detection
