"""Training on pairs from disk: split by simulation, shown as they are, and refused where they cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from estimators import GRID, simulations, small_config
from pairs import make_pairs

from digs_survey import formats
from digs_survey.config import NoiseConfig
from digs_survey.errors import RunDirectoryError, StageError
from digs_survey.estimator.training import train as train_stage
from digs_survey.estimator.training.loop import Worker, fit
from digs_survey.estimator.training.sources import StoredPairs
from digs_survey.estimator.training.train import train
from digs_survey.estimator.training.trainer import Trainer
from digs_survey.estimator.training.training_data import HELD_AT_MOST, Pairs, Simulations, TrainingFiles
from digs_survey.identity import RunIdentity
from digs_survey.logs.progress import ProgressReporter
from digs_survey.noise.model import NoiseModel
from digs_survey.run.manifest import RunManifest
from digs_survey.run.survey import Survey
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import read_json

COUNT, COPIES = 100, 6
SETTINGS = ("train.pairs=disk", f"augment.draws_per_spectrum={COPIES}", "train.batch_size=64")
FAINT = ("noise={kind='constant', sigma_flam=3e-8, fraction=0.0}",)


def noise_of(config):
    return NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform)


def opened(folder: Path, *overrides: str):
    """Return configuration, noise and what :func:`fit` takes, of pairs on disk."""
    config = small_config(*SETTINGS, *overrides)
    files = TrainingFiles(*make_pairs(folder, config, COUNT))
    return config, noise_of(config), *files.open(config, noise_of(config))


def source_of(config, theta, flux, pairs):
    return StoredPairs(config, Simulations(theta, flux, config.make_prior()), pairs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("buffer_rows", [10_000, 150])
def test_no_simulation_is_both_trained_on_and_validated_with(tmp_path, seed, buffer_rows):
    config, _, theta, flux, pairs = opened(tmp_path, f"seed={seed}", "train.validation_fraction=0.2")
    source = source_of(config, theta, flux, pairs)
    with Trainer(config.model_copy(), source, Worker(), 0) as run:
        run.rows = type(run.rows)(source.rows, source.held, 64, buffer_rows)
        batches = [tuple(tensor.numpy() for tensor in batch(slice(0, 64))) for batch in run.rows.epoch(1)]
        validated = run.held_flux.numpy()
    copied, by_flux = pairs.simulation[:], {row.tobytes(): i for i, row in enumerate(pairs.flux[:])}
    trained = np.array([by_flux[row.tobytes()] for _, spectra in batches for row in spectra])
    held = np.array([by_flux[row.tobytes()] for row in validated])
    assert len(trained) == len(set(trained)) == 480 // 64 * 64
    assert len(held) == len(set(held)) == 20 * COPIES
    assert not set(copied[trained]) & set(copied[held])
    # And the spectra go with the theta that made them.
    u = np.concatenate([u for u, _ in batches])
    assert np.allclose(config.make_prior().from_unconstrained(u), theta[:][copied[trained]], atol=1e-5)


def test_all_copies_are_held_back_and_some_of_many_are_validated_with():
    config = small_config("train.pairs=disk")
    theta, flux, simulation = (np.broadcast_to(np.zeros(1), shape) for shape in ((2_000_000, 5), (2_000_000, 3), 1))
    pairs = Pairs(theta, flux, config.make_prior(), simulation, 200, NoiseModel.from_config(config.noise))
    source = source_of(config, theta[:10_000], flux[:10_000], pairs)
    simulations_held, counts = np.unique(source.held // 200, return_counts=True)
    assert len(simulations_held) == 500
    assert set(counts) == {200}
    validated, counts = np.unique(source.validated // 200, return_counts=True)
    assert np.array_equal(validated, simulations_held)
    assert set(counts) == {HELD_AT_MOST // 500}
    assert (np.diff(source.held) > 0).all()
    assert (np.diff(source.validated) > 0).all()


def test_the_network_is_shown_the_pairs_as_they_are_in_every_pass(tmp_path):
    config, _, theta, flux, pairs = opened(tmp_path)
    known = {row.tobytes() for row in pairs.flux[:]}
    with Trainer(config, source_of(config, theta, flux, pairs), Worker(), 0) as run:
        for epoch in (0, 1):
            for _, shown in run._prepared(next(run.rows.epoch(epoch)), epoch, 0):
                assert {row.tobytes() for row in shown.result().numpy()} <= known


def test_statistics_are_those_of_the_training_splits_pairs(tmp_path):
    config, _, theta, flux, pairs = opened(tmp_path, "train.flux_transform=asinh")

    def features():
        with Trainer(config, source_of(config, theta, flux, pairs), Worker(), 0) as run:
            return run.estimator.features.state_dict()

    before = features()
    held = source_of(config, theta, flux, pairs).held
    stored = zarr.open_group(str(tmp_path / "pairs.zarr"))["flux"]
    spoilt = stored[:]
    spoilt[held] *= 3
    stored[:] = spoilt
    assert all(torch.equal(value, before[name]) for name, value in features().items())
    trained = np.setdiff1d(np.arange(len(pairs)), held)
    spoilt[trained] *= 1.5
    stored[:] = spoilt
    assert not torch.equal(features()["amplitude_mean"], before["amplitude_mean"])


def test_statistics_have_the_noiseless_spectrum_of_each_pair(tmp_path):
    config, _, theta, flux, pairs = opened(tmp_path)
    prepared = source_of(config, theta, flux, pairs).prepare()
    assert len(prepared.noisy) == 95 * COPIES
    normal = (prepared.noisy / prepared.noiseless - 1) / 0.05
    assert np.abs(normal).max() < 6
    assert normal.std() == pytest.approx(1, rel=0.05)
    where = {row.tobytes(): i for i, row in enumerate(flux[:])}
    copied = [where[row.tobytes()] for row in prepared.noiseless]
    np.testing.assert_array_equal(prepared.statistics_theta, theta[:][copied])


class Killed(Exception):
    pass


@pytest.mark.parametrize("buffer_rows", [10_000, 150])
def test_a_killed_run_ends_at_the_same_weights(tmp_path, buffer_rows):
    settings = ("train.epochs=3", f"train.buffer_rows={buffer_rows}")
    config, noise, theta, flux, pairs = opened(tmp_path, *settings)

    def run(name, kill_after=None):
        def on_epoch(row):
            if row["epoch"] == kill_after:
                raise Killed

        return fit(config, theta, flux, noise, tmp_path / name, "key", pairs=pairs, on_epoch=on_epoch)

    straight = run("straight.pt")
    assert straight["best_loss"] < straight["untrained_loss"]
    with pytest.raises(Killed):
        run("killed.pt", kill_after=1)
    resumed = run("killed.pt")
    assert all(torch.equal(straight["best"][name], value) for name, value in resumed["best"].items())
    fresh = fit(config, theta, flux, noise, tmp_path / "fresh.pt", "key")
    assert fresh["history"][0][1] != straight["history"][0][1]


# -- what is refused ---------------------------------------------------------------------------------------


def in_memory(noise, flux, simulation=None):
    config = small_config()
    theta, _ = simulations(config, len(flux) // 2)
    simulation = np.repeat(np.arange(len(flux) // 2), 2) if simulation is None else simulation
    return Pairs(np.repeat(theta, 2, axis=0), flux, config.make_prior(), simulation, 2, noise)


KEEPS = NoiseModel.from_config(NoiseConfig(), flux_transform="asinh")
FILLS = NoiseModel.from_config(NoiseConfig(), flux_transform="log10")


def good_flux(rows=20):
    return np.ones((rows, 8), dtype=np.float32)


def test_negative_flux_is_data_where_the_noise_keeps_it_and_refused_where_it_does_not():
    flux = good_flux()
    flux[13, 2:4] = -1.0, 0.0
    list(in_memory(KEEPS, flux).checked())
    with pytest.raises(
        StageError, match=r"1 of 20 pairs .*finite, positive flux.*\n.*row 13: flux -1.0 in element 2 \(2"
    ):
        list(in_memory(FILLS, flux).checked())


@pytest.mark.parametrize("noise", [KEEPS, FILLS])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_flux_that_is_not_finite_is_always_refused(noise, value):
    flux = good_flux()
    flux[4, 1] = value
    with pytest.raises(
        StageError, match=r"1 of 20 pairs cannot be trained on.*\n.*row 4: flux -?(nan|inf) in element 1"
    ):
        list(in_memory(noise, flux).checked())


@pytest.mark.parametrize("missing", [{}, {"probability": 0.9, "stretches": 2, "elements": [2, 4]}])
def test_rows_that_noise_leaves_without_a_positive_element_are_legal(missing):
    config = NoiseConfig(kind="constant", sigma_flam=100.0, missing=missing)
    noise = NoiseModel.from_config(config, flux_transform="log10")
    noisy = noise.draw(np.full((40_000, 10), 1e-3), np.random.default_rng(0)).astype(np.float32)
    assert (noisy <= 0).any()
    list(in_memory(noise, noisy).checked())


def test_a_pair_that_is_not_where_it_belongs_is_named():
    simulation = np.repeat(np.arange(10), 2)
    simulation[7] = 9
    with pytest.raises(StageError, match=r"2 rows of each simulation.*\n.*row 7: it is not a copy of the simulation"):
        list(in_memory(KEEPS, good_flux(), simulation).checked())


def test_as_many_pairs_as_copies_are_asked_for():
    pairs = in_memory(KEEPS, good_flux())
    config = small_config("train.pairs=disk")
    with pytest.raises(StageError, match="expected 2 pairs of each of 20 simulations, found 20 pairs"):
        source_of(config, pairs.theta, pairs.flux, pairs)


def test_too_few_pairs_for_the_workers_are_told():
    pairs = in_memory(KEEPS, good_flux(4))
    config = small_config("train.pairs=disk", "train.validation_fraction=0.5")
    source = source_of(config, pairs.theta[::2], pairs.flux[::2], pairs)
    with pytest.raises(StageError, match="4 pairs are too few for 3 workers"):
        Trainer(config, source, Worker(0, 3), 0)


# -- the stage ---------------------------------------------------------------------------------------------


def stage(config, folder, made=None, *, pairs_hash="pairs", noise=None, **how):
    simulated, pairs = made or (folder / "simulations.zarr", folder / "pairs.zarr")
    noise = noise or noise_of(config)
    how = {"data_hash": "simulations", "pairs": pairs, "pairs_hash": pairs_hash} | how
    return train(config, simulated, folder / "model", noise=noise, **how)


def test_pairs_and_fresh_noise_are_not_mixed_up(tmp_path):
    config = small_config(*SETTINGS)
    made = make_pairs(tmp_path, config, COUNT)
    with pytest.raises(ValueError, match="expected pairs and their hash with 'disk' alone"):
        stage(config, tmp_path, made, pairs=None, pairs_hash=None)
    with pytest.raises(ValueError, match="train.pairs = 'fresh'"):
        stage(small_config(), tmp_path, made)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("augment.draws_per_spectrum=7", "draws_per_spectrum: pairs 6, configuration 7"),
        ("seed=5", "seed: pairs 2022, configuration 5"),
        ("noise.fraction=0.1", "noise.fraction: pairs 0.05, configuration 0.1"),
        ("train.flux_transform=asinh", "noise.keeps_negative: pairs False, configuration True"),
    ],
)
def test_pairs_of_other_settings_are_refused_by_field(tmp_path, override, named):
    made = make_pairs(tmp_path, small_config(*SETTINGS), COUNT)
    with pytest.raises(
        StageError, match=r"the pairs were made with other settings.*digs-survey augment --redo"
    ) as error:
        stage(small_config(*SETTINGS, override), tmp_path, made)
    assert f"  - {named}" in str(error.value)
    assert str(error.value).count("\n") == 1


def test_pairs_of_other_simulations_are_refused(tmp_path):
    config = small_config(*SETTINGS)
    simulated, _ = make_pairs(tmp_path / "one", config, COUNT)
    _, pairs = make_pairs(tmp_path / "other", config, COUNT + 50)
    with pytest.raises(StageError, match=r"simulations.count: pairs 150, configuration 100"):
        stage(config, tmp_path, (simulated, pairs))


def test_the_card_says_how_pairs_were_used_and_other_pairs_start_afresh(tmp_path):
    config = small_config(*SETTINGS, "train.epochs=2")
    made = make_pairs(tmp_path, config, COUNT)

    def kill(epochs):
        if epochs == 1:
            raise Killed

    with pytest.raises(Killed):
        stage(config, tmp_path, made, advance=kill)
    told: list[int] = []
    with pytest.raises(Killed):
        stage(config, tmp_path, made, advance=lambda epochs: told.append(epochs) or kill(epochs))
    assert told == [1]
    told.clear()
    posterior, _ = stage(config, tmp_path, made, pairs_hash="other pairs", advance=told.append)
    assert told == [0, 1, 1]
    training = posterior.card["training"]
    assert training["simulations"] == COUNT
    assert training["pairs"] == {"draws_per_spectrum": COPIES, "data_hash": "other pairs"}
    assert training["settings"]["pairs"] == "disk"


def test_negative_flux_of_faint_spectra_is_trained_on(tmp_path):
    config = small_config(*SETTINGS, *FAINT, "train.flux_transform=asinh", "train.epochs=1")
    made = make_pairs(tmp_path, config, COUNT)
    assert (zarr.open_group(str(made[1]), mode="r")["flux"][:] < 0).any()
    posterior, _ = stage(config, tmp_path, made)
    assert np.isfinite(posterior.card["training"]["members"][0]["best_validation_loss"])
    log = small_config(*SETTINGS, *FAINT, "train.epochs=1")
    with pytest.raises(StageError, match="keeps_negative"):
        stage(log, tmp_path, made)


# -- the survey --------------------------------------------------------------------------------------------


class Told(ProgressReporter):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text, **how):
        self.lines.append(text)


def survey_in(folder, *overrides):
    config = small_config(f"grid.start_angstrom={GRID.wavelength[0]}", "grid.stop_angstrom=4950", *overrides)
    manifest = RunManifest(folder)
    key = {"formats": formats.numbers("simulations")}
    manifest.stages.setdefault("simulate", {"status": "done", "key": key, "core_s": 2.0})
    return Survey(folder, config, manifest, Told())


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run directory with finished simulations, in which pairs are made in this process."""
    from digs_survey.simulate import augment as augment_stage

    make_pairs(tmp_path, small_config(*SETTINGS), COUNT)
    (tmp_path / "pairs.zarr").rename(tmp_path / "gone")
    Ledger(tmp_path / "ledger" / "augment").clear()
    original = augment_stage.augment
    monkeypatch.setattr(augment_stage, "augment", lambda *what, **how: original(*what, **how, workers=0))
    return tmp_path


