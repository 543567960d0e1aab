"""Training on Ray Train workers: the loss of one worker, and resumption from the same checkpoint."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from estimators import small_config
from pairs import make_pairs, write_simulations

from digs_survey.errors import StageError
from digs_survey.estimator.training.train import train
from digs_survey.noise.model import NoiseModel

pytestmark = pytest.mark.slow


def losses(folder):
    with (folder / "history.csv").open() as file:
        return np.array([[float(row["train_loss"]), float(row["validation_loss"])] for row in csv.DictReader(file)])


def test_two_workers_have_the_loss_of_one(ray_cores, tmp_path):
    epochs = 4
    settings = (f"train.epochs={epochs}", "train.batch_size=64", "train.threads_per_worker=1")
    found = {}
    for workers in (1, 2):
        config = small_config(*settings, f"train.workers={workers}")
        folder = tmp_path / str(workers)
        posterior, core_s = train(
            config,
            write_simulations(folder / "simulations.zarr", config, 400),
            folder / "model",
            noise=NoiseModel.from_config(config.noise),
            data_hash="test",
        )
        assert core_s > 0
        assert posterior.card["training"]["members"][0]["epochs"] == epochs
        assert not (folder / "checkpoint").exists()
        found[workers] = losses(folder / "model")
    assert len(found[2]) == epochs
    # The order of sums differs, and the first eigenbases of the optimiser, of few gradients, amplify it.
    assert np.allclose(found[1], found[2], atol=2e-2)
    assert found[2][-1, 0] < found[2][0, 0]


def test_two_workers_stream_the_pairs_that_one_does(ray_cores, tmp_path):
    made = ("train.pairs=disk", "augment.draws_per_spectrum=4", "train.buffer_rows=200")
    settings = (*made, "train.epochs=3", "train.batch_size=64", "train.threads_per_worker=1")
    simulated, pairs = make_pairs(tmp_path, small_config(*made), 100)
    found = {}
    for workers in (1, 2):
        config = small_config(*settings, f"train.workers={workers}")
        noise = NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform)
        what = {"noise": noise, "data_hash": "test", "pairs": pairs, "pairs_hash": "pairs"}
        posterior, _ = train(config, simulated, tmp_path / str(workers) / "model", **what)
        assert posterior.card["training"]["pairs"]["data_hash"] == "pairs"
        found[workers] = losses(tmp_path / str(workers) / "model")
    assert found[1].shape == found[2].shape == (3, 2)
    assert np.allclose(found[1], found[2], atol=2e-2)
    assert found[2][-1, 0] < found[2][0, 0]


def test_workers_that_diverge_keep_their_checkpoint_and_say_what_to_lower(ray_cores, tmp_path):
    settings = ("train.epochs=30", "train.batch_size=64", "train.threads_per_worker=1", "train.workers=2")
    config = small_config(*settings, "train.learning_rate=1e3", "train.gradient_clip=1e9")
    simulated = write_simulations(tmp_path / "simulations.zarr", config, 400)
    how = {"noise": NoiseModel.from_config(config.noise), "data_hash": "test"}
    with pytest.raises(StageError, match="lower train.learning_rate"):
        train(config, simulated, tmp_path / "model", **how)
    assert torch.load(tmp_path / "checkpoint" / "train.pt", weights_only=True)["diverged"]
