"""Write the frozen posterior that later versions must still load: PYTHONPATH=tests python tests/golden/make.py.

Only a new format of the artefact is a reason to do so. Its two networks learn from analytic spectra for a while.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from estimators import GRID, learn, simulations, small_config

from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import build_estimator
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.noise.model import NoiseModel

STEPS, GALAXIES, DRAWS = 600, 4, 32


def main() -> None:
    torch.set_num_threads(1)
    config = small_config("train.amplitude=equivariant", "train.ensemble=2", "train.transforms=2")
    noise, rng = NoiseModel.from_config(config.noise), np.random.default_rng(5)
    theta, flux = simulations(config, 4000)
    first = prepare_estimator(config, theta, flux, noise)
    estimators = [first, build_estimator(config.train, first.features, seed=1)]
    for estimator in estimators:
        loss = learn(estimator, config, theta, flux, STEPS)
        print(f"loss {loss:.2f}")
    folder = Path(__file__).parent
    posterior = freeze_posterior(folder, estimators, config, GRID, noise, training={"steps": STEPS})
    observed = noise.draw(simulations(config, GALAXIES, seed=6)[1], rng).astype(np.float32)
    draws = posterior.sample(observed, DRAWS)
    np.savez(folder / "expected.npz", flux=observed, draws=draws, log_prob=posterior.log_prob(draws, observed))


if __name__ == "__main__":
    main()
