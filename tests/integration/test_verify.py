"""``digs-survey verify``: damage in what any stage wrote is named, and the next run makes just that again."""

from __future__ import annotations

import shutil

import pytest
from survey import run_here

from digs_survey.run.verify import verify_run
from digs_survey.store.storage import read_json

pytestmark = pytest.mark.slow


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def finished(run_dir):
    return {name: record["finished"] for name, record in read_json(run_dir / "manifest.json")["stages"].items()}


def test_damage_of_each_kind_is_named_and_mended(finished_run, survey, ray_cores, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run.run_dir, run_dir)
    (fit,) = (run_dir / "audit-jobs").glob("*.npz")
    damaged = {
        "simulations.zarr": run_dir / "simulations.zarr" / "flux" / "c" / "3" / "0",
        "calibration.zarr": run_dir / "calibration.zarr" / "theta" / "c" / "2" / "0",
        "posterior.zarr": run_dir / "posterior.zarr" / "quality" / "c" / "1",
        fit.name: fit,
        "part-00000004.parquet": run_dir / "results.parquet" / "part-00000004.parquet",
    }
    before = finished(run_dir)
    parts = {part.name: part.read_bytes() for part in (run_dir / "results.parquet").iterdir()}
    for path in damaged.values():
        spoil(path)
    told = run_here("verify", "-o", run_dir)
    assert told.returncode == 7
    lines = told.stdout.splitlines()
    assert len(lines) == len(damaged)
    for name in damaged:
        assert sum(f"{name}: shard" in line for line in lines) == 1, name

    mended = run_here("run", survey[0], "-c", survey[1], "-o", run_dir)
    assert mended.returncode == 0, mended.stderr
    assert verify_run(run_dir) == []
    # What was made again is what was there, so that what follows from it stays.
    assert {part.name: part.read_bytes() for part in (run_dir / "results.parquet").iterdir()} == parts
    assert finished(run_dir) == before
    assert "report: done already" in mended.stderr


def test_a_dataset_that_is_gone_is_named(finished_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run.run_dir, run_dir)
    shutil.rmtree(run_dir / "calibration.zarr")
    found = verify_run(run_dir)
    assert {str(damage.path.name) for damage in found} == {"calibration.zarr"}
    assert sum(damage.rows.stop - damage.rows.start for damage in found) == 120
