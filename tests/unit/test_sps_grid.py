from __future__ import annotations

import numpy as np
import pytest

from digs_survey.sps.grid import calzetti_curve
from digs_survey.sps.sampling import lagrange_matrix, projection_matrix


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
