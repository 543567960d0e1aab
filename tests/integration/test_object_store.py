"""``digs-survey run`` where catalog and run directory are URLs: the same results, resumed, and no secret anywhere."""

from __future__ import annotations

import json
import os
import re
import threading
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from objectstore import KEY, SECRET, credentials, flaky, s3_server
from pyarrow.dataset import dataset
from survey import ROWS, kill_when, run, run_here

from digs_survey.store.locations import location
from digs_survey.store.storage import read_bytes, remove, write_json

pytestmark = pytest.mark.slow

CATALOG, RUN = "s3://survey/catalog.zarr", "s3://survey/runs/x"
SMALL = [
    *("--set", "simulate.simulations=48", "--set", "simulate.rows_per_shard=24", "--set", "train.epochs=4"),
    *("--set", "audit.calibration_simulations=12", "--set", "importance.rows=none", "--set", "map.rows_per_shard=16"),
    *("--set", "audit.sensitivity_rows=0"),
]


@pytest.fixture(scope="module")
def store():
    """The store's address; this process and those that it starts find the store and are let in."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as endpoint:
        for name, value in credentials(endpoint).items():
            patch.setenv(name, value)
        bucket = location("s3://survey")
        bucket.fs.mkdir("survey")
        yield endpoint


@pytest.fixture(scope="module")
def stored(survey, store):
    """Catalog and TOML of the tiny survey, whose catalog is in the store too."""
    catalog, toml, _ = survey
    location(CATALOG).fs.put(f"{catalog}/", "survey/catalog.zarr/", recursive=True)
    return catalog, toml


@pytest.fixture(scope="module")
def local(survey, shared_ray, tmp_path_factory):
    """A run directory on this machine's disk, without the audit, which takes longest."""
    shared_ray.open()
    run_dir = tmp_path_factory.mktemp("local") / "run"
    for stage in (["simulate", survey[0]], ["train"], ["map", survey[0]]):
        finished = run_here(*stage, "-c", survey[1], "-o", run_dir, *SMALL)
        assert finished.returncode == 0, finished.stderr
    return run_dir


@pytest.fixture(scope="module")
def remote(stored):
    """A run directory on the store, whose first process was killed in the map; and what the second one said."""
    arguments = ("run", CATALOG, "-c", stored[1], "-o", RUN, *SMALL)
    run_dir = location(RUN)

    def mapped() -> bool:
        return any((run_dir / "ledger" / "map").glob("*.json"))

    kill_when(mapped, *arguments)
    manifest = json.loads(read_bytes(run_dir / "manifest.json"))
    assert manifest["stages"]["map"]["status"] == "running"
    assert (run_dir / "lock.json").exists()
    finished = run(*arguments)
    assert finished.returncode == 0, finished.stderr
    return run_dir, finished


def test_a_killed_run_goes_on_and_gives_what_a_local_one_gives(remote, local):
    run_dir, finished = remote
    assert "train: done already" in finished.stderr
    assert finished.stdout.split() == [f"{RUN}/results.parquet", f"{RUN}/report.html"]
    for group, names in {
        "simulations.zarr": ("theta", "flux"),
        "posterior.zarr": ("percentiles", "quality", "n_good", "galaxy_id"),
    }.items():
        here, there = (zarr.open_group(str(folder / group), mode="r") for folder in (local, run_dir))
        for name in names:
            assert np.array_equal(here[name][:], there[name][:], equal_nan=name != "galaxy_id"), (group, name)
    parts = run_dir / "percentiles.parquet"
    table = dataset(parts.path, filesystem=parts.fs).to_table()
    assert table.num_rows == ROWS
    assert table.equals(pq.read_table(local / "percentiles.parquet"))
    model = "model/model.safetensors"
    assert read_bytes(run_dir / model) == (local / model).read_bytes()
    manifest = json.loads(read_bytes(run_dir / "manifest.json"))
    assert {name: stage["status"] for name, stage in manifest["stages"].items()} == dict.fromkeys(
        ("simulate", "train", "map", "audit", "escalate", "report"), "done"
    )
    audited = zarr.open_group(str(run_dir / "audit.zarr"), mode="r")
    assert np.isfinite(audited["galaxies/mcmc"][:]).all()
    assert audited["calibration/theta"].shape[0] == 12
    assert manifest["inputs"]["catalog"]["path"] == CATALOG
    assert read_bytes(run_dir / "report.html").startswith(b"<!")
    assert not (run_dir / "checkpoint").exists()
    assert not (run_dir / "lock.json").exists()


def test_a_second_run_does_nothing(remote, survey):
    again = run_here("run", CATALOG, "-c", survey[1], "-o", RUN, *SMALL)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert again.stdout == remote[1].stdout


