from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from digs_survey import formats
from digs_survey.config import MapConfig
from digs_survey.run.status import run_status
from digs_survey.store import retry
from digs_survey.store.ledger import Ledger
from digs_survey.store.retry import retry_io
from digs_survey.store.storage import ArraySpec, create_bytes, create_dataset, write_shard
from digs_survey.store.targets import write_remedy


def mark(ledger: Ledger, shard: int, **extra: object) -> bool:
    return ledger.mark(shard, rows=10, checksum="abc", core_s=1.0, **extra)


def test_of_many_attempts_one_marks(tmp_path):
    ledger = Ledger(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda k: mark(ledger, 3, attempt=str(k)), range(32)))
    assert won.count(True) == 1
    assert ledger.records()[3]["attempt"] == str(won.index(True))
    assert [p.name for p in tmp_path.iterdir()] == ["00000003.json"]
    assert ledger.is_done(3)
    assert ledger.pending(5) == [0, 1, 2, 4]
    ledger.forget(3)
    assert mark(ledger, 3, attempt="again")


def test_create_bytes_never_replaces(tmp_path):
    assert create_bytes(tmp_path / "a" / "b", b"one")
    assert not create_bytes(tmp_path / "a" / "b", b"two")
    assert (tmp_path / "a" / "b").read_bytes() == b"one"


def test_pace_tells_what_runs_and_what_failed(tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.attempt(0) as token:
        now = ledger.pace()
        assert [(c["shard"], c["attempt"], c["pid"]) for c in now.running] == [(0, token, os.getpid())]
        mark(ledger, 0, seconds=2.0)
    with pytest.raises(ValueError, match="broken"), ledger.attempt(1):
        raise ValueError("broken")
    pace = ledger.pace()
    assert (pace.done, pace.rows, pace.running) == (1, 10, [])
    assert [(f["shard"], f["error"]) for f in pace.failed] == [(1, "ValueError: broken")]
    assert pace.rows_per_s == pytest.approx(5.0)
    with ledger.attempt(1):
        mark(ledger, 1, seconds=2.0)
    assert ledger.pace().failed == []


def test_claims_of_the_dead_do_not_count(tmp_path):
    ledger = Ledger(tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from digs_survey.store.ledger import Ledger\n"
        "attempt = Ledger(Path(sys.argv[1])).attempt(7); attempt.__enter__(); print('at it', flush=True)\n"
        "input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "at it\n"
        assert [claim["shard"] for claim in ledger.pace().running] == [7]
    finally:
        process.kill()
        process.wait()
    assert ledger.pace().running == []


def test_a_pause_is_not_part_of_the_pace(tmp_path):
    ledger = Ledger(tmp_path)
    now = time.time()
    for shard, finished in enumerate([now - 86_400, now - 86_398, now - 4, now - 2, now]):
        path = tmp_path / f"{shard:08d}.json"
        path.write_text(json.dumps({"shard": shard, "rows": 10, "core_s": 1, "finished": finished, "seconds": 2}))
    assert ledger.pace().rows_per_s == pytest.approx(5.0)


def test_status_of_a_run_whose_driver_is_dead(tmp_path):
    stages = {"map": {"status": "running", "total": 100, "wall_s": 0.0, "core_s": 0.0, "key": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": formats.MANIFEST, "stages": stages}))
    ledger = Ledger(tmp_path / "ledger" / "map")
    for shard in range(4):
        mark(ledger, shard, seconds=2.0)
    status = {stage.stage: stage for stage in run_status(tmp_path)}["map"]
    assert (status.status, status.rows, status.total) == ("running", 40, 100)
    assert status.left_s == pytest.approx(60 / status.rows_per_s)
    for path in ledger.folder.glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"finished": record["finished"] - 7200}))
    assert {stage.stage: stage.status for stage in run_status(tmp_path)}["map"] == "interrupted"


def test_a_shard_is_written_over_a_damaged_one_and_never_half(tmp_path):
    path = tmp_path / "data.zarr"
    create_dataset(path, {"x": ArraySpec(("row",), (10,), "float64", rows_per_shard=4, rows_per_chunk=2)})
    file = path / "x" / "c" / "2"
    write_shard(path, 2, slice(8, 10), {"x": np.array([1.0, 2.0])})
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises((ValueError, RuntimeError)):
        zarr.open_group(str(path), mode="r")["x"][8:]
    write_shard(path, 2, slice(8, 10), {"x": np.array([1.0, 2.0])})
    assert file.read_bytes() == whole
    assert not list(path.rglob("*.partial"))


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, value: int) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return value


def test_what_may_pass_is_tried_again_and_the_rest_is_not(monkeypatch, caplog):
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    assert retry_io(Flaky(OSError(5, "Input/output error"), TimeoutError(), ConnectionResetError()), 3) == 3
    assert len(waits) == 3
    assert all(0 <= wait <= 30 for wait in waits)
    assert "Input/output error" in caplog.text
    for lasting in (FileNotFoundError("x"), PermissionError("x"), OSError(28, "No space left on device"), ValueError()):
        with pytest.raises(type(lasting)):
            retry_io(Flaky(lasting), 3)
    assert len(waits) == 3
    with pytest.raises(OSError, match="always"):
        retry_io(Flaky(*[OSError(5, "always")] * 20), 3)
    assert len(waits) == 3 + retry._ATTEMPTS - 1


def test_full_is_told_from_other_trouble():
    outer = RuntimeError("writing")
    outer.__cause__ = OSError(28, "No space left on device")
    assert write_remedy(outer).startswith("free some space first")
    assert write_remedy(OSError(5, "Input/output error")) is None
    assert write_remedy(None) is None


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, 256), (2_000, 256), (65_537, 512), (1_000_000, 4_096), (10**9, 65_536)]
)
def test_shards_grow_with_the_catalog(rows, expected):
    assert MapConfig().shard_size(rows) == expected
    assert MapConfig(rows_per_shard=7).shard_size(rows) == 7


def test_host_is_told(tmp_path):
    ledger = Ledger(tmp_path)
    mark(ledger, 0)
    assert ledger.records()[0]["host"] == socket.gethostname()
