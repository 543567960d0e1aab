from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from digs_survey.config import NoiseConfig
from digs_survey.errors import CatalogError
from digs_survey.simulate.noise import NoiseModel, catalog_noise_table

RELATIVE = np.array([[0.02, 0.1, 0.3]])
FLUX = np.array([3e-9, 1e-7, 2e-4])
KINDS = {
    "flux": NoiseModel.from_config(NoiseConfig(fraction=0.1)),
    "log10": NoiseModel.from_config(NoiseConfig(fraction=0.1, space="log10")),
    "catalog": NoiseModel.from_config(NoiseConfig(kind="catalog", fraction=0.1), RELATIVE),
}
WIDTH = {
    "flux": np.full(3, 0.1),
    "log10": np.full(3, np.log(1.1)),
    "catalog": np.sqrt(0.1**2 + RELATIVE[0] ** 2),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_density_integrates_to_one(kind):
    noise = KINDS[kind]
    for flux, width, relative in zip(FLUX, WIDTH[kind], RELATIVE[0], strict=True):

        def density(x, flux=flux, relative=relative):
            return flux * np.exp(noise.log_likelihood([x * flux], [flux], relative=[relative]))

        low = max(0.0, 1 - 10 * width) if kind == "log10" else 1 - 10 * width
        total, _ = quad(density, low, 1 + 12 * width, points=[1.0], limit=200)
        assert total == pytest.approx(1.0, abs=1e-6)


def test_draws_have_the_entropy_of_the_density(kind):
    noise, rng = KINDS[kind], np.random.default_rng(1)
    flux = np.broadcast_to(FLUX, (40_000, 3))
    observed = noise.draw(flux, rng)
    relative = np.broadcast_to(RELATIVE[0], flux.shape)
    surprise = -noise.log_likelihood(observed, flux, relative=relative)
    # A Gaussian's entropy; a lognormal's adds the mean of log x, which is that of the flux.
    entropy = (0.5 * np.log(2 * np.pi * np.e) + np.log(WIDTH[kind] * FLUX)).sum()
    assert surprise.mean() == pytest.approx(entropy, abs=5 * surprise.std() / 200)


def test_sigma_is_half_the_central_68_percent(kind):
    noise = KINDS[kind]
    observed = noise.draw(np.broadcast_to(FLUX, (200_000, 3)), np.random.default_rng(2))
    low, high = np.quantile(observed, [0.158655, 0.841345], axis=0)
    np.testing.assert_allclose(noise.sigma(FLUX, RELATIVE[0]), 0.5 * (high - low), rtol=0.01)


def test_masked_elements_do_not_count(kind):
    noise = KINDS[kind]
    observed, good = FLUX * [1.05, np.nan, -1.0], np.array([True, False, False])
    alone = noise.log_likelihood(observed[:1], FLUX[:1], relative=RELATIVE[0, :1])
    assert noise.log_likelihood(observed, FLUX, good, RELATIVE[0]) == pytest.approx(float(alone), rel=1e-12)
    assert np.isnan(noise.log_likelihood(observed, FLUX, [True, True, False], RELATIVE[0]))


def test_impossible_models_have_no_likelihood(kind):
    for bad in (0.0, -1e-9, np.nan):
        assert KINDS[kind].log_likelihood(FLUX, [FLUX[0], bad, FLUX[2]], relative=RELATIVE[0]) == -np.inf


def test_tensors_get_what_arrays_get(kind):
    noise, normal = KINDS[kind], np.random.default_rng(3).standard_normal((4, 3))
    flux, relative = np.broadcast_to(FLUX, (4, 3)), np.broadcast_to(RELATIVE[0], (4, 3))
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (flux, normal, relative)]
    noisy = noise.perturb(*tensors)
    assert noisy.dtype == torch.float32
    np.testing.assert_allclose(noisy.numpy(), noise.perturb(flux, normal, relative), rtol=1e-5)
    sigma = noise.sigma(tensors[0], tensors[2])
    np.testing.assert_allclose(sigma.numpy(), noise.sigma(flux, relative), rtol=1e-5)


def test_catalog_draws_pick_rows_of_the_table():
    table = np.array([[0.0, 0.0], [1.0, 2.0]])
    noise = NoiseModel.from_config(NoiseConfig(kind="catalog", fraction=1e-3), table)
    x = noise.draw(np.ones((20_000, 2)), np.random.default_rng(4)) - 1
    quiet = np.abs(x[:, 0]) < 0.006
    assert quiet.mean() == pytest.approx(0.5, abs=0.02)
    assert (np.abs(x[quiet, 1]) < 0.006).mean() > 0.98
    assert x[~quiet].std(axis=0) == pytest.approx([1.0, 2.0], rel=0.03)
    with pytest.raises(ValueError, match="catalog_noise_table"):
        NoiseModel.from_config(NoiseConfig(kind="catalog")).draw(np.ones((1, 2)), np.random.default_rng(4))


def test_relative_errors_of_observed_rows():
    noise = KINDS["catalog"]
    flux = np.array([[2.0, 4.0, np.nan, 4.0], [1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    ivar = np.array([[4.0, 4.0, 0.0, 16.0], [1.0, 1.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    good = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    expected = [[0.25, 0.125, 0.09375, 0.0625], [1.0, 0.75, 0.5, 0.5], [np.nan] * 4]
    np.testing.assert_allclose(noise.relative_of(flux, ivar, good), expected)
    assert KINDS["flux"].relative_of(flux, ivar, good) is None


def test_noise_table_is_a_seeded_sample_of_whole_rows():
    rows = np.arange(1, 41)[:, None] * np.array([0.01, 0.02, 0.03, 0.04])
    good = np.ones(rows.shape, dtype=bool)
    good[::2, 2] = False
    good[7, :3] = False
    rows[::2, 2] = np.nan
    table = catalog_noise_table(rows, good, seed=5, limit=10)
    assert table.shape == (10, 4)
    np.testing.assert_allclose(table / table[:, :1], np.broadcast_to([1, 2, 3, 4], table.shape))
    np.testing.assert_array_equal(table, catalog_noise_table(rows, good, seed=5, limit=10))
    assert not np.array_equal(table, catalog_noise_table(rows, good, seed=6, limit=10))
    assert len(catalog_noise_table(rows, good, seed=5)) == 39
    with pytest.raises(CatalogError, match="half|50%"):
        catalog_noise_table(rows, np.zeros_like(good), seed=5)
