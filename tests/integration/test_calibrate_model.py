"""A posterior alone is calibrated on the simulations that the audit of its run would have."""

import numpy as np
import pytest
from estimators import GRID, freeze, small_config

from digs_survey.audit import calibration
from digs_survey.audit.calibration import calibrate_model, calibrate_posterior
from digs_survey.config import load_config
from digs_survey.errors import ConfigError
from digs_survey.ledger import Ledger
from digs_survey.simulate.dask import simulate

pytestmark = pytest.mark.slow

COUNT = 150


def test_without_a_run_the_numbers_are_those_of_the_run(tmp_path, monkeypatch):
    config = small_config("simulate.engine=batched", "seed=5")
    posterior = freeze(tmp_path / "model", config)
    path, ledger = tmp_path / "calibration.zarr", Ledger(tmp_path / "ledger")
    simulate(config, GRID, path, count=COUNT, stream="calibration", ledger=ledger)
    stored = calibrate_posterior(posterior, path, posterior.noise, 5, 100)
    monkeypatch.setattr(calibration, "_BLOCK", 37)
    made = calibrate_model(posterior, config, COUNT, 5, draws=100)
    np.testing.assert_array_equal(made.theta, stored.theta)
    # How many spectra stand in a matrix product changes their last digits.
    np.testing.assert_allclose(made.percentiles, stored.percentiles, rtol=1e-3)
    assert np.abs(made.ranks - stored.ranks).max() <= 1
    np.testing.assert_allclose(made.credibility, stored.credibility, atol=0.02)
    assert made.credibility.std() > 0.1
    assert made.half_width.shape == (COUNT, 5)

    from_card = calibrate_model(posterior, None, COUNT, 5, draws=100)
    np.testing.assert_array_equal(from_card.ranks, made.ranks)
    other = calibrate_model(posterior, None, COUNT, 6, draws=100)
    assert not np.isin(other.theta, made.theta).any()


def test_another_prior_and_no_simulation_are_refused(tmp_path):
    posterior = freeze(tmp_path, small_config())
    with pytest.raises(ConfigError, match="prior: expected that of the posterior"):
        calibrate_model(posterior, load_config(None, ["prior.tage.low=1", "prior.tage.high=2"]), 10, 0)
    with pytest.raises(ConfigError, match="at least one simulation"):
        calibrate_model(posterior, None, 0, 0)
