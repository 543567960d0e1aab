"""The neural posterior estimator: one of sbi's flows over our features and coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from digs_survey.config import TrainConfig
from digs_survey.estimator.embedding import build_embedding
from digs_survey.estimator.feature_base import FeatureBase
from digs_survey.estimator.flows.maf import flow_log_prob

if TYPE_CHECKING:
    from sbi.neural_nets.estimators import NFlowsFlow, ZukoFlow

__all__ = ["Estimator", "build_estimator", "resolve_device"]


class Estimator(nn.Module):
    """sbi's flow q(v | features) with the transforms on both of its sides.

    Parameters
    ----------
    features : FeatureBase
    flow : NFlowsFlow or ZukoFlow
        Density of v, shape (ndim,), given the context that ``features`` gives.
    """

    def __init__(self, features: FeatureBase, flow: NFlowsFlow | ZukoFlow) -> None:
        super().__init__()
        self.features: FeatureBase = features
        self.flow: NFlowsFlow | ZukoFlow = flow

    def log_prob(self, u: Tensor, flux: Tensor) -> Tensor:
        """Log density (n,) of unconstrained coordinates u (n, ndim), given spectra (n, wavelength).

        Where the amplitude is equivariant, it is that of q before it is cut at the prior's edges: the log of
        P(inside | x) is still to be taken off, which the frozen posterior does and training has no need of.
        """
        # Three digits of bfloat16 would not tell the components of similar spectra apart.
        with torch.autocast(flux.device.type, enabled=False):
            features = self.features(flux)
            centre, scale = self.features.centring(features)
            y, log_det = self.features.coordinates.from_unconstrained(u)
            v = (y - centre) / scale
            context = self.features.context(features)
        return log_det - scale.log().sum(dim=-1) + flow_log_prob(self.flow, v, context)

    def forward(self, u: Tensor, flux: Tensor) -> Tensor:
        """NPE loss, the mean of -log q(u | x)."""
        return -self.log_prob(u, flux).mean()


def build_estimator(config: TrainConfig, features: FeatureBase, seed: int) -> Estimator:
    """Build one untrained estimator; the same seed gives the same initial weights and permutations."""
    # Here, since a worker that only samples should not wait seconds for sbi.
    from sbi.neural_nets.net_builders import build_maf, build_zuko_maf, build_zuko_nsf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding = build_embedding(config, features)
        examples = torch.zeros(2, features.ndim), torch.zeros(2, features.size)
        unscaled = {"z_score_x": "none", "z_score_y": "none", "embedding_net": embedding}
        if config.flow == "maf":
            flow = build_maf(
                *examples,
                hidden_features=config.hidden_features,
                num_transforms=config.transforms,
                num_blocks=config.blocks,
                **unscaled,
            )
        else:
            build = {"zuko_maf": build_zuko_maf, "zuko_nsf": build_zuko_nsf}[config.flow]
            # Given one number, sbi takes it for the width of as many hidden layers as there are transforms.
            layers = [config.hidden_features] * (1 + config.blocks)
            flow = build(*examples, hidden_features=layers, num_transforms=config.transforms, **unscaled)
    return Estimator(features, flow)


def resolve_device(setting: str) -> torch.device:
    """Return the device that a configuration asks for; "auto" takes a GPU if there is one."""
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(setting)
