"""What all kinds of features share: their size, their ranges, and the way from the amplitude to the mass."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from digs_survey.config import TrainConfig
from digs_survey.estimator.coordinates import Coordinates
from digs_survey.prior import Prior

__all__ = ["MIN_VARIANCE", "RANGE", "FeatureBase"]

MIN_VARIANCE = 1e-12
RANGE = 1e-4
"""Share of the training spectra that each feature's range leaves out."""


class FeatureBase(nn.Module, ABC):
    """Amplitude and shape of spectra, scaled to unit variance; buffers only, nothing is trained by gradient.

    A subclass registers the buffers, and has :meth:`fit` and :meth:`forward`.

    Parameters
    ----------
    shape_features : int
        Features besides the amplitude.
    network : TrainConfig
        Whose ``amplitude`` is used.
    prior : Prior

    Attributes
    ----------
    coordinates : Coordinates
        In which the flow works, fitted to the same spectra.
    """

    amplitude_mean: Tensor
    amplitude_std: Tensor
    limit: Tensor

    def __init__(self, shape_features: int, network: TrainConfig, prior: Prior) -> None:
        super().__init__()
        self.shape_features = shape_features
        self.sees_amplitude = network.amplitude != "equivariant"
        self.ndim = prior.ndim
        self.coordinates: Coordinates = Coordinates(network.amplitude, shape_features, prior)

    @property
    def size(self) -> int:
        """Number of features that the network sees."""
        return self.sees_amplitude + self.shape_features

    @abstractmethod
    def fit(
        self,
        noisy: NDArray[np.floating],
        flux: NDArray[np.floating],
        theta: NDArray[np.floating],
        light: NDArray[np.floating] | None = None,
    ) -> None:
        """Set the statistics from the training split: spectra with noise and without, theta (n, ndim), and, where rows
        have photometry, the light that filters see (n, coarse element).
        """

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
        beyond = (self.asked(features).abs() > factor * self.limit[self._asked]).any(dim=-1)
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

    def _set(self, **statistics: NDArray[np.float64] | float) -> None:
        for name, value in statistics.items():
            getattr(self, name).copy_(torch.as_tensor(value))