def test_training_on_pairs_needs_them_finished_and_of_these_settings(run_dir):
    with pytest.raises(RunDirectoryError, match="no finished augment stage; run 'digs-survey augment"):
        survey_in(run_dir, *SETTINGS).train()
    survey_in(run_dir, *SETTINGS).augment()
    with pytest.raises(RunDirectoryError, match=r"draws_per_spectrum: was 6, now 7\n.*--redo augment"):
        survey_in(run_dir, *SETTINGS, "augment.draws_per_spectrum=7").train()
    assert survey_in(run_dir, *SETTINGS, "train.epochs=1").train()
    card = read_json(run_dir / "model" / "card.json")
    record = read_json(run_dir / "manifest.json")["stages"]
    assert card["training"]["pairs"]["data_hash"] == record["train"]["key"]["pairs"]
    assert card["cost"]["augment_core_s"] == record["augment"]["core_s"] > 0
    assert not survey_in(run_dir, *SETTINGS, "train.epochs=1").train()


def told_of_pairs(survey):
    survey.train()
    return any("[augment] and its pairs are not used" in line for line in survey.progress.lines)


def test_settings_and_pairs_that_are_not_used_are_told(run_dir):
    settings = ("train.epochs=1", "train.batch_size=64")
    assert not told_of_pairs(survey_in(run_dir, *settings))
    assert told_of_pairs(survey_in(run_dir, *settings, "augment.draws_per_spectrum=200"))
    survey_in(run_dir).augment()
    assert told_of_pairs(survey_in(run_dir, *settings))
    assert "pairs" not in read_json(run_dir / "model" / "card.json")["training"]


