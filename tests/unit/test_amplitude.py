"""The flow's coordinates: densities integrate to one, mass follows the amplitude, edges of the prior are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimators import GRID, analytic_spectra, freeze, simulations, small_config

from digs_survey.config import TrainConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.estimator.features import Features
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import Estimator, build_estimator
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.noise.model import NoiseModel
from digs_survey.parameters import PARAMETERS
from digs_survey.prior import Prior

FLOWS = ["maf", "zuko_maf", "zuko_nsf"]
AMPLITUDES = ["feature", "centred", "equivariant"]
KINDS = ["log10", "asinh"]
BOUNDS = {"logmass": (9.8, 10.4), "dust2": (0.1, 1.0)}
RNG = np.random.default_rng


def narrow_prior(names):
    return Prior({name: BOUNDS[name] for name in names}, [name for name in PARAMETERS if name not in names])


def narrow_spectra(prior, theta):
    full = np.broadcast_to([10.1, -1.0, 0.5, 2.0, 0.0], (len(theta), 5)).copy()
    for column, name in enumerate(prior.names):
        full[:, list(PARAMETERS).index(name)] = theta[:, column]
    return analytic_spectra(full)


def shaken(estimator: Estimator, factor: float = 1.3) -> Estimator:
    """Weights that are not the initial ones, so that the flow is far from the identity."""
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.mul_(factor)
    return estimator.eval()


def narrow_estimator(prior, **settings) -> Estimator:
    network = TrainConfig(
        hidden_features=10, transforms=2, embedding_features=6, embedding_layers=1, components=5, **settings
    )
    theta = prior.from_unit_cube(RNG(0).random((500, prior.ndim)))
    flux = narrow_spectra(prior, theta)
    features = Features(len(GRID), network, prior)
    features.fit(flux * (1 + 0.1 * RNG(1).normal(size=flux.shape)), flux, theta)
    return shaken(build_estimator(network, features, seed=2))


def grid_of(prior, points):
    """Points of theta and the trapezoid's weights: dense at the edges too, where a logit is stretched."""
    axes, weights = [], []
    for low, high in zip(prior.low, prior.high, strict=True):
        even, edges = np.linspace(0, 1, points), 1 / (1 + np.exp(-np.linspace(-18, 18, points)))
        axes.append(low + (high - low) * np.unique(np.concatenate([even, edges])))
        steps = np.diff(axes[-1])
        weights.append(0.5 * (np.append(steps, 0) + np.append(0, steps)))
    theta = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, prior.ndim)
    return theta, np.prod(np.stack(np.meshgrid(*weights, indexing="ij")), axis=0).ravel()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*one-dimensional.*", "ignore:.*1D.*")
