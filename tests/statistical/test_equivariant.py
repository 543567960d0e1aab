"""Posteriors cut at the edges of the prior are calibrated, where almost every galaxy lies at an edge."""

from __future__ import annotations

import numpy as np
import pytest
from estimators import GRID, learn, simulations, small_config
from scipy.stats import kstest

from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.noise.model import NoiseModel


@pytest.mark.slow
def test_ranks_of_the_mass_are_uniform_in_a_prior_narrower_than_the_posterior(tmp_path):
    """What was learned with a wide prior holds in any other, since shapes do not know the mass."""
    config = small_config("train.amplitude=equivariant")
    noise = NoiseModel.from_config(config.noise)
    theta, flux = simulations(config, 10_000)
    estimator = prepare_estimator(config, theta, flux, noise)
    learn(estimator, config, theta, flux, 800)
    narrow = small_config("train.amplitude=equivariant", "prior.logmass.low=10.0", "prior.logmass.high=10.02")
    posterior = freeze_posterior(tmp_path, [estimator.eval()], narrow, GRID, noise, training={})
    truth, spectra = simulations(narrow, 500, seed=8)
    observed = noise.draw(spectra, np.random.default_rng(9))
    draws = posterior.sample(observed, 255)[..., 0]
    ranks = (draws < truth[:, :1]).mean(axis=1)
    assert kstest(ranks, "uniform").pvalue > 0.01
    # As calibrated as the posteriors that are not cut, but nearer to the truth and denser there.
    uncut = freeze_posterior(tmp_path / "uncut", [estimator], config, GRID, noise, training={})
    wide = uncut.sample(observed, 255)[..., 0]
    assert draws.std(axis=1).mean() < 0.8 * wide.std(axis=1).mean()
    assert _error(draws, truth) < 0.8 * _error(wide, truth)
    gain = posterior.log_prob(truth[:, None], observed) - uncut.log_prob(truth[:, None], observed)
    inside = ((wide >= 10.0) & (wide <= 10.02)).mean(axis=1)
    np.testing.assert_allclose(gain[:, 0], -np.log(inside), atol=0.5)
    assert gain.mean() > 0.2


def _error(draws, truth):
    return np.abs(np.median(draws, axis=1) - truth[:, 0]).mean()
