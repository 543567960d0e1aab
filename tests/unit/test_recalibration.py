"""Recalibrated levels hold the share of truths that they name, and leave a right posterior alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from digs_survey.audit.calibration.recalibration import central_coverage, corrected_levels, cross_validated_coverage
from digs_survey.config import load_config
from digs_survey.errors import ConfigError
from digs_survey.infer.quantiles import ordered_quantiles
from digs_survey.prior import Prior

QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)


def fractions(count, seed, factor=(1.0, 0.8, 1.3), shift=(0.0, 0.3, 0.0)):
    """Ranks in posteriors whose widths are off by a factor and centres by a shift in sigma."""
    z = np.random.default_rng(seed).normal(size=(count, 3))
    return norm.cdf((z - np.array(shift)) / np.array(factor))


def test_levels_hold_the_shares_that_they_name_on_new_simulations():
    levels = corrected_levels(fractions(20_000, 1), QUANTILES)
    assert levels.shape == (3, 5)
    np.testing.assert_allclose(levels[0], QUANTILES, atol=0.012)
    exact = norm.cdf((norm.ppf(QUANTILES) - 0.3) / 0.8)
    np.testing.assert_allclose(levels[1], exact, atol=0.012)
    new = fractions(20_000, 2)
    before, after = central_coverage(new, np.tile(QUANTILES, (3, 1))), central_coverage(new, levels)
    assert before[1, 1] < 0.58
    assert before[2, 1] > 0.78
    np.testing.assert_allclose(after, np.tile([0.95, 0.68], (3, 1)), atol=0.012)
    np.testing.assert_allclose(cross_validated_coverage(new, QUANTILES), np.tile([0.95, 0.68], (3, 1)), atol=0.012)


def test_the_kth_of_n_values_is_at_k_over_n_plus_one():
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))[:, None] / 100
    np.testing.assert_allclose(corrected_levels(shuffled, (0.16, 0.5, 0.84))[0], [0.16, 0.5, 0.84])
    by_hand = central_coverage([[0.1], [0.5], [0.9], [0.95]], [[0.05, 0.4, 0.5, 0.6, 0.92]])
    assert by_hand.tolist() == [[0.75, 0.25]]


def test_percentiles_at_levels_of_their_own_are_those_of_each_parameter():
    prior = Prior()
    u = np.sort(np.random.default_rng(3).normal(0, 2, size=(4, 5, 301)).astype(np.float32), axis=-1)
    levels = np.sort(np.random.default_rng(4).random((5, 3)), axis=1)
    together = ordered_quantiles(u, levels, prior)
    for k in range(5):
        np.testing.assert_array_equal(together[:, k], ordered_quantiles(u, levels[k], prior)[:, k])
    same = np.tile(QUANTILES, (5, 1))
    np.testing.assert_array_equal(ordered_quantiles(u, same, prior), ordered_quantiles(u, QUANTILES, prior))


def test_too_few_simulations_are_refused():
    with pytest.raises(ConfigError, match="at least 1000 simulations, found 200"):
        load_config(None, ["map.recalibrate=200"])
    assert load_config(None, ["map.recalibrate=1000"]).map.recalibrate == 1000
