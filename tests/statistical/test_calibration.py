"""Calibration must pass the exact posterior of a linear Gaussian model and catch wrong ones."""

import json

import numpy as np
import pytest
import zarr
from scipy import stats

from digs_survey.audit.calibration.calibrate import calibrate_posterior
from digs_survey.audit.calibration.calibration import REPORTED_LEVELS, calibrate
from digs_survey.audit.calibration.conditional import strip_summary
from digs_survey.config import NoiseConfig
from digs_survey.errors import RunDirectoryError
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.store.storage import ArraySpec, create_dataset

SIMULATIONS, DRAWS = 2000, 300
DESIGN = np.array([[1.0, 0.2], [0.1, 1.0], [0.5, -0.5]])
NOISE = 0.7


def posterior_draws(x, rng, *, scale=1.0, shift=0.0):
    """Draws for theta ~ N(0, 1), x = DESIGN theta + N(0, NOISE^2); wrong by a scale and a shift in sigma."""
    covariance = np.linalg.inv(DESIGN.T @ DESIGN / NOISE**2 + np.eye(2))
    mean = x @ DESIGN @ covariance / NOISE**2
    width = np.sqrt(np.diag(covariance))
    z = rng.normal(size=(len(x), DRAWS, 2)) @ np.linalg.cholesky(covariance).T
    return (mean + shift * width)[:, None] + scale * z


def run(**wrong):
    rng = np.random.default_rng(11)
    theta = rng.normal(size=(SIMULATIONS, 2))
    x = theta @ DESIGN.T + NOISE * rng.normal(size=(SIMULATIONS, 3))
    return calibrate(theta, posterior_draws(x, rng, **wrong))


def caught(result):
    low, high = np.array(stats.binom.interval(0.999, SIMULATIONS, REPORTED_LEVELS)) / SIMULATIONS
    coverage = result.coverage(REPORTED_LEVELS)
    outside = ((coverage < low[:, None]) | (coverage > high[:, None])).any(axis=0)
    return (result.ks_pvalues() < 0.01) | outside


def test_exact_posterior_passes():
    result = run()
    assert not caught(result).any()
    summary = result.summary(("a", "b"))
    assert summary["ranks_uniform"]
    assert summary["ks_pvalue_corrected"] == min(1, 2 * result.ks_pvalues().min())
    assert max(summary["coverage_error"].values()) < 0.03
    assert result.pull.mean(axis=0) == pytest.approx([0, 0], abs=0.07)
    assert result.pull.std(axis=0) == pytest.approx([1, 1], abs=0.06)
    assert result.coverage([0.68])[0] == pytest.approx([0.68, 0.68], abs=0.03)


@pytest.mark.parametrize(("wrong", "sign"), [({"scale": 0.8}, -1), ({"scale": 1.2}, 1), ({"shift": 0.3}, -1)])
def test_wrong_posteriors_are_caught_in_every_parameter(wrong, sign):
    result = run(**wrong)
    assert caught(result).all()
    assert (sign * (result.coverage([0.68])[0] - 0.68) > 0).all()
    summary = result.summary(("a", "b"))
    assert not summary["ranks_uniform"]
    worst = np.abs(result.coverage([0.9])[0] - 0.9).max()
    assert summary["coverage_error"]["0.9"] == pytest.approx(worst)
    width = 0.9945 * wrong.get("scale", 1) * np.sqrt(np.diag(np.linalg.inv(DESIGN.T @ DESIGN / NOISE**2 + np.eye(2))))
    assert list(summary["mean_half_width"].values()) == pytest.approx(width.tolist(), rel=0.02)
    if "shift" in wrong:
        assert result.pull.mean(axis=0) == pytest.approx([0.3, 0.3], abs=0.08)


