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
from digs_survey.estimator.flows.points import base_points, row_points
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.jit import PLAIN
from digs_survey.noise.model import NoiseModel
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
def test_draws_are_those_of_sbi(posterior, estimator, flux):
    features = estimator.features(torch.as_tensor(flux))
    context = estimator.flow.net._embedding_net(features).repeat_interleave(256, 0)
    v = estimator.flow.net._transform.inverse(torch.tensor(base_points(256, 5, seed=1).T).repeat(6, 1), context)[0]
    centre, scale = estimator.features.centring(features)
    expected = v.reshape(6, 256, 5) * scale[:, None] + centre[:, None]
    found = posterior.sample_unconstrained(flux, 256, seed=1)
    assert np.allclose(found.transpose(0, 2, 1), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_noise_comes_back_whole(tmp_path, config, estimator, name):
    missing = {"probability": 0.5, "stretches": 2, "elements": [2, 6]}
    case = Case(name, len(GRID), config.train.flux_transform, missing=missing)
    config = config.model_copy(update={"noise": case.noise.config})
    freeze_posterior(tmp_path, [estimator], config, GRID, case.noise, training={})
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
    assert posterior.draw_and_judge(odd, 500)[1].all()


@pytest.fixture(params=["compiled", "plain"])
def loops(request, monkeypatch):
    monkeypatch.setenv(PLAIN, "1" if request.param == "plain" else "0")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("base", ["sobol", "random"])
def test_a_row_does_not_depend_on_its_neighbours_or_its_place(posterior, config, loops, threads, base):
    flux = simulations(config, count=150, seed=4)[1]
    rows = np.arange(1000, 1150)
    whole = posterior.sample(flux, 150, base=base, rows=rows)
    order = np.random.default_rng(1).permutation(150)
    assert np.array_equal(posterior.sample(flux[order], 150, base=base, rows=rows[order]), whole[order])
    for row in (3, 63, 64, 149):
        alone = slice(row, row + 1)
        assert np.array_equal(posterior.sample(flux[alone], 150, base=base, rows=rows[alone]), whole[alone])
    spoilt = flux.copy()
    spoilt[::2] = np.nan
    assert np.array_equal(posterior.sample(spoilt, 150, base=base, rows=rows)[1::2], whole[1::2])
    for number in (1, 3):
        threads(number)
        assert np.array_equal(posterior.sample(flux, 150, base=base, rows=rows), whole)
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(posterior.sample(flux[:1], 150, seed=1, base=base, rows=rows[:1])[0], whole[0])


def test_densities_do_not_depend_on_neighbours_either(posterior, config, loops, threads):
    theta, flux = simulations(config, count=100, seed=4)
    whole = posterior.log_prob(theta[:, None], flux)
    threads(3)
    assert np.array_equal(posterior.log_prob(theta[::-1, None], flux[::-1])[::-1], whole)
    assert np.array_equal(posterior.log_prob(theta[70:71, None], flux[70:71]), whole[70:71])
    _, outside = posterior.draw_and_judge(flux * np.float32(1e3), 8)
    assert np.array_equal(posterior.draw_and_judge(flux[70:71] * np.float32(1e3), 8)[1], outside[70:71])


def test_random_points_belong_to_rows(posterior, flux):
    one, other = (row_points(20_000, 5, seed=3, row=row) for row in (7, 8))
    assert np.abs(np.corrcoef(np.concatenate([one, other])) - np.eye(10)).max() < 0.03
    assert np.abs(np.quantile(one, [0.16, 0.5, 0.84], axis=1) - [[-0.994], [0], [0.994]]).max() < 0.04
    same = np.repeat(flux[:1], 2, axis=0)
    drawn = posterior.sample(same, 4096, base="random", rows=[7, 8])
    assert (drawn[0] != drawn[1]).mean() > 0.99
    sobol = np.quantile(posterior.sample(same[:1], 4096)[0], [0.16, 0.5, 0.84], axis=0)
    spread = sobol[2] - sobol[0]
    for sample in drawn:
        assert (np.abs(np.quantile(sample, [0.16, 0.5, 0.84], axis=0) - sobol) < 0.1 * spread).all()
    with pytest.raises(ValueError, match="expected one for each of the 2 spectra, found 1"):
        posterior.sample(same, 10, base="random", rows=[7])


def test_no_spectra_no_draws(posterior):
    none = np.zeros((0, 20), np.float32)
    assert posterior.sample(none, 10).shape == (0, 10, 5)
    assert posterior.log_prob(np.zeros((0, 4, 5)), none).shape == (0, 4)
    assert posterior.draw_and_judge(none, 10)[1].shape == (0,)


def test_ordered_draws_are_the_draws_in_order(posterior, flux):
    drawn = posterior.sample_unconstrained(flux, 100)
    assert np.array_equal(posterior.sample_unconstrained(flux, 100, ordered=True), np.sort(drawn, axis=-1))


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
