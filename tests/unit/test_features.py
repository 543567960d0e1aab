"""What the network sees of a spectrum: whitened, robust to wild spectra, and alive where flux is faint or negative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimators import GRID, analytic_spectra, simulations, small_config

from digs_survey.config import TrainConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.estimator.brightness import AsinhFlux, LogFlux
from digs_survey.estimator.embedding import build_embedding
from digs_survey.estimator.features import Features
from digs_survey.estimator.robust import clip_outliers, ordinary_rows
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior

KINDS, WHITENINGS = ["log10", "asinh"], ["pca", "element"]
CONFIG = small_config()


def network(**settings):
    return TrainConfig(**{"components": 8} | settings)


def fitted(noisy, flux, theta, **settings):
    features = Features(len(GRID), network(**settings), Prior())
    features.fit(noisy, flux, theta)
    return features


def seen(features, flux):
    return features(torch.as_tensor(np.asarray(flux, dtype=np.float32))).numpy()


@pytest.fixture(scope="module")
def spectra():
    theta, flux = simulations(CONFIG, 5000)
    return theta, flux, NoiseModel.from_config(CONFIG.noise).draw(flux, np.random.default_rng(1))


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_the_training_split_are_white(spectra, kind, whitening):
    theta, flux, noisy = spectra
    features = seen(fitted(noisy, flux, theta, flux_transform=kind, whitening=whitening), noisy)
    assert features.shape == (5000, 1 + (8 if whitening == "pca" else 20))
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-3)
    if whitening == "pca":
        np.testing.assert_allclose(np.corrcoef(features[:, 1:].T), np.eye(8), atol=1e-3)


@pytest.mark.parametrize("amplitude", ["feature", "centred", "equivariant"])
@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_wild_spectrum_among_many_changes_nothing(kind, whitening, amplitude):
    theta, flux = simulations(CONFIG, 50_000)
    noisy = NoiseModel.from_config(CONFIG.noise).draw(flux, np.random.default_rng(1))
    settings = {"flux_transform": kind, "whitening": whitening, "amplitude": amplitude}
    clean = fitted(*(np.delete(array, 7, axis=0) for array in (noisy, flux, theta)), **settings)
    for wild in (np.full(20, 1e30), np.geomspace(1e-30, 1e30, 20), np.where(np.arange(20) == 7, 1e30, flux[7])):
        spoilt = noisy.copy()
        spoilt[7] = wild
        found = fitted(spoilt, flux, theta, **settings)
        np.testing.assert_allclose(seen(found, noisy[:500]), seen(clean, noisy[:500]), atol=5e-3)
        np.testing.assert_allclose(found.limit, clean.limit, rtol=5e-3)
        assert float(found.coordinates.mass_scatter) == pytest.approx(float(clean.coordinates.mass_scatter), rel=1e-3)
        assert found.outside(torch.as_tensor(seen(found, wild[None]))).all()


def test_rows_with_outliers_are_left_out_unless_they_are_many():
    values = np.random.default_rng(0).random((10_000, 3))
    values[:50, 1] = 1e3
    assert np.array_equal(ordinary_rows(values), np.arange(10_000) >= 50)
    values[:500, 1] = 1e3
    assert ordinary_rows(values).all()
    assert clip_outliers(values).max() < 4


def test_clipping_leaves_ordinary_values_alone():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(3, 2, 10_000), rng.random(10_000), np.ones(10_000)], axis=1)
    np.testing.assert_array_equal(clip_outliers(values), values)
    wild = values.copy()
    wild[0] = [1e9, -1e9, 7.0]
    assert clip_outliers(wild)[0] == pytest.approx([3 + 16, 0.5 - 8 * 0.34, 1.0], rel=0.05)


@pytest.fixture(scope="module")
def absolute():
    """Constant noise, which is a hundredth of the brightest spectra and a hundred times the faintest."""
    rng = np.random.default_rng(3)
    theta = Prior().from_unit_cube(rng.random((4000, 5)))
    flux = analytic_spectra(theta).astype(float)
    sigma = 1e-7 * np.linspace(1, 3, 20)
    return theta, flux, flux + sigma * rng.normal(size=flux.shape), sigma


def test_asinh_learns_the_noise_and_is_the_logarithm_of_bright_flux_and_linear_in_faint(absolute):
    _, flux, noisy, sigma = absolute
    unit = np.median(flux)
    asinh = AsinhFlux(20, scales=False)
    asinh.fit(noisy / unit, flux / unit)
    np.testing.assert_allclose(asinh.floor.numpy() * unit, sigma, rtol=0.15)
    bright = torch.as_tensor(flux[np.argsort(flux[:, 0])[-200:]] / unit)
    amplitude, shape = asinh(bright)
    np.testing.assert_allclose(amplitude + shape, torch.log10(bright), atol=1e-3)

    level = torch.as_tensor(sigma / unit * 0.01)
    up, down, far, none = (sum(asinh(factor * level[None])) for factor in (1, -1, 10, 0))
    assert ((up > none) & (none > down)).all()
    np.testing.assert_allclose((far - none) / (up - none), 10, rtol=0.05)
    np.testing.assert_allclose(up + down, 2 * none, atol=1e-4)


def test_the_amplitude_of_faint_spectra_is_finite_and_follows_the_flux(absolute):
    theta, flux, noisy, sigma = absolute
    log10, asinh = (fitted(noisy, flux, theta, flux_transform=kind) for kind in KINDS)
    assert (noisy < 0).mean() > 0.05
    shapes = flux[:3] / flux[:3].mean(axis=1, keepdims=True)
    levels = np.array([-3.0, -1.0, 0.0, 1.0, 3.0, 10.0, 100.0]) * sigma[0]
    amplitudes = np.stack([seen(asinh, level * shapes)[:, 0] for level in levels])
    assert np.isfinite(amplitudes).all()
    assert (np.diff(amplitudes, axis=0) > 0).all()
    # In the logarithm a few negative elements hide how bright the spectrum is.
    true = np.log10(flux.mean(axis=1))
    faint = (true > np.log10(sigma.mean())) & (true < np.log10(sigma.mean()) + 1)
    scatter = [np.std((seen(f, noisy)[:, 0] * float(f.amplitude_std) - true)[faint]) for f in (log10, asinh)]
    assert scatter[1] < 0.2 * scatter[0]


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_asinh_features_stay_in_bounds_where_flux_is_negative(absolute, whitening):
    theta, flux, noisy, _ = absolute
    features = fitted(noisy, flux, theta, flux_transform="asinh", whitening=whitening)
    assert np.abs(seen(features, noisy)).max() < 12
    assert features.outside(torch.as_tensor(seen(features, noisy))).float().mean() < 1e-2


@pytest.mark.parametrize("scales", [True, False])
def test_asinh_is_finite_for_any_flux(absolute, scales):
    _, flux, noisy, _ = absolute
    asinh = AsinhFlux(20, scales)
    asinh.fit(noisy / np.median(flux), flux / np.median(flux))
    for value in (0.0, 1e-38, -1e-38, 1e38, -1e38, float("inf"), float("-inf")):
        for out in asinh(torch.full((1, 20), value)):
            assert torch.isfinite(out).all()


@pytest.mark.parametrize("kind", [LogFlux(), AsinhFlux(20, scales=True)], ids=KINDS)
def test_the_shape_does_not_know_the_amplitude_where_noise_scales(spectra, kind):
    _, flux, noisy = spectra
    unit = np.median(flux)
    kind.fit(noisy / unit, flux / unit)
    amplitude, shape = kind(torch.as_tensor(noisy[:50] / unit))
    brighter, same = kind(torch.as_tensor(23.0 * noisy[:50] / unit))
    np.testing.assert_allclose(brighter - amplitude, np.log10(23), atol=1e-6)
    np.testing.assert_allclose(same, shape, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("elements", [7, 20, 138])
@pytest.mark.parametrize("amplitude", ["centred", "equivariant"])
@pytest.mark.parametrize("embedding", ["none", "mlp", "conv"])
def test_embeddings_fit_any_grid_and_use_every_feature(embedding, amplitude, elements):
    settings = network(
        embedding=embedding, embedding_features=10, embedding_layers=3, whitening="element", amplitude=amplitude
    )
    torch.manual_seed(0)
    features = Features(elements, settings, Prior())
    assert features.size == elements + (amplitude == "centred")
    net = build_embedding(settings, features).double()
    x = torch.randn(4, features.size, dtype=torch.float64)
    out = net(x)
    assert out.shape == (4, features.size if embedding == "none" else 10)
    for row in range(4):
        assert torch.allclose(net(x[row : row + 1])[0], out[row])
    for feature in range(features.size):
        changed = x.clone()
        changed[:, feature] += 1
        assert (net(changed) != out).any(dim=1).all()


@pytest.mark.parametrize("flow", ["maf", "zuko_maf", "zuko_nsf"])
def test_the_seed_fixes_the_weights_and_blocks_count_hidden_layers(flow):
    config = small_config(f"train.flow={flow}", "train.blocks=1", "train.embedding=none")
    built = [prepare_estimator(config, *simulations(config, 300), NoiseModel.from_config(config.noise)) for _ in "ab"]
    first, second = (estimator.state_dict() for estimator in built)
    assert all(torch.equal(second[name], value) for name, value in first.items())
    masked = [value for value in first.values() if value.shape == (12, 12)]
    assert len([m for m in masked if m.dtype.is_floating_point]) >= config.train.transforms
    deeper = small_config(f"train.flow={flow}", "train.blocks=2", "train.embedding=none")
    more = prepare_estimator(deeper, *simulations(config, 300), NoiseModel.from_config(config.noise))
    count = sum(parameter.numel() for parameter in more.parameters())
    assert count - sum(parameter.numel() for parameter in built[0].parameters()) == 3 * (12 * 12 + 12)


def test_convolutions_ask_for_elements():
    with pytest.raises(ConfigError, match="embedding = 'conv' .*expected whitening = 'element', found 'pca'"):
        load_config(None, ["train.embedding=conv"])
    assert load_config(None, ["train.embedding=conv", "train.whitening=element"]).train.embedding == "conv"


@pytest.mark.parametrize(
    "key", ["flow=nsf", "embedding=resnet", "flux_transform=linear", "amplitude=yes", "ensemble=0"]
)
def test_other_values_are_refused_by_name(key):
    with pytest.raises(ConfigError, match=f"train.{key.split('=')[0]}"):
        load_config(None, [f"train.{key}"])


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_mixed_precision_leaves_the_features_whole(spectra, whitening):
    theta, flux, noisy = spectra
    features = fitted(noisy, flux, theta, whitening=whitening)
    expected = seen(features, noisy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(seen(features, noisy), expected)
