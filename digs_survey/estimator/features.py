r"""From a noisy spectrum to what the network sees, and the coordinates in which it works.

Features of a spectrum are its amplitude :math:`a`, the mean log10 flux over the grid, and the leading
principal components of log10 flux less :math:`a`, scaled to unit variance on the training split.

Stellar mass is a pure scale of the flux, so that in :math:`u = \mathrm{logit}\,F(\theta)` almost all of the
scatter of ``logmass`` is that of :math:`a`. The network therefore works in
:math:`v = (u - c(x)) / s(x)`, where :math:`c` is the position of the mass that the amplitude and a
mass-to-light ratio linear in the components suggest, and :math:`s` the scatter about it in the logit
there; for the other parameters :math:`c = 0` and :math:`s` is the standard deviation of u under the prior.
For each x this is an affine bijection of all of :math:`R^D`: nothing leaks out of the prior, and the
Jacobian is :math:`-\sum\log s`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from digs_survey.parameters import Prior

__all__ = ["Features"]

_LOGIT_SCATTER = float(np.pi / np.sqrt(3.0))
"""Standard deviation of the logit of a uniform variate."""
_TINY = 1e-37


class Features(nn.Module):
    """Amplitude and principal components of log10 flux; buffers only, nothing is trained by gradient.

    Parameters
    ----------
    elements : int
        Wavelength elements of the grid.
    components : int
        Principal components kept.
    prior : Prior
        Whose ``logmass`` bounds centre the mass coordinate.
    """

    amplitude_mean: Tensor
    amplitude_std: Tensor
    shape_mean: Tensor
    projection: Tensor
    mass_offset: Tensor
    mass_scatter: Tensor
    mass_slope: Tensor
    limit: Tensor

    def __init__(self, elements: int, components: int, prior: Prior) -> None:
        super().__init__()
        self.components = min(components, elements)
        self.mass = prior.index("logmass")
        self.mass_low, self.mass_high = float(prior.low[self.mass]), float(prior.high[self.mass])
        self.ndim = prior.ndim
        for name, shape in {
            "amplitude_mean": (),
            "amplitude_std": (),
            "shape_mean": (elements,),
            "projection": (elements, self.components),
            "mass_offset": (),
            "mass_scatter": (),
            "mass_slope": (self.components,),
            "limit": (self.components,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    @property
    def size(self) -> int:
        """Number of features."""
        return 1 + self.components

    def fit(self, flux: NDArray[np.floating], theta: NDArray[np.floating]) -> None:
        """Set the statistics from noisy spectra (n, wavelength) of the training split and their theta."""
        logf = np.log10(np.maximum(np.asarray(flux, dtype=np.float64), _TINY))
        amplitude = logf.mean(axis=1)
        shape = logf - amplitude[:, None]
        mean = shape.mean(axis=0)
        variance, vectors = np.linalg.eigh(np.cov(shape - mean, rowvar=False))
        order = np.argsort(variance)[::-1][: self.components]
        # The sign of an eigenvector is arbitrary; fixing it keeps the weights the same everywhere.
        vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(axis=0), order])
        projection = vectors / np.sqrt(np.maximum(variance[order], 1e-12))
        components = (shape - mean) @ projection
        ratio = theta[:, self.mass] - amplitude
        slope = components.T @ (ratio - ratio.mean()) / (components**2).sum(axis=0)
        for name, value in {
            "amplitude_mean": amplitude.mean(),
            "amplitude_std": amplitude.std(),
            "shape_mean": mean,
            "projection": projection,
            "mass_offset": ratio.mean(),
            "mass_scatter": (ratio - components @ slope).std(),
            "mass_slope": slope,
            "limit": np.abs(components).max(axis=0),
        }.items():
            getattr(self, name).copy_(torch.as_tensor(value, dtype=torch.float32))

    def forward(self, flux: Tensor) -> Tensor:
        """Features (n, size) of spectra (n, wavelength); amplitude first."""
        logf = torch.log10(flux.clamp_min(_TINY))
        amplitude = logf.mean(dim=-1, keepdim=True)
        components = (logf - amplitude - self.shape_mean) @ self.projection
        return torch.cat([(amplitude - self.amplitude_mean) / self.amplitude_std, components], dim=-1)

    def centring(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Centre c and scale s, each (n, ndim), of the unconstrained coordinates of spectra with these features."""
        width = self.mass_high - self.mass_low
        inside = ((self._mass(features) - self.mass_low) / width).clamp(0.02, 0.98)
        mass = torch.arange(self.ndim, device=features.device) == self.mass
        centre = torch.where(mass, torch.logit(inside)[..., None], 0.0)
        local = self.mass_scatter / (width * inside * (1 - inside))
        return centre, torch.where(mass, local[..., None], _LOGIT_SCATTER)

    def outside(self, features: Tensor, factor: float = 1.2) -> Tensor:
        """Tell which spectra (n,) have a component beyond ``factor`` times the training split's range,
        or an amplitude that no mass of the prior gives.
        """
        beyond = (features[..., 1:].abs() > factor * self.limit).any(dim=-1)
        mass, margin = self._mass(features), 4 * self.mass_scatter
        return beyond | (mass < self.mass_low - margin) | (mass > self.mass_high + margin)

    def _mass(self, features: Tensor) -> Tensor:
        ratio = features[..., 1:] @ self.mass_slope + self.mass_offset
        return features[..., 0] * self.amplitude_std + self.amplitude_mean + ratio
