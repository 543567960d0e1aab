"""Importance weights on a problem whose posterior and evidence are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import (
    effective_sample_size,
    log_evidence,
    log_ratios,
    weigh,
    weighted_quantiles,
)
from digs_survey.infer.quantiles import draw_quantiles

NDIM, ELEMENTS, SIGMA = 3, 12, 0.2
DESIGN = np.random.default_rng(0).normal(size=(NDIM, ELEMENTS))
OFFSET = 20.0


class LinearModel:
    """x = theta A + c."""

    def spectra(self, theta):
        return theta @ DESIGN + OFFSET


class WhiteNoise:
    def log_likelihood(self, observed, model, good, errors):
        return np.where(good, norm.logpdf(observed, model, SIGMA), 0.0).sum(axis=-1)


class NormalPrior:
    """A standard normal in every parameter."""

    ndim = NDIM

    def log_prob(self, theta):
        return norm.logpdf(theta).sum(axis=-1)


class WidenedPosterior:
    """The exact posterior of the linear problem, widened by a factor about its mean."""

    prior = NormalPrior()

    def __init__(self, good, widen=1.0, shift=0.0):
        design = DESIGN[:, good]
        self.good, self.widen = good, widen
        self.covariance = np.linalg.inv(np.eye(NDIM) + design @ design.T / SIGMA**2)
        self.gain = self.covariance @ design / SIGMA**2
        self.root = np.linalg.cholesky(self.covariance)
        self.shift = shift * self.root @ np.eye(NDIM)[0]

    def mean(self, flux):
        return (flux[..., self.good] - OFFSET) @ self.gain.T

    def sample(self, flux, draws, seed=0):
        normal = np.random.default_rng(seed).normal(size=(len(flux), draws, NDIM))
        return (self.mean(flux) + self.shift)[:, None] + self.widen * normal @ self.root.T

    def log_prob(self, theta, flux, *, normalised=True):
        centre = self.mean(flux) + self.shift
        scaled = multivariate_normal(np.zeros(NDIM), self.widen**2 * self.covariance)
        return np.stack([scaled.logpdf(row - middle) for row, middle in zip(theta, centre, strict=True)])


def observations(count=6, seed=1):
    rng = np.random.default_rng(seed)
    flux = LinearModel().spectra(rng.normal(size=(count, NDIM))) + SIGMA * rng.normal(size=(count, ELEMENTS))
    return flux, np.arange(ELEMENTS) % 5 != 3


def exact_log_evidence(flux, good):
    design = DESIGN[:, good]
    covariance = design.T @ design + SIGMA**2 * np.eye(good.sum())
    return multivariate_normal(np.full(good.sum(), OFFSET), covariance).logpdf(flux[:, good])


def weights(widen, draws, shift=0.0):
    flux, good = observations()
    # What a masked element holds must not matter to the likelihood.
    flux[:, ~good] = 1e6
    posterior = WidenedPosterior(good, widen, shift)
    theta = posterior.sample(flux, draws)
    masks = np.broadcast_to(good, flux.shape)
    likelihood = SpectrumLikelihood(LinearModel(), WhiteNoise())
    return theta, log_ratios(posterior, likelihood, theta, flux, masks), flux, good, posterior


def test_weights_are_the_evidence_where_the_proposal_is_the_posterior():
    theta, log_w, flux, good, posterior = weights(1.0, 500)
    assert log_w == pytest.approx(np.repeat(exact_log_evidence(flux, good)[:, None], 500, axis=1), abs=1e-8)
    result = weigh(theta, log_w, (0.16, 0.5, 0.84))
    np.testing.assert_allclose(result.ess, 500, rtol=1e-6)
    np.testing.assert_allclose(result.log_evidence, exact_log_evidence(flux, good), atol=1e-8)
    assert (result.log_evidence_error < 1e-6).all()
    assert (result.pareto_k == 0).all()
    np.testing.assert_allclose(result.percentiles, draw_quantiles(theta, (0.16, 0.5, 0.84)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widen", [0.8, 1.2, 1.5, 2.0])
def test_effective_sample_size_is_what_theory_says(widen):
    """1 / E_q[(p/q)^2] = (sqrt(2 s^2 - 1) / s^2)^D for a Gaussian proposal widened by s."""
    draws = 40_000
    _, log_w, *_ = weights(widen, draws)
    expected = (np.sqrt(2 * widen**2 - 1) / widen**2) ** NDIM
    # Below 1 the weights' fourth moment is infinite, and the sample size settles slowly.
    assert effective_sample_size(log_w) / draws == pytest.approx(expected, rel=0.15 if widen < 1 else 0.02)


@pytest.mark.parametrize("widen", [0.8, 1.3])
def test_evidence_and_its_error(widen):
    """Pulls of 6 galaxies and 40 blocks of draws each: mean 0, scatter 1."""
    _, log_w, flux, good, _ = weights(widen, 40_000)
    value, error = log_evidence(log_w.reshape(6, 40, 1000))
    pull = (value - exact_log_evidence(flux, good)[:, None]) / error
    assert abs(pull.mean()) < 4 / np.sqrt(pull.size)
    assert 0.85 < pull.std() < 1.15


def test_percentiles_are_those_of_the_exact_posterior_though_the_draws_are_not():
    quantiles = (0.16, 0.5, 0.84)
    theta, log_w, flux, _, posterior = weights(1.5, 100_000, shift=0.5)
    scale = np.sqrt(np.diag(posterior.covariance))
    exact = posterior.mean(flux)[..., None] + scale[:, None] * norm.ppf(quantiles)
    assert np.abs(draw_quantiles(theta, quantiles) - exact).max() > 0.3 * scale.min()
    found = weigh(theta, log_w, quantiles)
    assert (np.abs(found.percentiles - exact) < 0.05 * scale[:, None]).all()
    assert (found.pareto_k < 0.7).all()


def test_a_narrow_or_shifted_proposal_shows():
    def figures(widen, shift=0.0):
        theta, log_w, *_ = weights(widen, 2000, shift)
        result = weigh(theta, log_w, (0.5,))
        return np.median(result.ess) / 2000, np.median(result.pareto_k)

    (right, right_k), (narrow, narrow_k), (narrower, narrower_k) = figures(1.0), figures(0.8), figures(0.5)
    assert right > 0.999 > 0.75 > narrow > narrower
    # The tail's shape is 1 - s^2 in the limit of many draws; at 0.5 the weights have no variance.
    assert right_k < 0.05 < 0.25 < narrow_k < 0.7 < narrower_k
    assert figures(1.0, shift=1.5)[0] < 0.3


def test_quantiles_of_equal_weights_are_those_of_draws():
    theta = np.random.default_rng(3).normal(size=(997, 5)) + 1e3
    wanted = (0.0, 0.025, 0.16, 0.5, 0.84, 0.999, 1.0)
    found = weighted_quantiles(theta, np.full(997, -3.0), wanted)
    np.testing.assert_allclose(found, draw_quantiles(theta[None], wanted)[0], rtol=0, atol=1e-10)


def test_quantiles_of_draws_without_weight_and_of_repeated_draws():
    rng = np.random.default_rng(4)
    theta, log_w = rng.normal(size=(500, 2)), rng.normal(size=500)
    wanted = (0.1, 0.5, 0.9)
    found = weighted_quantiles(theta, log_w, wanted)
    padded = np.concatenate([theta, np.full((50, 2), 99.0)])
    np.testing.assert_allclose(weighted_quantiles(padded, np.append(log_w, np.full(50, -np.inf)), wanted), found)
    order = rng.permutation(500)
    np.testing.assert_allclose(weighted_quantiles(theta[order], log_w[order], wanted), found, atol=1e-12)
    whole = rng.integers(1, 4, 500)
    drawn = np.quantile(np.repeat(theta, whole, axis=0), wanted, axis=0).T
    np.testing.assert_allclose(weighted_quantiles(theta, np.log(whole), wanted), drawn, atol=0.02)


def test_a_galaxy_without_weights_has_no_figures_and_the_others_keep_theirs():
    rng = np.random.default_rng(5)
    theta, log_w = rng.normal(size=(5, 400, 2)), rng.normal(size=(5, 400)) - 3000
    alone = weigh(theta[4:], log_w[4:], (0.5,))
    log_w[0], log_w[1, 3], log_w[2, 3] = -np.inf, np.nan, np.inf
    log_w[3, :10] = -np.inf
    result = weigh(theta, log_w, (0.5,))
    for name, value in vars(result).items():
        lost = np.isnan(value).reshape(5, -1)
        assert lost.all(axis=1).tolist() == lost.any(axis=1).tolist() == [True] * 3 + [False] * 2
        assert value[4:].tobytes() == getattr(alone, name).tobytes()
