"""Rows with draws of their posteriors, in the forms that the steps of inference want them in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.prepare import PreparedRows

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["DrawnRows"]


@dataclass(frozen=True)
class DrawnRows:
    """Rows with draws of their posteriors.

    Attributes
    ----------
    posterior : FrozenPosterior
    rows : ndarray of int, shape (n,)
        Places among the prepared rows.
    flux : ndarray of float64, shape (n, column)
        What the posterior is shown.
    ivar : ndarray of float64, shape (n, wavelength)
    good : ndarray of bool, shape (n, wavelength)
    u : ndarray, shape (n, ndim, draws)
        Unconstrained coordinates, a draw's in one place for all parameters; in increasing order if ``is_sorted``.
    outside : ndarray of bool, shape (n,)
        Whether the row lies outside the simulations.
    is_sorted : bool
    """

    posterior: FrozenPosterior
    rows: NDArray[np.intp]
    flux: NDArray[np.float64]
    ivar: NDArray[np.float64]
    good: NDArray[np.bool_]
    u: NDArray[np.floating]
    outside: NDArray[np.bool_]
    is_sorted: bool

    @classmethod
    def of(
        cls, posterior: FrozenPosterior, prepared: PreparedRows, rows: NDArray[np.intp], draws: int, is_sorted: bool
    ) -> DrawnRows:
        """Draw from the posteriors of some of the prepared rows."""
        flux = prepared.flux[rows]
        u, outside = posterior.draw_and_judge(flux, draws, ordered=is_sorted)
        return cls(posterior, rows, flux, prepared.ivar[rows], prepared.good[rows], u, outside, is_sorted)

    @cached_property
    def ordered(self) -> NDArray[np.floating]:
        """Each parameter's draws (n, ndim, draws) in increasing order."""
        return self.u if self.is_sorted else np.sort(self.u, axis=-1)

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all draws of a row (n,) are finite: sorted, what is not is at either end."""
        return np.isfinite(self.ordered[..., [0, -1]]).all(axis=(1, 2))

    def with_finite_draws(self) -> DrawnRows:
        """Return the rows all of whose draws are finite."""
        some = self.finite
        if some.all():
            return self
        return DrawnRows(
            self.posterior,
            self.rows[some],
            self.flux[some],
            self.ivar[some],
            self.good[some],
            self.u[some],
            self.outside[some],
            self.is_sorted,
        )

    @cached_property
    def theta(self) -> NDArray[np.float64]:
        """The draws (n, draws, ndim) in the parameters' units."""
        return self.posterior.prior.from_unconstrained(self.u.transpose(0, 2, 1))

    @property
    def redshift(self) -> NDArray[np.float64]:
        """Of the rows (n,), where the posterior is shown it; else NaN."""
        return self.posterior.noise.redshift_of(self.flux)

    @cached_property
    def errors(self) -> NDArray[np.float64] | None:
        """Errors (terms, n, wavelength) of the rows' own, for catalog noise."""
        return self.posterior.noise.errors_of(self.flux, self.ivar, self.good)
