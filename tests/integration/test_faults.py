"""What the map does when a node dies, the disk fills up, or files are damaged behind its back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import zarr
from mapping import ROWS, files, make_catalog, make_model, run, values
from survey import environment, run_here

from digs_survey.errors import RunDirectoryError
from digs_survey.infer.shard_worker import ShardWorker
from digs_survey.quality import QualityFlag
from digs_survey.run.verify import verify_run
from digs_survey.store.ledger import Ledger

pytestmark = pytest.mark.slow

MAP = ("--set", "map.rows_per_shard=7", "--set", "map.draws=200", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return make_catalog(tmp_path_factory.mktemp("catalog") / "catalog.zarr")


@pytest.fixture(scope="module")
def undisturbed(shared_ray, catalog, model, tmp_path_factory):
    """Run directory of a map that nothing happened to."""
    shared_ray.open()
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    finished = run_here("map", catalog, "--model", model, "-o", run_dir, *MAP)
    assert finished.returncode == 0, finished.stderr
    return run_dir


def map_within(before: list[str], run_dir: Path, catalog: Path, model: Path) -> subprocess.CompletedProcess[str]:
    """Map in a process that another command starts."""
    command = [*before, sys.executable, "-m", "digs_survey", "map", catalog, "--model", model, "-o", run_dir, *MAP]
    return subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def test_a_ray_node_dies(shared_ray, catalog, model, undisturbed, tmp_path):
    from ray.cluster_utils import Cluster

    shared_ray.close()
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
        cluster.wait_for_nodes()
        marks = Ledger(tmp_path / "ledger" / "map")

        def kill() -> None:
            while len(marks.pending(22)) > 17:
                time.sleep(0.01)
            cluster.remove_node(nodes[0], allow_graceful=False)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = run(tmp_path, catalog, model, workers=2, address=cluster.address)
        killer.join(60)
        assert not killer.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sum(found.calls) == ROWS
    for name in ("percentiles", "quality", "n_good", "galaxy_id"):
        ours, theirs = (values(d / "posterior.zarr")[name].values for d in (tmp_path, undisturbed))
        assert ours.tolist() == theirs.tolist() or ours.tobytes() == theirs.tobytes(), name


@pytest.fixture
def small_disk(tmp_path):
    """A command that runs others where a folder is a file system of two megabytes, and how to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    holder = subprocess.Popen(["unshare", "--mount", "sleep", "600"])
    inside = ["nsenter", "--mount", "--target", str(holder.pid)]
    try:
        time.sleep(0.5)
        mounted = subprocess.run(
            [*inside, "mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if holder.poll() is not None or mounted.returncode:
            pytest.skip(f"a small file system needs the right to mount one: {mounted.stderr.strip()}")
        yield inside, folder
    finally:
        holder.kill()
        holder.wait()


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(small_disk, catalog, model, undisturbed):
    inside, folder = small_disk
    filled = map_within(inside, folder / "run", catalog, model)
    assert filled.returncode == 5, filled.stderr
    assert "No space left on device" in filled.stderr
    assert "the same command goes on" in filled.stderr
    assert "Traceback" not in filled.stderr
    subprocess.run([*inside, "mount", "-o", "remount,size=100m", str(folder)], check=True)
    finished = map_within(inside, folder / "run", catalog, model)
    assert finished.returncode == 0, finished.stderr
    out = folder.parent / "copy"
    subprocess.run([*inside, "cp", "-r", str(folder / "run"), str(out)], check=True)
    for name in ("posterior.zarr", "percentiles.parquet"):
        assert files(out / name) == files(undisturbed / name)


def test_damage_is_found_and_those_shards_alone_are_made_again(ray_cores, catalog, model, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    assert verify_run(run_dir) == []
    percentiles, parts = run_dir / "posterior.zarr/percentiles/c", run_dir / "percentiles.parquet"
    (percentiles / "3/0/0").write_bytes(b"half a shard")
    flip(percentiles / "5/0/0")
    (run_dir / "posterior.zarr/quality/c/7").unlink()
    flip(parts / "part-00000009.parquet")
    (parts / "part-00000011.parquet").unlink()
    marks = files(run_dir / "ledger" / "map")
    found = run_here("verify", "--run-dir", run_dir)
    assert found.returncode == 7
    assert "5 damaged shard(s)" in found.stderr
    lines = found.stdout.splitlines()
    for line, expected in zip(
        lines,
        [
            r"posterior.zarr: shard 3 \(rows 21 to 27\): it cannot be decoded",
            r"posterior.zarr: shard 5 \(rows 35 to 41\): it",
            r"posterior.zarr: shard 7 \(rows 49 to 55\): its values are not those that were written",
            r"part-00000009.parquet: shard 9 .*the file is not the one that was written",
            r"part-00000011.parquet: shard 11 .*the file is not there",
        ],
        strict=True,
    ):
        assert re.search(expected, line), line
    finished = run_here("map", catalog, "--model", model, "-o", run_dir, *MAP)
    assert finished.returncode == 0, finished.stderr
    after = files(run_dir / "ledger" / "map")
    changed = {name for name in after if marks.get(name) != after[name]}
    assert changed == {f"{shard:08d}.json" for shard in (3, 5, 7, 9, 11)}
    for name in ("posterior.zarr", "percentiles.parquet"):
        assert files(run_dir / name) == files(undisturbed / name)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_nothing_to_verify_is_an_error(tmp_path):
    with pytest.raises(RunDirectoryError, match="no ledger"):
        verify_run(tmp_path)


def test_a_damaged_shard_of_the_catalog_costs_its_own_rows_only(ray_cores, model, undisturbed, tmp_path):
    broken = make_catalog(tmp_path / "catalog.zarr")
    shard = broken / "flux" / "c" / "1" / "0"
    shard.write_bytes(shard.read_bytes()[:-9])
    finished = run_here("map", broken, "--model", model, "-o", tmp_path / "run", *MAP)
    assert finished.returncode == 0, finished.stderr
    assert "flux: rows 40 to 79" in (next((tmp_path / "run" / "logs").glob("*.jsonl"))).read_text()
    ours, whole = (zarr.open_group(str(d / "posterior.zarr"), mode="r") for d in (tmp_path / "run", undisturbed))
    lost = np.arange(40, 80)
    assert (ours["quality"][:][lost] & int(QualityFlag.UNREADABLE) != 0).all()
    assert np.isnan(ours["percentiles"][:][lost]).all()
    others = np.setdiff1d(np.arange(ROWS), lost)
    for name in ("percentiles", "quality", "n_good"):
        assert ours[name][:][others].tobytes() == whole[name][:][others].tobytes()


def test_a_late_attempt_leaves_a_finished_shard_alone(ray_cores, catalog, model, undisturbed, tmp_path, monkeypatch):
    from digs_survey.infer import map_catalog as map_stage

    late: list[ShardWorker] = []

    def run_on_actors(kind, task, pending, workers, **about):
        worker = ShardWorker(task)
        late.append(worker)
        for shard in pending:
            yield shard, worker.work(shard)

    monkeypatch.setattr(map_stage, "run_on_actors", run_on_actors)
    run(tmp_path, catalog, model)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (worker,) = late
    # It was computing the shard when another attempt finished it.
    asked = iter([False, True])
    monkeypatch.setattr(worker.ledger, "is_done", lambda shard: next(asked))
    assert worker.work(3) == 7
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    record = json.loads((tmp_path / "ledger" / "map" / "00000003.json").read_text())
    assert files(tmp_path / "posterior.zarr") == files(undisturbed / "posterior.zarr")
    assert record["attempt"]
