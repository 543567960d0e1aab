"""From a noisy spectrum to what the network sees.

The features of a spectrum are its amplitude and its shape (:mod:`~digs_survey.estimator.brightness`), the latter
whitened: as its leading principal components, or element by element. Every statistic is that of the training
split, and taken so that a few wild spectra do not move it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digs_survey.config import NoiseConfig, TrainConfig
from digs_survey.estimator.brightness import AsinhFlux, LogFlux
from digs_survey.estimator.feature_base import MIN_VARIANCE, RANGE, FeatureBase
from digs_survey.estimator.fitted_features import FittedFeatures
from digs_survey.estimator.paired_features import PairedFeatures
from digs_survey.estimator.robust import clip_outliers, ordinary_rows
from digs_survey.prior import Prior

__all__ = ["FeatureBuilder", "Features", "build_features"]

FeatureBuilder = Callable[[int, TrainConfig, Prior, NoiseConfig], FeatureBase]
"""Builds features without statistics, as :func:`build_features` does; others than its own are for trials."""


class Features(FeatureBase):
    """Amplitude and whitened shape of spectra; buffers only, nothing is trained by gradient.

    Parameters
    ----------
    elements : int
        Wavelength elements of the grid.
    network : TrainConfig
        Whose ``flux_transform``, ``whitening``, ``components`` and ``amplitude`` are used.
    prior : Prior
    """

    unit: Tensor
    shape_mean: Tensor
    projection: Tensor

    def __init__(self, elements: int, network: TrainConfig, prior: Prior) -> None:
        super().__init__(min(network.components, elements) if network.whitening == "pca" else elements, network, prior)
        self.whitening = network.whitening
        self.brightness = (
            LogFlux() if network.flux_transform == "log10" else AsinhFlux(elements, scales=not self.sees_amplitude)
        )
        for name, shape in {
            "unit": (),
            "amplitude_mean": (),
            "amplitude_std": (),
            "shape_mean": (elements,),
            "projection": (elements, self.shape_features) if network.whitening == "pca" else (elements,),
            "limit": (1 + self.shape_features,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

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
        noisy, flux : ndarray, shape (n, wavelength)
            Spectra with noise and without.
        theta : ndarray, shape (n, ndim)
        light : None
            These features have no photometry.
        """
        noisy, flux = np.asarray(noisy, dtype=np.float64), np.asarray(flux, dtype=np.float64)
        # A power of two, so that dividing by it rounds nothing.
        unit = 2.0 ** np.round(np.log2(np.median(flux)))
        self._set(unit=unit)
        self.brightness.fit(noisy / unit, flux / unit)
        amplitude, shape = self.brightness(torch.as_tensor(noisy / unit))
        ordinary = torch.as_tensor(ordinary_rows(np.concatenate([amplitude, shape], axis=1)))
        amplitude, shape, theta = amplitude[ordinary], shape[ordinary], theta[ordinary.numpy()]
        steady, clipped = clip_outliers(amplitude.numpy()), clip_outliers(shape.numpy())
        self._set(
            amplitude_mean=steady.mean(),
            amplitude_std=steady.std(),
            shape_mean=clipped.mean(axis=0),
            projection=_principal(clipped, self.shape_features) if self.whitening == "pca" else 1 / _deviation(clipped),
        )
        features = self._whiten(amplitude, shape)
        self._set(limit=np.quantile(np.abs(features.numpy()), 1 - RANGE, axis=0))
        self.coordinates.fit(amplitude, features[:, 1:], theta)

    def forward(self, flux: Tensor) -> Tensor:
        """Features (n, 1 + shape_features) of spectra (n, wavelength); amplitude first."""
        # Half precision has too few digits for what the posterior hangs on.
        with torch.autocast(flux.device.type, enabled=False):
            return self._whiten(*self.brightness(flux / self.unit))

    def _whiten(self, amplitude: Tensor, shape: Tensor) -> Tensor:
        centred = shape - self.shape_mean
        whitened = centred @ self.projection.to(shape) if self.whitening == "pca" else centred * self.projection
        return torch.cat([(amplitude - self.amplitude_mean) / self.amplitude_std, whitened], dim=-1)


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(values.var(axis=0), MIN_VARIANCE))


def _principal(shape: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """Projection (wavelength, components) onto the leading principal components, scaled to unit variance."""
    variance, vectors = np.linalg.eigh(np.cov(shape, rowvar=False))
    order = np.argsort(variance)[::-1][:components]
    # The sign of an eigenvector is arbitrary; fixing it keeps the weights the same everywhere.
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(axis=0), order])
    return vectors / np.sqrt(np.maximum(variance[order], MIN_VARIANCE))


def build_features(elements: int, network: TrainConfig, prior: Prior, noise: NoiseConfig) -> FeatureBase:
    """Return the features that a network is configured for, of spectra of so many elements, without statistics.

    Filters are not among the elements.
    """
    if network.whitening == "least_squares" and noise.photometry.filters:
        return PairedFeatures(elements, network, prior, noise)
    if network.whitening == "least_squares":
        return FittedFeatures(elements, network, prior, noise)
    return Features(elements, network, prior)
