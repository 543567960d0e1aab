from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from digs_survey.sps.history import AgeQuadrature, HistoryWeights, bin_weights, star_formation_rate

AGES = np.linspace(5.0, 10.3, 107)
RATES = {
    "delayed_tau": lambda t, tau: t * np.exp(-t / tau),
    "tau": lambda t, tau: np.exp(-t / tau),
    "constant": lambda t, tau: 1.0,
}


def hat(i, age):
    return np.interp(np.log10(max(age, 1e-12)) + 9, AGES, np.eye(AGES.size)[i])


def weights_by_quad(sfh, tage, tau, youngest=0.0):
    """The weights' definition, integrated adaptively."""
    rate = RATES[sfh]
    formed = quad(lambda a: rate(tage - a, tau), youngest, tage, epsabs=0, epsrel=1e-12, limit=500)[0]
    edges = np.concatenate([[0.0], 10 ** (AGES - 9), [np.inf]])
    weights = np.zeros(AGES.size)
    for low, high in zip(np.maximum(edges[:-1], youngest), np.minimum(edges[1:], tage), strict=True):
        if low >= high:
            continue
        for i in range(AGES.size):
            if hat(i, np.sqrt(max(low, 1e-12) * high)) > 0:
                part = quad(lambda a, i=i: rate(tage - a, tau) / formed * hat(i, a), low, high, epsabs=0, epsrel=1e-11)
                weights[i] += part[0]
    return weights


@pytest.mark.parametrize("sfh", RATES)
@pytest.mark.parametrize(
    ("tage", "tau"),
    [
        (1.63, 0.11),
        (0.01, 10.0),
        (4.0, 0.1),
        (13.7, 0.1),
        (10 ** (AGES[60] - 9), 1.0),
        (5e-5, 1.0),
        (25.0, 3.0),
    ],
)
def test_weights_are_integrals_of_the_sfr(sfh, tage, tau):
    weights = AgeQuadrature(AGES)(star_formation_rate(sfh, np.array([tau])), tage)
    np.testing.assert_allclose(weights, weights_by_quad(sfh, tage, tau), rtol=0, atol=1e-8)
    assert not weights[1:][AGES[:-1] > np.log10(tage) + 9].any()


def test_an_impossible_age_is_refused():
    with pytest.raises(ValueError, match="positive tage"):
        AgeQuadrature(AGES)(star_formation_rate("tau", np.array([1.0])), 0.0)


@pytest.mark.parametrize("sfh", RATES)
def test_many_histories_are_those_of_one_at_a_time(sfh):
    rng = np.random.default_rng(3)
    tage = np.concatenate([rng.uniform(0.01, 13.7, 200), [10 ** (AGES[60] - 9), 10 ** (AGES[-1] - 9), 5e-5]])
    tau = 10 ** rng.uniform(-1.0, 1, tage.size)
    found = HistoryWeights(AGES, 0.1)(star_formation_rate(sfh, tau), tage)
    one = AgeQuadrature(AGES)
    expected = [one(star_formation_rate(sfh, tau[i : i + 1]), tage[i]) for i in range(tage.size)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(("young", "old"), [(0.0, 4.0), (0.0, 7e-5), (0.03, 0.1), (1.0, 13.7), (0.012, 0.0121)])
def test_bins_are_pieces_of_a_constant_history(young, old):
    bins = [[np.log10(young * 1e9) if young else 0.0, np.log10(old * 1e9)]]
    np.testing.assert_allclose(
        bin_weights(AGES, bins)[0], weights_by_quad("constant", old, 1.0, young), rtol=0, atol=1e-8
    )


def test_what_is_older_than_the_last_node_counts_as_it():
    weights = bin_weights(AGES, [[10.4, 10.5], [9.0, 9.5]])
    assert weights[0, -1] == pytest.approx(1)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
