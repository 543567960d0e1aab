import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import wasserstein_distance

from digs_survey.audit.mcmc.distances import (
    classifier_accuracy,
    sliced_distance,
    wasserstein_sigma,
    weighted_wasserstein_sigma,
)

RNG = np.random.default_rng(0)
ROOT = np.linalg.cholesky([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 9.0]])


def sample(count, seed, shift=(0.0, 0.0, 0.0), scale=1.0):
    return np.asarray(shift) + scale * np.random.default_rng(seed).normal(size=(count, 3)) @ ROOT.T


def test_wasserstein_is_the_shift_and_the_difference_of_widths():
    base = sample(20_000, 1)
    np.testing.assert_allclose(wasserstein_sigma(base, sample(20_000, 2)), 0, atol=0.04)
    shifted = wasserstein_sigma(sample(20_000, 3, shift=(0.5, 0.0, 3.0)), base)
    np.testing.assert_allclose(shifted, [0.5, 0, 1], atol=0.05)
    # The mean distance of a normal variate from its centre is sqrt(2 / pi) of its standard deviation.
    np.testing.assert_allclose(wasserstein_sigma(sample(20_000, 4, scale=1.5), base), 0.5 * 0.798, atol=0.05)


def test_weighted_draws_stand_for_the_posterior_that_their_weights_are_of():
    """Draws of a Gaussian, with the weights of one that is shifted, and of one that is narrower."""
    base = RNG.normal(size=(40_000, 2)) * [1.0, 5.0]
    first = base[:, 0]
    for shift, scale, expected in ((0.4, 1.0, 0.4), (0.0, 0.8, 0.798 * 0.25)):
        log_weights = 0.5 * first**2 - 0.5 * ((first - shift) / scale) ** 2
        np.testing.assert_allclose(weighted_wasserstein_sigma(base, log_weights), [expected, 0], atol=0.02)
        weights = np.exp(log_weights)
        exact = wasserstein_distance(first, first, v_weights=weights)
        assert weighted_wasserstein_sigma(base, log_weights)[0] * scale == pytest.approx(exact, rel=0.02)
        # The measure against a chain, were the chain drawn by these weights.
        chain = base[RNG.choice(len(base), 40_000, p=weights / weights.sum())]
        np.testing.assert_allclose(wasserstein_sigma(base, chain), [expected, 0], atol=0.03)
    np.testing.assert_array_equal(weighted_wasserstein_sigma(base, np.full(len(base), -7.0)).round(12), 0)


def test_sliced_distance_sees_what_marginals_do_not_and_no_units():
    base, same = sample(4000, 1), sample(4000, 2)
    lost = same.copy()
    lost[:, 0] = RNG.permutation(lost[:, 0])
    floor = sliced_distance(same, base, 7)
    assert 0 < floor < 2.5 / np.sqrt(4000)
    assert wasserstein_sigma(lost, base).max() < 0.1
    assert sliced_distance(lost, base, 7) > 10 * floor
    units = np.array([1e3, 1e-4, 7.0])
    assert sliced_distance(lost * units, base * units, 7) == pytest.approx(sliced_distance(lost, base, 7), rel=0.15)
    # A shift by r in three dimensions is one of r |cos|, r / 2 on average, along a direction.
    assert sliced_distance(same + 3 * ROOT[2], base, 7) == pytest.approx(3 * 0.5, rel=0.2)
    flat = base * [1, 1, 0]
    assert np.isnan(sliced_distance(flat, flat, 0))


def test_classifier_tells_apart_as_well_as_the_best_one_may():
    same = classifier_accuracy(sample(600, 1), sample(2000, 2), 3)
    assert same == pytest.approx(0.5, abs=0.05)
    shift = 2.0
    best = ndtr(shift / 2)
    found = classifier_accuracy(sample(1500, 4, shift=(0.0, 0.0, 3 * shift)), sample(1500, 5), 6)
    assert best - 0.07 < found < best + 0.03
    assert found == classifier_accuracy(sample(1500, 4, shift=(0.0, 0.0, 3 * shift)), sample(1500, 5), 6)
