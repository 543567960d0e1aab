"""From trained estimators to a frozen posterior on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from digs_survey import formats
from digs_survey.config import SurveyConfig
from digs_survey.estimator.artefact import NETWORK, save_artefact
from digs_survey.estimator.features import FeatureBuilder, build_features
from digs_survey.estimator.flows.sampler import MaskedFlow
from digs_survey.estimator.network import Estimator
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid

__all__ = ["freeze_posterior"]

_COORDINATES = {
    "feature": "logit of the prior's CDF",
    "centred": "logit of the prior's CDF, that of logmass centred and scaled on the mass that the amplitude suggests",
    "equivariant": "logit of the prior's CDF; logmass less the mass that the amplitude suggests, cut at its bounds",
}


def freeze_posterior(
    folder: Path,
    estimators: Sequence[Estimator],
    config: SurveyConfig,
    grid: WavelengthGrid,
    noise: NoiseModel,
    training: dict[str, Any],
    build: FeatureBuilder = build_features,
) -> FrozenPosterior:
    """Write trained estimators to ``folder`` and return their equal mixture, frozen.

    Parameters
    ----------
    folder : Path
        Gets model.safetensors and card.json.
    estimators : sequence of Estimator
        ``config.train.ensemble`` of them, over the same features.
    config : SurveyConfig
        Whose model, prior, noise and network the estimators were built for.
    grid : WavelengthGrid
    noise : NoiseModel
    training : dict
        What the card tells about how the weights came about.
    build : callable, optional
        Built the estimators' features, and builds them again; by default those that the configuration asks for.

    Raises
    ------
    ValueError
        If the estimators are not as many as configured, or their features differ.
    """
    if len(estimators) != config.train.ensemble:
        raise ValueError(f"expected train.ensemble = {config.train.ensemble} estimators, found {len(estimators)}")
    features = estimators[0].features.state_dict()
    arrays = {f"features.{name}": value.numpy() for name, value in features.items()}
    for k, estimator in enumerate(estimators):
        found = estimator.features.state_dict()
        if any(not torch.equal(found[name], value) for name, value in features.items()):
            raise ValueError(f"estimator {k}: expected the features of estimator 0, found others")
        embedding = estimator.flow.embedding_net.state_dict()
        arrays |= {f"member.{k}.embedding.{name}": value.numpy() for name, value in embedding.items()}
        arrays |= MaskedFlow.from_sbi(estimator.flow).arrays(f"member.{k}.flow.")
    if noise.table is not None:
        arrays["noise.table"] = np.asarray(noise.table, dtype=np.float32)
    card = {
        "format": formats.CARD,
        "architecture": {
            **{key: getattr(config.train, name) for name, key in NETWORK.items()},
            "coordinates": _COORDINATES[config.train.amplitude],
        },
        "parameters": config.make_prior().to_dict(),
        "grid": grid.to_dict(),
        "noise": config.noise.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json"),
        "training": training,
    }
    save_artefact(folder, arrays, card)
    return FrozenPosterior.load(folder, build)
