"""The identity of a run that maps a catalog with a frozen posterior, and of one without a posterior."""

from __future__ import annotations

from pathlib import Path

from digs_survey.catalog import Catalog
from digs_survey.config import NoiseConfig, SurveyConfig
from digs_survey.estimator.artefact import identify
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid


def identity_of(model: Path, catalog: Path, seed: int = 2022) -> RunIdentity:
    return identify(model, seed=seed, catalog=Catalog.open(catalog).fingerprint())


def untrained(grid: WavelengthGrid, noise: NoiseModel | None = None, seed: int = 2022) -> RunIdentity:
    config = SurveyConfig(seed=seed)
    return RunIdentity.of_config(config, grid, noise or NoiseModel.from_config(NoiseConfig()))
