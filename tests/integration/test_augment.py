"""Noisy pairs on Dask: the bytes that one loop gives, on any number of workers and after any interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
import zarr
from distributed import LocalCluster
from estimators import GRID, small_config
from pairs import write_simulations

from digs_survey.config import NoiseConfig
from digs_survey.errors import MissingDependencyError, StageError
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate import pair_shard
from digs_survey.simulate.augment import augment
from digs_survey.simulate.pair_shard import PairShards
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import checksum

COUNT, DRAWS, SEED = 120, 7, 11
PAIRS = COUNT * DRAWS
SMALL = 6
"""Pairs of a shard that is one of many."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return write_simulations(tmp_path_factory.mktemp("simulated") / "simulations.zarr", small_config(), COUNT)


def catalog_noise(**missing) -> NoiseModel:
    table = np.random.default_rng(0).uniform(0.01, 0.1, (1, 50, len(GRID)))
    return NoiseModel.from_config(NoiseConfig(kind="catalog", kernel=[1.0, 0.3], missing=missing), table)


NOISE = catalog_noise(probability=0.5, elements=[2, 5])


def pairs(simulated: Path, folder: Path, rows_per_shard: int = 90, noise=NOISE, **how) -> xr.Dataset:
    augment(
        simulated,
        folder / "pairs.zarr",
        noise,
        draws_per_spectrum=DRAWS,
        seed=SEED,
        ledger=Ledger(folder / "ledger"),
        rows_per_shard=rows_per_shard,
        **({"workers": 0} | how),
    )
    return xr.open_zarr(folder / "pairs.zarr", consolidated=False).load()


@pytest.mark.parametrize("noise", [NoiseModel.from_config(NoiseConfig()), NOISE], ids=["fractional", "catalog"])
def test_the_noise_of_a_pair_is_that_of_its_row_in_the_stream_augment(simulated, tmp_path, noise):
    made = pairs(simulated, tmp_path, noise=noise)
    group = zarr.open_group(str(simulated), mode="r")
    copied = np.repeat(np.arange(COUNT), DRAWS)
    uniform = row_uniforms(SEED, "augment", 0, PAIRS, noise.columns(len(GRID)))
    expected = noise.from_uniform(group["flux"][:][copied].astype(float), uniform).astype(np.float32)
    np.testing.assert_array_equal(made.simulation, copied)
    np.testing.assert_array_equal(made.theta, group["theta"][:][copied])
    assert made.flux.dtype == np.float32
    np.testing.assert_array_equal(made.flux, expected)
    assert made.flux.units == "erg / (s cm2 Angstrom)"
    records = Ledger(tmp_path / "ledger").records()
    rows = slice(90, 180)
    values = (made.theta.values[rows], made.flux.values[rows], made.simulation.values[rows])
    assert records[1]["checksum"] == checksum(*values)
    assert all(record["core_s"] > 0 and record["seconds"] > 0 and record["attempt"] for record in records.values())


def test_fractional_noise_has_the_width_and_independence_that_it_says(simulated, tmp_path):
    made = pairs(simulated, tmp_path, noise=NoiseModel.from_config(NoiseConfig()))
    flux = zarr.open_group(str(simulated), mode="r")["flux"][:]
    normal = (made.flux.values / flux[made.simulation] - 1) / 0.05
    assert np.abs(normal).max() < 6
    assert normal.mean() == pytest.approx(0, abs=5 / np.sqrt(normal.size))
    assert normal.std() == pytest.approx(1, abs=5 / np.sqrt(2 * normal.size))
    assert np.unique(normal.round(6)).size > 0.9 * normal.size


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_one_and_of_none(simulated, tmp_path):
    for workers in (0, 1, 2):
        calls: list[int] = []
        pairs(simulated, tmp_path / str(workers), workers=workers, advance=calls.append)
        assert (calls[0], sum(calls)) == (0, PAIRS)
    none, one, two = (contents(tmp_path / name / "pairs.zarr") for name in "012")
    assert none == one == two
    hosts = {record["pid"] for record in Ledger(tmp_path / "2" / "ledger").records().values()}
    assert os.getpid() not in hosts


