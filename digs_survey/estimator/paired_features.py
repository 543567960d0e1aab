r"""Features of rows that have a spectrum, fluxes through filters, or both, fitted together.

The components are those of :mod:`~digs_survey.estimator.fitted_features`, of the spectrum and of the light that the
filters see of the same galaxy, :math:`\mu + B c` over one amplitude a. With the filters' operator of the row's
redshift, the light's part is :math:`\mu_b(z) + B_b(z) c` in each band: more elements of the same least squares.

The spectrum has the factor ``spec_norm``, q, which the light does not have. Where a row has both, a is the first guess
of the bands and q that of the spectrum over it, within the prior, and the fit has a term of order 0 beside those of the
calibration. Where it has one of them, nothing is known of q: it is the prior's mean in the logarithm. So a is the
amplitude of the whole galaxy's light, which its mass goes with.

Colours differ more from galaxy to galaxy than spectra do. For the first guess of a, a band's variance is that of its
noise and that of the components, else the bands of least flux would decide.

Added features: log q and the log of its variance, which share of the elements has data, and which bands have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digs_survey.config import NoiseConfig, TrainConfig
from digs_survey.estimator.feature_base import MIN_VARIANCE
from digs_survey.estimator.fitted_features import AMPLITUDE_WIDTH, MOST, BandRows, FittedFeatures, first_guess
from digs_survey.noise.band_noise import BandNoise
from digs_survey.noise.observation import split_clean, split_observed
from digs_survey.parameters import SPEC_NORM
from digs_survey.prior import Prior
from digs_survey.sps.bands import Bands, redshift_nodes

__all__ = ["PairedFeatures"]

_NORM_WIDTH = 0.3
"""Standard deviation of spec_norm, as a share of its first guess, in the fit."""
_LEAST_NORM = 0.1
"""Of the fit over the first guess."""
_GUESSES = 3
"""Of the amplitude of bands, each with the variance that follows from the one before."""
_REDSHIFTS = 16
"""At which the bands are compared that the components are those of."""
_ROWS = 8192
"""Rows of light in double precision at once."""


class PairedFeatures(FittedFeatures):
    """Amplitude and fitted coefficients of spectra and photometry.

    Parameters
    ----------
    elements : int
        Wavelength elements of the grid, without the bands.
    network : TrainConfig
    prior : Prior
        Where ``spec_norm`` is free, it is a nuisance of the fit.
    noise : NoiseConfig
        With filters.
    """

    band_unit: Tensor
    table: Tensor

    def __init__(self, elements: int, network: TrainConfig, prior: Prior, noise: NoiseConfig) -> None:
        self._photometry, self._redshift = noise.photometry, noise.observing.redshift
        bands, free = len(self._photometry.filters), SPEC_NORM in prior.names
        super().__init__(elements, network, prior, noise, others=2 * free + 1 + bands)
        self.elements, self.norm = elements, _LogNorm.of(prior) if free else None
        nodes = redshift_nodes(self._redshift)
        self._first, self._step = np.log1p(nodes[0]), np.log1p(nodes[-1]) - np.log1p(nodes[0])
        self._step /= len(nodes) - 1
        # Mean first, then the columns of the basis.
        shape = len(nodes), bands, 2 + self.components
        self.register_buffer("table", torch.zeros(shape))
        self.register_buffer("band_unit", torch.zeros(bands, dtype=torch.float64))
        if free:
            self.order += 1
            self.terms = torch.cat([torch.full((elements, 1), _NORM_WIDTH, dtype=torch.float64), self.terms], dim=1)

    def fit(
        self,
        noisy: NDArray[np.floating],
        flux: NDArray[np.floating],
        theta: NDArray[np.floating],
        light: NDArray[np.floating] | None = None,
    ) -> None:
        """Set the basis and the statistics from the training split.

        Parameters
        ----------
        noisy : ndarray, shape (n, 2 (wavelength + band) + 1)
            Observations.
        flux : ndarray, shape (n, wavelength + band + 1)
            Noiseless flux, maggies, and the redshift.
        theta : ndarray, shape (n, ndim)
        light : ndarray, shape (n, coarse element)
            What the filters see, as simulations have it: on the grid of :class:`~digs_survey.sps.bands.Bands`.
        """
        if light is None:
            raise ValueError("light: expected that of the simulations, which features of photometry need, found none")
        spectrum = np.asarray(split_clean(np.asarray(flux))[0][:, : self.elements], dtype=np.float64)
        if self.norm is not None:
            spectrum = spectrum / theta[:, self.norm.column, None]
        unit = float(2.0 ** np.round(np.log2(np.median(spectrum))))
        bands = BandNoise.of(self._photometry, self._redshift).bands
        mean, basis, of_light = _joint_components(spectrum, light, bands, self.components)
        table = bands.table(of_light) * unit
        band_unit = 2.0 ** np.round(np.log2(np.median(np.abs(table[..., 0]), axis=0)))
        self._set(unit=unit, mean=mean, basis=basis, table=table / band_unit[:, None], band_unit=band_unit)
        self._fit_statistics(noisy, theta)

    def _scales_of_others(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shares = np.full(1 + len(self.band_unit), 0.5)
        if self.norm is None:
            return shares, shares
        width = self.norm.width
        return np.r_[self.norm.mean, 2 * np.log(width), shares], np.r_[width, 2.0, shares]

    def _raw(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) in dex, and features (n, shape_features) before they are scaled; double precision."""
        values, inverse, redshift = split_observed(observed.double())
        flux, maggies = values[..., : self.elements] / self.unit, values[..., self.elements :] / self.band_unit
        weight = (inverse[..., : self.elements] * self.unit) ** 2
        band_weight = (inverse[..., self.elements :] * self.band_unit) ** 2
        of_row = self._at(redshift)
        mean, basis = of_row[..., 0], of_row[..., 1:]
        with_spectrum, with_bands = ((part > 0).any(dim=-1, keepdim=True) for part in (weight, band_weight))
        both = with_spectrum & with_bands
        of_spectrum = first_guess(flux, weight, self.mean)
        of_bands = _guess_of_bands(maggies, band_weight, mean, basis)
        if self.norm is None:
            amplitude = torch.where(with_spectrum, of_spectrum, of_bands)
            norm = torch.ones_like(amplitude)
        else:
            middle = torch.full_like(of_spectrum, np.exp(self.norm.mean))
            amplitude = torch.where(with_bands, of_bands, of_spectrum / middle)
            norm = torch.where(both, (of_spectrum / amplitude).clamp(*self.norm.bounds), middle)
        scaled = amplitude * norm
        weight = (weight * scaled**2).clamp_max(MOST)
        band_weight = (band_weight * amplitude**2).clamp_max(MOST)
        # Calibration terms have the row's own factor, but that for spec_norm only where it can be told.
        first = both[..., 0].double() if self.norm is not None else torch.ones_like(amplitude[..., 0])
        bands = BandRows(band_weight, maggies / amplitude - mean, basis, mean, first)
        fit = self._least_squares(weight, flux / scaled - self.mean, bands)
        amplitude, shape = self._of_fit(amplitude, fit, redshift, weight, band_weight)
        others = [(weight > 0).double().mean(dim=-1, keepdim=True), (band_weight > 0).double()]
        if self.norm is not None:
            found = norm[..., 0] * (1 + _NORM_WIDTH * fit.term).clamp_min(_LEAST_NORM)
            known = 2 * np.log(_NORM_WIDTH) + fit.term_variance.log()
            known = torch.where(both[..., 0], known, torch.full_like(known, 2 * np.log(self.norm.width)))
            others = [torch.stack([found.log(), known], dim=-1), *others]
        return amplitude, torch.cat([shape, *others], dim=-1)

    def _at(self, redshift: Tensor) -> Tensor:
        """Mean and basis (n, band, 1 + column) of bands at redshifts (n,), within the range of the simulations."""
        low, high = self._redshift
        shift = torch.log1p(redshift.nan_to_num().clamp(low, high))
        place = (shift - self._first) / self._step
        below = place.floor().clamp(0, len(self.table) - 2).long()
        share = (place - below)[:, None, None]
        between = (1 - share) * self.table[below] + share * self.table[below + 1]
        return between * torch.exp(-shift)[:, None, None]


