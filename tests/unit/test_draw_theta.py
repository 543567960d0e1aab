from __future__ import annotations

import subprocess
import sys

import numpy as np
from scipy.stats import kstest

from digs_survey.parameters import Prior
from digs_survey.simulate.dask import draw_theta
from digs_survey.simulate.seeding import row_uniforms

PRIOR = Prior()


def test_any_range_is_a_slice_of_the_whole():
    whole = draw_theta(PRIOR, 7, "simulate", 0, 50)
    for start, stop in [(0, 1), (3, 4), (13, 50), (20, 20)]:
        np.testing.assert_array_equal(draw_theta(PRIOR, 7, "simulate", start, stop), whole[start:stop])
    far = 10**12
    np.testing.assert_array_equal(
        draw_theta(PRIOR, 7, "simulate", far, far + 9)[4:], draw_theta(PRIOR, 7, "simulate", far + 4, far + 9)
    )


def test_draws_follow_the_prior_and_streams_are_independent():
    draws = [
        draw_theta(PRIOR, seed, stream, 0, 20_000)
        for seed, stream in [(7, "simulate"), (7, "calibration"), (8, "simulate")]
    ]
    for theta in draws:
        for column in PRIOR.cdf(theta).T:
            assert kstest(column, "uniform").pvalue > 1e-4
    together = np.hstack(draws)
    off_diagonal = np.corrcoef(together.T) - np.eye(together.shape[1])
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(20_000)
    # Neighbouring rows own neighbouring counters; they must not share any.
    assert np.unique(draws[0]).size == draws[0].size


def test_the_numbers_are_fixed_for_ever():
    """Draws are part of a run's identity: another process, and the next release, must give these."""
    code = "from digs_survey.simulate.seeding import row_uniforms\nprint(row_uniforms(2022, 'theta', 5, 6, 3).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = [0.4846253140597768, 0.5915125605823169, 0.8221740551031337]
    assert out.strip() == str([expected])
    assert row_uniforms(2022, "theta", 0, 10, 3)[5].tolist() == expected
