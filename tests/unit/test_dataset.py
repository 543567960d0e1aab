"""Training rows: streamed in a seeded order through a bounded buffer, and refused where they cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import zarr
from estimators import GRID, simulations, small_config

from digs_survey import formats
from digs_survey.errors import StageError
from digs_survey.estimator.training.recipes import check_recipe
from digs_survey.estimator.training.training_data import Simulations, held_rows
from digs_survey.estimator.training.training_rows import TrainingRows
from digs_survey.identity import RunIdentity
from digs_survey.spectra import WavelengthGrid


def numbered(count, shard=None, elements=3):
    """Rows that can be told apart: every element of row i has flux i + 1."""
    config = small_config()
    theta, _ = simulations(config, count)
    flux = np.repeat(np.arange(1.0, count + 1)[:, None], elements, axis=1).astype(np.float32)
    if shard:
        flux = zarr.array(flux, chunks=(shard, elements))
    return Simulations(theta, flux, config.make_prior())


def rows_of(batch, size):
    return (batch(slice(0, size))[1][:, 0].numpy() - 1).astype(int)


def passes(rows, *seeds):
    return [np.concatenate([rows_of(batch, rows.batch) for batch in rows.epoch(seed)]) for seed in seeds]


def test_held_rows_are_fixed_by_the_seed_and_bounded():
    held = held_rows(1000, 0.05, seed=3)
    assert len(np.unique(held)) == 50
    assert (np.diff(held) > 0).all()
    assert (held[0] >= 0) & (held[-1] < 1000)
    assert np.array_equal(held_rows(1000, 0.05, seed=3), held)
    assert not np.array_equal(held_rows(1000, 0.05, seed=4), held)
    assert len(held_rows(10**9, 0.05, seed=3)) == 20_000
    assert len(held_rows(3, 0.05, seed=3)) == 1


@pytest.mark.parametrize("buffer_rows", [2000, 300, 61])
@pytest.mark.parametrize("shard", [None, 50, 64])
def test_each_pass_has_every_training_row_once_in_another_order(shard, buffer_rows):
    data = numbered(1000, shard)
    held = held_rows(1000, 0.1, seed=0)
    rows = TrainingRows(data, held, 32, buffer_rows)
    one, two, again = passes(rows, 1, 2, 1)
    assert len(one) == rows.steps * 32 == 900 // 32 * 32
    assert len(np.unique(one)) == len(one)
    assert not np.isin(one, held).any()
    assert np.array_equal(one, again)
    assert not np.array_equal(one, two)
    # What is left out at the end of a pass is not always the same.
    assert len(np.unique(np.concatenate([one, two]))) > len(one)


def test_u_and_flux_of_a_row_stay_together():
    data = numbered(500, 50)
    rows = TrainingRows(data, held_rows(500, 0.1, seed=0), 16, 120)
    for batch in rows.epoch(5):
        u, flux = batch(slice(4, 16))
        theta = data.prior.from_unconstrained(u.numpy())
        assert np.allclose(theta, data.theta[flux[:, 0].numpy().astype(int) - 1], atol=1e-5)


@pytest.mark.parametrize("buffer_rows", [2000, 400])
def test_rows_are_shuffled_within_and_among_shards(buffer_rows):
    order = passes(TrainingRows(numbered(2000, 50), np.array([7]), 32, buffer_rows), 3)[0]
    # Batches of one shard would have a spread of 14 rows, batches in order one of 9; uniform ones have 577.
    spreads = [np.std(order[i : i + 32]) for i in range(0, len(order), 32)]
    assert np.median(spreads) > 300
    assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.6
    if buffer_rows == 2000:
        assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.1


def test_no_more_rows_are_in_memory_than_the_buffer_and_a_batch_hold():
    data = numbered(5000, 100)
    rows = TrainingRows(data, held_rows(5000, 0.1, seed=0), 32, 1000)
    passes(rows, 1)
    assert sum(len(half.u) for half in rows._halves) <= 1000 + 2 * 32


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_simulations(tmp_path):
    script = """
