"""``digs-survey verify``: damage in what any stage wrote is named, and the next run makes just that again."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from survey import run_here

import digs_survey as ds
from digs_survey.cli import main
from digs_survey.run.verify import verify_run
from digs_survey.store import targets
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


def snapshot(folder):
    """What would change if anything were written below a folder, also what is taken away again."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]


def test_an_archived_run_is_read_and_not_written(finished_run, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run.run_dir, run_dir)
    spoil(run_dir / "calibration.zarr" / "theta" / "c" / "2" / "0")
    galaxy = str(ds.open_run(run_dir).table(["galaxy_id"])["galaxy_id"][0].as_py())

    def read_only(**settings):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["digs-survey", *map(str, arguments), "-o", str(run_dir)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    access = os.access
    monkeypatch.setattr(targets.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(os, "access", lambda path, mode, **how: not mode & os.W_OK and access(path, mode, **how))
    before = snapshot(run_dir)
    code, said = command("verify", "-q")
    assert code == 7
    assert "calibration.zarr: shard 2" in said.out
    assert "mend a copy of it" in said.err
    assert command("status")[0] == 0
    assert command("replay", galaxy)[0] == 0
    assert command("export", tmp_path / "table.fits")[0] == 0
    code, said = command("report", "-q")
    assert (code, said.out.split()) == (0, [str(run_dir / "report.html")])
    code, said = command("report", "-q", "--figures")
    assert code == 6
    assert "--out FOLDER" in said.err
    code, said = command("map", ds.open_run(run_dir).manifest.data["inputs"]["catalog"]["path"], "-q")
    assert code == 5
    assert "read-only" in said.err
    assert snapshot(run_dir) == before

    monkeypatch.undo()
    page = ds.open_run(run_dir).report(tmp_path / "elsewhere")
    assert page == tmp_path / "elsewhere" / "report.html"
    assert page.read_bytes() == (run_dir / "report.html").read_bytes()
    assert snapshot(run_dir) == before
