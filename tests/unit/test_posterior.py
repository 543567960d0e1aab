"""The frozen posterior: exact against sbi, normalised over the prior, the same bytes everywhere."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from estimators import GRID, freeze, simulations, small_config
from noises import KINDS, Case
from scipy.stats import multivariate_normal

from digs_survey.errors import CatalogError, RunDirectoryError
from digs_survey.estimator.artefact import update_card
from digs_survey.estimator.loop import prepare_estimator
from digs_survey.estimator.posterior import FrozenPosterior, base_points
from digs_survey.estimator.sampler import MaskedFlow
from digs_survey.simulate.noise import NoiseModel
from digs_survey.spectra import WavelengthGrid


@pytest.fixture(scope="module")
def config():
    return small_config()


@pytest.fixture(scope="module")
def estimator(config):
    built = prepare_estimator(config, *simulations(config), NoiseModel.from_config(config.noise))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.5)
    return built


@pytest.fixture(scope="module")
def posterior(tmp_path_factory, config, estimator):
    return freeze(tmp_path_factory.mktemp("model"), config, estimator)


@pytest.fixture(scope="module")
def flux(config):
    return simulations(config, count=6, seed=4)[1]


@torch.no_grad()
@pytest.mark.parametrize("overrides", [(), ("train.blocks=1", "train.embedding=none"), ("train.hidden_features=5",)])
def test_inverse_and_density_are_those_of_sbi(overrides):
    config = small_config(*overrides)
    built = prepare_estimator(config, *simulations(config), NoiseModel.from_config(config.noise))
    for parameter in built.parameters():
        parameter.mul_(1.5)
    context = built.flow.net._embedding_net(torch.randn(2, built.features.size))
    base = torch.as_tensor(base_points(256, 5, seed=1).copy())
    ours = MaskedFlow.from_sbi(built.flow)
    repeated = base.T.repeat(2, 1), context.repeat_interleave(256, 0)
    expected, log_det = built.flow.net._transform.inverse(*repeated)
    drawn = torch.cat([ours.inverse(base, row).T for row in context])
    assert torch.allclose(drawn, expected, atol=1e-4)
    density = torch.cat([ours.log_prob(block.T, row) for block, row in zip(drawn.split(256), context, strict=True)])
    standard = torch.distributions.Normal(0, 1).log_prob(repeated[0]).sum(1)
    assert torch.allclose(density, standard - log_det, atol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_noise_comes_back_whole(tmp_path, config, estimator, name):
    case = Case(name, len(GRID), missing={"probability": 0.5, "stretches": 2, "elements": [2, 6]})
    config = config.model_copy(update={"noise": case.noise.config})
    FrozenPosterior.freeze(tmp_path, [estimator], config, GRID, case.noise, training={})
    noise = FrozenPosterior.load(tmp_path).noise
    assert noise.config == case.noise.config
    flux = np.broadcast_to(case.flux, (50, len(GRID)))
    drawn, again = (model.draw(flux, np.random.default_rng(1)) for model in (case.noise, noise))
    np.testing.assert_allclose(again, drawn, rtol=1e-5)
    found, expected = (model.log_likelihood(drawn, flux, errors=case.errors) for model in (noise, case.noise))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_log_prob_is_that_of_the_estimator_with_the_jacobian(config, estimator, posterior, flux):
    prior = config.make_prior()
    theta = prior.from_unit_cube(np.random.default_rng(1).random((6, 5)))
    u = prior.to_unconstrained(theta)
    with torch.no_grad():
        in_u = estimator.log_prob(torch.as_tensor(u, dtype=torch.float32), torch.as_tensor(flux)).numpy()
    found = posterior.log_prob(theta[:, None], flux)[:, 0]
    assert np.allclose(found, in_u - prior.log_abs_det_jacobian(u), atol=1e-3)


def weighted_points(posterior, spectrum, count=100_000):
    """Points of theta from a wide Gaussian in u, and the weights that make them follow exp(log_prob)."""
    prior = posterior.prior
    u = prior.to_unconstrained(posterior.sample(spectrum, 2048)[0])
    proposal = multivariate_normal(u.mean(0), 2.5 * np.cov(u, rowvar=False), seed=1)
    points = proposal.rvs(count)
    theta = prior.from_unconstrained(points)
    density = posterior.log_prob(theta[None], spectrum)[0] + prior.log_abs_det_jacobian(points)
    return theta, np.exp(density - proposal.logpdf(points))


def test_density_integrates_to_one_over_the_prior(posterior, flux):
    _, weights = weighted_points(posterior, flux[:1])
    error = weights.std() / np.sqrt(weights.size)
    assert error < 0.02
    assert abs(weights.mean() - 1) < 4 * error


def test_draws_follow_the_density(posterior, flux):
    theta, weights = weighted_points(posterior, flux[:1])
    draws = posterior.sample(flux[:1], 4096)[0]
    for i in range(5):
        for level in (0.1, 0.5, 0.9):
            below = theta[:, i] < np.quantile(draws[:, i], level)
            assert abs(weights[below].sum() / weights.sum() - level) < 0.02


def test_no_draw_leaves_the_prior_whatever_the_spectrum(posterior, config):
    prior = config.make_prior()
    odd = np.stack([np.full(20, 1e-30), np.full(20, 1e30), np.geomspace(1e-20, 1e5, 20), np.ones(20)])
    draws = posterior.sample(odd, 500)
    assert np.isfinite(draws).all()
    assert (draws >= prior.low).all()
    assert (draws <= prior.high).all()
    assert posterior.outside_training(odd).all()


def test_a_row_does_not_depend_on_its_neighbours_or_its_place(posterior, flux):
    whole = posterior.sample(flux, 300)
    assert np.array_equal(posterior.sample(flux[::-1], 300)[::-1], whole)
    assert np.array_equal(posterior.sample(flux[3:4], 300)[0], whole[3])
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(posterior.sample(flux[:1], 300, seed=1)[0], whole[0])


def test_a_fresh_process_gives_the_same(tmp_path, posterior, config, estimator, flux):
    freeze(tmp_path, config, estimator)
    np.save(tmp_path / "flux.npy", flux)
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from digs_survey.estimator.posterior import FrozenPosterior\n"
        "p = Path(sys.argv[1]); q = FrozenPosterior.load(p); x = np.load(p / 'flux.npy')\n"
        "d = q.sample(x, 128); np.save(p / 'draws.npy', d); np.save(p / 'log_prob.npy', q.log_prob(d, x))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    draws = posterior.sample(flux, 128)
    assert np.array_equal(np.load(tmp_path / "draws.npy"), draws)
    assert np.abs(np.load(tmp_path / "log_prob.npy") - posterior.log_prob(draws, flux)).max() < 1e-6


def test_damage_is_found_and_named(tmp_path, config, estimator):
    freeze(tmp_path, config, estimator)
    update_card(tmp_path, calibration={"note": "does not decide results"})
    assert FrozenPosterior.load(tmp_path).card["calibration"]
    card = json.loads((tmp_path / "card.json").read_text())
    card["parameters"][0]["high"] = 14.0
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(RunDirectoryError, match="do not match the hash"):
        FrozenPosterior.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RunDirectoryError, match="expected model.safetensors"):
        FrozenPosterior.load(tmp_path)


def test_no_pickle_in_the_artefact(tmp_path, config, estimator):
    freeze(tmp_path, config, estimator)
    assert {p.name for p in tmp_path.iterdir()} == {"card.json", "model.safetensors"}


def test_another_grid_is_refused_naming_both(posterior):
    with pytest.raises(
        CatalogError, match=r"20 elements, 4000 to 4950(.|\n)*21 elements|21 elements(.|\n)*20 elements"
    ):
        posterior.check_grid(WavelengthGrid(np.arange(4000.0, 5050.0, 50.0)))
