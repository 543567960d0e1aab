"""Draws and density of every kind of noise are one distribution, and it is the one that is stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from noises import KINDS, Case
from scipy import stats

from digs_survey.config import NoiseConfig
from digs_survey.noise.model import NoiseModel


@pytest.fixture(params=KINDS)
def case(request):
    return Case(request.param)


def fields(name: str, elements: int = 40, rows: int = 4000, **settings: object):
    case = Case(name, elements, **settings)
    flux = np.broadcast_to(case.flux, (rows, elements))
    return case, case.noise.draw(flux, np.random.default_rng(7))


def test_density_integrates_to_one(case):
    standard = np.linspace(-9, 9, 73)
    grid = np.stack([a.ravel() for a in np.meshgrid(standard, standard, standard)], axis=1)
    observed = case.observe(grid)
    volume = np.prod(case.width * (observed if case.logarithmic else np.ones(3)), axis=-1)
    density = np.exp(case.noise.log_likelihood(observed, case.flux, errors=case.errors))
    assert (density * volume).sum() * 0.25**3 == pytest.approx(1.0, abs=1e-6)


def test_density_is_the_normal_one_of_the_stated_covariance(case):
    rng = np.random.default_rng(0)
    observed, good = case.observe(rng.normal(size=(20, 3))), rng.random((20, 3)) > 0.3
    good[0], good[1] = True, False
    found = case.noise.log_likelihood(observed, case.flux, good, case.errors)
    for x, keep, value in zip(observed, good, found, strict=True):
        covariance = case.covariance()[np.ix_(keep, keep)]
        data, mean = (np.log(x), np.log(case.flux)) if case.logarithmic else (x, case.flux)
        expected = 0.0
        if keep.any():
            scale = case.width[keep]
            normal = stats.multivariate_normal(mean[keep] / scale, covariance / np.outer(scale, scale))
            expected = normal.logpdf(data[keep] / scale) - np.log(scale).sum()
            expected -= np.log(x[keep]).sum() if case.logarithmic else 0.0
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_draws_have_the_entropy_of_the_density(case):
    observed = case.noise.draw(np.broadcast_to(case.flux, (40_000, 3)), np.random.default_rng(1))
    surprise = -case.noise.log_likelihood(observed, case.flux, errors=case.errors)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * case.correlation)[1] + np.log(case.width).sum()
    # A lognormal's adds the mean of log x, which is that of the flux.
    entropy += np.log(case.flux).sum() if case.logarithmic else 0.0
    assert surprise.mean() == pytest.approx(entropy, abs=5 * surprise.std() / 200)


def test_draws_have_the_stated_covariance(case):
    observed = case.noise.draw(np.broadcast_to(case.flux, (200_000, 3)), np.random.default_rng(2))
    deviation = np.log(observed / case.flux) if case.logarithmic else observed - case.flux
    np.testing.assert_allclose(np.cov(deviation / case.width, rowvar=False), case.correlation, atol=0.012)
    np.testing.assert_allclose((deviation / case.width).mean(axis=0), 0.0, atol=0.012)


def test_sigma_is_half_the_central_68_percent(case):
    observed = case.noise.draw(np.broadcast_to(case.flux, (200_000, 3)), np.random.default_rng(2))
    low, high = np.quantile(observed, [0.158655, 0.841345], axis=0)
    np.testing.assert_allclose(case.noise.sigma(case.flux, case.errors), 0.5 * (high - low), rtol=0.012)


def test_residuals_of_the_truth_are_white_with_and_without_masks(case):
    observed = case.noise.draw(np.broadcast_to(case.flux, (100_000, 3)), np.random.default_rng(3))
    for good in ([True, True, True], [True, False, True]):
        residual = case.noise.residuals(observed, case.flux, good, case.errors)
        assert np.isnan(residual[:, ~np.array(good)]).all()
        covariance = np.cov(residual[:, good], rowvar=False)
        np.testing.assert_allclose(covariance, np.eye(sum(good)), atol=0.02)


def test_masked_elements_do_not_count(case):
    good = np.array([True, False, False])
    observed, model = case.flux * [1.05, np.nan, -1.0], case.flux * [1.0, np.nan, -2.0]
    first = None if case.errors is None else case.errors[:, :1]
    noise = case.noise
    if noise.config.sigma_flam:
        noise = NoiseModel.from_config(noise.config.model_copy(update={"sigma_flam": noise.config.sigma_flam[:1]}))
    alone = noise.log_likelihood(observed[:1], case.flux[:1], errors=first)
    assert np.isfinite(alone)
    assert case.noise.log_likelihood(observed, model, good, case.errors) == pytest.approx(float(alone), rel=1e-12)
    assert case.noise.log_likelihood(observed, model, [False] * 3, case.errors) == 0.0
    assert np.isnan(case.noise.log_likelihood(observed, case.flux, [True, True, False], case.errors))


def test_impossible_models_have_no_likelihood(case):
    for bad in (0.0, -1e-9, np.nan, np.inf):
        model = [case.flux[0], bad, case.flux[2]]
        assert case.noise.log_likelihood(case.flux, model, errors=case.errors) == -np.inf


def test_tensors_get_what_arrays_get(case):
    rng, flux = np.random.default_rng(3), np.broadcast_to(case.flux, (4, 3))
    normal, errors = rng.standard_normal((4, case.noise.normals(3))), None
    if case.noise.config.kind != "fractional":
        errors = case.noise.pick(rng.random(4))
    tensors = [None if a is None else torch.tensor(a, dtype=torch.float32) for a in (flux, normal, errors)]
    noisy = case.noise.perturb(*tensors)
    assert noisy.dtype == torch.float32
    np.testing.assert_allclose(noisy.numpy(), case.noise.perturb(flux, normal, errors), rtol=1e-5)
    sigma = case.noise.sigma(tensors[0], tensors[2])
    np.testing.assert_allclose(sigma.numpy(), case.noise.sigma(flux, errors), rtol=1e-5)


def test_noise_belongs_to_the_row(case):
    rng, flux = np.random.default_rng(4), np.broadcast_to(case.flux, (50, 3))
    uniform = rng.random((50, case.noise.columns(3)))
    whole = case.noise.from_uniform(flux, uniform)
    np.testing.assert_array_equal(case.noise.from_uniform(flux[20:30], uniform[20:30]), whole[20:30])
    assert len(np.unique(whole[:, 0])) == 50


@pytest.mark.parametrize(
    ("truth", "wrong"),
    [
        ({"kernel": [1.0, 0.3]}, {"kernel": [1.0]}),
        ({"kernel": [1.0, 0.3]}, {"kernel": [1.0, 0.2]}),
        ({"kernel": [1.0]}, {"kernel": [1.0, 0.1]}),
        ({"poisson_share": 0.6}, {"poisson_share": 0.4}),
        ({"poisson_share": 0.6}, {"poisson_share": None}),
        ({"poisson_share": 0.6}, {"fraction": 0.05}),
    ],
)
def test_chi_square_finds_a_wrong_kernel_or_poisson_share(truth, wrong):
    case, observed = fields("poisson-white", **truth)
    other = Case("poisson-white", 40, **truth | wrong)

    def pvalue(judge: Case) -> float:
        chi2 = (judge.noise.residuals(observed, case.flux, errors=judge.errors) ** 2).sum(axis=1)
        return stats.kstest(chi2, stats.chi2(40).cdf).pvalue

    assert pvalue(case) > 0.01
    assert pvalue(other) < 1e-4


def test_catalog_draws_pick_rows_of_the_table():
    table = np.array([[[0.0, 0.0], [1.0, 2.0]]])
    noise = NoiseModel.from_config(NoiseConfig(kind="catalog", fraction=1e-3), table)
    x = noise.draw(np.ones((20_000, 2)), np.random.default_rng(4)) - 1
    quiet = np.abs(x[:, 0]) < 0.006
    assert quiet.mean() == pytest.approx(0.5, abs=0.02)
    assert (np.abs(x[quiet, 1]) < 0.006).mean() > 0.98
    assert x[~quiet].std(axis=0) == pytest.approx([1.0, 2.0], rel=0.03)


@pytest.mark.parametrize("kind", ["catalog", "constant"])
def test_noise_of_a_catalog_needs_its_table(kind):
    noise = NoiseModel.from_config(NoiseConfig(kind=kind))
    with pytest.raises(ValueError, match="noise_table"):
        noise.draw(np.ones((1, 2)), np.random.default_rng(4))
    with pytest.raises(ValueError, match="errors_of"):
        noise.sigma(np.ones(2))
    with pytest.raises(ValueError, match=r"expected \(1, rows, wavelength\) .* \(2, 1, 5\)"):
        NoiseModel.from_config(NoiseConfig(kind=kind), np.ones((2, 1, 5)))


def test_one_number_is_constant_noise_of_every_element():
    noise = NoiseModel.from_config(NoiseConfig(kind="constant", sigma_flam=2e-8, fraction=0.0))
    for flux in (np.full((100_000, 2), 1e-9), np.full((100_000, 2), 1e-5)):
        assert noise.draw(flux, np.random.default_rng(0)).std(axis=0) == pytest.approx([2e-8] * 2, rel=0.01)
    assert noise.negative_share(np.full((5000, 4), 1e-9)) == pytest.approx(stats.norm.cdf(-0.05), abs=0.02)
    assert noise.negative_share(np.full((5000, 4), 1e-5)) == 0.0


@pytest.mark.parametrize("name", KINDS)
def test_an_observed_spectrum_knows_its_own_noise(name):
    """What is good is as it was drawn, what is not was filled; with the errors, ranks of residuals are right."""
    gaps = {"probability": 0.8, "stretches": 2, "elements": [2, 9]}
    case, whole = Case(name, 30, missing=gaps), Case(name, 30)
    flux = np.broadcast_to(case.flux, (2000, 30))
    uniform = np.random.default_rng(3).uniform(1e-9, 1, (2000, case.noise.columns(30)))
    noisy, good, errors = case.noise.observe(flux, uniform)
    drawn, all_good, _ = whole.noise.observe(flux, uniform[:, : whole.noise.columns(30)])
    np.testing.assert_array_equal(noisy, case.noise.from_uniform(flux, uniform))
    np.testing.assert_array_equal(noisy[good], drawn[good])
    assert all_good.all()
    assert (~good).any(axis=1).mean() == pytest.approx(0.8, abs=0.05)
    assert (noisy[~good] != drawn[~good]).mean() > 0.99
    residuals = case.noise.residuals(noisy, flux, good, errors)[good]
    assert abs(residuals.mean()) < 5 / np.sqrt(residuals.size)
    assert residuals.std() == pytest.approx(1, abs=0.02)
