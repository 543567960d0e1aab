from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import genpareto

from digs_survey.importance.psis import fit_pareto, smooth_tail, tail_length


@pytest.mark.parametrize("k", [-0.4, 0.0, 0.3, 0.7, 1.5])
def test_fit_finds_the_shape_and_scale_of_known_tails(k):
    samples = [np.sort(genpareto(k, scale=3.0).rvs(2000, random_state=seed)) for seed in range(10)]
    found = np.array([fit_pareto(x) for x in samples])
    # The maximum-likelihood estimator's standard deviations are (1 + k) / sqrt(n) and sigma sqrt(2 (1 + k) / n).
    error = np.array([(1 + k), 3.0 * np.sqrt(2 * (1 + k))]) / np.sqrt(2000 * 10)
    assert (np.abs(found.mean(axis=0) - [k, 3.0]) < 4 * error).all()
    scaled = fit_pareto(1e-30 * samples[0])
    assert scaled == pytest.approx(found[0] * [1, 1e-30], rel=1e-6)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_tail_of_weights_with_a_known_number_of_moments(k):
    """P(w > t) = t^(-1/k) has a tail of shape k; what is found is drawn a little to 0.5."""
    draws = 20_000
    log_w = [k * -np.log(np.random.default_rng(seed).uniform(size=draws)) for seed in range(10)]
    found = np.mean([smooth_tail(row)[1] for row in log_w])
    tail = tail_length(draws)
    assert found == pytest.approx((tail * k + 5) / (tail + 10), abs=4 * (1 + k) / np.sqrt(10 * tail))


def test_smoothing_keeps_the_body_the_order_and_the_largest_weight():
    log_w = np.random.default_rng(1).standard_normal(1000) * 3 - 4000
    smoothed, _ = smooth_tail(log_w)
    order = np.argsort(log_w)
    assert tail_length(1000) == 95
    assert np.array_equal(smoothed[order[:-95]], log_w[order[:-95]])
    assert (np.diff(smoothed[order]) >= 0).all()
    assert smoothed.max() <= log_w.max()
    assert not np.array_equal(smoothed, log_w)


def test_smoothed_averages_have_smaller_errors_where_tails_are_heavy():
    """Means of w = x^(-k) for uniform x, whose expectation is 1 / (1 - k)."""
    k = 0.6
    log_w = -k * np.log(np.random.default_rng(2).uniform(size=(400, 1000)))
    raw = np.exp(log_w).mean(axis=1)
    smoothed = np.array([np.exp(smooth_tail(row)[0]).mean() for row in log_w])
    truth = 1 / (1 - k)
    assert np.sqrt(((smoothed - truth) ** 2).mean()) < np.sqrt(((raw - truth) ** 2).mean())


def test_weights_without_a_tail_to_fit():
    flat = np.full(1000, 7.0)
    smoothed, k = smooth_tail(flat)
    assert k == 0
    assert np.array_equal(smoothed, flat)
    assert smooth_tail(np.arange(20.0))[1] == np.inf
    # One weight is all; the others vanish beside it.
    alone = np.append(np.zeros(999), 1e6)
    smoothed, k = smooth_tail(alone)
    assert k == np.inf
    assert np.array_equal(smoothed, alone)
    for span in (1e2, 1e3, 5e3, 7.4e3, 1e4):
        assert smooth_tail(np.linspace(-span, 0, 1000))[1] > 0.7
    assert np.isfinite(smooth_tail(np.append(np.full(990, -np.inf), np.zeros(10)))[0][-10:]).all()
