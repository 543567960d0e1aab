from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from digs_survey.sps.grid import calzetti_curve, delayed_tau_weights
from digs_survey.sps.sampling import lagrange_matrix, projection_matrix

FSPS_AGES = np.linspace(5.0, 10.3, 107)


def weights_by_quad(log_age, tage, tau):
    """The weights' definition, integrated adaptively."""
    age = 10 ** (log_age - 9)
    formed = quad(lambda t: t * np.exp(-t / tau), 0, tage, epsabs=0, epsrel=1e-12, limit=500)[0]

    def rate(a):
        return (tage - a) * np.exp(-(tage - a) / tau) / formed

    def hat(i, a):
        return np.interp(np.log10(a) + 9, log_age, np.eye(log_age.size)[i])

    weights = np.zeros(log_age.size)
    edges = np.concatenate([[0.0], age, [np.inf]])
    for low, high in zip(edges[:-1], np.minimum(edges[1:], tage), strict=True):
        if low >= tage:
            break
        for i in range(log_age.size):
            if hat(i, np.sqrt(max(low, 1e-12) * high)) > 0:
                part = quad(lambda a, i=i: rate(a) * hat(i, max(a, 1e-12)), low, high, epsabs=0, epsrel=1e-11)
                weights[i] += part[0]
    return weights


@pytest.mark.parametrize(
    ("tage", "tau"),
    [
        (1.63, 0.11),
        (0.01, 10.0),
        (4.0, 0.1),
        (13.7, 0.1),
        (10 ** (FSPS_AGES[60] - 9), 1.0),
        (5e-5, 1.0),
        (25.0, 3.0),
    ],
)
def test_weights_are_integrals_of_the_sfr(tage, tau):
    weights = delayed_tau_weights(FSPS_AGES, tage, tau)
    np.testing.assert_allclose(weights, weights_by_quad(FSPS_AGES, tage, tau), rtol=0, atol=1e-8)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert not weights[1:][FSPS_AGES[:-1] > np.log10(tage) + 9].any()


def test_weights_refuse_impossible_histories():
    with pytest.raises(ValueError, match="positive tage and tau"):
        delayed_tau_weights(FSPS_AGES, 0.0, 1.0)


def test_calzetti_curve():
    """Points of Calzetti et al. (2000), eq. 4, over R_V = 4.05, and unity at 5500 Angstrom."""
    assert calzetti_curve(5500.0) == pytest.approx(1, abs=2e-3)
    assert calzetti_curve(1500.0) == pytest.approx(10.33 / 4.05, rel=2e-3)
    assert calzetti_curve(10000.0) == pytest.approx((2.659 * (-1.857 + 1.04) + 4.05) / 4.05, rel=5e-3)
    assert (np.diff(calzetti_curve(np.arange(1000.0, 20000.0, 50.0))) < 0).all()


def test_a_projected_line_keeps_its_moments():
    """What is projected to coarse nodes has, once smoothed, the flux and the place of the original."""
    nodes = np.geomspace(6000, 7000, 512)
    log, step = np.log(nodes), np.log(nodes[1] / nodes[0])
    place = 6564.6
    weights = lagrange_matrix(nodes, np.array([place])).toarray()[0]
    sigma = 3.9 * step
    smoothed = np.exp(-0.5 * ((log[:, None] - log) / sigma) ** 2) @ weights
    exact = np.exp(-0.5 * ((log - np.log(place)) / sigma) ** 2)
    np.testing.assert_allclose(smoothed, exact, atol=2e-4)


def test_projection_conserves_flux():
    nodes = np.geomspace(5000, 6000, 400)
    wave = np.arange(4900.0, 6100.0, 0.7)
    flux = np.exp(-0.5 * ((wave - 5432.1) / 1.0) ** 2)
    coarse = projection_matrix(nodes, wave) @ flux
    spacing = np.log(nodes[1] / nodes[0]) * nodes
    assert (coarse * spacing).sum() == pytest.approx(np.trapezoid(flux, wave), rel=1e-3)
    assert (coarse * spacing * nodes).sum() / (coarse * spacing).sum() == pytest.approx(5432.1, abs=0.01)
