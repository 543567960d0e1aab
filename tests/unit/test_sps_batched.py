"""Batches of spectra against Prospector's own, one at a time, and the weights that make them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from digs_survey.config import GridConfig, ModelConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.parameters import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.grid import AgeQuadrature, HistoryWeights, delayed_tau
from digs_survey.sps.prospector import ProspectorSimulator

GRID = WavelengthGrid.from_config(GridConfig())
AGES = np.linspace(5.0, 10.3, 107)


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


def test_what_is_not_covered_is_refused():
    prior = Prior()
    model = BatchedModel.from_config(ModelConfig(), prior, GRID)
    theta = rows_of(prior, 3)
    theta[1, prior.index("tage")] = 4.2
    with pytest.raises(ValueError, match=r"expected rows inside the prior, found .*4\.2"):
        model.spectra(theta)
    with pytest.raises(ConfigError, match=r"prior.logzsol: source 'bc03' covers -2.301 to 0.699, found -2.5"):
        BatchedModel.from_config(ModelConfig(), Prior({"logzsol": (-2.5, 0.0)}), GRID)
    with pytest.raises(ConfigError, match="found 'fsps'"):
        BatchedModel.from_config(ModelConfig(source="fsps"), prior, GRID)


def test_delayed_tau_weights_are_those_of_one_history_at_a_time():
    rng = np.random.default_rng(3)
    tage = np.concatenate([rng.uniform(0.01, 13.7, 200), [10 ** (AGES[60] - 9), 10 ** (AGES[-1] - 9), 5e-5]])
    tau = 10 ** rng.uniform(-1.0, 1, tage.size)
    found = HistoryWeights(AGES, 0.1)(delayed_tau(tau), tage)
    one = AgeQuadrature(AGES)
    expected = np.stack([one.delayed_tau(*pair) for pair in zip(tage, tau, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("rate", [lambda t: np.ones_like(t), lambda t: np.exp(-t / 0.8)])
def test_other_histories(rate):
    """Against the mass formed between two nodes, each with its share in log10 age."""
    tage = np.array([3.3])
    found = HistoryWeights(AGES, 0.8)(rate, tage)[0]
    formed = quad(lambda t: rate(np.array(t)), 0, tage[0])[0]

    def hat(a, i):
        return np.interp(np.log10(a) + 9, AGES, np.eye(AGES.size)[i])

    for i in (40, 70, 85, 89, 95):
        low, mid, high = (min(10 ** (AGES[k] - 9), tage[0]) for k in (i - 1, i, i + 1))
        parts = [
            quad(lambda a, i=i: float(rate(np.array(tage[0] - a))) * hat(a, i), *ends)[0]
            for ends in ((low, mid), (mid, high))
        ]
        assert found[i] == pytest.approx(sum(parts) / formed, rel=1e-6, abs=1e-12)
