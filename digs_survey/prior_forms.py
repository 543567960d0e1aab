"""A prior as the objects that Prospector and sbi take; both ask the distribution itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.distributions import Distribution, Uniform

if TYPE_CHECKING:
    from torch.distributions import Distribution as TorchDistribution

__all__ = ["prospector_prior", "torch_prior"]


class _Prior(Protocol):
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def from_unit_cube(self, cube: ArrayLike) -> NDArray[np.float64]: ...

    def log_prob(self, theta: ArrayLike) -> NDArray[np.float64]: ...


def prospector_prior(distribution: Distribution) -> Any:
    """Return one of Prospector's priors: a ``TopHat`` for a uniform one, else one that asks ``distribution``."""
    from prospect.models import priors

    if isinstance(distribution, Uniform):
        return priors.TopHat(mini=distribution.low, maxi=distribution.high)

    class Distributed(priors.Prior):  # type: ignore[misc]
        """A prior between two ends."""

        prior_params: tuple[str, ...] = ()
        range = bounds = (distribution.low, distribution.high)

        def __len__(self) -> int:
            return 1

        def __call__(self, x: ArrayLike, **_: Any) -> NDArray[np.float64]:
            value = np.asarray(x, dtype=float)
            inside = (value >= distribution.low) & (value <= distribution.high)
            return np.where(inside, distribution.log_pdf(np.clip(value, *self.range)), -np.inf)

        def sample(self, nsample: int | None = None, **_: Any) -> NDArray[np.float64]:
            return distribution.ppf(np.random.default_rng().random(nsample or 1))

        def unit_transform(self, x: ArrayLike, **_: Any) -> NDArray[np.float64]:
            return distribution.ppf(x)

        def inverse_unit_transform(self, x: ArrayLike, **_: Any) -> NDArray[np.float64]:
            return distribution.cdf(x)

    return Distributed(name=distribution.prior)


def torch_prior(prior: _Prior, uniform: bool) -> TorchDistribution:
    """Return a torch distribution of theta (n, ndim): box-uniform, or one that asks ``prior``."""
    import torch
    from sbi.utils import BoxUniform
    from torch.distributions import Distribution as TorchDistribution
    from torch.distributions import constraints

    low, high = (torch.as_tensor(ends, dtype=torch.float32) for ends in (prior.low, prior.high))
    if uniform:
        return BoxUniform(low, high)

    class Distributed(TorchDistribution):
        """Independent priors between two ends each."""

        support = constraints.independent(constraints.interval(low, high), 1)

        def __init__(self) -> None:
            super().__init__(event_shape=low.shape, validate_args=False)

        def sample(self, sample_shape: Any = ()) -> torch.Tensor:
            cube = torch.rand((*sample_shape, len(low)), dtype=torch.float64)
            return torch.as_tensor(prior.from_unit_cube(cube.numpy()), dtype=torch.float32)

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            density = prior.log_prob(value.detach().cpu().numpy())
            return torch.as_tensor(density, dtype=torch.float32, device=value.device)

    return Distributed()
