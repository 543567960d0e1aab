from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import astropy.units as u
import numpy as np
import psutil
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from digs_survey.cluster import dask_session
from digs_survey.config import load_config
from digs_survey.errors import MissingDependencyError, StageError
from digs_survey.simulate import shard as shard_module
from digs_survey.simulate import simulation_set
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.simulate.simulation_set import engine_check, simulate
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import checksum

COUNT = 478
OVERRIDES = [
    "grid.start_angstrom=4000",
    "grid.stop_angstrom=5000",
    "simulate.rows_per_shard=8",
    "simulate.engine=prospector",
]
SHARDS = 60


def run(folder: Path, overrides=(), count=COUNT, address=None, stream="simulate", workers=None):
    """Simulate into ``folder``; return what ``advance`` was called with."""
    config = load_config(None, [*OVERRIDES, *overrides])
    calls: list[int] = []
    simulate(
        config,
        WavelengthGrid.from_config(config.grid),
        folder / "simulations.zarr",
        count=count,
        stream=stream,
        ledger=Ledger(folder / "ledger"),
        address=address,
        workers=workers,
        advance=calls.append,
    )
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def scheduler():
    """One worker process with two threads, spoken to over TCP as a remote cluster is."""
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0", protocol="tcp") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def reference(scheduler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    calls = run(folder, address=scheduler)
    assert calls[0] == 0
    assert sum(calls) == COUNT
    return folder


def test_spectra_belong_to_their_theta(reference):
    config = load_config(None, OVERRIDES)
    grid, prior = WavelengthGrid.from_config(config.grid), config.make_prior()
    data = xr.open_zarr(reference / "simulations.zarr", consolidated=False).load()
    assert dict(data.sizes) == {"simulation": COUNT, "parameter": 5, "wavelength": 21}
    assert list(data.parameter.values) == list(prior.names)
    np.testing.assert_array_equal(data.wavelength, grid.wavelength)
    assert u.Unit(data.flux.units).is_equivalent(u.Unit("erg s-1 cm-2 AA-1"))
    assert u.Unit(data.wavelength.units) == u.AA
    assert data.flux.dtype == np.float32
    np.testing.assert_array_equal(data.theta, draw_theta(prior, config.seed, "simulate", 0, COUNT))

    rows = [0, 7, 8, COUNT - 1]
    expected = ProspectorSimulator(config.model, prior, grid).spectra(data.theta.values[rows])
    np.testing.assert_allclose(data.flux.values[rows], expected, rtol=1e-6)

    records = Ledger(reference / "ledger").records()
    assert sorted(records) == list(range(SHARDS))
    assert records[59]["rows"] == 6
    assert records[1]["checksum"] == checksum(data.theta.values[8:16], data.flux.values[8:16])
    assert all(record["core_s"] > 0 for record in records.values())


def test_a_second_run_does_nothing_and_other_settings_start_afresh(reference, scheduler, tmp_path):
    before = contents(reference)
    # Nothing is left to compute, so that nothing may ask for a scheduler that is not there.
    assert run(reference, address="tcp://127.0.0.1:1") == [COUNT]
    assert contents(reference) == before

    assert sum(run(tmp_path, count=20, address=scheduler)) == 20
    first = xr.open_zarr(tmp_path / "simulations.zarr", consolidated=False).load()
    assert run(tmp_path, ["seed=5"], count=20, address=scheduler)[0] == 0
    other = xr.open_zarr(tmp_path / "simulations.zarr", consolidated=False).load()
    assert not np.isin(other.theta, first.theta).any()
    assert not np.isin(other.flux, first.flux).any()


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(reference, scheduler, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_simulate import run\n"
        "if __name__ == '__main__': run(Path(sys.argv[2]))\n"
    )
    script = tmp_path / "driver.py"
    script.write_text(code)
    folder = tmp_path / "run"
    driver = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent), str(folder)])
    while len(list((folder / "ledger").glob("0*.json"))) < 10:
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.002)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    done = len(Ledger(folder / "ledger").records())
    assert 10 <= done < SHARDS

    calls = run(folder, address=scheduler)
    assert calls[0] >= 8 * 10
    assert sum(calls) == COUNT
    assert contents(folder / "simulations.zarr") == contents(reference / "simulations.zarr")
    found, expected = (Ledger(f / "ledger").records() for f in (folder, reference))
    assert {s: r["checksum"] for s, r in found.items()} == {s: r["checksum"] for s, r in expected.items()}
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def test_few_tasks_are_out_at_once(monkeypatch, scheduler, tmp_path):
    monkeypatch.setattr(simulation_set, "_TASK_ROWS", 1)
    handed, original = [], Client.map

    def counting(client, function, numbers, **options):
        handed.append(len(numbers))
        return original(client, function, numbers, **options)

    monkeypatch.setattr(Client, "map", counting)
    assert sum(run(tmp_path, ["simulate.engine=batched"], address=scheduler)) == COUNT
    assert sum(handed) == SHARDS
    assert max(handed) == handed[0] == 16
    assert len(handed) >= SHARDS // 16 + 2


