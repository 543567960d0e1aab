r"""The likelihood of a row that has errors of its own, and calibration errors that its spectrum is multiplied by.

Given a model's flux, the calibration's coefficients are integrated out (:mod:`~digs_survey.noise.row_noise` has the
noise). This is a Gaussian integral: a covariance with as many more terms as the polynomial has, whose inverse and
determinant follow from matrices of that size.

Fluxes through filters come after the elements of the spectrum, with errors of their own: they have no calibration
polynomial, whose terms are 0 there. In what follows they are elements too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.jit import loops, padded
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed

__all__ = ["RowLikelihood", "calibration_terms"]

_COMPILED = "digs_survey.noise.compiled_likelihood"
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class RowLikelihood(NoiseModel):
    """What noise of kind "row" says of observations, laid out as :mod:`~digs_survey.noise.observation` does."""

    @property
    def photometry(self) -> PhotometryConfig:
        """Filters of the bands that follow the elements of a spectrum."""
        return self.config.photometry

    @property
    def band_count(self) -> int:
        """How many of the last elements are bands."""
        return len(self.photometry.filters)

    def redshift_of(self, observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Redshifts (...) of observations (..., 2 wavelength + 1)."""
        return np.asarray(split_observed(observed)[2])

    def spectrum_of(self, observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Flux (..., wavelength) of observations (..., 2 wavelength + 1)."""
        return np.asarray(split_observed(observed)[0])

    def errors_of(self, flux: ArrayLike, ivar: ArrayLike, good: ArrayLike) -> NDArray[np.float64]:
        """Errors (1, n, wavelength) of observations (n, 2 wavelength + 1); 1 where there is no data."""
        inverse = split_observed(np.asarray(flux, dtype=float))[1]
        return np.divide(1, inverse, out=np.ones_like(inverse), where=inverse > 0)[None]

    def sigma(self, flux: Any, errors: Any = None) -> Any:
        """Return the row's own error, without that of the calibration; see the base class."""
        return errors[0]

    def residuals(
        self, observed: ArrayLike, model: ArrayLike, good: ArrayLike | None = None, errors: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Residuals (..., wavelength) in units of the noise, the calibration's part in them taken out; NaN where
        there is no data.
        """
        residual, scaled, counts = self._over_errors(observed, model)
        return np.where(counts, self._without_calibration(residual, scaled), np.nan)

    def linearised(
        self,
        change: NDArray[np.float64],
        observed: NDArray[np.float64],
        model: NDArray[np.float64],
        good: NDArray[np.bool_],
        errors: NDArray[np.float64] | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return a row's residual and changes of its flux over the errors, and the calibration; see the base class."""
        residual, scaled, _ = self._over_errors(observed, model)
        terms = scaled * self._terms(scaled)
        inner = terms @ terms.T + np.eye(len(terms))
        shared = terms if not np.isfinite(inner).all() else np.linalg.solve(np.linalg.cholesky(inner), terms)
        return residual, change * split_observed(observed)[1], shared

    def _without_calibration(self, residual: NDArray[np.float64], scaled: NDArray[np.float64]) -> NDArray[np.float64]:
        """Residuals (..., wavelength) over the errors, with the calibration's part taken out."""
        inner, along = self._calibration(residual, scaled)
        # The inverse root of I + V V', for V of the calibration's terms, by the eigenvectors of V' V.
        size, vectors = np.linalg.eigh(np.where(np.isfinite(inner), inner, 0.0))
        size = np.maximum(size, 1e-12)
        part = (np.swapaxes(vectors, -1, -2) @ along[..., None])[..., 0] * (1 / np.sqrt(1 + size) - 1) / size
        return np.asarray(residual + scaled * ((vectors @ part[..., None])[..., 0] @ self._terms(scaled)))

    def calibrated(self, observed: NDArray[Any], model: NDArray[Any]) -> NDArray[Any]:
        """Return a model's flux (..., wavelength) times the likeliest calibration polynomial for what was observed."""
        residual, scaled, _ = self._over_errors(observed, model)
        inner, along = self._calibration(residual, scaled)
        coefficients = np.linalg.solve(inner + np.eye(inner.shape[-1]), along[..., None])[..., 0]
        return np.asarray(model, dtype=float) * (1 + coefficients @ self._terms(scaled))

    def log_likelihood(
        self, observed: ArrayLike, model: ArrayLike, good: ArrayLike | None = None, errors: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Log density (...) of observations (..., 2 wavelength + 1) given a model's flux (..., wavelength).

        Natural log of the density per unit of flux in each element with data. ``good`` and ``errors`` are in the
        observation already.
        """
        if np.ndim(observed) == 1 and np.ndim(model) == 2:
            return self.goodness(np.asarray(observed), np.asarray(model))[1]
        return self._goodness(observed, model)[1]

    def goodness(
        self,
        observed: NDArray[Any],
        models: NDArray[Any],
        good: NDArray[np.bool_] | None = None,
        errors: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return chi-square and log density (draws,) of one observation; see the base class."""
        compiled = loops(_COMPILED)
        if compiled is None:
            return self._goodness(observed, models)
        flux, inverse, _ = (np.ascontiguousarray(part) for part in split_observed(np.asarray(observed, dtype=float)))
        terms, products = _padded_terms(
            models.shape[-1], self.config.calibration_order, self.config.calibration_width, self.band_count
        )
        chi2, log_det, possible = compiled.goodness(
            flux, inverse, np.ascontiguousarray(models, dtype=float), terms, products
        )
        data = inverse[inverse > 0]
        density = np.log(data).sum() - 0.5 * (chi2 + log_det + _LOG_2PI * data.size)
        return chi2, np.where(possible, density, -np.inf)

    def _goodness(self, observed: ArrayLike, model: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Chi-square and log density (...) of observations (..., 2 wavelength + 1) given flux (..., wavelength)."""
        residual, scaled, counts = self._over_errors(observed, model)
        inner, along = self._calibration(residual, scaled)
        inner = inner + np.eye(inner.shape[-1])
        square = (residual**2).sum(axis=-1) - (along * np.linalg.solve(inner, along[..., None])[..., 0]).sum(axis=-1)
        inverse = split_observed(np.asarray(observed, dtype=float))[1]
        log_width = np.log(inverse, out=np.zeros_like(inverse), where=inverse > 0).sum(axis=-1)
        density = log_width - 0.5 * (square + np.linalg.slogdet(inner)[1] + _LOG_2PI * (inverse > 0).sum(axis=-1))
        possible = np.isfinite(model) & (np.asarray(model) > 0)
        return square, np.where((possible | ~counts).all(axis=-1), density, -np.inf)

    def _over_errors(
        self, observed: ArrayLike, model: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Residuals and the model's flux over the errors (..., wavelength), 0 where there is no data, and where is."""
        flux, inverse, _ = split_observed(np.asarray(observed, dtype=float))
        predicted = np.asarray(model, dtype=float)
        counts = np.broadcast_to(inverse > 0, np.broadcast_shapes(inverse.shape, predicted.shape))
        scaled = np.where(counts, predicted * inverse, 0.0)
        return np.where(counts, flux * inverse, 0.0) - scaled, scaled, counts

    def _terms(self, like: NDArray[Any]) -> NDArray[np.float64]:
        """Calibration terms (term, wavelength), each by the standard deviation of its coefficient."""
        return self.config.calibration_width * calibration_terms(
            like.shape[-1], self.config.calibration_order, self.band_count
        )

    def _calibration(
        self, residual: NDArray[np.float64], scaled: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Products (..., term, term) of the calibration's terms V with each other, and (..., term) with residuals."""
        terms = self._terms(scaled)
        order = len(terms)
        products = (terms[:, None] * terms).reshape(order * order, terms.shape[-1])
        inner = (scaled**2 @ products.T).reshape(*scaled.shape[:-1], order, order)
        return inner, (scaled * residual) @ terms.T


@lru_cache(maxsize=8)
def calibration_terms(elements: int, order: int, bands: int = 0) -> NDArray[np.float64]:
    """Chebyshev polynomials (order, elements) of orders 1 to ``order`` over the elements of a grid.

    They are 0 in the last elements, where ``bands`` of them are fluxes through filters.
    """
    place = np.linspace(-1, 1, elements - bands)
    terms = np.cos(np.arange(1, order + 1)[:, None] * np.arccos(place))
    terms = np.pad(terms, [(0, 0), (0, bands)])
    terms.setflags(write=False)
    return terms


@lru_cache(maxsize=8)
def _padded_terms(
    elements: int, order: int, width: float, bands: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Calibration terms by the standard deviation of their coefficients, and products of two of them, as
    :mod:`~digs_survey.noise.compiled_likelihood` takes them.
    """
    terms = width * calibration_terms(elements, order, bands)
    first, second = np.tril_indices(order)
    return padded(terms), padded(terms[first] * terms[second])
