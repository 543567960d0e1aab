"""The audit's own proposals against densities computed the long way."""

import numpy as np
import pytest
from scipy.stats import multivariate_t

from digs_survey.audit.mcmc.moves import KernelMove


def test_the_ratio_of_proposals_is_that_of_student_kernels_about_the_other_walkers():
    rng = np.random.default_rng(0)
    mix = np.array([[1.0, 0.0, 0.0], [0.9, 0.2, 0.0], [-3.0, 0.5, 1e-3]])
    complement = [rng.normal(size=(7, 3)) @ mix.T + 10, rng.normal(size=(6, 3)) @ mix.T + 10]
    here = rng.normal(size=(13, 3)) @ mix.T + 10
    there, log_ratio = KernelMove().get_proposal(here, complement, np.random.RandomState(1))
    others = np.concatenate(complement)
    covariance = 13 ** (-2 / 7) * np.cov(others.T)

    def density(theta):
        return sum(multivariate_t(loc=node, shape=covariance, df=8).pdf(theta) for node in others)

    assert there.shape == here.shape
    np.testing.assert_allclose(log_ratio, np.log(density(here) / density(there)), atol=1e-6)


def test_proposals_are_drawn_from_the_density_that_they_are_weighed_with():
    rng = np.random.default_rng(0)
    others, here = rng.normal(size=(8, 2)), np.zeros((100_000, 2))
    there, _ = KernelMove().get_proposal(here, [others], np.random.RandomState(1))
    covariance = 8 ** (-2 / 6) * np.cov(others.T)
    # Of a mixture of Student distributions with 8 degrees of freedom.
    expected = np.cov(others.T, bias=True) + covariance * 8 / 6
    np.testing.assert_allclose(there.mean(axis=0), others.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(np.cov(there.T), expected, atol=0.04)


def test_a_walker_far_from_all_others_has_a_ratio():
    others, far = np.random.default_rng(0).normal(size=(16, 5)), np.full((4, 5), 1e6)
    _, log_ratio = KernelMove().get_proposal(far, [others], np.random.RandomState(1))
    assert np.isfinite(log_ratio).all()
    assert (log_ratio < -100).all()


def test_walkers_in_one_plane_are_an_error():
    flat = np.column_stack([np.random.default_rng(0).normal(size=(16, 2)), np.zeros(16)])
    with pytest.raises(np.linalg.LinAlgError):
        KernelMove().get_proposal(flat, [flat], np.random.RandomState(1))


def test_ensembles_of_emcee_take_it():
    import emcee

    sampler = emcee.EnsembleSampler(
        16, 2, lambda theta: -0.5 * (theta**2).sum(axis=-1), moves=KernelMove(), vectorize=True
    )
    sampler.run_mcmc(np.random.default_rng(0).normal(size=(16, 2)), 3000)
    assert sampler.get_chain(flat=True).std() == pytest.approx(1, abs=0.03)