def test_ranks_percentiles_and_coverage_by_hand():
    draws = np.tile(np.arange(100.0)[None, :, None], (3, 1, 1))
    result = calibrate([[-1.0], [49.5], [1000.0]], draws, quantiles=(0.5, 0.9))
    assert result.ranks[:, 0].tolist() == [0, 50, 100]
    np.testing.assert_allclose(result.percentiles[0, 0], [49.5, 89.1])
    # Of the three only the middle one lies in any central interval below 99 %.
    np.testing.assert_allclose(result.coverage([0.05, 0.9])[:, 0], [1 / 3, 1 / 3])
    np.testing.assert_allclose(result.pull[:, 0], (49.5 - np.array([-1, 49.5, 1000])) / (0.34 * 99))


def test_rows_with_nan_are_left_out_and_counted():
    rng = np.random.default_rng(0)
    theta, draws = rng.normal(size=(50, 2)), rng.normal(size=(50, 200, 2))
    draws[3, 7, 1] = np.nan
    theta[8, 0] = np.inf
    result = calibrate(theta, draws)
    assert (len(result.theta), result.excluded) == (48, 2)
    assert 3 not in {int(np.flatnonzero((theta == row).all(axis=1))[0]) for row in result.theta}
    summary = calibrate(theta[3:4], draws[3:4]).summary(("a", "b"))
    assert (summary["simulations"], summary["excluded_nan"]) == (0, 1)
    assert summary["coverage"]["0.68"] == {"a": None, "b": None}
    json.dumps(summary, allow_nan=False)


class LogPosterior:
    """Exact posterior of one parameter: flux = exp(theta) in five elements, log10 noise, theta uniform."""

    prior = Prior({"logmass": (-5, 5)}, left_out=("logzsol", "dust2", "tage", "logtau"))

    def __init__(self, fraction):
        self.scale = np.log1p(fraction) / np.sqrt(5)

    def sample(self, flux, draws):
        z = np.random.default_rng(4).normal(size=(len(flux), draws, 1))
        return np.log(flux).mean(axis=1)[:, None, None] + self.scale * z


def write_simulations(path, count):
    theta = np.random.default_rng(2).uniform(-5, 5, (count, 1))
    arrays = {
        "theta": ArraySpec(("simulation", "parameter"), (count, 1), "float64"),
        "flux": ArraySpec(("simulation", "wavelength"), (count, 5), "float32"),
    }
    create_dataset(path, arrays, {"theta": theta, "flux": np.exp(theta) * np.ones(5)})


def test_simulations_on_disk_get_the_noise_of_the_survey_row_by_row(tmp_path, monkeypatch):
    path = tmp_path / "calibration.zarr"
    noise = NoiseModel.from_config(NoiseConfig(fraction=0.1, space="log10"))
    write_simulations(path, 700)
    result = calibrate_posterior(LogPosterior(0.1), path, noise, seed=5, draws=200)
    assert len(result.theta) == 700
    assert result.ks_pvalues()[0] > 0.01
    assert result.pull.std() == pytest.approx(1, abs=0.1)
    silent = NoiseModel.from_config(NoiseConfig(fraction=1e-9, space="log10"))
    assert calibrate_posterior(LogPosterior(0.1), path, silent, seed=5, draws=200).ks_pvalues()[0] < 1e-6

    seen = []

    def look(self, flux, draws):
        seen.append(flux)
        return np.zeros((len(flux), draws, 1))

    monkeypatch.setattr(LogPosterior, "sample", look)
    calibrate_posterior(LogPosterior(0.1), path, noise, seed=5, draws=2)
    blocks = np.concatenate(seen)
    seen.clear()
    monkeypatch.setattr("digs_survey.audit.calibration.calibrate._BLOCK", 37)
    assert len(calibrate_posterior(LogPosterior(0.1), path, noise, seed=5, draws=2, limit=300).theta) == 300
    np.testing.assert_array_equal(np.concatenate(seen), blocks[:300])


def test_a_dataset_without_simulations_is_refused(tmp_path):
    zarr.create_group(str(tmp_path / "empty.zarr"))
    noise = NoiseModel.from_config(NoiseConfig())
    with pytest.raises(RunDirectoryError, match="expected arrays theta and flux"):
        calibrate_posterior(LogPosterior(0.1), tmp_path / "empty.zarr", noise, seed=0, draws=10)


WIDTH = 0.3