@pytest.mark.parametrize(
    ("pending", "most", "threads", "expected"),
    [(60, 1, 2, [1] * 60), (500, 20, 2, [20] * 25), (40, 20, 2, [5] * 8), (3, 20, 2, [1] * 3), (100, 0, 2, [1] * 100)],
)
def test_quick_shards_go_out_many_a_task_but_some_tasks_to_each_thread(pending, most, threads, expected):
    tasks = dask_session._tasks(range(pending), most, threads)
    assert [len(task) for task in tasks] == expected
    assert sum(tasks, []) == list(range(pending))


@pytest.mark.parametrize(("engine", "rows", "expected"), [("prospector", 8, 1), ("batched", 2_000, 20)])
def test_batches_are_handed_out_many_shards_at_a_time(monkeypatch, tmp_path, engine, rows, expected):
    seen = {}
    monkeypatch.setattr(simulation_set, "run_shards", lambda *_, **settings: seen.update(settings))
    run(tmp_path, [f"simulate.engine={engine}", f"simulate.rows_per_shard={rows}"])
    assert seen["shards_per_task"] == expected


@pytest.mark.slow
def test_sobol_bytes_depend_on_no_workers_and_rows_on_no_shards(tmp_path):
    settings = ["simulate.engine=batched", "simulate.sampling=sobol", "simulate.rows_per_shard=50"]
    for workers in (0, 2):
        assert sum(run(tmp_path / str(workers), settings, workers=workers)) == COUNT
    assert contents(tmp_path / "0" / "simulations.zarr") == contents(tmp_path / "2" / "simulations.zarr")
    run(tmp_path / "other", [*settings, "simulate.rows_per_shard=37"], workers=0)
    data, other = (
        xr.open_zarr(tmp_path / name / "simulations.zarr", consolidated=False).load() for name in ("0", "other")
    )
    np.testing.assert_array_equal(other.theta, data.theta)
    np.testing.assert_allclose(other.flux, data.flux, rtol=1e-5)
    config = load_config()
    expected = draw_theta(config.make_prior(), config.seed, "simulate", 0, COUNT, "sobol")
    np.testing.assert_array_equal(data.theta, expected)


def test_calibration_is_drawn_at_random_whatever_the_simulations(tmp_path):
    run(tmp_path, ["simulate.engine=batched", "simulate.sampling=sobol"], count=40, stream="calibration", workers=0)
    data = xr.open_zarr(tmp_path / "simulations.zarr", consolidated=False).load()
    config = load_config()
    expected = draw_theta(config.make_prior(), config.seed, "calibration", 0, 40, "random")
    np.testing.assert_array_equal(data.theta, expected)


def test_batches_are_checked_against_prospector(reference, scheduler, tmp_path):
    assert sum(run(tmp_path, ["simulate.engine=auto"], address=scheduler)) == COUNT
    batched, one_by_one = (
        xr.open_zarr(folder / "simulations.zarr", consolidated=False).load() for folder in (tmp_path, reference)
    )
    np.testing.assert_array_equal(batched.theta, one_by_one.theta)
    np.testing.assert_allclose(batched.flux, one_by_one.flux, rtol=1e-4)
    check = engine_check(Ledger(tmp_path / "ledger"))
    assert 200 <= check["prospector_checked"] < COUNT
    assert 0 < check["prospector_max_difference"] < 1e-4
    assert engine_check(Ledger(reference / "ledger")) == {}


def test_batches_that_differ_from_prospector_end_the_run(monkeypatch, tmp_path):
    class Off:
        def spectra(self, theta):
            return 1.01 * shard_module._simulator(*self.what).spectra(theta)

    def off(*what):
        Off.what = what
        return Off()

    monkeypatch.setattr(shard_module, "_batched", off)
    with pytest.raises(StageError, match=r"simulation \d+ .*differ by 1.00%"):
        run(tmp_path, ["simulate.engine=auto"], count=16, workers=0)
    assert Ledger(tmp_path / "ledger").records() == {}


def test_a_failing_shard_is_named_and_carries_its_cause(scheduler, tmp_path):
    beyond = ["grid.start_angstrom=4e9", "grid.stop_angstrom=5e9", "grid.step_angstrom=5e8"]
    with pytest.raises(StageError, match=r"shard \d+ \(rows \d+ to \d+\)") as caught:
        run(tmp_path, beyond, count=16, address=scheduler)
    assert caught.value.__cause__ is not None
    assert str(caught.value.__cause__) in str(caught.value)
    assert Ledger(tmp_path / "ledger").records() == {}


def test_a_bad_spectrum_is_an_error_that_names_theta(monkeypatch, tmp_path):
    class Broken:
        def spectra(self, theta):
            flux = np.ones((len(theta), 21))
            flux[2, 3] = np.nan
            return flux

    monkeypatch.setattr(shard_module, "_simulator", lambda *_: Broken())
    with pytest.raises(StageError, match=r"simulation 2 .*logmass=.*found nan"):
        run(tmp_path, count=16, workers=0)
    assert Ledger(tmp_path / "ledger").records() == {}


def test_an_address_without_a_scheduler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(dask_session, "CONNECT_TIMEOUT_S", 1.0)
    with pytest.raises(MissingDependencyError, match="tcp://127.0.0.1:1:"):
        run(tmp_path, count=8, address="tcp://127.0.0.1:1")
