"""Kinds of features of rows with errors of their own that are held against the package's own.

All of them take observations as :mod:`digs_survey.noise.observation` lays them out, and give an amplitude and features
of the shape, so that training, coordinates and network are those of the package.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digs_survey.catalog.gaps import fill_flux
from digs_survey.config import NoiseConfig, TrainConfig
from digs_survey.estimator.feature_base import MIN_VARIANCE, RANGE, FeatureBase
from digs_survey.estimator.features import Features
from digs_survey.estimator.robust import clip_outliers
from digs_survey.noise.observation import split_clean, split_observed
from digs_survey.noise.row_likelihood import calibration_terms
from digs_survey.prior import Prior

__all__ = ["Channels", "FilledFlux", "LeastSquares", "TrialFeatures"]

_STATISTICS_ROWS = 20_000
"""Of the training split, that statistics are taken of: of the channels, more would fill the memory."""
_SHARE_OF_AMPLITUDE = 0.3
_LEAST_AMPLITUDE = 0.1
"""Width of the amplitude's prior in the least squares, and its least value, over the first guess; as the package's."""
_MOST = 1e10
_CORRELATED, _PROJECTED = 32, 32
"""Coefficients whose correlations are shown, and the numbers that show them."""


class TrialFeatures(FeatureBase):
    """Features that are scaled to unit variance, one by one.

    Attributes
    ----------
    clips : bool
        Whether outliers are brought to the range of the others before statistics are taken. A feature that has one
        value in most rows would have no other.
    least_scale : float
        Standard deviation below which a feature is not brought to unit variance.
    """

    clips = True
    least_scale = MIN_VARIANCE**0.5

    centre: Tensor
    scale: Tensor

    def __init__(self, shape_features: int, network: TrainConfig, prior: Prior) -> None:
        super().__init__(shape_features, network, prior)
        for name, shape in {
            "amplitude_mean": (),
            "amplitude_std": (),
            "centre": (shape_features,),
            "scale": (shape_features,),
            "limit": (1 + shape_features,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    @abstractmethod
    def learn(self, noisy: NDArray[np.float64], flux: NDArray[np.float64], theta: NDArray[np.floating]) -> None:
        """Set what :meth:`raw` needs, from what :meth:`fit` takes."""

    @abstractmethod
    def raw(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) in dex, and features (n, shape_features), of observations (n, 2 wavelength + 1)."""

    def fit(
        self,
        noisy: NDArray[np.floating],
        flux: NDArray[np.floating],
        theta: NDArray[np.floating],
        light: NDArray[np.floating] | None = None,
    ) -> None:
        """Set the statistics from the training split.

        Parameters
        ----------
        noisy : ndarray, shape (n, 2 wavelength + 1)
        flux : ndarray, shape (n, wavelength + 1)
            Noiseless flux, and the redshift.
        theta : ndarray, shape (n, ndim)
        light : None
        """
        observed, clean = (np.asarray(part[:_STATISTICS_ROWS], dtype=np.float64) for part in (noisy, flux))
        theta = theta[:_STATISTICS_ROWS]
        self.learn(observed, split_clean(clean)[0], theta)
        parts = torch.as_tensor(observed).split(1024)
        amplitude, raw = (torch.cat(part).double() for part in zip(*map(self.raw, parts), strict=True))
        steady, clipped = clip_outliers(amplitude.numpy()), clip_outliers(raw.numpy()) if self.clips else raw.numpy()
        self._set(
            amplitude_mean=steady.mean(),
            amplitude_std=steady.std(),
            centre=clipped.mean(axis=0),
            scale=np.maximum(clipped.std(axis=0), self.least_scale),
        )
        features = self._scaled(amplitude, raw)
        self._set(limit=np.quantile(np.abs(features.numpy()), 1 - RANGE, axis=0))
        self.coordinates.fit(amplitude, features[:, 1:].double(), theta)

    def forward(self, observed: Tensor) -> Tensor:
        """Features (n, 1 + shape_features) of observations (n, 2 wavelength + 1); amplitude first."""
        with torch.autocast(observed.device.type, enabled=False):
            return self._scaled(*self.raw(observed))

    def _scaled(self, amplitude: Tensor, raw: Tensor) -> Tensor:
        relative = (amplitude - self.amplitude_mean) / self.amplitude_std
        return torch.cat([relative, (raw - self.centre) / self.scale], dim=-1).float()


