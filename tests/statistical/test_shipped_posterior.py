"""The posterior that ships, on simulations that neither training nor card has seen; ``-s`` prints the figures."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.audit.calibration.calibrate import calibrate_model
from digs_survey.config import ModelConfig
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.importance.weights import simulated_importance
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.sps.batched import BatchedModel

pytestmark = pytest.mark.slow

SEED = 41


@pytest.fixture(scope="module")
def posterior():
    return FrozenPosterior.load(shipped()["digs2022"])


def test_it_is_calibrated_in_each_parameter_and_jointly(posterior):
    found = calibrate_model(posterior, 5_000, SEED).summary(posterior.prior.names)
    tarp = {key: value for key, value in found["tarp"].items() if not isinstance(value, list)}
    print(found["ks_pvalue"], found["coverage_error"], found["mean_half_width"], tarp, sep="\n")
    assert found["excluded_nan"] == 0
    assert found["ks_pvalue_corrected"] > 0.01
    assert set(found["coverage_error"]) == {"0.5", "0.68", "0.9", "0.95"}
    assert max(found["coverage_error"].values()) <= 0.03
    assert tarp["inside"]
    assert found["mean_half_width"]["logmass"] < 0.03
    assert found["mean_half_width"]["logzsol"] < 0.07


def test_most_of_its_draws_are_those_of_the_exact_posterior(posterior):
    theta = draw_theta(posterior.prior, SEED, "weigh", 0, 300)
    model = BatchedModel.from_config(
        ModelConfig.model_validate(posterior.card["model"]), posterior.prior, posterior.grid
    )
    ess = simulated_importance(posterior, theta, model.spectra(theta), posterior.noise, draws=1_000).ess / 1_000
    print(np.quantile(ess, [0.16, 0.5, 0.84]))
    assert np.median(ess) > 0.7
    assert (ess > 0.1).mean() > 0.97
