"""The training loop: it learns, a killed run ends at the same weights, and what it cannot use is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr
from estimators import GRID, simulations, small_config
from noises import KINDS, Case

from digs_survey import formats
from digs_survey.errors import RunDirectoryError, StageError
from digs_survey.estimator.training import trainer
from digs_survey.estimator.training.fresh_noise import noisy_rows
from digs_survey.estimator.training.loop import Diverged, Worker, fit, load_checkpoint, prepare_estimator
from digs_survey.estimator.training.train import train
from digs_survey.logs.progress import ProgressReporter
from digs_survey.noise.model import NoiseModel
from digs_survey.run.manifest import RunManifest
from digs_survey.run.survey import Survey
from digs_survey.store.storage import ArraySpec, create_dataset, read_json


class Killed(Exception):
    pass


def run(config, path, *, on_epoch=lambda row: None, count=800, **kwargs):
    theta, flux = simulations(config, count)
    return fit(config, theta, flux, NoiseModel.from_config(config.noise), path, "key", on_epoch=on_epoch, **kwargs)


def kill_after(epoch):
    def kill(row):
        if row["epoch"] == epoch:
            raise Killed

    return kill


def assert_same(one, other):
    assert [row[:4] for row in one["history"]] == [row[:4] for row in other["history"]]
    for name in ("weights", "best"):
        assert all(torch.equal(one[name][k], v) for k, v in other[name].items())


def test_it_learns_more_than_the_prior(tmp_path):
    config = small_config("train.epochs=25", "train.batch_size=64", "train.learning_rate=5e-3")
    state = run(config, tmp_path / "train.pt")
    # The entropy of the prior in u: each logit of a uniform has 2 nats.
    assert state["best_loss"] < 5 * 2.0 - 3.0
    losses = [row[1] for row in state["history"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("buffer_rows", [1_000_000, 160])
def test_a_killed_run_ends_at_the_same_weights(tmp_path, buffer_rows):
    config = small_config("train.epochs=5", "train.batch_size=64", f"train.buffer_rows={buffer_rows}")
    straight = run(config, tmp_path / "straight.pt")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed.pt", on_epoch=kill_after(2))
    assert_same(run(config, tmp_path / "killed.pt"), straight)


def test_a_run_killed_in_the_middle_of_an_epoch_ends_at_the_same_weights(tmp_path, monkeypatch):
    config = small_config("train.epochs=4", "train.batch_size=64")
    straight = run(config, tmp_path / "straight.pt")
    steps, plain = [], trainer.Soap.step

    def step(self, *args):
        steps.append(1)
        if len(steps) == 29:
            raise Killed
        plain(self, *args)

    monkeypatch.setattr(trainer.Soap, "step", step)
    with pytest.raises(Killed):
        run(config, tmp_path / "killed.pt")
    killed = load_checkpoint(tmp_path / "killed.pt", "key", config.train)
    assert killed["epoch"] == 2
    assert len(steps) > 2 * (760 // 64) + 1
    monkeypatch.setattr(trainer.Soap, "step", plain)
    assert_same(run(config, tmp_path / "killed.pt"), straight)


def test_members_of_an_ensemble_differ_in_weights_and_batches_but_not_in_validation(tmp_path):
    config = small_config("train.epochs=1", "train.batch_size=64")
    runs = [run(config, tmp_path / f"{k}.pt", member=k % 2) for k in range(3)]
    assert_same(runs[0], runs[2])
    assert runs[0]["history"][0][1] != runs[1]["history"][0][1]
    theta, flux = simulations(config, 800)
    noise = NoiseModel.from_config(config.noise)
    one, other = (prepare_estimator(config, theta, flux, noise, member=k) for k in (0, 1))
    assert torch.equal(one.features.projection, other.features.projection)
    first, second = (next(iter(e.flow.parameters())) for e in (one, other))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", KINDS)
def test_every_noise_trains_even_where_it_makes_flux_negative(tmp_path, name):
    config = small_config("train.epochs=1", "train.batch_size=64")
    theta, flux = simulations(config, 400)
    noise = Case(name, flux.shape[1], missing={"probability": 0.5, "stretches": 2, "elements": [2, 6]}).noise
    state = fit(config, theta, flux, noise, tmp_path / "train.pt", "key")
    assert np.isfinite(state["best_loss"])


@pytest.mark.parametrize("name", KINDS)
def test_the_noise_of_a_row_does_not_depend_on_how_its_batch_is_divided(name):
    _, flux = simulations(small_config(), 700)
    noise = Case(name, len(GRID), missing={"probability": 0.5, "stretches": 2, "elements": [2, 6]}).noise
    flux = torch.from_numpy(flux)
    whole = noisy_rows(flux, noise, 3, "batch")
    for part in (slice(0, 700), slice(100, 300), slice(256, 512), slice(511, 700)):
        assert torch.equal(noisy_rows(flux[part], noise, 3, "batch", part.start), whole[part])
    for other in (noisy_rows(flux, noise, 4, "batch"), noisy_rows(flux, noise, 3, "another")):
        assert (other != whole).float().mean() > 0.9
    assert (whole[:256] / flux[:256] != whole[256:512] / flux[256:512]).float().mean() > 0.9


def test_threads_change_rounding_only(tmp_path):
    runs = [
        run(
            small_config("train.epochs=2", "train.batch_size=600", f"train.threads_per_worker={n}"),
            tmp_path / f"{n}.pt",
        )
        for n in (1, 2)
    ]
    assert np.allclose(runs[0]["history"][0][1:3], runs[1]["history"][0][1:3], rtol=1e-4)


def test_two_workers_have_the_loss_of_one(tmp_path):
    config = small_config("train.epochs=1", "train.batch_size=100")
    theta, flux = simulations(config, 400)
    noise = NoiseModel.from_config(config.noise)
    found, gradients = {}, {}
    for rank, size in ((0, 1), (0, 2), (1, 2)):
        seen = []

        def first(tensors, seen=seen):
            seen.append([tensor.clone() for tensor in tensors])
            raise Killed

        with pytest.raises(Killed):
            fit(config, theta, flux, noise, tmp_path / f"{rank}-{size}.pt", "key", worker=Worker(rank, size, first))
        *gradients[rank, size], loss = seen[0]
        found[rank, size] = float(loss)
    assert found[0, 2] + found[1, 2] == pytest.approx(found[0, 1], rel=1e-5)
    for one, a, b in zip(gradients[0, 1], gradients[0, 2], gradients[1, 2], strict=True):
        assert torch.allclose(a + b, one, atol=1e-5)


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path):
    config = small_config("train.epochs=1", "train.batch_size=64")
    theta, flux = simulations(config, 200)
    noise = NoiseModel.from_config(config.noise)
    fit(config, theta, flux, noise, tmp_path / "train.pt", "one")
    state = fit(config, theta, flux, noise, tmp_path / "train.pt", "another")
    assert len(state["history"]) == 1
    assert state["key"] == "another"
    slower = small_config("train.epochs=1", "train.batch_size=64", "train.learning_rate=1e-4")
    assert load_checkpoint(tmp_path / "train.pt", "another", config.train) is not None
    assert load_checkpoint(tmp_path / "train.pt", "another", slower.train) is None


def test_early_stopping(tmp_path):
    config = small_config("train.epochs=60", "train.batch_size=64", "train.patience=2", "train.learning_rate=0.3")
    state = run(config, tmp_path / "train.pt")
    assert state["epoch"] < 60
    assert state["epoch"] - state["best_epoch"] == 2


def spoil(monkeypatch, at, value):
    """Let the loss of one step be something else."""
    steps, plain = [], trainer.Trainer._sum

    def spoilt(self, parts):
        loss, gradients = plain(self, parts)
        steps.append(1)
        return (value if len(steps) == at else loss), gradients

    monkeypatch.setattr(trainer.Trainer, "_sum", spoilt)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_diverging_run_keeps_its_last_good_checkpoint_and_goes_on_at_a_lower_rate(tmp_path, monkeypatch, value):
    settings = "train.epochs=4", "train.batch_size=64"
    config, path = small_config(*settings), tmp_path / "train.pt"
    with pytest.raises(Killed):
        run(config, tmp_path / "good.pt", on_epoch=kill_after(2))
    good = load_checkpoint(tmp_path / "good.pt", "key", config.train)
    with monkeypatch.context() as patch:
        spoil(patch, 2 * (760 // 64) + 3, value)
        with pytest.raises(Diverged, match=r"epoch 3.*weights of epoch 2 are kept in .*train.pt; lower") as error:
            run(config, path)
    assert "train.learning_rate (now 0.01)" in str(error.value)
    kept = torch.load(path, weights_only=True)
    assert kept["epoch"] == 2
    assert_same(kept, good)

    with pytest.raises(Diverged, match="epoch 3"):
        run(config, path)
    lower = small_config(*settings, "train.learning_rate=1e-3")
    state = run(lower, path)
    assert state["epoch"] == 4
    assert_same({**state, "history": state["history"][:2], **{n: good[n] for n in ("weights", "best")}}, good)
    assert state["history"][2][3] < 1e-3
    assert state["rates"] == [[0, 1e-2, 2.0], [2, 1e-3, 2.0]]
    assert state["diverged"] == ""


def test_a_loss_that_really_explodes_is_found(tmp_path):
    config = small_config(
        "train.epochs=30", "train.batch_size=64", "train.learning_rate=1e3", "train.gradient_clip=1e9"
    )
    with pytest.raises(Diverged, match="lower train.learning_rate"):
        run(config, tmp_path / "train.pt")
    assert torch.load(tmp_path / "train.pt", weights_only=True)["diverged"]


def test_too_few_simulations_for_the_workers(tmp_path):
    with pytest.raises(StageError, match="3 simulations are too few for 4 workers"):
        run(small_config(), tmp_path / "train.pt", count=3, worker=Worker(0, 4))


def test_bfloat16_is_near_float32(tmp_path):
    settings = "train.epochs=3", "train.batch_size=64", "train.learning_rate=1e-3"
    full, half = (
        run(small_config(*settings, f"train.precision={name}"), tmp_path / name) for name in ("float32", "bfloat16")
    )
    assert all(value.dtype != torch.bfloat16 for value in half["weights"].values())
    assert half["history"][0][1] != full["history"][0][1]
    assert half["best_loss"] == pytest.approx(full["best_loss"], abs=0.3)


def write_zarr(path, config, count=400, **attrs):
    theta, flux = simulations(config, count)
    arrays = {
        "theta": ArraySpec(("simulation", "parameter"), theta.shape, "float64", 50),
        "flux": ArraySpec(("simulation", "wavelength"), flux.shape, "float32", 50),
        "wavelength": ArraySpec(
            ("wavelength",), (len(GRID),), "float64", attrs={"frame": GRID.frame, "medium": GRID.medium}
        ),
    }
    create_dataset(path, arrays, {"theta": theta, "flux": flux, "wavelength": GRID.wavelength}, attrs)
    return path


def stage(config, path, **kwargs):
    noise = NoiseModel.from_config(config.noise)
    return train(config, path, path.parent / "model", noise=noise, data_hash="test", **kwargs)


def test_a_run_that_was_killed_freezes_the_same_posterior(tmp_path):
    config = small_config("train.epochs=3", "train.batch_size=64", "train.buffer_rows=200")
    straight, _ = stage(config, write_zarr(tmp_path / "a" / "simulations.zarr", config))
    path = write_zarr(tmp_path / "b" / "simulations.zarr", config)
    told = []

    def kill(epochs):
        told.append(epochs)
        if sum(told) == 2:
            raise Killed

    with pytest.raises(Killed):
        stage(config, path, advance=kill)
    told.clear()
    resumed, core_s = stage(config, path, advance=told.append)
    assert told == [2, 1]
    assert resumed.hash == straight.hash
    assert core_s > 0


def test_the_stage_refuses_simulations_of_another_recipe_and_unusable_ones(tmp_path):
    config = small_config("train.epochs=1", "train.batch_size=64")
    other = small_config("model.zred=0.5")
    recipe = {
        "stream": "simulate",
        "model": other.model.model_dump(mode="json"),
        "prior": other.make_prior().to_dict(),
        "grid": GRID.to_dict(),
    }
    path = write_zarr(tmp_path / "simulations.zarr", config, recipe=recipe)
    with pytest.raises(StageError, match=r"model.zred: simulations 0.5, configuration 1e-05"):
        stage(config, path)
    assert not (tmp_path / "model").exists()
    path = write_zarr(tmp_path / "simulations.zarr", config)
    zarr.open_group(str(path))["flux"][60:63, 4] = np.nan
    with pytest.raises(StageError, match=r"3 of 400 simulations.*\n  - row 60: flux nan in element 4"):
        stage(config, path)


def test_the_stage_goes_on_at_a_lower_rate_after_it_diverged(tmp_path, monkeypatch):
    settings = ("train.epochs=4", "train.batch_size=64")
    write_zarr(tmp_path / "simulations.zarr", small_config())

    def survey(*more):
        manifest = RunManifest(tmp_path)
        manifest.stages["simulate"] = {"status": "done", "key": {"formats": formats.numbers("simulations")}}
        return Survey(tmp_path, small_config(*settings, *more), manifest, ProgressReporter(quiet=True))

    with monkeypatch.context() as patch:
        spoil(patch, 2 * (380 // 64) + 3, float("nan"))
        with pytest.raises(Diverged):
            survey().train()
    with pytest.raises(RunDirectoryError, match="train.epochs"):
        survey("train.learning_rate=1e-3", "train.epochs=5").train()
    assert survey("train.learning_rate=1e-3").train()
    card = read_json(tmp_path / "model" / "card.json")
    assert card["training"]["members"][0]["rates_from_epoch"] == [[0, 1e-2, 2.0], [2, 1e-3, 2.0]]
    with pytest.raises(RunDirectoryError, match="train.learning_rate"):
        survey().train()