def test_values_depend_neither_on_shards_nor_on_interruption(simulated, tmp_path, monkeypatch):
    whole = pairs(simulated, tmp_path / "whole", 10_000)
    monkeypatch.setattr(pair_shard, "_BLOCK_ROWS", 17)

    def stop_in_the_middle(rows, seen=[]):  # noqa: B006
        seen.append(rows)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pairs(simulated, tmp_path / "parts", advance=stop_in_the_middle)
    done = len(Ledger(tmp_path / "parts" / "ledger").records())
    assert 0 < done < 10
    calls: list[int] = []
    parts = pairs(simulated, tmp_path / "parts", advance=calls.append)
    assert calls[0] == done * 90
    assert sum(calls) == PAIRS
    for name in ("theta", "flux", "simulation"):
        np.testing.assert_array_equal(parts[name], whole[name])


def test_each_simulation_shard_is_read_once_by_a_task(simulated, tmp_path, monkeypatch):
    pairs(simulated, tmp_path)
    read, original = [], pair_shard._Simulations._checked
    monkeypatch.setattr(
        pair_shard._Simulations, "_checked", lambda self, shard: read.append(shard) or original(self, shard)
    )
    recipe = zarr.open_group(str(tmp_path / "pairs.zarr"), mode="r").attrs["recipe"]
    shutil.rmtree(tmp_path / "ledger")
    shards = PairShards(tmp_path / "pairs.zarr", tmp_path / "ledger", recipe, PAIRS, simulated)
    shards.keep_noise(NOISE)
    shards.make(range(10))
    assert read == [0, 1, 2]


