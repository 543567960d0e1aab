r"""Features of spectra that differ in their errors, gaps and redshift: coefficients fitted by weighted least squares.

A noiseless spectrum, over its amplitude a, is the mean spectrum of the simulations plus K principal components,
:math:`\mu + B c`, each scaled so that its coefficient has unit variance under the prior. Calibration errors add the
columns :math:`\mu T_p` with the variance of their coefficients. For a row of flux x and inverse variances W, which are
0 where there is no data, the first guess of the amplitude is that of :math:`\mu` by weighted least squares. It is
fitted once more with the coefficients, as the factor of another column :math:`\mu`. With x/a and a²W

.. math:: A = B^T W B + I, \quad b = B^T W (x - \mu), \quad c = A^{-1} b .

c is the mean of the coefficients' Gaussian posterior, and :math:`A^{-1}` its covariance: of a spectrum that lies in
the span of B, they hold everything that it says. Dropping the columns of the calibration marginalises them. These
multiply the spectrum, so that the fit is made twice: the second time with :math:`(\mu + B c) T_p` of the row's own
spectrum. Features are the first K of c, the logs of the diagonals of the covariance and of A without the calibration
(which together tell how correlated the errors of a coefficient are with others), the redshift and the reduced
chi-square. Nothing here is learned by gradient, gaps need no filling, and what is left out of the span costs width but
not calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digs_survey.config import NoiseConfig, TrainConfig
from digs_survey.estimator.feature_base import MIN_VARIANCE, RANGE, FeatureBase
from digs_survey.estimator.robust import clip_outliers, ordinary_rows
from digs_survey.estimator.row_fit import Fit, fit_row
from digs_survey.noise.observation import split_clean, split_observed
from digs_survey.noise.row_likelihood import calibration_terms
from digs_survey.prior import Prior

__all__ = ["AMPLITUDE_WIDTH", "MOST", "BandRows", "FittedFeatures", "first_guess"]

MOST = 1e10
"""Largest weight of an element, its signal-to-noise ratio squared: far beyond it the matrix A has no numerical root."""
AMPLITUDE_WIDTH = 0.3
"""Standard deviation of the amplitude, as a share of the first guess, in the fit of the coefficients."""
_LEAST_AMPLITUDE = 0.1
"""Of the fit over the first guess."""
_FITS = 2
"""With the calibration: of the mean spectrum first, then of the row's own."""
_OTHERS = 4
"""Features of the shape besides those of the coefficients: redshift, chi-square, and two of the amplitude's error."""
_DOUBLE = torch.float64


class BandRows(NamedTuple):
    """What the fit of a spectrum takes of the fluxes through filters that belong to it.

    Attributes
    ----------
    weight, residual : Tensor, shape (n, band)
        As those of the spectrum.
    basis : Tensor, shape (n, band, column)
        Of a row's own redshift.
    mean : Tensor, shape (n, band)
    first : Tensor, shape (n,)
        Factor on the first of the calibration's terms.
    """

    weight: Tensor
    residual: Tensor
    basis: Tensor
    mean: Tensor
    first: Tensor


