r"""Noise of rows that differ: each has its own errors, gaps and redshift, and the posterior is shown them.

What is observed of a galaxy of flux :math:`f_e` in the elements e of a rest-frame grid is

.. math:: x_e = f_e \Big(1 + \sum_{p=1}^{P} c_p T_p(t_e)\Big) + \sigma_e n_e ,

with independent standard normals n. The :math:`c_p`, of standard deviation ``calibration_width``, are those of a
polynomial that stands for errors of the flux calibration: Chebyshev polynomials :math:`T_p` of the place
:math:`t_e` of an element on the grid, from -1 to 1. :math:`\sigma_e^2 = 1/\mathrm{ivar}_e + (s F_e)^2` has the error
floor s, a share of the row's own flux F, smoothed. The likelihood is that of the row's :math:`\sigma_e` in which the
:math:`c_p` are integrated out, which for a given model is a Gaussian integral (a covariance with P more terms, whose
inverse and determinant follow from P x P matrices).

A simulation draws its own conditions: signal-to-noise ratio, ends of the spectrum, shape of the errors, sky lines, gaps
and floor, as ``noise.observing`` describes the survey; or errors and gaps of a row of a catalog
(:mod:`~digs_survey.noise.donors`). They are relative to its amplitude, so that mass stays a pure scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from digs_survey.jit import loops, padded
from digs_survey.noise.donors import Donors, Redshifts
from digs_survey.noise.emission_lines import on_emission_lines
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import join_observed, split_clean, split_observed
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import as_like, as_numpy, namespace

__all__ = ["RowNoise", "calibration_terms", "smooth_flux", "with_floor"]

_COMPILED = "digs_survey.noise.compiled_likelihood"
_LOG_2PI = math.log(2 * math.pi)
_WINDOW = 25
"""Elements on either side over which the flux that the floor is a share of is smoothed."""
_SLOPES = 3
"""Terms of the smooth change of the errors with wavelength."""
_FIXED = 8 + _SLOPES
"""Random numbers of a simulation besides those of its gaps, of its calibration and of its elements."""
_WITH_DONOR = 4
"""The same of a simulation that has a donor: its floor, the donor, its signal-to-noise ratio and masked lines."""


@dataclass(frozen=True, eq=False)
class RowNoise(NoiseModel):
    """Noise of kind "row"; observations are arrays as :mod:`~digs_survey.noise.observation` lays them out.

    Attributes
    ----------
    grid : WavelengthGrid or None
        The elements at rest. Without them nothing can be drawn.
    """

    grid: WavelengthGrid | None = None

    def on(self, grid: WavelengthGrid) -> RowNoise:
        """Return this noise for the elements of a grid."""
        return RowNoise(self.config, self.table, self.keeps_negative, grid)

    def with_donors(self, donors: Donors) -> RowNoise:
        """Return this noise with donors, which ``config.has_donors`` asks for."""
        return RowNoise(self.config, donors.table[None], self.keeps_negative, self.grid)

    @cached_property
    def donors(self) -> Donors | None:
        """Rows of a catalog that simulations take their conditions of; None where these are drawn."""
        if not self.config.has_donors:
            return None
        if self.table is None:
            raise ValueError("noise.observing.donors = 'catalog' has no donors; survey_noise takes them of a catalog")
        return Donors(self.table[0])

    @property
    def redshift_range(self) -> tuple[float, float]:
        """Least and greatest redshift of simulations, as configured."""
        return self.config.observing.redshift

    @property
    def redshifts(self) -> Redshifts:
        """Which redshifts simulations have."""
        return Redshifts(*self.redshift_range) if self.donors is None else self.donors.redshifts

    @cached_property
    def lines(self) -> NDArray[np.bool_]:
        """Which elements (wavelength,) emission lines lie on."""
        if self.grid is None:
            raise ValueError("noise of kind 'row' needs the elements of a grid; use RowNoise.on")
        return on_emission_lines(self.grid)

    # -- drawing ---------------------------------------------------------------------------------------

    def normals(self, elements: int) -> int:
        """Independent normals that the noise of so many elements takes, with those of the calibration."""
        return elements + self.config.calibration_order

    @property
    def conditions(self) -> int:
        """Random numbers of a simulation's conditions, without those that every element has."""
        observing = self.config.observing
        return _WITH_DONOR if self.config.has_donors else _FIXED + 2 * observing.gaps + bool(observing.arms)

    def columns(self, elements: int) -> int:
        """Random numbers that :meth:`observe` takes for a spectrum; ``elements`` counts its redshift too."""
        return self.conditions + 2 * (elements - 1) + self.config.calibration_order

    def observe(
        self, flux: ArrayLike, uniform: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64] | None]:
        """Observe noiseless spectra with redshifts (n, wavelength + 1); see the base class.

        Returns
        -------
        observed : ndarray, shape (n, 2 wavelength + 1)
        good : ndarray of bool, shape (n, wavelength)
        errors : ndarray, shape (1, n, wavelength)
        """
        clean = np.asarray(flux, dtype=float)
        split = self.conditions + clean.shape[1] - 1
        observed = self.observe_with(clean, uniform[:, :split], ndtri(uniform[:, split:]))
        good = split_observed(observed)[1] > 0
        return observed, good, self.errors_of(observed, good, good)

    def observe_with(self, clean: Any, uniform: Any, normal: Any) -> Any:
        """Observe spectra with given random numbers, for numpy arrays and torch tensors alike.

        Parameters
        ----------
        clean : (n, wavelength + 1)
            Noiseless flux and the redshift.
        uniform : (n, self.conditions + wavelength)
            Between 0 and 1.
        normal : (n, self.normals(wavelength))

        Returns
        -------
        (n, 2 wavelength + 1)
            Observations, of the type of ``clean``.
        """
        xp = namespace(clean)
        flux, redshift = split_clean(clean)
        elements = flux.shape[-1]
        sigma, good, floor = self._conditions(flux, redshift, uniform)
        white, coefficients = normal[:, :elements], normal[:, elements:]
        noisy = self._calibrated(flux, coefficients) + xp.sqrt(sigma**2 + (floor * flux) ** 2) * white
        nothing = xp.zeros_like(flux)
        inverse = with_floor(xp.where(good, noisy, nothing), xp.where(good, 1 / sigma, nothing), floor)
        return join_observed(xp.where(good, noisy, nothing), inverse, redshift)

    def _calibrated(self, flux: Any, coefficients: Any) -> Any:
        """Flux (n, wavelength) times the polynomials of standard normal coefficients (n, order).

        Term by term: of a product of matrices, a row's last digits depend on how many rows there are.
        """
        terms = as_like(np.array(calibration_terms(flux.shape[-1], self.config.calibration_order)), flux)
        scale = namespace(flux).ones_like(flux)
        for p, term in enumerate(terms):
            scale = scale + self.config.calibration_width * coefficients[:, p, None] * term
        return scale * flux

    def _conditions(self, flux: Any, redshift: Any, uniform: Any) -> tuple[Any, Any, Any]:
        """Errors (n, wavelength) without the floor, which elements have data, and the floor (n, 1)."""
        if self.donors is None:
            return self._drawn(flux, redshift, uniform)
        return self._donated(self.donors, flux, redshift, uniform)

    def _donated(self, donors: Donors, flux: Any, redshift: Any, uniform: Any) -> tuple[Any, Any, Any]:
        """Conditions of donors near in redshift; see :meth:`_conditions`."""
        xp, config = namespace(flux), self.config.observing
        floor, factor = (
            xp.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform[:, column, None])
            for column, (low, high) in enumerate((config.floor, config.donor_snr_factor))
        )
        row = donors.near(as_numpy(redshift), as_numpy(uniform[:, 2]))
        shape = as_like(donors.shape_of(row), flux)
        amplitude = ((shape * flux).sum(-1) / shape.sum(-1))[:, None]
        good = (shape > 0) & ~self._masked(uniform[:, 3], flux)
        return amplitude / (xp.where(good, shape, xp.ones_like(shape)) * factor), good, floor

    def _masked(self, uniform: Any, flux: Any) -> Any:
        """Which elements (n, wavelength) have no data since lines are masked, for random numbers (n,)."""
        masked = uniform < self.config.observing.masked_lines
        return masked[:, None] & (as_like(self.lines.astype(float), flux) > 0)

    def _drawn(self, flux: Any, redshift: Any, uniform: Any) -> tuple[Any, Any, Any]:
        """Conditions as ``noise.observing`` describes them; see :meth:`_conditions`."""
        xp, config = namespace(flux), self.config.observing
        if self.grid is None:
            raise ValueError("noise of kind 'row' needs the elements of a grid; use RowNoise.on")
        elements = flux.shape[-1]
        column = iter(range(uniform.shape[1]))
        each = uniform[:, self.conditions :]

        def between(interval: tuple[float, float], *, log: bool = False) -> Any:
            low, high = (math.log(end) for end in interval) if log else interval
            value = low + (high - low) * uniform[:, next(column)][:, None]
            return xp.exp(value) if log else value

        snr, floor = between(config.snr, log=True), between(config.floor, log=True)
        begin, end = between(config.blue_end_angstrom), between(config.red_end_angstrom)
        observed = as_like(np.array(self.grid.wavelength), flux) * (1 + redshift[:, None])
        # The cubic is one of the observed wavelength, from the first element that any row has to the last.
        low, high = config.blue_end_angstrom[0], config.red_end_angstrom[1]
        place = 2 * (observed - low) / (high - low) - 1
        first, second, third = (config.error_slope * _normal(uniform[:, next(column)])[:, None] for _ in range(_SLOPES))
        # Chebyshev polynomials of orders 1 to 3.
        change = ((4 * third * place + 2 * second) * place + (first - 3 * third)) * place - second
        sky = (config.sky_errors - 1) * uniform[:, next(column)][:, None]
        lines = (each * each) ** 2 * (observed > config.sky_angstrom)
        errors = xp.exp(change) * (1 + sky * lines)
        good = (observed >= begin) & (observed <= end)
        good = good & (each > config.bad_elements * uniform[:, next(column)][:, None])
        good = good & ~self._masked(uniform[:, next(column)], flux)
        count = xp.floor(uniform[:, next(column)] * (config.gaps + 1))
        element = xp.arange(elements, device=flux.device)
        for k in range(config.gaps):
            width = config.gap_share * elements * uniform[:, next(column)]
            start = uniform[:, next(column)] * (elements + width) - width
            inside = (element >= start[:, None]) & (element < (start + width)[:, None])
            good = good & ~(inside & (k < count)[:, None])
        if config.arms:
            good = self._without_an_arm(good, observed, uniform[:, next(column)])
        weight = xp.asarray(good, dtype=flux.dtype)
        number = xp.clip(weight.sum(-1), 1, None)[:, None]
        # In units of the brightest element, so that twice the flux has twice the errors to the last digit.
        unit = xp.amax(flux, -1)[:, None]
        level = unit * xp.exp((weight * xp.log(flux / unit / errors)).sum(-1)[:, None] / number)
        return errors * level / snr, good, floor

    def _without_an_arm(self, good: Any, observed: Any, uniform: Any) -> Any:
        """Take an arm out of some rows (n, wavelength) of observed wavelengths; none out of a row that has no other."""
        config = self.config.observing
        if not config.missing_arm:
            return good
        # Of the rows that lack one, the same number says which.
        lacking = namespace(good).floor(uniform / config.missing_arm * len(config.arms))[:, None]
        seen, lost = good & False, good & False
        for k, (low, high) in enumerate(config.arms):
            inside = (observed >= low) & (observed <= high)
            seen, lost = seen | (inside & (lacking != k)), lost | (inside & (lacking == k))
        left = good & ~(lost & ~seen)
        return namespace(good).where(left.any(-1)[:, None], left, good)

    def draw(self, flux: ArrayLike, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return observations of noiseless spectra with redshifts (n, wavelength + 1)."""
        clean = np.asarray(flux, dtype=float)
        return self.from_uniform(clean, rng.random((len(clean), self.columns(clean.shape[1]))))

    def redshift_of(self, observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Redshifts (...) of observations (..., 2 wavelength + 1)."""
        return np.asarray(split_observed(observed)[2])

    def spectrum_of(self, observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Flux (..., wavelength) of observations (..., 2 wavelength + 1)."""
        return np.asarray(split_observed(observed)[0])

    def redraw(
        self,
        clean: NDArray[np.float64],
        observed: NDArray[np.float64],
        normal: NDArray[np.float64],
        errors: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """Observe noiseless flux (n, wavelength) with the errors, gaps and redshift of rows (n, 2 wavelength + 1)."""
        _, inverse, redshift = split_observed(observed)
        elements = clean.shape[-1]
        sigma = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse > 0)
        calibrated = self._calibrated(clean, normal[:, elements:])
        noisy = np.where(inverse > 0, calibrated + sigma * normal[:, :elements], 0.0)
        return join_observed(noisy, inverse, redshift)

    # -- evaluating ------------------------------------------------------------------------------------

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
        residual, scaled, counts = self._over_errors(observed, model)
        inner, along = self._calibration(residual, scaled)
        inner = inner + np.eye(inner.shape[-1])
        square = (residual**2).sum(axis=-1) - (along * np.linalg.solve(inner, along[..., None])[..., 0]).sum(axis=-1)
        inverse = split_observed(np.asarray(observed, dtype=float))[1]
        log_width = np.log(inverse, out=np.zeros_like(inverse), where=inverse > 0).sum(axis=-1)
        density = log_width - 0.5 * (square + np.linalg.slogdet(inner)[1] + _LOG_2PI * (inverse > 0).sum(axis=-1))
        possible = np.isfinite(model) & (np.asarray(model) > 0)
        return np.where((possible | ~counts).all(axis=-1), density, -np.inf)

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
            chi2 = np.nansum(np.square(self.residuals(observed, models)), axis=-1)
            return chi2, self.log_likelihood(observed[None], models)
        flux, inverse, _ = (np.ascontiguousarray(part) for part in split_observed(np.asarray(observed, dtype=float)))
        terms, products = _padded_terms(models.shape[-1], self.config.calibration_order)
        width = self.config.calibration_width
        chi2, log_det, possible = compiled.goodness(
            flux, inverse, np.ascontiguousarray(models, dtype=float), width * terms, width**2 * products
        )
        data = inverse[inverse > 0]
        density = np.log(data).sum() - 0.5 * (chi2 + log_det + _LOG_2PI * data.size)
        return chi2, np.where(possible, density, -np.inf)

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
        return self.config.calibration_width * calibration_terms(like.shape[-1], self.config.calibration_order)

    def _calibration(
        self, residual: NDArray[np.float64], scaled: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Products (..., term, term) of the calibration's terms V with each other, and (..., term) with residuals."""
        terms = self._terms(scaled)
        order = len(terms)
        products = (terms[:, None] * terms).reshape(order * order, terms.shape[-1])
        inner = (scaled**2 @ products.T).reshape(*scaled.shape[:-1], order, order)
        return inner, (scaled * residual) @ terms.T


def smooth_flux(flux: Any, inverse_error: Any) -> Any:
    """Flux (n, wavelength) smoothed by a weighted running mean over 51 elements, not below 0; 0 far from any data.

    Parameters
    ----------
    flux, inverse_error : ndarray or torch.Tensor, shape (n, wavelength)
        The weights are the squares of the inverse errors.
    """
    xp, elements = namespace(flux), flux.shape[-1]
    weight = inverse_error**2
    place = np.arange(elements)
    stop, start = np.minimum(place + _WINDOW + 1, elements), np.maximum(place - _WINDOW, 0)
    sums = []
    for values in (weight * flux, weight):
        total = xp.concatenate([xp.zeros_like(values[:, :1]), xp.cumsum(values, -1)], -1)
        sums.append(total[:, stop] - total[:, start])
    known = sums[1] > 1e-9 * xp.amax(weight, -1)[:, None]
    mean = sums[0] / xp.where(known, sums[1], xp.ones_like(weight))
    return xp.where(known, xp.clip(mean, 0, None), xp.zeros_like(mean))


def with_floor(flux: Any, inverse_error: Any, floor: Any) -> Any:
    """Inverse errors (n, wavelength) with a share of the smoothed flux added in quadrature to the errors.

    Parameters
    ----------
    flux, inverse_error : ndarray or torch.Tensor, shape (n, wavelength)
    floor : float or array, shape (n, 1)
    """
    share = floor * smooth_flux(flux, inverse_error) * inverse_error
    return inverse_error / namespace(flux).sqrt(1 + share**2)


@lru_cache(maxsize=8)
def calibration_terms(elements: int, order: int) -> NDArray[np.float64]:
    """Chebyshev polynomials (order, elements) of orders 1 to ``order`` over the elements of a grid."""
    place = np.linspace(-1, 1, elements)
    terms = np.cos(np.arange(1, order + 1)[:, None] * np.arccos(place))
    terms.setflags(write=False)
    return terms


@lru_cache(maxsize=8)
def _padded_terms(elements: int, order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Calibration terms, and products of two of them, as :mod:`~digs_survey.noise.compiled_likelihood` takes them."""
    terms = calibration_terms(elements, order)
    first, second = np.tril_indices(order)
    return padded(terms), padded(terms[first] * terms[second])


def _normal(uniform: Any) -> Any:
    if isinstance(uniform, np.ndarray):
        return ndtri(uniform)
    import torch

    return torch.special.ndtri(uniform)
