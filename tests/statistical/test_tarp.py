"""TARP must pass the exact posterior of a linear Gaussian model as often as it says, and catch wrong ones."""

import json

import numpy as np
import pytest
import torch
from sbi.diagnostics.tarp import _run_tarp

from digs_survey.audit.calibration.calibration import LEVELS, REPORTED_LEVELS, calibrate
from digs_survey.audit.calibration.tarp import credibility, tarp_band, tarp_coverage, tarp_summary
from digs_survey.prior import Prior

PRIOR, SIMULATIONS, DRAWS = Prior(), 1500, 200
# Three elements see five parameters: the posterior is strongly correlated.
DESIGN, NOISE = np.random.default_rng(8).normal(size=(3, 5)), 0.2
COVARIANCE = np.linalg.inv(DESIGN.T @ DESIGN / NOISE**2 + np.eye(5))
WIDTH = np.sqrt(np.diag(COVARIANCE))


def simulate(rng, *, scale=1.0, shift=0.0, factor=None, count=SIMULATIONS):
    """Truths z ~ N(0, 1) seven sigma inside the unit cube, and draws of the exact posterior or a wrong one."""
    z = rng.normal(size=(count, 5))
    x = z @ DESIGN.T + NOISE * rng.normal(size=(count, len(DESIGN)))
    mean = x @ DESIGN @ COVARIANCE / NOISE**2
    root = np.linalg.cholesky(COVARIANCE) if factor is None else factor
    draws = (mean + shift * WIDTH)[:, None] + scale * rng.normal(size=(count, DRAWS, 5)) @ root.T
    uniform = rng.random((count, 6))
    return 0.5 + z / 14, 0.5 + draws / 14, uniform


def summary(seed, **wrong):
    return tarp_summary(credibility(*simulate(np.random.default_rng(seed), **wrong)), LEVELS)


def test_a_calibrated_posterior_is_inside_its_band_in_95_of_100_trials():
    trials = [summary(seed, count=200) for seed in range(120)]
    inside = sum(trial["inside"] for trial in trials)
    # Of 120 trials at 95 %, 105 to 119 in all but 3 of 1,000 choices of the seeds.
    assert 105 <= inside < 120
    assert all(trial["inside"] == (trial["pvalue"] >= 0.05) for trial in trials)
    assert np.median([trial["pvalue"] for trial in trials]) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("wrong", "high"),
    [({"scale": 0.8}, False), ({"scale": 1.25}, True), ({"shift": 0.5}, None), ({"factor": np.diag(WIDTH)}, None)],
)
def test_wrong_posteriors_are_outside(wrong, high):
    """20 % too narrow, too wide, shifted, and with the right widths but no correlation."""
    found = [summary(seed, **wrong) for seed in range(5)]
    assert not any(trial["inside"] for trial in found)
    if high is not None:
        level = found[0]["levels"].index(0.9)
        assert all((trial["coverage"][level] > 0.9) == high for trial in found)


def test_the_widths_alone_do_not_show_a_missing_correlation():
    theta, draws, _ = simulate(np.random.default_rng(0), factor=np.diag(WIDTH))
    assert calibrate(theta, draws).coverage(REPORTED_LEVELS) == pytest.approx(
        np.repeat(REPORTED_LEVELS, 5).reshape(4, 5), abs=0.04
    )


def test_equals_sbis():
    theta, draws, uniform = simulate(np.random.default_rng(3), scale=0.7)
    arrays = (draws.swapaxes(0, 1), theta, uniform[:, :-1])
    coverage, level = _run_tarp(*(torch.as_tensor(array) for array in arrays), num_bins=50)
    ours = tarp_coverage(credibility(theta, draws, uniform), level.tolist())
    # sbi counts draws in histogram bins; ours lie between two draws.
    np.testing.assert_allclose(ours, coverage.numpy(), atol=2 / DRAWS + 2 / SIMULATIONS)


def test_blocks_rows_with_nan_and_none_at_all():
    rng = np.random.default_rng(5)
    cube, uniform = rng.random((40, 5)), rng.random((40, 6))
    theta, draws = PRIOR.from_unit_cube(cube), PRIOR.from_unit_cube(rng.random((40, 100, 5)))
    draws[7, 3, 2] = np.nan
    whole = calibrate(theta, draws, prior=PRIOR, uniform=uniform)
    assert (whole.credibility.size, whole.excluded) == (39, 1)
    parts = [calibrate(theta[s], draws[s], prior=PRIOR, uniform=uniform[s]) for s in (slice(0, 11), slice(11, 40))]
    np.testing.assert_array_equal(np.concatenate([part.credibility for part in parts]), whole.credibility)
    kept = np.arange(40) != 7
    by_hand = [
        (np.linalg.norm(PRIOR.cdf(d) - u[:-1], axis=1) < np.linalg.norm(c - u[:-1])).sum() + u[-1]
        for c, d, u in zip(cube[kept], draws[kept], uniform[kept], strict=True)
    ]
    np.testing.assert_allclose(whole.credibility, np.array(by_hand) / 101)
    assert calibrate(theta, draws).summary(PRIOR.names)["tarp"] is None
    assert tarp_summary(np.zeros(0), LEVELS) is None
    assert tarp_band(5000) == pytest.approx(1.358 / 5000**0.5, rel=0.01)
    json.dumps(whole.summary(PRIOR.names), allow_nan=False)