@dataclass(frozen=True)
class _LogNorm:
    """The prior of ``spec_norm``: its column of theta, mean and width in the natural logarithm, and bounds."""

    column: int
    mean: float
    width: float
    bounds: tuple[float, float]

    @classmethod
    def of(cls, prior: Prior) -> _LogNorm:
        column = prior.index(SPEC_NORM)
        cube = np.repeat((np.arange(1000)[:, None] + 0.5) / 1000, prior.ndim, axis=1)
        log = np.log(prior.from_unit_cube(cube)[:, column])
        return cls(column, log.mean(), log.std(), (float(prior.low[column]), float(prior.high[column])))


def _guess_of_bands(maggies: Tensor, weight: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """Amplitudes (n, 1) of bands (n, band), whose colours scatter as the columns (n, band, column) but the first do."""
    scatter = (basis[..., 1:] ** 2).sum(dim=-1)
    amplitude = first_guess(maggies, weight, mean)
    for _ in range(_GUESSES - 1):
        amplitude = first_guess(maggies, weight / (1 + weight * amplitude**2 * scatter), mean)
    return amplitude


def _joint_components(
    spectrum: NDArray[np.float64], light: NDArray[np.floating], bands: Bands, count: int
) -> tuple[NDArray[np.float64], ...]:
    """Principal components of spectra and of what bands see of the light at any redshift, relative to their means.

    Parameters
    ----------
    spectrum : ndarray, shape (n, wavelength)
    light : ndarray, shape (n, coarse element)
    bands : Bands
    count : int

    Returns
    -------
    mean : ndarray, shape (wavelength,)
        Of spectra over their amplitude.
    basis : ndarray, shape (wavelength, 1 + count)
        For the amplitude's error, and components by the standard deviation of their coefficients.
    light : ndarray, shape (coarse element, 2 + count)
        The same of the light, the mean first.
    """
    low, high = np.log1p(bands.key[1])
    redshift = np.expm1(np.linspace(low, high, _REDSHIFTS))
    operator = bands.matrix(redshift)[bands.counted(redshift)].T
    level = spectrum.mean(axis=1, keepdims=True)
    rows = [slice(start, start + _ROWS) for start in range(0, len(light), _ROWS)]
    seen = np.concatenate([light[some].astype(np.float64) @ operator / level[some] for some in rows])
    parts = [spectrum / level, seen / seen.mean(axis=0)]
    vector = np.concatenate([part / np.sqrt(part.shape[1]) for part in parts], axis=1)
    middle = vector.mean(axis=0)
    size = (vector @ middle / (middle @ middle))[:, None]
    shape = vector / size - middle
    variance, vectors = np.linalg.eigh(shape.T @ shape / len(shape))
    order = np.argsort(variance)[::-1][:count]
    # The sign of an eigenvector is arbitrary; fixing it keeps the weights the same everywhere.
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(axis=0), order])
    coefficients = shape @ vectors / np.sqrt(np.maximum(variance[order], MIN_VARIANCE))
    amplitude = level * size
    made = []
    for values in (spectrum, light):
        mean = sum((values[some].astype(np.float64) / level[some]).sum(axis=0) for some in rows) / len(values)
        along = sum(
            coefficients[some].T @ (values[some].astype(np.float64) / amplitude[some] - mean) for some in rows
        ) / len(values)
        made.append(np.concatenate([mean[:, None], AMPLITUDE_WIDTH * mean[:, None], along.T], axis=1))
    return made[0][:, 0], made[0][:, 1:], made[1]
