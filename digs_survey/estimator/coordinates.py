r"""The coordinates in which the flow works, and how they follow the amplitude of a spectrum.

Two steps lead from theta to the flow's v. The first is the same for all spectra: **y** is
:math:`u = \mathrm{logit}\,F(\theta)` for each parameter, F being the prior's cumulative distribution. The second
is affine for each spectrum x: :math:`v = (y - c(x)) / s(x)`. Neither leaks anything out of the prior, and the
Jacobian is that of the logit less :math:`\sum\log s`. The setting ``amplitude`` chooses among

- feature: c = 0, and s is the standard deviation of u under the prior;
- centred: so for all but ``logmass``. Stellar mass is a pure scale of the flux, so that almost all of the
  scatter of ``logmass`` is that of the amplitude. Its c is the logit of the mass that the amplitude and a
  mass-to-light ratio linear in the shape suggest, its s the scatter about it in the logit there;
- equivariant: so for all but ``logmass``, whose y is the parameter itself, unbounded. Its c is the same
  mass in dex, its s the scatter in dex. The network does not see the amplitude. As a spectrum's shape tells
  nothing of its mass where noise scales with the flux, what is learned is the posterior q under a log-uniform prior
  without ends. The posterior under the configured one is q cut at its edges, divided by the
  :math:`P(\mathrm{inside} | x)` that q has between them.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from digs_survey.errors import ConfigError
from digs_survey.estimator.robust import clip_outliers, ordinary_rows
from digs_survey.prior import Prior

__all__ = ["Coordinates"]

_LOGIT_SCATTER = math.pi / math.sqrt(3.0)
"""Standard deviation of the logit of a uniform variate."""
_MARGIN = 4.0
"""Scatters beyond the edge of the prior at which no mass of the prior gives an amplitude any more."""


class Coordinates(nn.Module):
    """From theta to v and back; buffers only.

    Parameters
    ----------
    kind : {"feature", "centred", "equivariant"}
    shape_features : int
        Features that the mass-to-light ratio is linear in.
    prior : Prior

    Attributes
    ----------
    unbounded : int or None
        Column of theta that v may carry beyond the prior's bounds.

    Raises
    ------
    ConfigError
        If the mass coordinate is to follow the amplitude, and the prior has no ``logmass``.
    """

    mass_offset: Tensor
    mass_scatter: Tensor
    mass_slope: Tensor

    def __init__(self, kind: Literal["feature", "centred", "equivariant"], shape_features: int, prior: Prior) -> None:
        super().__init__()
        self.kind, self.prior = kind, prior
        self.mass = prior.index("logmass") if "logmass" in prior.names else None
        if self.mass is None and kind != "feature":
            raise ConfigError(
                f"train.amplitude = {kind!r} needs the parameter logmass, and the prior has only "
                f"{', '.join(prior.names)}; expected train.amplitude = 'feature'"
            )
        self.unbounded = self.mass if kind == "equivariant" else None
        for name, shape in {"mass_offset": (), "mass_scatter": (), "mass_slope": (shape_features,)}.items():
            self.register_buffer(name, torch.zeros(shape))

    # -- y and theta: the same for all spectra -------------------------------------------------------------

    def from_theta(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Map theta (..., ndim) to y (..., ndim)."""
        theta = np.asarray(theta, dtype=float)
        y = self.prior.to_unconstrained(theta)
        if self.unbounded is not None:
            y[..., self.unbounded] = theta[..., self.unbounded]
        return y

    def to_theta(self, y: ArrayLike) -> NDArray[np.float64]:
        """Inverse of :meth:`from_theta`: inside the prior but for the ``unbounded`` column."""
        y = np.asarray(y, dtype=float)
        theta = self.prior.from_unconstrained(y)
        if self.unbounded is not None:
            theta[..., self.unbounded] = y[..., self.unbounded]
        return theta

    def log_abs_det_jacobian(self, y: ArrayLike) -> NDArray[np.float64]:
        """Log |d theta / d y| at y (..., ndim), summed over the parameters."""
        return self.prior.log_abs_det_jacobian(y, without=self.unbounded)

    def inside(self, theta: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which theta (..., ndim) of :meth:`to_theta` are inside the prior."""
        if self.unbounded is None:
            return np.ones(theta.shape[:-1], dtype=bool)
        mass = theta[..., self.unbounded]
        return (mass >= self.prior.low[self.unbounded]) & (mass <= self.prior.high[self.unbounded])

    def from_unconstrained(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map the prior's unconstrained coordinates u (n, ndim) to y (n, ndim) and log |dy / du| (n,)."""
        if self.unbounded is None:
            return u, u.new_zeros(u.shape[:-1])
        low, high = float(self.prior.low[self.unbounded]), float(self.prior.high[self.unbounded])
        column = torch.arange(u.shape[-1], device=u.device) == self.unbounded
        mass = u[..., self.unbounded]
        y = torch.where(column, (low + (high - low) * torch.sigmoid(mass))[..., None], u)
        return y, logsigmoid(mass) + logsigmoid(-mass) + math.log(high - low)

    # -- v and y: by the spectrum --------------------------------------------------------------------------

    def fit(self, amplitude: Tensor, shape: Tensor, theta: NDArray[np.floating]) -> None:
        """Learn the mass-to-light ratio from amplitudes (n, 1) in dex, shape features (n, k) and theta (n, ndim)."""
        if self.mass is None:
            return
        ratio = theta[:, self.mass] - amplitude[:, 0].numpy()
        ordinary = ordinary_rows(ratio[:, None])
        ratio = torch.as_tensor(clip_outliers(ratio[ordinary]))
        shape = torch.as_tensor(clip_outliers(shape.numpy()[ordinary]))
        centred = shape - shape.mean(dim=0)
        # The ridge settles what fewer spectra than features leave open.
        normal = centred.T @ centred + 1e-6 * len(shape) * torch.eye(shape.shape[1], dtype=shape.dtype)
        slope = torch.linalg.solve(normal, centred.T @ (ratio - ratio.mean()))
        rest = clip_outliers((ratio - shape @ slope).numpy())
        for name, value in {"mass_offset": rest.mean(), "mass_scatter": rest.std(), "mass_slope": slope}.items():
            getattr(self, name).copy_(torch.as_tensor(value))

    def suggested_mass(self, amplitude: Tensor, shape: Tensor) -> Tensor:
        """Mass (n,) in dex that amplitudes (n, 1) and shape features (n, k) suggest."""
        return amplitude[..., 0] + (shape * self.mass_slope).sum(dim=-1) + self.mass_offset

    def centring(self, amplitude: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Centre c and scale s, each (n, ndim), for spectra of amplitudes (n, 1) and shape features (n, k)."""
        rest = shape.new_zeros((*shape.shape[:-1], self.prior.ndim))
        if self.kind == "feature" or self.mass is None:
            return rest, rest + _LOGIT_SCATTER
        column = torch.arange(self.prior.ndim, device=shape.device) == self.mass
        mass = self.suggested_mass(amplitude, shape)[..., None]
        if self.kind == "equivariant":
            return torch.where(column, mass, rest), torch.where(column, self.mass_scatter, rest + _LOGIT_SCATTER)
        low, high = float(self.prior.low[self.mass]), float(self.prior.high[self.mass])
        place = ((mass - low) / (high - low)).clamp(0.02, 0.98)
        local = self.mass_scatter / ((high - low) * place * (1 - place))
        return torch.where(column, torch.logit(place), rest), torch.where(column, local, rest + _LOGIT_SCATTER)

    def impossible(self, amplitude: Tensor, shape: Tensor) -> Tensor:
        """Tell which spectra (n,) have an amplitude that no mass of the prior gives."""
        if self.mass is None:
            return torch.zeros(shape.shape[:-1], dtype=torch.bool, device=shape.device)
        mass, margin = self.suggested_mass(amplitude, shape), _MARGIN * self.mass_scatter
        low, high = float(self.prior.low[self.mass]), float(self.prior.high[self.mass])
        return (mass < low - margin) | (mass > high + margin)