class FilledFlux(TrialFeatures):
    """Principal components of the flux with its gaps filled, as for rows that are all alike.

    Parameters
    ----------
    elements, network, prior, noise
        As :func:`~digs_survey.estimator.features.build_features` takes them.
    described : bool
        Add the row's signal-to-noise ratio, its redshift and its share of good elements.
    """

    def __init__(
        self, elements: int, network: TrainConfig, prior: Prior, noise: NoiseConfig, *, described: bool
    ) -> None:
        older = network.model_copy(update={"whitening": "pca", "flux_transform": "asinh"})
        filled = Features(elements, older, prior)
        super().__init__(filled.shape_features + 3 * described, network, prior)
        self.filled, self.described = filled, described

    def learn(self, noisy: NDArray[np.float64], flux: NDArray[np.float64], theta: NDArray[np.floating]) -> None:
        """Set the principal components."""
        self.filled.fit(_filled(torch.as_tensor(noisy)).numpy(), flux, theta)

    def raw(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) in dex, and features (n, shape_features), of observations (n, 2 wavelength + 1)."""
        features = self.filled(_filled(observed))
        amplitude = features[..., :1] * self.filled.amplitude_std + self.filled.amplitude_mean
        shape = [features[..., 1:]]
        if self.described:
            flux, inverse, redshift = split_observed(observed)
            good = inverse > 0
            ratio = torch.where(good, flux * inverse, torch.nan).nanmedian(dim=-1).values
            shape += [torch.stack([ratio.nan_to_num().clamp_min(0.1).log(), redshift, good.double().mean(-1)], dim=-1)]
        return amplitude, torch.cat(shape, dim=-1)


class Channels(TrialFeatures):
    """Each element's signal-to-noise ratio, inverse error and mask, and the redshift, for a network to make use of.

    The inverse error is that of the flux over the amplitude. Both are shown by their inverse hyperbolic sine, since
    they span decades.
    """

    clips = False
    least_scale = 0.1
    mean: Tensor

    def __init__(self, elements: int, network: TrainConfig, prior: Prior, noise: NoiseConfig) -> None:
        super().__init__(3 * elements + 1, network, prior)
        self.register_buffer("mean", torch.zeros(elements, dtype=torch.float64))

    def learn(self, noisy: NDArray[np.float64], flux: NDArray[np.float64], theta: NDArray[np.floating]) -> None:
        """Set the mean spectrum, which the amplitude is relative to."""
        self._set(mean=_mean_shape(flux))

    def raw(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) in dex, and features (n, shape_features), of observations (n, 2 wavelength + 1)."""
        flux, inverse, redshift = split_observed(observed.double())
        amplitude = _amplitude(flux, inverse, self.mean)
        channels = (flux * inverse).asinh(), (amplitude * inverse).asinh(), (inverse > 0).double()
        return amplitude.log10(), torch.cat([*channels, redshift[..., None]], dim=-1)