def edge_run(cut=True):
    """Truths uniform on the prior, seen with a third of its width; draws of the exact, cut normal, or not cut."""
    rng, count = np.random.default_rng(3), 20_000
    prior = Prior({"logzsol": (0, 1)}, left_out=("logmass", "dust2", "tage", "logtau"))
    theta = rng.uniform(size=(count, 1))
    x = theta + WIDTH * rng.normal(size=theta.shape)
    low, high = (-x / WIDTH, (1 - x) / WIDTH)
    exact = stats.truncnorm(low, high, x, WIDTH) if cut else stats.norm(x, WIDTH)
    draws = exact.ppf(rng.random((count, 200)))[..., None]
    return calibrate(theta, draws, prior=prior, again=rng.random((count, 4)))


def test_even_the_exact_posterior_leans_inwards_near_an_edge_and_shows_what_is_foretold():
    summary = edge_run().summary(("logzsol",))
    strips = summary["by_truth"]["logzsol"]
    assert [(strip["low"], strip["high"]) for strip in strips] == [(k / 10, (k + 1) / 10) for k in range(10)]
    assert sum(strip["simulations"] for strip in strips) == 20_000
    assert strips[0]["bias"] > 0.5
    assert strips[-1]["bias"] < -0.5
    for strip in strips:
        assert abs(strip["bias"] - strip["bias_if_exact"]) < 4 * strip["bias_error"]
        assert abs(strip["coverage"] - strip["coverage_if_exact"]) < 4 * strip["coverage_error"]
    assert min(strip["coverage"] for strip in strips) < 0.6
    assert summary["leakage"] == 0
    # Which is why truths are no test, and medians are.
    assert all(abs(entry["shift_sigma"]) < 4 * entry["shift_sigma_error"] for entry in summary["by_median"]["logzsol"])


def test_draws_beyond_the_prior_are_counted_and_their_bias_is_not_what_was_foretold():
    summary = edge_run(cut=False).summary(("logzsol",))
    strips = summary["by_truth"]["logzsol"]
    assert 0.1 < summary["leakage"] < 0.4
    assert abs(strips[0]["bias"]) < 0.1
    assert abs(strips[0]["bias"] - strips[0]["bias_if_exact"]) > 10 * strips[0]["bias_error"]


def test_strips_of_an_unknown_place_and_of_few_simulations_say_nothing():
    summary = run().summary(("a", "b"))
    assert summary["by_truth"] == {"a": [], "b": []}
    assert summary["leakage"] is None
    strips = strip_summary([0.05, 0.06, 0.55, 1.0], [1.0, 3.0, 0.0, np.nan], [0.5, 0.01, 0.5, 0.5])
    assert (strips[0]["bias"], strips[0]["bias_error"], strips[0]["coverage"]) == (2, 1, 0.5)
    assert strips[0]["bias_if_exact"] is None
    assert [strip["simulations"] for strip in strips] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert {strip["bias"] for strip in strips[1:]} == {None}


@pytest.mark.filterwarnings("error")
def test_a_posterior_without_a_width_takes_nothing_from_the_others():
    """As of draws that all lie on one edge of the prior."""
    rng = np.random.default_rng(3)
    theta = rng.uniform(size=(400, 1))
    draws = theta[:, None] + 0.1 * rng.normal(size=(400, 200, 1)) + 0.1 * rng.normal(size=(400, 1, 1))
    draws[7] = 0.0
    prior = Prior({"logzsol": (0, 1)}, left_out=("logmass", "dust2", "tage", "logtau"))
    result = calibrate(theta, draws, prior=prior, again=rng.random((400, 4)))
    assert np.isinf(result.pull[7])
    summary = result.summary(("logzsol",))
    others = np.delete(result.pull, 7)
    assert summary["pull_mean"]["logzsol"] == pytest.approx(others.mean())
    assert summary["pull_std"]["logzsol"] == pytest.approx(others.std())
    strips = summary["by_truth"]["logzsol"]
    assert sum(strip["simulations"] for strip in strips) == 400
    assert None not in {strip["bias"] for strip in strips}
    json.dumps(summary, allow_nan=False)