class FittedFeatures(FeatureBase):
    """Amplitude and fitted coefficients of observations, which :mod:`~digs_survey.noise.observation` lays out.

    Parameters
    ----------
    elements : int
        Wavelength elements of the grid.
    network : TrainConfig
        Whose ``components`` and ``amplitude`` are used.
    prior : Prior
    noise : NoiseConfig
        Whose calibration polynomial is marginalised.
    others : int
        Features that a subclass adds at the end; they are not scaled by the training split's.
    """

    unit: Tensor
    mean: Tensor
    basis: Tensor
    terms: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, elements: int, network: TrainConfig, prior: Prior, noise: NoiseConfig, others: int = 0) -> None:
        components = min(network.components, elements)
        super().__init__(3 * components + _OTHERS + others, network, prior)
        self.components, self.others = components, others
        self.order, self.width = noise.calibration_order, noise.calibration_width
        for name, shape, kind in (
            ("unit", (), torch.float32),
            ("mean", (elements,), _DOUBLE),
            ("basis", (elements, 1 + self.components), _DOUBLE),
            ("amplitude_mean", (), torch.float32),
            ("amplitude_std", (), torch.float32),
            ("centre", (self.shape_features,), torch.float32),
            ("scale", (self.shape_features,), torch.float32),
            ("limit", (1 + self.shape_features,), torch.float32),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind))
        terms = calibration_terms(elements, self.order) * self.width
        self.register_buffer("terms", torch.as_tensor(terms.T.copy()), persistent=False)
        self._tables: _Tables | None = None

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
        noisy : ndarray, shape (n, 2 wavelength + 1)
            Observations.
        flux : ndarray, shape (n, wavelength + 1)
            Noiseless flux, and the redshift.
        theta : ndarray, shape (n, ndim)
        light : None
            What a subclass takes.
        """
        clean = np.asarray(split_clean(np.asarray(flux))[0], dtype=np.float64)
        self._set(unit=float(2.0 ** np.round(np.log2(np.median(clean)))))
        mean = (clean / clean.mean(axis=1, keepdims=True)).mean(axis=0)
        shape = clean / _amplitude(clean, mean)
        columns = [AMPLITUDE_WIDTH * mean[:, None], _components(shape - mean, self.components)]
        self._set(mean=mean, basis=np.concatenate(columns, axis=1))
        self._fit_statistics(noisy, theta)

    def _fit_statistics(self, noisy: NDArray[np.floating], theta: NDArray[np.floating]) -> None:
        """Set all that is learned of features once there is a basis."""
        observed = torch.as_tensor(np.asarray(noisy, dtype=np.float64))
        amplitude, raw = (torch.cat(part) for part in zip(*map(self._raw, observed.split(4096)), strict=True))
        learned = self.shape_features - self.others
        ordinary = torch.as_tensor(ordinary_rows(np.concatenate([amplitude, raw[:, :learned]], axis=1)))
        amplitude, raw, theta = amplitude[ordinary], raw[ordinary], theta[ordinary.numpy()]
        steady, clipped = clip_outliers(amplitude.numpy()), clip_outliers(raw[:, :learned].numpy())
        middle, width = self._scales_of_others()
        self._set(
            amplitude_mean=steady.mean(),
            amplitude_std=steady.std(),
            centre=np.concatenate([clipped.mean(axis=0), middle]),
            scale=np.concatenate([np.sqrt(np.maximum(clipped.var(axis=0), MIN_VARIANCE)), width]),
        )
        features = self._whiten(amplitude, raw)
        self._set(limit=np.quantile(np.abs(features.numpy()), 1 - RANGE, axis=0))
        self.coordinates.fit(amplitude, features[:, 1:].double(), theta)

    def _scales_of_others(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centre and scale of the features that a subclass adds."""
        return np.zeros(0), np.ones(0)

    def _set(self, **statistics: NDArray[np.float64] | float) -> None:
        super()._set(**statistics)
        self._tables = None

    def _apply(self, *args: Any, **kwargs: Any) -> FittedFeatures:
        self._tables = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._tables = None

    def forward(self, observed: Tensor) -> Tensor:
        """Features (n, 1 + shape_features) of observations (n, 2 wavelength + 1); amplitude first."""
        with torch.autocast(observed.device.type, enabled=False):
            return self._whiten(*self._raw(observed))

    def _raw(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) in dex, and features (n, shape_features) before they are scaled; double precision."""
        flux, inverse, redshift = split_observed(observed.double())
        flux, weight = flux / self.unit, (inverse * self.unit) ** 2
        amplitude = first_guess(flux, weight, self.mean)
        residual, weight = flux / amplitude - self.mean, (weight * amplitude**2).clamp_max(MOST)
        return self._of_fit(amplitude, self._least_squares(weight, residual), redshift, weight)

    def _of_fit(self, amplitude: Tensor, fit: Fit, redshift: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) in dex and features (n, 3 K + 4) of a fit that was made over a first guess (n, 1)."""
        count = (torch.cat(weights, dim=-1) > 0).sum(dim=-1, keepdim=True).clamp_min(1)
        # What was fitted is the spectrum over the first guess of its amplitude.
        more = (1 + AMPLITUDE_WIDTH * fit.coefficients[..., :1]).clamp_min(_LEAST_AMPLITUDE)
        shape = [fit.coefficients[..., 1:] / more, fit.variance.log(), fit.precision.log(), redshift[..., None]]
        misfit = (fit.square[..., None] / count).clamp_min(1e-3).log()
        return (amplitude * more).log10(), torch.cat([*shape, misfit], dim=-1)

    def _least_squares(self, weight: Tensor, residual: Tensor, bands: BandRows | None = None) -> Fit:
        """Fit spectra (n, wavelength), with fluxes through filters beside them, the calibration marginalised: by
        Schur's complement, since only its columns differ between the two fits.
        """
        if len(weight) == 1 and weight.device.type == "cpu":
            return Fit(*(torch.as_tensor(values)[None] for values in self._fit_one(weight[0], residual[0], bands)))
        if self._tables is None:
            self._tables = _Tables.of(self.basis, self.terms)
        normal = self._normal(weight, self._tables)
        right = (weight * residual) @ self.basis
        square = (weight * residual**2).sum(dim=-1)
        first = torch.ones_like(square)
        if bands is not None:
            weighted = bands.weight[..., None] * bands.basis
            normal = normal + weighted.mT @ bands.basis
            right = right + (weighted.mT @ bands.residual[..., None])[..., 0]
            square, first = square + (bands.weight * bands.residual**2).sum(dim=-1), bands.first
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(normal))
        alone = (covariance @ right[..., None])[..., 0]
        coefficients = alone
        variance, precision = (torch.diagonal(matrix, dim1=-2, dim2=-1) for matrix in (covariance, normal))
        term, term_variance = torch.zeros_like(first), torch.ones_like(first)
        if self.order:
            spectrum = self.mean.expand_as(residual)
            factor = None if bands is None else _first_factor(first, self.order)
            unit = torch.eye(self.order, dtype=weight.dtype, device=weight.device)
            for _ in range(_FITS):
                cross, inner, along = self._with_calibration(weight, residual, spectrum, self._tables)
                if factor is not None:
                    cross, along = cross * factor[:, None], along * factor
                    inner = inner * factor[:, None] * factor[..., None]
                gain = covariance @ cross
                inner = torch.linalg.inv(inner + unit - cross.mT @ gain)
                part = (inner @ (along[..., None] - cross.mT @ alone[..., None]))[..., 0]
                coefficients = alone - (gain @ part[..., None])[..., 0]
                spectrum = self.mean + coefficients @ self.basis.T
            variance = variance + ((gain @ inner) * gain).sum(dim=-1)
            square = square - (along * part).sum(dim=-1)
            term, term_variance = part[..., 0], inner[..., 0, 0]
        square = square - (right * coefficients).sum(dim=-1)
        return Fit(coefficients, variance, precision, square, term, term_variance)

    def _fit_one(self, weight: Tensor, residual: Tensor, bands: BandRows | None) -> Fit:
        """Fit one row (wavelength,) by numpy; ``bands`` has one row too."""
        basis, terms, mean = self.basis.numpy(), self.terms.numpy(), self.mean.numpy()
        whole = weight.numpy(), residual.numpy()
        if bands is not None:
            more, off, columns, middle, first = (part[0].numpy() for part in bands)
            terms = terms * np.where(np.arange(terms.shape[1]) == 0, first, 1.0)
            terms = np.pad(terms, [(0, len(more)), (0, 0)])
            basis, mean = np.concatenate([basis, columns]), np.concatenate([mean, middle])
            whole = np.concatenate([whole[0], more]), np.concatenate([whole[1], off])
        return fit_row(basis, terms, mean, *whole, _FITS)

    def _normal(self, weight: Tensor, tables: _Tables) -> Tensor:
        """Matrix A (n, column, column) without the calibration."""
        columns = self.basis.shape[1]
        packed = weight @ tables.basis
        normal = packed.index_select(-1, tables.places).unflatten(-1, (columns, columns))
        return normal + torch.eye(columns, dtype=weight.dtype, device=weight.device)

    def _with_calibration(
        self, weight: Tensor, residual: Tensor, spectrum: Tensor, tables: _Tables
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks of A that the calibration of a spectrum (n, wavelength) adds: with the columns (n, column, term) and
        with itself (n, term, term), without its prior; and its part of b (n, term).
        """
        once, twice = weight * spectrum, weight * spectrum**2
        along = (once * residual) @ self.terms
        cross = (once @ tables.cross).unflatten(-1, (self.basis.shape[1], self.order))
        return cross, (twice @ tables.terms).unflatten(-1, (self.order, self.order)), along

    def _whiten(self, amplitude: Tensor, raw: Tensor) -> Tensor:
        relative = (amplitude - self.amplitude_mean) / self.amplitude_std
        return torch.cat([relative, (raw - self.centre) / self.scale], dim=-1).float()


@dataclass(frozen=True)
class _Tables:
    """Products of columns with each other, element by element, which make blocks of A one product for many rows.

    Attributes
    ----------
    basis : Tensor, shape (wavelength, pair)
        Of the basis with itself, its lower triangle.
    places : Tensor, shape (column * column,)
        Of the elements of the whole matrix among those pairs.
    cross : Tensor, shape (wavelength, column * term)
        Of the basis with the calibration's terms.
    terms : Tensor, shape (wavelength, term * term)
    """

    basis: Tensor
    places: Tensor
    cross: Tensor
    terms: Tensor

    @classmethod
    def of(cls, basis: Tensor, terms: Tensor) -> _Tables:
        columns = basis.shape[1]
        row, column = torch.tril_indices(columns, columns, device=basis.device)
        places = torch.empty((columns, columns), dtype=torch.long, device=basis.device)
        places[row, column] = places[column, row] = torch.arange(len(row), device=basis.device)
        return cls(
            basis[:, row] * basis[:, column],
            places.flatten(),
            (basis[:, :, None] * terms[:, None]).flatten(1),
            (terms[:, :, None] * terms[:, None]).flatten(1),
        )


def first_guess(flux: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """Amplitudes (n, 1) of flux (n, wavelength) over a mean spectrum, by weighted least squares.

    They are above zero for any noise: far above it, as for all but the faintest, they are those of least squares.
    """
    among = (weight * mean**2).sum(dim=-1, keepdim=True).clamp_min(1e-300)
    best = (weight * flux * mean).sum(dim=-1, keepdim=True) / among
    root = torch.sqrt(best**2 + 4 / among)
    # Two forms of the same number: where the flux is negative, the first one is a difference of near numbers.
    return torch.where(best > 0, 0.5 * (best + root), 2 / among / (root - best))


def _first_factor(first: Tensor, order: int) -> Tensor:
    """Factors (n, order) on the calibration's terms, of which all but the first are 1."""
    return torch.cat([first[:, None], first.new_ones(len(first), order - 1)], dim=-1)


def _amplitude(flux: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Amplitudes (n, 1) of spectra (n, wavelength) over a mean spectrum, by least squares."""
    return (flux @ mean / (mean @ mean))[:, None]


def _components(shape: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Leading principal components (wavelength, count), each times the standard deviation of its coefficient."""
    variance, vectors = np.linalg.eigh(shape.T @ shape / len(shape))
    order = np.argsort(variance)[::-1][:count]
    # The sign of an eigenvector is arbitrary; fixing it keeps the weights the same everywhere.
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(axis=0), order])
    return vectors * np.sqrt(np.maximum(variance[order], MIN_VARIANCE))