def test_every_other_command_takes_urls(remote, tmp_path):
    said = [run_here("status", "-o", RUN), run_here("validate", CATALOG)]
    said += [run_here("export", "s3://survey/out.fits", "-o", RUN), run_here("export", tmp_path / "out.csv", "-o", RUN)]
    said.append(run_here("export", "s3://survey/out.fits", "-o", RUN))
    assert [finished.returncode for finished in said] == [0, 0, 0, 0, 1], [finished.stderr for finished in said]
    assert re.search(r"map\D+done\D+48", said[0].stdout)
    assert f"{CATALOG}: keeps to the schema, {ROWS} rows" in said[1].stdout
    assert read_bytes(location("s3://survey/out.fits")).startswith(b"SIMPLE  =")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == ROWS + 1
    assert "exists already" in said[4].stderr
    secrets_are_nowhere(remote, said)


def secrets_are_nowhere(remote, said) -> None:
    run_dir, finished = remote
    texts = [text for one in [finished, *said] for text in (one.stdout, one.stderr)]
    assert not any(secret in text for secret in (KEY, SECRET) for text in texts)
    names = run_dir.fs.find(run_dir.path)
    assert {"manifest.json", "config.toml", "card.json"} <= {name.rpartition("/")[2] for name in names}
    for name, data in run_dir.fs.cat(names).items():
        assert KEY.encode() not in data, name
        assert SECRET.encode() not in data, name


def test_a_run_directory_that_another_holds_is_refused_naming_who(stored):
    lock = location("s3://survey/runs/held/lock.json")

    def beat() -> None:
        now = datetime.now(UTC).isoformat()
        who = {"host": "node7", "pid": 12, "machine": "m", "started": 0.0, "since": "2026", "token": "t"}
        write_json(lock, {**who, "refreshed": now})

    beat()
    heart = threading.Timer(2.0, beat)
    heart.start()
    refused = run_here("simulate", CATALOG, "-c", stored[1], "-o", lock.parent)
    heart.join()
    assert refused.returncode == 6
    assert "waiting for a sign of life until" in refused.stderr
    assert "works in this run directory: host node7, pid 12" in refused.stderr
    remove(lock)


def test_stores_that_say_no_are_explained(store, stored, tmp_path):
    nowhere = run_here("run", CATALOG, "-c", stored[1], "-o", "s3://no-such-bucket/x")
    assert nowhere.returncode == 5
    assert "expected a bucket 'no-such-bucket', found none" in nowhere.stderr
    absent = run_here("validate", "s3://survey/nothing.zarr")
    assert absent.returncode == 4
    assert "s3://survey/nothing.zarr: no such file or folder" in absent.stderr
    with flaky(store, {}, seed=0) as (address, _):
        wrong = run("validate", CATALOG, AWS_ENDPOINT_URL=address, AWS_ACCESS_KEY_ID="AKIAWRONG")
    assert wrong.returncode == 5
    assert "expected to be let in by the store" in wrong.stderr
    secret = run_here("run", f"s3://{KEY}:{SECRET}@survey/catalog.zarr", "-o", tmp_path / "x")
    assert secret.returncode == 3
    for refused in (nowhere, absent, wrong, secret):
        assert "Traceback" not in refused.stderr
        assert SECRET not in refused.stderr
        assert "AKIA" not in refused.stderr


def test_without_credentials_it_says_which_to_give(store, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    refused = run("validate", CATALOG, HOME=os.devnull)
    assert refused.returncode == 5
    assert "AWS_ACCESS_KEY_ID" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_store_that_fails_now_and_then_is_asked_again(store, survey, tmp_path):
    faults = {"busy": 0.04, "gateway": 0.04, "reset": 0.04, "stall": 0.03, "torn": 0.05}
    out = "s3://survey/fake.zarr"
    with flaky(store, faults, seed=3) as (address, seen):
        impatient = {"AWS_ENDPOINT_URL": address, "FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 1}})}
        made = run("fake-catalog", out, "--rows", 60, "-c", survey[1], **impatient)
        assert made.returncode == 0, made.stderr
        checked = run("validate", out, **impatient)
        assert checked.returncode == 0, checked.stderr
        assert all(seen[name] for name in faults), seen
    direct = run_here("fake-catalog", tmp_path / "direct.zarr", "--rows", 60, "-c", survey[1])
    assert direct.returncode == 0, direct.stderr
    here, there = (zarr.open_group(str(path), mode="r") for path in (out, tmp_path / "direct.zarr"))
    assert sorted(name for name, _ in here.arrays()) == sorted(name for name, _ in there.arrays())
    for name, array in there.arrays():
        assert np.array_equal(here[name][:], array[:]), name
