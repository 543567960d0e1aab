"""A burst on top of a history: its spectra are Prospector's, and what follows from it adds up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from digs_survey.config import load_config
from digs_survey.errors import ConfigError
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.parameters import DERIVED
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.burst import burst_place, with_burst
from digs_survey.sps.formed import BurstHistories, TimedHistories
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.universe import physical_theta

GRID = WavelengthGrid(np.arange(3750.0, 7000.0, 250.0))
BURST = ["model.parameters.fburst={low=0.0, high=0.9}", "model.parameters.fage_burst={low=0.1, high=1.0}"]


def model_of(*overrides, count=24):
    config = load_config(None, [*BURST, *overrides])
    prior = config.make_prior()
    cube = np.random.default_rng(5).random((count, prior.ndim))
    # Bursts in the last Myr, at the onset, of nothing and of all that is allowed.
    cube[:4, prior.index("fage_burst")] = 1 - 1e-5, 1 - 1e-9, 1e-9, 0.5
    cube[4:6, prior.index("fburst")] = 0.0, 1.0
    theta = physical_theta(prior, prior.from_unit_cube(cube), np.nan)
    return config, prior, theta, BatchedModel.from_config(config.model, prior, GRID)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.sfh=tau",),
        ("model.sfh=constant",),
        ("model.dust_law=kriek_conroy", "model.parameters.dust1={low=0.0, high=1.0}"),
        ("model.parameters.gas_logu={low=-4.0, high=-1.0}",),
    ],
    ids=["delayed_tau", "tau", "constant", "clouds", "gas"],
)
def test_spectra_are_those_of_prospector(overrides):
    config, prior, theta, batched = model_of(*overrides)
    found = batched.spectra(theta)
    np.testing.assert_allclose(found, ProspectorSimulator(config.model, prior, GRID).spectra(theta), rtol=3e-4)
    np.testing.assert_allclose(batched.spectra(torch.from_numpy(theta)).numpy(), found, rtol=3e-5)
    assert batched.spectra(theta[7:8]).tobytes() == found[7:8].tobytes()


def test_a_burst_of_nothing_is_the_smooth_history():
    _, prior, theta, batched = model_of(count=8)
    theta[:, prior.index("fburst")] = 0.0
    plain = load_config(None)
    smooth = BatchedModel.from_config(plain.model, plain.make_prior(), GRID)
    columns = [prior.index(name) for name in plain.make_prior().names]
    np.testing.assert_allclose(batched.spectra(theta), smooth.spectra(theta[:, columns]), rtol=1e-6)


def test_weights_of_a_burst_are_those_of_its_age():
    log_age = np.linspace(5.0, 10.0, 51)
    age = np.array([10**-4.5, 1.0, 1e-9, 10.0, 100.0])
    weights = with_burst(np.zeros((5, 51)), log_age, np.ones(5), age)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights[:4] @ log_age, [5.0, 9.0, 5.0, 10.0], atol=1e-12)
    np.testing.assert_allclose(weights @ log_age, np.clip(np.log10(age) + 9, 5, 10), atol=1e-12)
    lower, older = burst_place(log_age, torch.from_numpy(age))
    np.testing.assert_array_equal(lower.numpy() + older.numpy(), np.add(*burst_place(log_age, age)))


@pytest.mark.parametrize("sfh", ["delayed_tau", "tau", "constant"])
def test_times_and_shares_agree_with_each_other(sfh):
    rng = np.random.default_rng(2)
    tage, tau = rng.uniform(0.5, 12, 400), 10 ** rng.uniform(-1, 1, 400)
    burst = BurstHistories(TimedHistories(sfh, tage, tau), rng.random(400), tage * rng.random(400))
    for share in (0.1, 0.5, 0.9):
        then = burst.lookback_of(share)
        assert ((then >= 0) & (then <= tage)).all()
        just_before, just_after = (1 - burst.formed_since(then + step) for step in (1e-6, -1e-6))
        # The share has formed by then, and not before.
        assert (just_before <= share + 1e-4).all()
        assert (just_after >= share - 1e-4).all()
    assert (burst.lookback_of(0.9) <= burst.lookback_of(0.5)).all()


def test_derived_quantities_are_those_of_the_model():
    config, prior, theta, model = model_of(count=200)
    derive = DerivedQuantities.of_model(tuple(DERIVED), config.model.sfh, model)
    found = dict(zip(DERIVED, derive(theta).T, strict=True))
    for name, expected in model.derived(theta).items():
        np.testing.assert_allclose(found[name], expected, rtol=5e-4 if name == "surviving_mass" else 1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (BURST[:1], r"prior.fburst: a burst has fburst and fage_burst; give fage_burst too, or leave out both"),
        (BURST[1:], r"prior.fage_burst: a burst has .*; give fburst too"),
        ([*BURST, "model.sfh=continuity"], r"prior.fburst: model.sfh = 'continuity' has no burst"),
        (["model.parameters.fburst={low=-0.1, high=0.5}", BURST[1]], r"prior.fburst: expected values from 0 to 1"),
        ([BURST[0], "model.parameters.fage_burst=1.5"], r"prior.fage_burst: expected values from 0 to 1"),
    ],
)
def test_what_is_no_burst_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)
