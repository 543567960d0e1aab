"""The neural posterior estimator: sbi's masked autoregressive flow over our features and coordinates."""

from __future__ import annotations

import torch
from sbi.neural_nets.estimators import NFlowsFlow
from torch import Tensor, nn

from digs_survey.config import TrainConfig
from digs_survey.estimator.features import Features
from digs_survey.estimator.maf import flow_log_prob

__all__ = ["Embedding", "Estimator", "build_estimator", "resolve_device"]


class Embedding(nn.Module):
    """Residual multilayer perceptron that condenses the features once for each spectrum.

    Parameters
    ----------
    inputs, width, layers : int
        Features in, features out and inside, and residual layers after the first.
    """

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(layers)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Embed features (n, inputs) into (n, width)."""
        hidden = self.first(features)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return hidden


class Estimator(nn.Module):
    """sbi's flow q(v | features) with the transforms on both of its sides.

    Parameters
    ----------
    features : Features
    flow : NFlowsFlow
        Density of v, shape (ndim,), given features.
    """

    def __init__(self, features: Features, flow: NFlowsFlow) -> None:
        super().__init__()
        self.features: Features = features
        self.flow: NFlowsFlow = flow

    def log_prob(self, u: Tensor, flux: Tensor) -> Tensor:
        """Log density (n,) of unconstrained coordinates u (n, ndim), given spectra (n, wavelength)."""
        # Three digits of bfloat16 would not tell the components of similar spectra apart.
        with torch.autocast(flux.device.type, enabled=False):
            context = self.features(flux)
            centre, scale = self.features.centring(context)
        return flow_log_prob(self.flow, (u - centre) / scale, context) - scale.log().sum(dim=-1)

    def forward(self, u: Tensor, flux: Tensor) -> Tensor:
        """NPE loss, the mean of -log q(u | x)."""
        return -self.log_prob(u, flux).mean()


def build_estimator(config: TrainConfig, features: Features, seed: int) -> Estimator:
    """Build an untrained estimator; the same seed gives the same initial weights and permutations."""
    # Here, since a worker that only samples should not wait seconds for sbi.
    from sbi.neural_nets.net_builders import build_maf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding = (
            Embedding(features.size, config.embedding_features, config.embedding_layers)
            if config.embedding_features
            else nn.Identity()
        )
        flow = build_maf(
            torch.zeros(2, features.ndim),
            torch.zeros(2, features.size),
            z_score_x="none",
            z_score_y="none",
            hidden_features=config.hidden_features,
            num_transforms=config.transforms,
            num_blocks=config.blocks,
            embedding_net=embedding,
        )
    return Estimator(features, flow)


def resolve_device(setting: str) -> torch.device:
    """Return the device that a configuration asks for; "auto" takes a GPU if there is one."""
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(setting)