import resource, sys
from pathlib import Path
import numpy as np, zarr
from estimators import small_config, analytic_spectra
from digs_survey.estimator.training.loop import fit
from digs_survey.noise.model import NoiseModel

folder = Path(sys.argv[1])
config = small_config("train.epochs=1", "train.batch_size=4096", "train.buffer_rows=20000")
prior, rng = config.make_prior(), np.random.default_rng(0)
for count in (60_000, 60_000, 600_000):
    group = zarr.open_group(str(folder / f"{count}.zarr"), mode="w")
    theta = group.create_array("theta", shape=(count, 5), chunks=(5_000, 5), dtype="f8")
    flux = group.create_array("flux", shape=(count, 20), chunks=(5_000, 20), dtype="f4")
    for start in range(0, count, 5_000):
        some = prior.from_unit_cube(rng.random((5_000, 5)))
        theta[start : start + 5_000], flux[start : start + 5_000] = some, analytic_spectra(some)
    fit(config, theta, flux, NoiseModel.from_config(config.noise), folder / f"{count}.pt", "key")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    _, few, many = (float(line) for line in ran.stdout.split())
    # 540,000 rows more: 41 MiB of spectra and 21 MiB of theta.
    assert many - few < 15


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_unusable_flux_is_counted_and_named(value):
    data = numbered(300, 50)
    flux = np.array(data.flux)
    flux[120:129, 1] = value
    data = Simulations(data.theta, flux, data.prior)
    with pytest.raises(StageError, match=r"9 of 300 simulations cannot be trained on") as error:
        data.gather(np.arange(5))
    assert f"row 120: flux {np.float32(value)} in element 1 (1 such elements)" in str(error.value)
    assert "row 124" in str(error.value)
    assert "row 125" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, 99.0])
def test_theta_that_is_not_in_the_prior_is_named(value):
    data = numbered(300)
    data.theta[17, 2] = value
    with pytest.raises(StageError, match=r"1 of 300 .*\n.*row 17: dust2 = (nan|99), prior from 0.1 to 1"):
        list(data.checked())


def recipe(config, grid=GRID):
    identity = RunIdentity.of_config(config, grid)
    return {"format": formats.SIMULATIONS, "stream": "simulate", **identity.key("model", "prior", "grid")}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.zred=0.1", "model.zred: simulations 1e-05, configuration 0.1"),
        ("model.source=fsps", "model.source: simulations bc03, configuration fsps"),
        ("prior.tage={low=0.01, high=5.0}", "prior.tage: simulations [0.01, 4.0], configuration [0.01, 5.0]"),
        ("model.sfh=constant", "prior.logtau: simulations [-1.0, 1.0], configuration None"),
    ],
)
def test_simulations_of_other_settings_are_refused_by_field(override, named):
    check_recipe(recipe(small_config()), small_config(), GRID)
    with pytest.raises(StageError, match="other settings") as error:
        check_recipe(recipe(small_config()), small_config(override), GRID)
    assert named in str(error.value)


def test_simulations_of_another_grid_or_stream_are_refused():
    config = small_config()
    with pytest.raises(StageError, match=r"grid: simulations 19 elements.*configuration 20 elements"):
        check_recipe(recipe(config, WavelengthGrid(GRID.wavelength[1:])), config, GRID)
    with pytest.raises(StageError, match="stream: simulations calibration"):
        check_recipe(recipe(config) | {"stream": "calibration"}, config)
    check_recipe(None, config, GRID)


def test_a_reader_that_fails_ends_the_pass():
    class Failing:
        shape, chunks = (1000, 3), (50, 3)

        def __getitem__(self, rows):
            if rows.start >= 500:
                raise OSError("disk gone")
            return np.ones((rows.stop - rows.start, 3), dtype=np.float32)

    data = numbered(1000)
    rows = TrainingRows(Simulations(data.theta, Failing(), data.prior), np.array([0]), 32, 200)
    with pytest.raises(OSError, match="disk gone"):
        passes(rows, 1)
