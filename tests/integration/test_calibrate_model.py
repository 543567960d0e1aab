"""A posterior alone is calibrated on the simulations that the audit of its run would have."""

import numpy as np
import pytest
from estimators import GRID, freeze, small_config

from digs_survey.audit.calibration import calibrate as simulations
from digs_survey.audit.calibration.calibrate import calibrate_model, calibrate_posterior
from digs_survey.audit.calibration.recalibration import recalibrate
from digs_survey.errors import ConfigError
from digs_survey.simulate.simulation_set import simulate
from digs_survey.store.ledger import Ledger

pytestmark = pytest.mark.slow

COUNT = 150


def test_without_a_run_the_numbers_are_those_of_the_run(tmp_path, monkeypatch):
    config = small_config("simulate.engine=batched", "seed=5")
    posterior = freeze(tmp_path / "model", config)
    path, ledger = tmp_path / "calibration.zarr", Ledger(tmp_path / "ledger")
    simulate(config, GRID, path, count=COUNT, stream="calibration", ledger=ledger)
    stored = calibrate_posterior(posterior, path, posterior.noise, 5, 100)
    monkeypatch.setattr(simulations, "_BLOCK", 37)
    made = calibrate_model(posterior, COUNT, 5, draws=100)
    np.testing.assert_array_equal(made.theta, stored.theta)
    # How many spectra stand in a matrix product changes their last digits.
    np.testing.assert_allclose(made.percentiles, stored.percentiles, rtol=1e-3)
    assert np.abs(made.ranks - stored.ranks).max() <= 1
    np.testing.assert_allclose(made.credibility, stored.credibility, atol=0.02)
    assert made.credibility.std() > 0.1
    assert made.half_width.shape == (COUNT, 5)

    other = calibrate_model(posterior, COUNT, 6, draws=100)
    assert not np.isin(other.theta, made.theta).any()


def test_no_simulation_is_refused(tmp_path):
    posterior = freeze(tmp_path, small_config())
    with pytest.raises(ConfigError, match="at least one simulation"):
        calibrate_model(posterior, 0, 0)


def test_a_recalibration_is_of_simulations_of_its_own_and_always_the_same(tmp_path):
    config = small_config("map.recalibrate=1000", "map.draws=100", "seed=5")
    posterior = freeze(tmp_path / "model", config)
    levels, told = recalibrate(posterior, config)
    assert list(levels) == list(posterior.prior.names)
    assert told["simulations"] == 1000
    assert told["intervals"] == pytest.approx([0.95, 0.68])
    # Random weights: intervals hold anything, corrected ones what they name, unless truths lie beyond all draws.
    before, after = (np.array(list(told[f"coverage_{when}"].values())) for when in ("before", "after"))
    assert np.abs(before[1:, 1] - 0.68).max() > 0.03
    np.testing.assert_allclose(after[1:], np.tile([0.95, 0.68], (4, 1)), atol=0.05)
    assert after[0].max() < 0.68
    assert recalibrate(posterior, config) == (levels, told)
    other = calibrate_model(posterior, 1000, 5, draws=100)
    assert np.quantile(other.fraction[:, 0], 0.16, method="weibull") != levels[posterior.prior.names[0]][1]
