"""The training loop: it learns, and a killed run ends at the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimators import simulations, small_config
from noises import KINDS, Case

from digs_survey.errors import StageError
from digs_survey.estimator.loop import fit, split
from digs_survey.simulate.noise import NoiseModel


class Killed(Exception):
    pass


def run(config, path, on_epoch=lambda row: None):
    theta, flux = simulations(config, 800)
    return fit(config, theta, flux, NoiseModel.from_config(config.noise), path, "key", on_epoch=on_epoch)


def test_it_learns_more_than_the_prior(tmp_path):
    config = small_config("train.epochs=25", "train.batch_size=64", "train.learning_rate=5e-3")
    state = run(config, tmp_path / "train.pt")
    # The entropy of the prior in u: each logit of a uniform has 2 nats.
    assert state["best_loss"] < 5 * 2.0 - 3.0
    losses = [row[1] for row in state["history"]]
    assert losses[-1] < losses[0]


def test_a_killed_run_ends_at_the_same_weights(tmp_path):
    config = small_config("train.epochs=5", "train.batch_size=64")
    straight = run(config, tmp_path / "straight.pt")

    def kill(row):
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "killed.pt", kill)
    resumed = run(config, tmp_path / "killed.pt")
    assert [row[:4] for row in resumed["history"]] == [row[:4] for row in straight["history"]]
    assert all(torch.equal(resumed["weights"][k], v) for k, v in straight["weights"].items())
    assert all(torch.equal(resumed["best"][k], v) for k, v in straight["best"].items())


@pytest.mark.parametrize("name", KINDS)
def test_every_noise_trains_even_where_it_makes_flux_negative(tmp_path, name):
    config = small_config("train.epochs=1", "train.batch_size=64")
    theta, flux = simulations(config, 400)
    noise = Case(name, flux.shape[1], missing={"probability": 0.5, "stretches": 2, "elements": [2, 6]}).noise
    state = fit(config, theta, flux, noise, tmp_path / "train.pt", "key")
    assert np.isfinite(state["best_loss"])


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path):
    config = small_config("train.epochs=1", "train.batch_size=64")
    theta, flux = simulations(config, 200)
    noise = NoiseModel.from_config(config.noise)
    fit(config, theta, flux, noise, tmp_path / "train.pt", "one")
    state = fit(config, theta, flux, noise, tmp_path / "train.pt", "another")
    assert len(state["history"]) == 1
    assert state["key"] == "another"


def test_early_stopping(tmp_path):
    config = small_config("train.epochs=60", "train.batch_size=64", "train.patience=2", "train.learning_rate=0.3")
    state = run(config, tmp_path / "train.pt")
    assert state["epoch"] < 60
    assert state["epoch"] - state["best_epoch"] == 2


def test_split_is_fixed_by_the_seed_and_disjoint():
    train, held = split(1000, 0.05, seed=3)
    assert len(held) == 50
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(1000))
    assert np.array_equal(split(1000, 0.05, seed=3)[1], held)
    assert not np.array_equal(split(1000, 0.05, seed=4)[1], held)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    config = small_config("train.epochs=2", "train.batch_size=64")
    theta, flux = simulations(config, 200)
    flux[:] = np.nan
    with pytest.raises((StageError, ValueError, np.linalg.LinAlgError)):
        fit(config, theta, flux, NoiseModel.from_config(config.noise), tmp_path / "train.pt", "key")
