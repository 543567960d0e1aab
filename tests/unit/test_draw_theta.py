from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import kstest, qmc

from digs_survey.prior import Prior
from digs_survey.simulate.prior_draws import draw_theta, sobol_uniforms
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.shard import checked_rows

PRIOR = Prior()


@pytest.mark.parametrize(("draws", "far"), [("random", 10**12), ("sobol", 10**8)])
def test_any_range_is_a_slice_of_the_whole(draws, far):
    whole = draw_theta(PRIOR, 7, "simulate", 0, 50, draws)
    for start, stop in [(0, 1), (3, 4), (13, 50), (20, 20)]:
        np.testing.assert_array_equal(draw_theta(PRIOR, 7, "simulate", start, stop, draws), whole[start:stop])
    np.testing.assert_array_equal(
        draw_theta(PRIOR, 7, "simulate", far, far + 9, draws)[4:],
        draw_theta(PRIOR, 7, "simulate", far + 4, far + 9, draws),
    )


@pytest.mark.filterwarnings("error")
def test_sobol_draws_fill_the_prior_evenly_and_each_seed_its_own_way():
    random, sobol, other, stream = (
        PRIOR.cdf(draw_theta(PRIOR, *seed_and_stream, 0, 1_000, draws))
        for seed_and_stream, draws in [
            ((7, "simulate"), "random"),
            ((7, "simulate"), "sobol"),
            ((8, "simulate"), "sobol"),
            ((7, "else"), "sobol"),
        ]
    )
    for cube in (sobol, other, stream):
        assert ((cube > 0) & (cube < 1)).all()
        assert qmc.discrepancy(cube) < 0.1 * qmc.discrepancy(random)
    assert not np.isin(sobol, other).any()
    assert not np.isin(sobol, stream).any()


def test_checked_rows_lie_anywhere_and_depend_on_no_shards():
    whole = checked_rows(7, "simulate", 30_000, slice(0, 30_000))
    assert len(whole) == len(set(whole // 100)) == 300
    assert np.unique(whole % 100).size > 80
    parts = [checked_rows(7, "simulate", 30_000, slice(a, a + 750)) for a in range(0, 30_000, 750)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    # At least 200 where they are few, and all where there are no more.
    assert len(checked_rows(7, "simulate", 1_000, slice(0, 1_000))) == 200
    np.testing.assert_array_equal(checked_rows(7, "simulate", 150, slice(100, 150)), np.arange(100, 150))

    for draws in ("random", "sobol"):
        some = PRIOR.cdf(draw_theta(PRIOR, 7, "simulate", 0, 30_000, draws)[whole])
        for column in some.T:
            assert kstest(column, "uniform").pvalue > 1e-4


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
    assert sobol_uniforms(2022, "theta", 5, 6, 3).tolist() == [
        [0.08219140442088246, 0.40714298421517015, 0.9734592135064304]
    ]
