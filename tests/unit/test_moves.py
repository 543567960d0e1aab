"""The audit's own proposals against densities computed the long way."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, multivariate_t

from digs_survey.audit.mcmc.chain import run_chain
from digs_survey.audit.mcmc.moves import KernelMove, NeuralMove, Proposals, moves
from digs_survey.config import MCMCConfig


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


class Neural:
    """A neural posterior that is a Gaussian, off the exact one in place and width."""

    centre, width = np.array([0.5, -0.3]), 1.5

    def sample(self, flux, draws, seed, *, base, rows):
        assert (base, flux.shape) == ("random", (1, 4))
        rng = np.random.default_rng([seed, *rows])
        return (self.centre + self.width * rng.normal(size=(draws, 2)))[None]

    def log_prob(self, theta, flux, *, normalised):
        assert theta.ndim == 3
        return multivariate_normal(self.centre, self.width**2).logpdf(theta[0])[None] + 7.0


def proposals(seed, row=3):
    return Proposals(Neural(), np.ones(4), row, seed)


def test_the_ratio_of_neural_proposals_is_that_of_the_neural_posterior():
    here = np.random.default_rng(0).normal(size=(5, 2))
    there, log_ratio = NeuralMove(proposals(1)).get_proposal(here, [here], np.random.RandomState(1))
    density = multivariate_normal(Neural.centre, Neural.width**2)
    np.testing.assert_allclose(log_ratio, density.logpdf(here) - density.logpdf(there))


def test_neural_proposals_are_new_ones_of_their_row_and_seed():
    first, again = proposals(1), proposals(1)
    drawn = first.draw(5_000)
    np.testing.assert_array_equal(drawn, again.draw(5_000))
    assert len(np.unique(drawn[:, 0])) == 5_000
    assert not np.isin(first.draw(10), drawn).any()
    assert not np.isin(proposals(2).draw(10), drawn).any()
    assert not np.isin(proposals(1, row=4).draw(10), drawn).any()


def test_chains_with_neural_proposals_sample_the_exact_density():
    config = MCMCConfig(walkers=16, burn_in=(50,), steps=2_000, max_steps=2_000, moves="neural")
    start = np.random.default_rng(0).normal(size=(16, 2))
    chain = run_chain(lambda theta: -0.5 * (theta**2).sum(axis=-1), [start], config, 1, proposals)
    np.testing.assert_allclose(chain.draws.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(chain.draws.std(axis=0), 1, atol=0.03)


def test_neural_moves_without_a_neural_posterior_are_an_error():
    with pytest.raises(ValueError, match="needs the galaxy's neural posterior"):
        moves("neural")
