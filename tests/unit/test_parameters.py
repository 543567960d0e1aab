"""The prior: one definition for simulation, Prospector, sbi and emcee."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from digs_survey.prior import Prior

PRIOR = Prior({"tage": (0.5, 2.0)})


def test_unconstrained_coordinates_are_a_bijection_with_this_jacobian():
    theta = PRIOR.from_unit_cube(np.random.default_rng(0).uniform(0.01, 0.99, (50, 5)))
    u = PRIOR.to_unconstrained(theta)
    assert np.allclose(PRIOR.from_unconstrained(u), theta, rtol=1e-12)
    step = 1e-6
    slope = (PRIOR.from_unconstrained(u + step) - PRIOR.from_unconstrained(u - step)) / (2 * step)
    assert np.allclose(np.log(slope).sum(1), PRIOR.log_abs_det_jacobian(u), atol=1e-6)


def test_edges_stay_inside():
    edges = np.stack([PRIOR.low, PRIOR.high])
    assert np.isfinite(PRIOR.to_unconstrained(edges)).all()
    back = PRIOR.from_unconstrained(np.array([[-800.0] * 5, [800.0] * 5]))
    assert np.array_equal(back, edges)


def test_density():
    assert PRIOR.log_prob(PRIOR.low) == pytest.approx(-np.log((PRIOR.high - PRIOR.low).prod()))
    outside = np.tile(PRIOR.low, (2, 1))
    outside[0, 3] = 2.01
    outside[1, 0] = np.nan
    assert np.isneginf(PRIOR.log_prob(outside)).all()


def test_prospector_and_sbi_have_the_same_prior():
    inside, outside = np.array([10.0, -1.0, 0.5, 1.0, 0.0]), np.array([10.0, -1.0, 0.5, 2.5, 0.0])
    for theta in (inside, outside):
        parts = [prior(value) for prior, value in zip(PRIOR.prospector_priors().values(), theta, strict=True)]
        assert np.sum(parts) == pytest.approx(PRIOR.log_prob(theta))
        ours = PRIOR.torch_distribution().log_prob(torch.as_tensor(theta, dtype=torch.float32))
        assert float(ours) == pytest.approx(float(PRIOR.log_prob(theta)), rel=1e-6)


def test_round_trip():
    assert Prior.from_dict(PRIOR.to_dict()) == PRIOR
    assert Prior() != PRIOR