def test_finished_pairs_ask_for_no_scheduler_and_other_settings_start_afresh(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr("digs_survey.cluster.dask_session.CONNECT_TIMEOUT_S", 1.0)
    first = pairs(simulated, tmp_path)
    nowhere = {"address": "tcp://127.0.0.1:1", "workers": None}
    calls: list[int] = []
    pairs(simulated, tmp_path, **nowhere, advance=calls.append)
    assert calls == [PAIRS]
    with pytest.raises(MissingDependencyError, match="tcp://127.0.0.1:1:"):
        pairs(simulated, tmp_path, noise=catalog_noise(), **nowhere)
    other = pairs(simulated, tmp_path, noise=catalog_noise())
    assert (other.flux != first.flux).any()
    assert (other.theta == first.theta).all()


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_augment as test
if __name__ == "__main__":
    test.pairs(Path(sys.argv[1]), Path(sys.argv[2]), test.SMALL, workers=2)
"""


def start_driver(simulated: Path, folder: Path) -> subprocess.Popen:
    """Augment in small shards on two workers, in a process of its own."""
    script = folder / "driver.py"
    folder.mkdir()
    script.write_text(DRIVER)
    tests = Path(__file__).parents[1]
    where = [str(simulated), str(folder), str(tests), str(Path(__file__).parent)]
    return subprocess.Popen([sys.executable, str(script), *where])


@pytest.fixture(scope="module")
def straight(simulated, tmp_path_factory) -> dict[str, bytes]:
    """What an uninterrupted loop leaves, in small shards."""
    folder = tmp_path_factory.mktemp("straight")
    pairs(simulated, folder, SMALL)
    return contents(folder / "pairs.zarr")


def wait_until_some_are_done(driver: subprocess.Popen, folder: Path) -> None:
    while len(list((folder / "ledger").glob("0*.json"))) < 5:
        assert driver.poll() is None, "the driver ended before anything could be killed"
        time.sleep(0.002)


@pytest.mark.slow
def test_a_killed_driver_goes_on_to_the_same_bytes(simulated, straight, tmp_path):
    folder = tmp_path / "run"
    driver = start_driver(simulated, folder)
    wait_until_some_are_done(driver, folder)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    done = len(Ledger(folder / "ledger").records())
    assert 5 <= done < PAIRS // SMALL
    pairs(simulated, folder, SMALL)
    assert contents(folder / "pairs.zarr") == straight


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_stage_goes_on(simulated, straight, tmp_path):
    folder = tmp_path / "run"
    driver = start_driver(simulated, folder)
    wait_until_some_are_done(driver, folder)
    killed = next(iter(Ledger(folder / "ledger").records().values()))["pid"]
    os.kill(killed, signal.SIGKILL)
    assert driver.wait(timeout=120) == 0
    records = Ledger(folder / "ledger").records()
    assert len(records) == PAIRS // SMALL
    assert len({record["pid"] for record in records.values()}) >= 2
    assert contents(folder / "pairs.zarr") == straight


def spoilt(simulated: Path, folder: Path, spoil) -> Path:
    path = folder / "simulations.zarr"
    shutil.copytree(simulated, path)
    spoil(path)
    return path


def cut(path: Path) -> None:
    file = path / "flux" / "c" / "1" / "0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def not_finite(path: Path) -> None:
    zarr.open_group(str(path))["flux"][77, 3] = np.inf


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: (path / "flux" / "c" / "1" / "0").unlink(), "found 50 rows without, the first of them row 50"),
        (not_finite, "found 1 rows without, the first of them row 77"),
        (cut, "cannot be decoded"),
    ],
    ids=["missing", "infinite", "damaged"],
)
def test_a_bad_shard_of_simulations_is_named_with_its_rows(simulated, tmp_path, spoil, why):
    path = spoilt(simulated, tmp_path, spoil)
    with pytest.raises(StageError) as caught:
        pairs(path, tmp_path / "out")
    message = str(caught.value)
    assert f"shard 1 (rows 50 to 99) of {path}" in message
    assert why in message
    # Pair 350 is the first copy of simulation 50.
    assert f"augment: shard 3 (rows 270 to 359) of {tmp_path / 'out' / 'pairs.zarr'} failed" in message
    assert sorted(Ledger(tmp_path / "out" / "ledger").records()) == [0, 1, 2]


@pytest.mark.slow
def test_an_error_on_a_worker_reaches_the_driver(simulated, tmp_path):
    path = spoilt(simulated, tmp_path, not_finite)
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0", protocol="tcp") as cluster:
        with pytest.raises(StageError, match=r"shard 1 \(rows 50 to 99\)"):
            pairs(path, tmp_path / "out", address=cluster.scheduler_address, workers=None)
        # The scheduler serves others still.
        pairs(simulated, tmp_path / "good", address=cluster.scheduler_address, workers=None)
    pairs(simulated, tmp_path / "here")
    assert contents(tmp_path / "good" / "pairs.zarr") == contents(tmp_path / "here" / "pairs.zarr")


def test_missing_simulations_are_refused(tmp_path):
    with pytest.raises(StageError, match="run the simulate stage first"):
        pairs(tmp_path / "nowhere", tmp_path / "out")


def test_a_worker_writes_to_no_dataset_but_its_own(simulated, tmp_path):
    pairs(simulated, tmp_path)
    path = tmp_path / "pairs.zarr"
    recipe = zarr.open_group(str(path), mode="r").attrs["recipe"]
    before = contents(path)
    late = PairShards(path, tmp_path / "ledger", recipe | {"seed": 12}, PAIRS, simulated)
    with pytest.raises(StageError, match="replaced by another run"):
        late.make([0])
    assert contents(path) == before


def test_a_worker_takes_no_other_noise_than_the_recipes(simulated, tmp_path):
    pairs(simulated, tmp_path)
    path = tmp_path / "pairs.zarr"
    recipe = zarr.open_group(str(path), mode="r").attrs["recipe"]
    shards = PairShards(path, tmp_path / "ledger", recipe, PAIRS, simulated)
    shards.keep_noise(NoiseModel.from_config(NOISE.config, 2 * NOISE.table))
    with pytest.raises(StageError, match=r"noise.npz: expected the noise that .*pairs.zarr is made with"):
        shards.make([0])
