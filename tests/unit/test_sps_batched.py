"""Batches of spectra, and what is derived with them, against Prospector's own, one at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from threadpoolctl import threadpool_limits

from digs_survey.config import GridConfig, ModelConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.jit import PLAIN
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import one_thread
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.bc03 import read_bc03
from digs_survey.sps.compiled_spectra import predict
from digs_survey.sps.history import bin_weights
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.sampling import GridSampling
from digs_survey.sps.universe import physical_prior

GRID = WavelengthGrid.from_config(GridConfig())


def rows_of(prior, count):
    """Points all over the prior, and its corners."""
    corners = prior.from_unit_cube(np.array(list(itertools.product((1e-9, 1 - 1e-9), repeat=prior.ndim))))
    return np.concatenate([prior.from_unit_cube(np.random.default_rng(1).random((count, prior.ndim))), corners])


@pytest.mark.parametrize("preset", ["digs2022", "sdss"])
def test_spectra_are_prospectors(preset):
    config = load_config(preset)
    prior, theta = config.make_prior(), rows_of(config.make_prior(), 500)
    batched = BatchedModel.from_config(config.model, prior, GRID).spectra(theta)
    np.testing.assert_allclose(batched, ProspectorSimulator(config.model, prior, GRID).spectra(theta), rtol=1e-4)


def test_spectra_of_many_elements_from_fewer_vectors_are_prospectors():
    config = load_config("survey")
    grid = WavelengthGrid.from_config(config.grid)
    prior = physical_prior(config.make_prior()).without("sigma_smooth")
    theta, model = rows_of(prior, 60), BatchedModel.from_config(config.model, prior, grid)
    assert all(len(rows) < 200 for part in model._parts for panel in part.panels for _, rows in panel)
    np.testing.assert_allclose(
        model.spectra(theta), ProspectorSimulator(config.model, prior, grid).spectra(theta), rtol=5e-4
    )


@pytest.mark.parametrize(
    ("model", "grid"),
    [
        (ModelConfig(resampling="point"), GRID),
        (ModelConfig(nebular=False, zred=0.5), GRID),
        (ModelConfig(smoothing_kms=1500.0, gas_logu=-3.2), WavelengthGrid(np.arange(3500.0, 9000.0, 100.0))),
        (ModelConfig(smoothing_kms=120.0), WavelengthGrid(np.geomspace(4500, 7000, 900), medium="air")),
    ],
)
def test_other_models_and_grids(model, grid):
    prior = Prior()
    theta = rows_of(prior, 30)
    batched = BatchedModel.from_config(model, prior, grid).spectra(theta)
    np.testing.assert_allclose(batched, ProspectorSimulator(model, prior, grid).spectra(theta), rtol=2e-4)


def test_torch_and_numpy_agree_and_rows_do_not_depend_on_their_batch():
    prior = Prior()
    model = BatchedModel.from_config(ModelConfig(), prior, GRID)
    theta = rows_of(prior, 300)
    flux = model.spectra(theta)
    assert flux.shape == (len(theta), len(GRID))
    on_torch = model.spectra(torch.as_tensor(theta))
    assert isinstance(on_torch, torch.Tensor)
    np.testing.assert_allclose(on_torch.numpy(), flux, rtol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([model.spectra(theta[i : i + 1]) for i in range(20)]), flux[:20], rtol=1e-5
    )
    assert model.spectra(theta[:0]).shape == (0, len(GRID))


@pytest.mark.parametrize("sfh", ["delayed_tau", "tau", "constant"])
def test_compiled_and_plain_spectra_agree_and_a_row_is_the_same_bytes_anywhere(sfh, monkeypatch):
    config = load_config("digs2022", [f"model.sfh={sfh}"])
    prior = config.make_prior()
    model = BatchedModel.from_config(config.model, prior, GRID)
    theta = rows_of(prior, 150)
    flux, shuffled = model.spectra(theta), np.random.default_rng(2).permutation(len(theta))
    assert model.by_itself
    np.testing.assert_array_equal(model.spectra(theta[shuffled]), flux[shuffled])
    np.testing.assert_array_equal(np.concatenate([model.spectra(theta[[k]]) for k in range(30)]), flux[:30])
    likelihood = SpectrumLikelihood(model, NoiseModel.from_config(config.noise))
    of_rows = likelihood.spectra_of_rows(theta[:6].reshape(2, 3, -1), flux[:2])
    np.testing.assert_array_equal(np.concatenate(of_rows), flux[:6])
    # No row of a block may have finite draws.
    assert likelihood.spectra_of_rows(theta[:0].reshape(0, 3, prior.ndim), flux[:0]).shape == (0, 3, len(GRID))
    # Those for one part and for two: arrays of another layout would be compiled for once more.
    assert len(predict.signatures) == 2
    monkeypatch.setenv(PLAIN, "1")
    assert not model.by_itself
    np.testing.assert_allclose(model.spectra(theta), flux, rtol=1e-5)


def test_what_is_not_covered_is_refused():
    prior = Prior()
    model = BatchedModel.from_config(ModelConfig(), prior, GRID)
    theta = rows_of(prior, 3)
    theta[1, prior.index("tage")] = 4.2
    with pytest.raises(ValueError, match=r"expected rows inside the prior, found .*4\.2"):
        model.spectra(theta)
    with pytest.raises(ConfigError, match=r"prior.logzsol: source 'bc03' covers -2.301 to 0.699, found -2.5"):
        BatchedModel.from_config(ModelConfig(), Prior({"logzsol": (-2.5, 0.0)}), GRID)


@pytest.mark.parametrize("sfh", ["tau", "constant"])
def test_other_histories(sfh):
    config = load_config("digs2022", [f"model.sfh={sfh}"])
    prior = config.make_prior()
    assert ("logtau" in prior.names) == (sfh == "tau")
    theta = rows_of(prior, 60)
    batched = BatchedModel.from_config(config.model, prior, GRID).spectra(theta)
    np.testing.assert_allclose(batched, ProspectorSimulator(config.model, prior, GRID).spectra(theta), rtol=1e-4)
    other = load_config("digs2022")
    column = np.full((len(theta), 1), 0.3)
    delayed = BatchedModel.from_config(other.model, other.make_prior(), GRID).spectra(
        np.concatenate([theta[:, :4], column], axis=1)
    )
    assert np.abs(batched / delayed - 1).max() > 0.05


def test_bins_of_constant_rate_make_a_composite():
    """One bin from the onset to now is a constant history; two halves of it, with their masses, are too."""
    config = load_config("digs2022", ["model.sfh=constant"])
    prior = config.make_prior()
    model = BatchedModel.from_config(config.model, prior, GRID)
    theta = np.array([[10.0, -0.4, 0.3, 2.0]])
    ages = read_bc03(GridSampling(config.model, GRID).wavelength, max_age_gyr=4.0).log_age
    one = bin_weights(ages, [[0.0, np.log10(2e9)]])
    two = np.array([[0.25, 0.75]]) @ bin_weights(ages, [[0.0, np.log10(0.5e9)], [np.log10(0.5e9), np.log10(2e9)]])
    for weights in (one, two):
        found = model.composite(weights.astype(np.float32), *theta.T[[0, 1, 2]])
        np.testing.assert_allclose(found, model.spectra(theta), rtol=1e-5)
    with pytest.raises(ValueError, match="younger age first"):
        bin_weights(ages, [[9.0, 8.0]])


@pytest.mark.parametrize("sfh", ["delayed_tau", "tau", "constant"])
def test_derived_quantities(sfh):
    """Against integrals of the star formation rate, and the fraction that Prospector reports."""
    config = load_config("digs2022", [f"model.sfh={sfh}"])
    prior = config.make_prior()
    theta = np.concatenate([rows_of(prior, 8)[:8], prior.from_unit_cube(np.full((1, prior.ndim), 0.01))])
    derived = BatchedModel.from_config(config.model, prior, GRID).derived(theta)
    prospector = ProspectorSimulator(config.model, prior, GRID)
    for i, row in enumerate(theta):
        mass, tage = 10 ** row[prior.index("logmass")], row[prior.index("tage")]
        tau = 1.0 if sfh == "constant" else 10 ** row[prior.index("logtau")]
        power = {"delayed_tau": 1, "tau": 0, "constant": 0}[sfh]
        decay = 0.0 if sfh == "constant" else 1 / tau

        def integral(low, high, moment=0, power=power, decay=decay):
            return quad(lambda t: t ** (power + moment) * np.exp(-t * decay), max(low, 0.0), high, epsabs=0)[0]

        whole = integral(0, tage)
        assert derived["mass_weighted_age"][i] == pytest.approx(tage - integral(0, tage, 1) / whole, rel=1e-6)
        for name, span in (("sfr_10", 0.01), ("sfr_100", 0.1)):
            expected = mass * integral(tage - span, tage) / whole / (span * 1e9)
            assert derived[name][i] == pytest.approx(expected, rel=1e-5, abs=1e-6 * mass / 1e9)
        _, _, fraction = prospector.model.predict(row, obs=prospector.obs, sps=prospector.sps)
        assert derived["surviving_mass"][i] == pytest.approx(mass * fraction, rel=1e-6)


def test_a_model_built_on_any_number_of_threads_is_the_same_to_the_bit():
    config = load_config("digs2022")
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    theta = draw_theta(prior, 1, "simulate", 0, 50)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            model = BatchedModel.from_config(config.model, prior, grid)
            with one_thread():
                found.append(model.spectra(theta))
    np.testing.assert_array_equal(*found)