def test_making_pairs_again_takes_away_what_was_trained_on_them_only(run_dir):
    survey_in(run_dir, *SETTINGS).augment()
    on_pairs = survey_in(run_dir, *SETTINGS, "train.epochs=1")
    on_pairs.train()
    on_pairs.redo("augment")
    assert not (run_dir / "pairs.zarr").exists()
    assert not (run_dir / "model").exists()
    assert Ledger(run_dir / "ledger" / "augment").records() == {}
    survey_in(run_dir, *SETTINGS).augment()
    fresh = survey_in(run_dir, "train.epochs=1", "train.batch_size=64")
    fresh.train()
    fresh.redo("augment")
    assert not (run_dir / "pairs.zarr").exists()
    assert (run_dir / "model").exists()


@pytest.mark.parametrize(
    ("pairs", "expected"), [("disk", ["simulate", "augment", "train"]), ("fresh", ["simulate", "train"])]
)
def test_a_run_walks_through_the_pairs_where_they_are_trained_on(tmp_path, monkeypatch, pairs, expected):
    walked = []
    for name in ("simulate", "augment", "train", "map", "audit", "escalate", "report"):
        monkeypatch.setattr(Survey, name, lambda self, *what, name=name, **how: walked.append(name))
    monkeypatch.setattr("digs_survey.estimator.shipped.find_shipped", lambda *what: None)
    monkeypatch.setattr("digs_survey.run.survey.Catalog.open", lambda path: type("Opened", (), {"grid": GRID}))
    survey = Survey(tmp_path, small_config(f"train.pairs={pairs}"), RunManifest(tmp_path), Told())
    survey.run(tmp_path / "catalog.zarr")
    assert walked == [*expected, "map", "audit", "escalate", "report"]


def test_a_posterior_that_ships_is_not_one_of_the_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("digs_survey.estimator.shipped.find_shipped", lambda *what: tmp_path / "shipped")
    monkeypatch.setattr("digs_survey.run.survey.Catalog.open", lambda path: type("Opened", (), {"grid": GRID}))
    for pairs, expected in (("fresh", tmp_path / "shipped"), ("disk", None)):
        survey = Survey(tmp_path, small_config(f"train.pairs={pairs}"), RunManifest(tmp_path), Told())
        assert survey._shipped(tmp_path) == expected


def test_the_key_of_a_checkpoint_holds_the_pairs(tmp_path):
    config = small_config(*SETTINGS)
    keys = {
        train_stage._key(config, RunIdentity.of_config(config, GRID, noise_of(config)), "data", pairs)
        for pairs in (None, "one", "other")
    }
    assert len(keys) == 3
