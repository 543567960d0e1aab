r"""Noise of rows that differ: each has its own errors, gaps and redshift, and the posterior is shown them.

What is observed of a galaxy of flux :math:`f_e` in the elements e of a rest-frame grid is

.. math:: x_e = f_e \Big(1 + \sum_{p=1}^{P} c_p T_p(t_e)\Big) + \sigma_e n_e ,

with independent standard normals n. The :math:`c_p`, of standard deviation ``calibration_width``, are those of a
polynomial that stands for errors of the flux calibration: Chebyshev polynomials :math:`T_p` of the place
:math:`t_e` of an element on the grid, from -1 to 1. :math:`\sigma_e^2 = 1/\mathrm{ivar}_e + (s F_e)^2` has the error
floor s, a share of the row's own flux F, smoothed. :mod:`~digs_survey.noise.row_likelihood` has the likelihood, in
which the :math:`c_p` are integrated out.

A simulation draws its own conditions: signal-to-noise ratio, ends of the spectrum, shape of the errors, sky lines, gaps
and floor, as ``noise.observing`` describes the survey; or errors and gaps of a row of a catalog
(:mod:`~digs_survey.noise.donors`). They are relative to its amplitude, so that mass stays a pure scale. Photometry, as
:mod:`~digs_survey.noise.band_noise` draws it, follows the elements of the spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.noise.band_noise import BandNoise
from digs_survey.noise.donors import Donors, Redshifts
from digs_survey.noise.emission_lines import on_emission_lines
from digs_survey.noise.numbers import log_uniform, standard_normal
from digs_survey.noise.observation import join_observed, split_clean, split_observed
from digs_survey.noise.row_likelihood import RowLikelihood, calibration_terms
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import as_like, as_numpy, namespace
from digs_survey.sps.bands import Bands

__all__ = ["RowNoise", "smooth_flux", "with_floor"]

_WINDOW = 25
"""Elements on either side over which the flux that the floor is a share of is smoothed."""
_SLOPES = 3
"""Terms of the smooth change of the errors with wavelength."""
_FIXED = 8 + _SLOPES
"""Random numbers of a simulation besides those of its gaps, of its calibration and of its elements."""
_WITH_DONOR = 4
"""The same of a simulation that has a donor: its floor, the donor, its signal-to-noise ratio and masked lines."""


@dataclass(frozen=True, eq=False)
class RowNoise(RowLikelihood):
    """Noise of kind "row"; observations are arrays as :mod:`~digs_survey.noise.observation` lays them out.

    Attributes
    ----------
    grid : WavelengthGrid or None
        The elements at rest. Without them nothing can be drawn.
    """

    grid: WavelengthGrid | None = None

    def on(self, grid: WavelengthGrid) -> RowNoise:
        """Return this noise for the elements of a grid."""
        return replace(self, grid=grid)

    @property
    def of_spectrum(self) -> RowNoise:
        """The same noise without photometry."""
        return replace(self, config=self.config.model_copy(update={"photometry": PhotometryConfig()}))

    def with_donors(self, donors: Donors) -> RowNoise:
        """Return this noise with donors, which ``config.has_donors`` asks for."""
        return replace(self, table=donors.table[None])

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
        return on_emission_lines(self.elements)

    @cached_property
    def bands(self) -> BandNoise | None:
        """Photometry of simulations; None where they have none."""
        return BandNoise.of(self.photometry, self.redshift_range) if self.band_count else None

    @property
    def photometry_bands(self) -> Bands | None:
        """Filters that simulations have fluxes through; None where they have none."""
        return None if self.bands is None else self.bands.bands

    @property
    def elements(self) -> WavelengthGrid:
        """The grid at rest, which drawing needs."""
        if self.grid is None:
            raise ValueError("noise of kind 'row' needs the elements of a grid; use RowNoise.on")
        return self.grid

    def normals(self, elements: int) -> int:
        """Independent normals that the noise of so many elements takes, with those of the calibration."""
        return elements + self.config.calibration_order

    @property
    def conditions(self) -> int:
        """Random numbers of a simulation's conditions, without those that every element and every band has."""
        return self._of_spectrum + (0 if self.bands is None else self.bands.conditions - self.band_count)

    @property
    def _of_spectrum(self) -> int:
        """Those of them that are the spectrum's."""
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
            Noiseless flux and the redshift; bands count as elements here and below.
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
        all_elements = flux.shape[-1]
        elements = all_elements - self.band_count
        white, coefficients = normal[:, :all_elements], normal[:, all_elements:]
        flux, maggies = flux[:, :elements], flux[:, elements:]
        own = uniform[:, : self._of_spectrum + elements]
        sigma, good, floor = self._conditions(flux, redshift, own)
        if self.bands is not None:
            of_bands = uniform[:, own.shape[1] :]
            good = good & self.bands.with_spectrum(of_bands)[:, None]
        noisy = self._calibrated(flux, coefficients) + xp.sqrt(sigma**2 + (floor * flux) ** 2) * white[:, :elements]
        nothing = xp.zeros_like(flux)
        inverse = with_floor(xp.where(good, noisy, nothing), xp.where(good, 1 / sigma, nothing), floor)
        noisy = xp.where(good, noisy, nothing)
        if self.bands is not None:
            seen, weights = self.bands.observe(maggies, redshift, of_bands, white[:, elements:])
            noisy, inverse = xp.concatenate([noisy, seen], -1), xp.concatenate([inverse, weights], -1)
        return join_observed(noisy, inverse, redshift)

    def _calibrated(self, flux: Any, coefficients: Any, bands: int = 0) -> Any:
        """Flux (n, wavelength) times the polynomials of standard normal coefficients (n, order).

        Term by term: of a product of matrices, a row's last digits depend on how many rows there are.
        """
        terms = as_like(np.array(calibration_terms(flux.shape[-1], self.config.calibration_order, bands)), flux)
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
        floor, factor = log_uniform(config.floor, uniform[:, 0]), log_uniform(config.donor_snr_factor, uniform[:, 1])
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
        elements = flux.shape[-1]
        column = iter(range(uniform.shape[1]))
        each = uniform[:, self._of_spectrum :]

        def between(interval: tuple[float, float]) -> Any:
            low, high = interval
            return low + (high - low) * uniform[:, next(column)][:, None]

        snr, floor = (log_uniform(ends, uniform[:, next(column)]) for ends in (config.snr, config.floor))
        begin, end = between(config.blue_end_angstrom), between(config.red_end_angstrom)
        observed = as_like(np.array(self.elements.wavelength), flux) * (1 + redshift[:, None])
        # The cubic is one of the observed wavelength, from the first element that any row has to the last.
        low, high = config.blue_end_angstrom[0], config.red_end_angstrom[1]
        place = 2 * (observed - low) / (high - low) - 1
        normals = (standard_normal(uniform[:, next(column)])[:, None] for _ in range(_SLOPES))
        first, second, third = (config.error_slope * normal for normal in normals)
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
        """Remove one arm from a share of the rows (n, wavelength); a row keeps its arm if it has no other."""
        config = self.config.observing
        if not config.missing_arm:
            return good
        # Of the rows that lack one, the same number says which.
        lacking = namespace(good).floor(uniform / config.missing_arm * len(config.arms))[:, None]
        seen, missing = good & False, good & False
        for k, (low, high) in enumerate(config.arms):
            inside = (observed >= low) & (observed <= high)
            seen, missing = seen | (inside & (lacking != k)), missing | (inside & (lacking == k))
        kept = good & ~(missing & ~seen)
        return namespace(good).where(kept.any(-1)[:, None], kept, good)

    def draw(self, flux: ArrayLike, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return observations of noiseless spectra with redshifts (n, wavelength + 1)."""
        clean = np.asarray(flux, dtype=float)
        return self.from_uniform(clean, rng.random((len(clean), self.columns(clean.shape[1]))))

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
        calibrated = self._calibrated(clean, normal[:, elements:], self.band_count)
        noisy = np.where(inverse > 0, calibrated + sigma * normal[:, :elements], 0.0)
        return join_observed(noisy, inverse, redshift)


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
