"""The frozen posterior on disk: ensembles, what the card records, other formats, and one that must never change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from estimators import GRID, freeze, simulations, small_config
from scipy.special import logsumexp

from digs_survey.errors import RunDirectoryError
from digs_survey.estimator.flows.points import base_points
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import build_estimator
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.noise.model import NoiseModel

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MEMBERS = 3


def members_of(config, count):
    """Estimators over the same features with other weights, far from those at the start."""
    first = prepare_estimator(config, *simulations(config), NoiseModel.from_config(config.noise))
    estimators = [first, *(build_estimator(config.train, first.features, seed) for seed in range(1, count))]
    with torch.no_grad():
        for estimator in estimators:
            for parameter in estimator.flow.parameters():
                parameter.mul_(1.4)
    return estimators


def write(folder, config, estimators):
    return freeze_posterior(
        folder, estimators, config, GRID, NoiseModel.from_config(config.noise), training={"note": "none"}
    )


@pytest.fixture(scope="module", params=["centred", "equivariant"])
def ensemble(request, tmp_path_factory):
    """The mixture of three, and each of the three alone."""
    config = small_config(f"train.amplitude={request.param}", f"train.ensemble={MEMBERS}")
    estimators = members_of(config, MEMBERS)
    alone = config.model_copy(update={"train": config.train.model_copy(update={"ensemble": 1})})
    folder = tmp_path_factory.mktemp("models")
    return write(folder / "all", config, estimators), [
        write(folder / str(k), alone, [estimator]) for k, estimator in enumerate(estimators)
    ]


@pytest.fixture(scope="module")
def flux():
    return simulations(small_config(), count=6, seed=4)[1]


def test_the_density_of_an_ensemble_is_the_mean_of_its_members(ensemble, flux):
    mixture, members = ensemble
    theta = mixture.sample(flux, 200)
    expected = logsumexp([member.log_prob(theta, flux) for member in members], axis=0) - np.log(MEMBERS)
    np.testing.assert_allclose(mixture.log_prob(theta, flux), expected, atol=5e-3)
    assert np.abs(members[0].log_prob(theta, flux) - expected).max() > 1


def test_the_draws_of_an_ensemble_come_from_its_members_in_turn(ensemble, flux):
    mixture, members = ensemble
    inside = mixture.sample(flux[:1], 3000)[0]
    np.testing.assert_allclose(inside[::MEMBERS][:500], members[0].sample(flux[:1], 1000)[0][:500], atol=1e-4)
    for column in range(5):
        values = np.quantile(np.concatenate([member.sample(flux[:1], 1000)[0] for member in members])[:, column], 0.3)
        assert (inside[:, column] < values).mean() == pytest.approx(0.3, abs=0.03)
    assert not np.allclose(inside[1::MEMBERS], members[0].sample(flux[:1], 1000)[0], atol=1e-2)


def test_each_member_has_base_points_of_its_own_and_longer_sets_begin_with_shorter_ones():
    first, second = base_points(256, 5, 7), base_points(256, 5, 7, member=1)
    assert not np.isin(first, second).any()
    np.testing.assert_array_equal(base_points(1000, 5, 7)[:, :256], first)
    # Every other point of a Sobol set fills one half of an axis only; each member's own set fills both.
    for points in (first, second):
        np.testing.assert_allclose(np.quantile(points[0], [0.16, 0.5, 0.84]), [-1, 0, 1], atol=0.05)


def test_an_ensemble_of_another_size_or_over_other_features_is_refused(tmp_path):
    config = small_config("train.ensemble=2")
    estimators = members_of(config, 3)
    with pytest.raises(ValueError, match="train.ensemble = 2 estimators, found 3"):
        write(tmp_path, config, estimators)
    other = prepare_estimator(config, *simulations(config, seed=9), NoiseModel.from_config(config.noise))
    with pytest.raises(ValueError, match="estimator 1: expected the features of estimator 0"):
        write(tmp_path, config, [estimators[0], other])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "train.embedding=conv",
            "train.whitening=element",
            "train.flux_transform=asinh",
            "train.amplitude=equivariant",
        ),
        ("train.embedding=none", "train.whitening=element", "train.amplitude=feature"),
        ("train.flux_transform=asinh", "train.ensemble=2", "train.blocks=1"),
        ("train.flow=zuko_maf", "train.amplitude=equivariant"),
        ("train.flow=zuko_nsf", "train.amplitude=feature", "train.ensemble=2"),
    ],
    ids=["conv", "plain", "pair", "zuko_maf", "zuko_nsf"],
)
def test_the_card_records_the_network_and_it_comes_back(tmp_path, overrides, flux):
    config = small_config(*overrides)
    estimators = members_of(config, config.train.ensemble)
    posterior = write(tmp_path, config, estimators)
    architecture = posterior.card["architecture"]
    for key in ("flow", "embedding", "whitening", "amplitude", "ensemble", "components", "blocks"):
        assert architecture[key] == getattr(config.train, key)
    assert architecture["features"] == config.train.flux_transform
    prior = config.make_prior()
    theta = prior.from_unit_cube(np.random.default_rng(1).uniform(0.05, 0.95, (6, 5)))
    theta[:, 0] = simulations(config, count=6, seed=4)[0][:, 0]
    u = prior.to_unconstrained(theta)
    arguments = torch.as_tensor(u, dtype=torch.float32), torch.as_tensor(flux)
    with torch.no_grad():
        of_u = [estimator.eval().log_prob(*arguments).numpy() for estimator in estimators]
    expected = logsumexp(of_u, axis=0) - np.log(len(of_u)) - prior.log_abs_det_jacobian(u)
    found = posterior.log_prob(theta[:, None], flux)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("found", [1, 3, None])
def test_another_format_is_refused_and_the_remedy_named(tmp_path, found):
    config = small_config()
    freeze(tmp_path, config)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "format": found}))
    with pytest.raises(RunDirectoryError, match=f"has format {found}, this version reads 2; train it again"):
        FrozenPosterior.load(tmp_path)


def test_the_golden_posterior_gives_what_it_gave():
    posterior = FrozenPosterior.load(GOLDEN)
    with np.load(GOLDEN / "expected.npz") as expected:
        draws = posterior.sample(expected["flux"], expected["draws"].shape[1])
        np.testing.assert_allclose(draws, expected["draws"], rtol=1e-5, atol=1e-5)
        found = posterior.log_prob(expected["draws"], expected["flux"])
        # Single precision: other processors round the last digits otherwise.
        np.testing.assert_allclose(found, expected["log_prob"], rtol=1e-5, atol=1e-5)
