"""The shipped posterior of the preset survey: calibrated whatever the noise, the gaps and the redshift of a row."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.audit.calibration.calibrate import calibrate_model
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.importance.weights import simulated_importance
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.universe import physical_theta

pytestmark = pytest.mark.slow

SEED = 43


@pytest.fixture(scope="module")
def posterior():
    return FrozenPosterior.load(shipped()["survey"])


def test_coverage_is_right_in_every_bin_of_what_was_observed(posterior):
    found = calibrate_model(posterior, 3_000, SEED, min_good_fraction=0.1).summary(posterior.prior.names)
    assert found["excluded_nan"] == found["without_posterior"] == 0
    assert max(found["coverage_error"].values()) <= 0.03
    for along in ("by_snr", "by_redshift", "by_good_share"):
        for bins in found[along].values():
            assert len(bins) == 5
            # 600 simulations in a bin: a standard error of 0.019.
            assert max(abs(one["coverage"] - 0.68) for one in bins) <= 0.075
    assert found["by_snr"]["logmass"][0]["high"] < 6 < 25 < found["by_snr"]["logmass"][-1]["low"]


def test_draws_are_near_those_of_the_exact_posterior(posterior):
    model = BatchedModel.from_config(posterior.model, posterior.prior, posterior.grid)
    theta, clean = simulated_spectra(model, posterior.prior, posterior.noise, SEED, "weigh", 0, 80)
    found = simulated_importance(posterior, theta, clean, posterior.noise, 500, SEED)
    assert np.isfinite(found.ess).all()
    assert np.median(found.ess) / 500 > 0.3


def test_better_errors_give_a_narrower_posterior(posterior):
    theta, redshift = posterior.prior.from_unit_cube(np.full((1, posterior.prior.ndim), 0.5)), np.array([0.1])
    model = BatchedModel.from_config(posterior.model, posterior.prior, posterior.grid)
    flux = model.spectra(physical_theta(posterior.prior, theta, redshift))
    noise, observed = np.random.default_rng(7).normal(size=flux.shape), posterior.grid.wavelength * 1.1
    covered = (observed > 3700) & (observed < 9400)
    width = []
    for snr in (4.0, 40.0):
        row = np.concatenate([flux * (1 + noise / snr) * covered, covered * snr / flux, redshift[:, None]], axis=1)
        assert not posterior.draw_and_judge(row, 16)[1].any()
        draws = posterior.sample(row, 512)[0]
        assert (np.abs(np.median(draws, axis=0) - theta[0]) < 3 * draws.std(axis=0)).all()
        width.append(draws.std(axis=0))
    assert (width[0] > 1.5 * width[1])[1:4].all()