@pytest.mark.parametrize("names", [["logmass"], ["logmass", "dust2"]], ids=["1-D", "2-D"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("amplitude", AMPLITUDES)
@pytest.mark.parametrize("flow", FLOWS)
def test_density_in_theta_integrates_to_one(flow, amplitude, kind, names):
    prior = narrow_prior(names)
    estimator = narrow_estimator(prior, flow=flow, amplitude=amplitude, flux_transform=kind)
    theta, weights = grid_of(prior, 4000 if prior.ndim == 1 else 300)
    flux = torch.as_tensor(narrow_spectra(prior, np.array([[10.1, 0.6][: prior.ndim]])))
    u = prior.to_unconstrained(theta)
    features = estimator.features(flux).expand(len(u), -1)
    # The spectrum's features are given as they are, once for all points.
    estimator.features.forward = lambda _: features
    in_u = estimator.log_prob(torch.as_tensor(u, dtype=torch.float32), flux).double().numpy()
    density = np.exp(in_u - prior.log_abs_det_jacobian(u))
    assert (density * weights).sum() == pytest.approx(1, abs=5e-3)
    assert density.max() > 2 * density @ weights / weights.sum()


def equivariant(*overrides):
    config = small_config("train.amplitude=equivariant", *overrides)
    return config, shaken(prepare_estimator(config, *simulations(config), NoiseModel.from_config(config.noise)))


@pytest.fixture(scope="module", params=KINDS)
def posterior(request, tmp_path_factory):
    config, estimator = equivariant(f"train.flux_transform={request.param}")
    return freeze(tmp_path_factory.mktemp("model"), config, estimator)


def galaxy(logmass, count=1):
    theta = np.broadcast_to([logmass, -0.8, 0.4, 2.0, 0.1], (count, 5))
    return analytic_spectra(theta)


def test_a_brighter_spectrum_is_a_heavier_galaxy_and_nothing_else(posterior):
    flux = galaxy(10.3) * (1 + 0.05 * RNG(3).normal(size=(1, len(GRID))))
    for factor in (0.037, 1.0, 41.0):
        drawn, again = posterior.sample(flux, 400)[0], posterior.sample(factor * flux, 400)[0]
        shift = again - drawn
        np.testing.assert_allclose(shift[:, 0], np.log10(factor), atol=2e-5)
        np.testing.assert_allclose(shift[:, 1:], 0, atol=2e-4)
        density = posterior.log_prob(drawn[None], flux), posterior.log_prob(again[None], factor * flux)
        np.testing.assert_allclose(density[0], density[1], atol=5e-3)
    assert drawn[:, 0].std() > 1e-3


def brute_force(config, estimator, flux, count=100_000):
    """Draws and density of the flow without any bounds, by sbi and by the definition of the coordinates."""
    torch.manual_seed(5)
    features = estimator.features(torch.as_tensor(flux))
    v = estimator.flow.sample((count,), estimator.features.context(features))[:, 0].double().numpy()
    coordinates, prior = estimator.features.coordinates, config.make_prior()
    amplitude = np.log10(flux[0].astype(float)).mean() - np.log10(float(estimator.features.unit))
    slope, offset = coordinates.mass_slope.numpy().astype(float), float(coordinates.mass_offset)
    centre = amplitude + offset + features[0, 1:].double().numpy() @ slope
    theta = prior.from_unconstrained(v * np.pi / np.sqrt(3))
    theta[:, 0] = centre + v[:, 0] * float(coordinates.mass_scatter)
    return theta, features, centre


@torch.no_grad()
@pytest.mark.parametrize("offset", [-0.03, 0.0, 0.02])
@pytest.mark.parametrize("edge", ["low", "high"])
def test_the_cut_at_the_edge_is_that_of_brute_force(tmp_path, edge, offset):
    config, estimator = equivariant("prior.logmass.low=9.0", "prior.logmass.high=11.0")
    posterior = freeze(tmp_path, config, estimator)
    flux = galaxy({"low": 9.0, "high": 11.0}[edge])
    _, _, centre = brute_force(config, estimator, flux, 1)
    flux = (flux * 10 ** ({"low": 9.0 + offset / 2, "high": 11.0 - offset / 2}[edge] - centre)).astype(np.float32)
    theta, features, centre = brute_force(config, estimator, flux)
    inside = (theta[:, 0] >= 9) & (theta[:, 0] <= 11)
    assert 0.02 < inside.mean() < 0.98
    draws = posterior.sample(flux, 2048)[0]
    assert ((draws >= posterior.prior.low) & (draws <= posterior.prior.high)).all()
    for column in range(5):
        levels = [0.05, 0.3, 0.5, 0.7, 0.95]
        expected = np.quantile(theta[inside, column], levels)
        found = np.array([(draws[:, column] < value).mean() for value in expected])
        np.testing.assert_allclose(found, levels, atol=0.03)

    # Where the logit is cut off, next to an edge of the other parameters, there is nothing to compare.
    cdf = posterior.prior.cdf(draws)[:, 1:]
    points = draws[((cdf > 1e-6) & (cdf < 1 - 1e-6)).all(axis=1)][:50]
    y = posterior.prior.to_unconstrained(points)
    v = y / (np.pi / np.sqrt(3))
    v[:, 0] = (points[:, 0] - centre) / float(estimator.features.coordinates.mass_scatter)
    context = estimator.features.context(features).expand(len(points), -1)
    of_v = -estimator.flow.loss(torch.as_tensor(v, dtype=torch.float32), context).numpy()
    cdf = posterior.prior.cdf(points)[:, 1:]
    width = (posterior.prior.high - posterior.prior.low)[1:]
    scales = 4 * np.log(np.pi / np.sqrt(3)) + np.log(float(estimator.features.coordinates.mass_scatter))
    expected = of_v - np.log(cdf * (1 - cdf) * width).sum(axis=1) - scales - np.log(inside.mean())
    np.testing.assert_allclose(posterior.log_prob(points[None], flux)[0], expected, atol=0.03)


@torch.no_grad()
@pytest.mark.parametrize("mass", [9.8, 10.1, 10.399])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("amplitude", AMPLITUDES)
def test_the_frozen_density_integrates_to_one_at_the_edge_too(tmp_path, monkeypatch, amplitude, kind, mass):
    prior = narrow_prior(["logmass", "dust2"])
    settings = {"amplitude": amplitude, "flux_transform": kind}
    estimator = narrow_estimator(prior, **settings)
    config = load_config(
        None,
        [
            *(f"train.{k}={v}" for k, v in settings.items()),
            "train.hidden_features=10",
            "train.transforms=2",
            "train.embedding_features=6",
            "train.embedding_layers=1",
            "train.components=5",
        ],
    )
    monkeypatch.setattr(type(config), "make_prior", lambda self: prior)
    noise = NoiseModel.from_config(config.noise)
    posterior = freeze_posterior(tmp_path, [estimator], config, GRID, noise, training={})
    theta, weights = grid_of(prior, 200)
    density = np.exp(posterior.log_prob(theta[None], narrow_spectra(prior, np.array([[mass, 0.6]])))[0])
    assert (density * weights).sum() == pytest.approx(1, abs=0.01)
    beyond = np.array([[[prior.high[0] + 1e-6, 0.5], [prior.low[0] - 1e-6, 0.5], [10.0, 1.1]]])
    assert np.isneginf(posterior.log_prob(beyond, narrow_spectra(prior, np.array([[mass, 0.6]])))).all()


def test_rows_at_the_edge_do_not_depend_on_their_neighbours(posterior):
    flux = np.concatenate([galaxy(mass) for mass in (8.0, 10.0, 12.999, 13.0, 13.002)])
    whole = posterior.sample(flux, 300)
    np.testing.assert_array_equal(posterior.sample(flux[::-1], 300)[::-1], whole)
    for row in range(len(flux)):
        np.testing.assert_array_equal(posterior.sample(flux[row : row + 1], 300)[0], whole[row])
    prior = posterior.prior
    assert ((whole >= prior.low) & (whole <= prior.high)).all()


def test_without_posterior_inside_the_prior_a_spectrum_is_outside(posterior):
    flux = np.concatenate([galaxy(mass) for mass in (5.0, 7.8, 8.0, 10.0, 13.0, 13.3, 16.0)])
    assert posterior.draw_and_judge(flux, 64)[1].tolist() == [True, True, False, False, False, True, True]
    draws = posterior.sample(flux, 64)
    assert np.isfinite(draws).all()
    np.testing.assert_allclose(draws[0, :, 0], 8.0, atol=1e-7)
    np.testing.assert_allclose(draws[-1, :, 0], 13.0, atol=1e-7)


@pytest.mark.parametrize("draws", [8, 300, 5000])
def test_draws_and_verdict_at_one_cost_are_those_of_two(posterior, draws):
    masses = np.concatenate([np.linspace(7.5, 8.2, 15), np.linspace(12.8, 13.5, 15), [10.0]])
    flux = np.concatenate([galaxy(mass) for mass in masses])
    # Without draws to count, it looks at proposals of its own.
    outside = [posterior._is_outside(posterior._see(row)) for row in flux]
    assert 10 < sum(outside) < 25
    for ordered in (False, True):
        u, found = posterior.draw_and_judge(flux, draws, ordered=ordered)
        np.testing.assert_array_equal(u, posterior.sample_unconstrained(flux, draws, ordered=ordered))
        np.testing.assert_array_equal(found, outside)


@pytest.mark.parametrize(
    "noise", ["noise.kind=constant", 'noise={kind = "catalog", poisson_share = 0.5}'], ids=["constant", "photons"]
)
def test_noise_that_knows_the_mass_is_refused_for_the_equivariant_form(noise):
    with pytest.raises(ConfigError, match="equivariant.*noise that is the same share of the flux"):
        load_config(None, ["train.amplitude=equivariant", noise])
    load_config(None, ["train.amplitude=centred", noise])


@pytest.mark.parametrize("noise", ["noise.kind=fractional", "noise.kind=catalog"])
def test_noise_that_scales_is_not_refused(noise):
    assert load_config(None, ["train.amplitude=equivariant", noise]).train.amplitude == "equivariant"


def test_without_a_mass_only_the_plain_form_is_possible():
    prior = narrow_prior(["dust2"])
    for amplitude in ("centred", "equivariant"):
        with pytest.raises(ConfigError, match="needs the parameter logmass"):
            Features(20, TrainConfig(amplitude=amplitude), prior)
    estimator = narrow_estimator(prior, amplitude="feature")
    spectra = narrow_spectra(prior, np.array([[0.2], [0.9]]))
    assert not estimator.features.outside(estimator.features(torch.as_tensor(spectra))).any()
    assert estimator.features.outside(estimator.features(torch.as_tensor(100 * spectra))).all()