class LeastSquares(TrialFeatures):
    """Coefficients of principal components by weighted least squares, with more or less about their errors.

    The same fit as the package's in its plain form; the number of components is ``network.components``.

    Parameters
    ----------
    elements, network, prior, noise
        As :func:`~digs_survey.estimator.features.build_features` takes them.
    errors : {"none", "diagonal", "more"}
        Nothing; the logs of the diagonals of the matrix A and of its inverse; or also the correlations in A of the
        leading coefficients, as their principal components.
    """

    mean: Tensor
    basis: Tensor
    products: Tensor
    correlation: Tensor
    projection: Tensor

    def __init__(
        self,
        elements: int,
        network: TrainConfig,
        prior: Prior,
        noise: NoiseConfig,
        *,
        errors: Literal["none", "diagonal", "more"],
    ) -> None:
        components = min(network.components, elements)
        kept = 1 + components
        correlated = min(_CORRELATED, kept)
        pairs = correlated * (correlated - 1) // 2
        projected = min(_PROJECTED, pairs)
        # Besides the coefficients: the redshift and the misfit.
        size = components + 2 + {"none": 0, "diagonal": 2 * kept, "more": 2 * kept + projected}[errors]
        super().__init__(size, network, prior)
        self.errors, self.components = errors, components
        self.order, self.width = noise.calibration_order, noise.calibration_width
        self._correlated = torch.tril_indices(correlated, correlated, offset=-1)
        self._pairs = torch.tril_indices(kept + self.order, kept + self.order)
        for name, shape in {
            "mean": (elements,),
            "basis": (elements, kept + self.order),
            "products": (elements, self._pairs.shape[1]),
            "correlation": (pairs,),
            "projection": (pairs, projected),
        }.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def learn(self, noisy: NDArray[np.float64], flux: NDArray[np.float64], theta: NDArray[np.floating]) -> None:
        """Set the basis, and the projection of the correlations."""
        mean = _mean_shape(flux)
        components = _leading(flux / (flux @ mean / (mean @ mean))[:, None] - mean, self.components)
        terms = calibration_terms(len(mean), self.order).T * self.width * mean[:, None]
        basis = np.concatenate([_SHARE_OF_AMPLITUDE * mean[:, None], components, terms], axis=1)
        row, column = self._pairs.numpy()
        self._set(mean=mean, basis=basis, products=basis[:, row] * basis[:, column])
        if self.errors == "more":
            parts = torch.as_tensor(noisy).split(1024)
            seen = torch.cat([self._correlations(self._solve(part)[-1]) for part in parts]).numpy()
            centred = seen - seen.mean(axis=0)
            self._set(correlation=seen.mean(axis=0), projection=_leading(centred, self.projection.shape[1]))

    def raw(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude (n, 1) in dex, and features (n, shape_features), of observations (n, 2 wavelength + 1)."""
        amplitude, coefficients, misfit, covariance, normal = self._solve(observed)
        kept = 1 + self.components
        more = (1 + _SHARE_OF_AMPLITUDE * coefficients[..., :1]).clamp_min(_LEAST_AMPLITUDE)
        shape = [coefficients[..., 1:kept] / more, observed[..., -1:].double(), misfit]
        if self.errors != "none":
            shape += [torch.diagonal(m, dim1=-2, dim2=-1)[..., :kept].log() for m in (covariance, normal)]
        if self.errors == "more":
            shape.append((self._correlations(normal) - self.correlation) @ self.projection)
        return (amplitude * more).log10(), torch.cat(shape, dim=-1)

    def _solve(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """First guess of the amplitude, coefficients, log of the reduced chi-square, their covariance, and A."""
        flux, inverse, _ = split_observed(observed.double())
        amplitude = _amplitude(flux, inverse, self.mean)
        residual, weight = flux / amplitude - self.mean, ((inverse * amplitude) ** 2).clamp_max(_MOST)
        right = (weight * residual) @ self.basis
        columns = self.basis.shape[1]
        if len(weight) == 1:
            normal = ((self.basis * weight[0, :, None]).T @ self.basis)[None]
        else:
            row, column = self._pairs
            normal = weight.new_zeros(len(weight), columns, columns)
            normal[:, row, column] = normal[:, column, row] = weight @ self.products
        normal = normal + torch.eye(columns, dtype=weight.dtype)
        lower = torch.linalg.cholesky(normal)
        coefficients = torch.cholesky_solve(right[..., None], lower)[..., 0]
        square = (weight * residual**2).sum(dim=-1) - (right * coefficients).sum(dim=-1)
        misfit = (square / (weight > 0).sum(dim=-1).clamp_min(1)).clamp_min(1e-3).log()
        return amplitude, coefficients, misfit[..., None], torch.cholesky_inverse(lower), normal

    def _correlations(self, normal: Tensor) -> Tensor:
        """Correlations (n, pair) in A (n, column, column) of the leading coefficients."""
        root = torch.diagonal(normal, dim1=-2, dim2=-1).sqrt()
        row, column = self._correlated
        return normal[:, row, column] / (root[:, row] * root[:, column])


def _filled(observed: Tensor) -> Tensor:
    """Flux (n, wavelength) of observations (n, 2 wavelength + 1), interpolated where there is no data."""
    flux, inverse, _ = split_observed(observed)
    return torch.as_tensor(fill_flux(flux.cpu().numpy(), (inverse > 0).cpu().numpy(), linear=True)).to(observed)


def _mean_shape(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((flux / flux.mean(axis=1, keepdims=True)).mean(axis=0))


def _amplitude(flux: Tensor, inverse: Tensor, mean: Tensor) -> Tensor:
    """Amplitudes (n, 1) over a mean spectrum by weighted least squares; above zero whatever the noise."""
    among = ((inverse * mean) ** 2).sum(dim=-1, keepdim=True).clamp_min(1e-300)
    best = (inverse**2 * flux * mean).sum(dim=-1, keepdim=True) / among
    root = torch.sqrt(best**2 + 4 / among)
    return torch.where(best > 0, 0.5 * (best + root), 2 / among / (root - best))


def _leading(centred: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Leading principal components (k, count) of values (n, k), each times the deviation of its coefficient."""
    variance, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.argsort(variance)[::-1][:count]
    return np.asarray(vectors[:, order] * np.sqrt(np.maximum(variance[order], MIN_VARIANCE)))
