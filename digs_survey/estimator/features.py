"""From a noisy spectrum to what the network sees.

The features of a spectrum are its amplitude and its shape (:mod:`~digs_survey.estimator.brightness`), the latter
whitened: as its leading principal components, or element by element. Every statistic is that of the training
split, and taken so that a few wild spectra do not move it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from digs_survey.config import NoiseConfig, TrainConfig
from digs_survey.estimator.brightness import AsinhFlux, LogFlux
from digs_survey.estimator.coordinates import Coordinates
from digs_survey.estimator.fitted_features import FittedFeatures
from digs_survey.estimator.robust import clip_outliers, ordinary_rows
from digs_survey.parameters import Prior

__all__ = ["AnyFeatures", "Features", "build_features"]

_MIN_VARIANCE = 1e-12
_RANGE = 1e-4
"""Share of the training spectra that each feature's range leaves out."""


class Features(nn.Module):
    """Amplitude and whitened shape of spectra; buffers only, nothing is trained by gradient.

    Parameters
    ----------
    elements : int
        Wavelength elements of the grid.
    network : TrainConfig
        Whose ``flux_transform``, ``whitening``, ``components`` and ``amplitude`` are used.
    prior : Prior

    Attributes
    ----------
    coordinates : Coordinates
        In which the flow works, fitted to the same spectra.
    """

    unit: Tensor
    amplitude_mean: Tensor
    amplitude_std: Tensor
    shape_mean: Tensor
    projection: Tensor
    limit: Tensor

    def __init__(self, elements: int, network: TrainConfig, prior: Prior) -> None:
        super().__init__()
        self.whitening = network.whitening
        self.shape_features = min(network.components, elements) if network.whitening == "pca" else elements
        self.sees_amplitude = network.amplitude != "equivariant"
        self.ndim = prior.ndim
        self.brightness = (
            LogFlux() if network.flux_transform == "log10" else AsinhFlux(elements, scales=not self.sees_amplitude)
        )
        self.coordinates: Coordinates = Coordinates(network.amplitude, self.shape_features, prior)
        for name, shape in {
            "unit": (),
            "amplitude_mean": (),
            "amplitude_std": (),
            "shape_mean": (elements,),
            "projection": (elements, self.shape_features) if network.whitening == "pca" else (elements,),
            "limit": (1 + self.shape_features,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    @property
    def size(self) -> int:
        """Number of features that the network sees."""
        return self.sees_amplitude + self.shape_features

    def fit(self, noisy: NDArray[np.floating], flux: NDArray[np.floating], theta: NDArray[np.floating]) -> None:
        """Set the statistics from the training split.

        Parameters
        ----------
        noisy, flux : ndarray, shape (n, wavelength)
            Spectra with noise and without.
        theta : ndarray, shape (n, ndim)
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
        self._set(limit=np.quantile(np.abs(features.numpy()), 1 - _RANGE, axis=0))
        self.coordinates.fit(amplitude, features[:, 1:], theta)

    def _set(self, **statistics: NDArray[np.float64] | float) -> None:
        for name, value in statistics.items():
            getattr(self, name).copy_(torch.as_tensor(value))

    def forward(self, flux: Tensor) -> Tensor:
        """Features (n, 1 + shape_features) of spectra (n, wavelength); amplitude first."""
        # Half precision has too few digits for what the posterior hangs on.
        with torch.autocast(flux.device.type, enabled=False):
            return self._whiten(*self.brightness(flux / self.unit))

    def _whiten(self, amplitude: Tensor, shape: Tensor) -> Tensor:
        centred = shape - self.shape_mean
        whitened = centred @ self.projection.to(shape) if self.whitening == "pca" else centred * self.projection
        return torch.cat([(amplitude - self.amplitude_mean) / self.amplitude_std, whitened], dim=-1)

    def context(self, features: Tensor) -> Tensor:
        """What the network sees (n, size) of features (n, 1 + shape_features)."""
        return features if self.sees_amplitude else features[..., 1:]

    def centring(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Centre c and scale s, each (n, ndim), of :class:`~digs_survey.estimator.coordinates.Coordinates`."""
        return self.coordinates.centring(self._amplitude(features), features[..., 1:])

    def outside(self, features: Tensor, factor: float = 1.2) -> Tensor:
        """Tell which spectra (n,) have a feature beyond ``factor`` times the training split's range, or an
        amplitude that no mass of the prior gives. Where mass follows the amplitude that is all that is asked of it.
        """
        beyond = (features[..., self._asked].abs() > factor * self.limit[self._asked]).any(dim=-1)
        return beyond | self.coordinates.impossible(self._amplitude(features), features[..., 1:])

    def distance(self, features: Tensor) -> Tensor:
        """Root mean square (n,) of features; of those that :meth:`outside` asks for."""
        return self.asked(features).square().mean(dim=-1).sqrt()

    def asked(self, features: Tensor) -> Tensor:
        """Those of the features (n, 1 + shape_features) that :meth:`outside` asks for."""
        return features[..., self._asked]

    @property
    def _asked(self) -> slice:
        return slice(0 if self.coordinates.mass is None else 1, None)

    def _amplitude(self, features: Tensor) -> Tensor:
        return features[..., :1] * self.amplitude_std + self.amplitude_mean


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(values.var(axis=0), _MIN_VARIANCE))


def _principal(shape: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """Projection (wavelength, components) onto the leading principal components, scaled to unit variance."""
    variance, vectors = np.linalg.eigh(np.cov(shape, rowvar=False))
    order = np.argsort(variance)[::-1][:components]
    # The sign of an eigenvector is arbitrary; fixing it keeps the weights the same everywhere.
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(axis=0), order])
    return vectors / np.sqrt(np.maximum(variance[order], _MIN_VARIANCE))


AnyFeatures = Features | FittedFeatures
"""Both have the same methods."""


def build_features(elements: int, network: TrainConfig, prior: Prior, noise: NoiseConfig) -> AnyFeatures:
    """Return the features that a network is configured for, of spectra of so many elements, without statistics."""
    if network.whitening == "least_squares":
        return FittedFeatures(elements, network, prior, noise)
    return Features(elements, network, prior)
