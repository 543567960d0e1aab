"""A small estimator on analytic spectra, for tests that need a posterior but not a good one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from digs_survey.config import SurveyConfig, load_config
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import Estimator
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid

GRID = WavelengthGrid(np.arange(4000.0, 5000.0, 50.0))


def small_config(*overrides: str) -> SurveyConfig:
    settings = ("hidden_features=12", "transforms=3", "embedding_features=8", "embedding_layers=1", "components=8")
    return load_config(None, [*(f"train.{s}" for s in settings), "train.device=cpu", *overrides])


def analytic_spectra(theta: np.ndarray) -> np.ndarray:
    """Smooth spectra in which every parameter leaves a trace, mass as a pure scale."""
    x = np.linspace(-1, 1, len(GRID))
    mass, z, dust, age, tau = (theta[:, [i]] for i in range(5))
    shape = 0.2 * z * x - 0.5 * dust * x**2 + 0.1 * age * np.sin(3 * x) + 0.2 * tau * np.cos(5 * x)
    return (10 ** (mass - 17 + shape)).astype(np.float32)


def simulations(config: SurveyConfig, count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    theta = config.make_prior().from_unit_cube(np.random.default_rng(seed).random((count, 5)))
    return theta, analytic_spectra(theta)


def learn(estimator: Estimator, config: SurveyConfig, theta: np.ndarray, flux: np.ndarray, steps: int) -> float:
    """Take so many steps of Adam, with fresh noise for every batch; return the last loss."""
    noise, rng = NoiseModel.from_config(config.noise), np.random.default_rng(5)
    u = torch.as_tensor(config.make_prior().to_unconstrained(theta), dtype=torch.float32)
    optimiser = torch.optim.Adam(estimator.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = rng.integers(len(theta), size=256)
        loss = estimator(u[rows], torch.as_tensor(noise.draw(flux[rows], rng), dtype=torch.float32))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


def freeze(folder: Path, config: SurveyConfig, estimator: Estimator | None = None) -> FrozenPosterior:
    noise = NoiseModel.from_config(config.noise)
    if estimator is None:
        estimator = prepare_estimator(config, *simulations(config), noise)
    return freeze_posterior(folder, [estimator], config, GRID, noise, training={})
