"""Where things lie: paths and URLs, no secrets in them, and whole or nothing on stores that cannot rename."""

from __future__ import annotations

import pickle
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import zarr
from upath import UPath

from digs_survey.errors import ConfigError, MissingDependencyError, RunDirectoryError
from digs_survey.run.manifest import RunManifest
from digs_survey.run.remote_lock import RemoteLock
from digs_survey.store.locations import _checked, _set_defaults, exists, is_file, is_remote, location
from digs_survey.store.sharded import recorded_recipe
from digs_survey.store.storage import (
    ArraySpec,
    create_arrays,
    create_dataset,
    new_file,
    new_folder,
    read_bytes,
    read_files,
    read_json,
    remove,
    write_bytes,
    write_json,
)


@pytest.fixture
def remote():
    """A folder of a store that this process alone sees."""
    folder = UPath(f"memory://{uuid4().hex}/runs")
    yield folder
    if folder.parent.exists():
        folder.fs.rm(folder.parent.path, recursive=True)


def test_paths_stay_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert location("runs/x") == Path("runs/x")
    assert location("~/x") == tmp_path / "x"
    assert location(f"file://{tmp_path}/x") == tmp_path / "x"
    assert location(tmp_path) is tmp_path
    assert not any(is_remote(location(text)) for text in ("runs/x", "~/x", f"file://{tmp_path}/x"))


def test_urls_keep_their_text_and_reach_workers():
    found = location("s3://bucket/runs/x")
    assert is_remote(found)
    assert str(found / "model" / "card.json") == "s3://bucket/runs/x/model/card.json"
    assert str(found.absolute()) == "s3://bucket/runs/x"
    assert pickle.loads(pickle.dumps(found)) == found
    assert location(str(found)) == found
    assert _checked("abfs://container@account.dfs.core.windows.net/x") == "abfs"


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAEXAMPLE:hush@bucket/x",
        "s3://hush@bucket/x",
        "s3://AKIAEXAMPLE:hu/sh/hush@bucket/x",
        "s3://AKIAEXAMPLE:hush/x",
        "s3://bucket/x?X-Amz-Signature=hush",
        "az://container/x?sig=hush",
        "s3://bucket/x#hush",
        "abfs://user:hush@account.dfs.core.windows.net/x",
        "simplecache::s3://key:hush@bucket/x",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigError) as refused:
        location(text)
    assert "hush" not in str(refused.value)
    assert "AKIAEXAMPLE" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_what_cannot_be_opened_says_what_to_do(monkeypatch):
    with pytest.raises(ConfigError, match="nonsense://"):
        location("nonsense://bucket/x")
    with pytest.raises(ConfigError, match="memory of one process"):
        location("memory://x")

    def missing(protocol):
        raise ImportError("no such package")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    for url, extra in (("s3://b/x", "s3"), ("gs://b/x", "gs"), ("az://b/x", "az"), ("abfs://c@a.b/x", "az")):
        with pytest.raises(MissingDependencyError, match=rf"pip install 'digs-survey\[{extra}\]'"):
            location(url)


def test_the_users_own_settings_of_a_store_win(monkeypatch):
    mine = {"s3": {"max_concurrency": 7, "config_kwargs": {"read_timeout": 3}}}
    monkeypatch.setattr(fsspec.config, "conf", mine)
    _set_defaults()
    assert mine["s3"]["max_concurrency"] == 7
    assert mine["s3"]["config_kwargs"]["read_timeout"] == 3
    assert mine["s3"]["config_kwargs"]["retries"]["mode"] == "standard"
    assert mine["s3"]["use_listings_cache"] is False


def test_a_dataset_on_a_store_is_one_only_when_its_last_object_is_there(remote):
    path = remote / "d.zarr"
    arrays = {"flux": ArraySpec(("row", "wave"), (10, 3), "float32", rows_per_shard=4)}
    values = {"flux": np.arange(30, dtype=np.float32).reshape(10, 3)}
    with new_folder(path) as building:
        create_arrays(building, arrays, values)
        assert (path / "flux" / "zarr.json").is_file()
        assert recorded_recipe(path) is None
        with pytest.raises(FileNotFoundError):
            zarr.open_group(str(path), mode="r")
    create_dataset(path, arrays, values, {"recipe": {"seed": 1}})
    assert recorded_recipe(path) == {"seed": 1}
    assert np.array_equal(zarr.open_group(str(path), mode="r")["flux"][:], values["flux"])
    with pytest.raises(IndexError), new_folder(path) as building:
        create_arrays(building, arrays, {"flux": np.zeros(7)})
    assert not path.exists()


def test_files_on_a_store_are_whole_and_removed_with_their_folder_alone(remote, tmp_path):
    write_json(remote / "ledger" / "map" / "0.json", {"a": 1})
    write_bytes(remote / "ledger" / "map2" / "0.json", b"{}")
    with pytest.raises(TypeError), new_file(remote / "table.parquet") as building:
        building.write_bytes("no bytes")
    assert not (remote / "table.parquet").exists()
    with new_file(remote / "table.parquet") as building:
        building.write_bytes(b"whole")
    assert not building.exists()
    assert read_bytes(remote / "table.parquet") == b"whole"
    remove(remote / "ledger" / "map")
    assert not (remote / "ledger" / "map").exists()
    assert read_json(remote / "ledger" / "map2" / "0.json") == {}
    remove(remote / "never")


def test_a_store_that_gives_no_answer_is_no_empty_one(remote, monkeypatch):
    for number in (2, 1):
        write_json(remote / "ledger" / f"{number}.json", {"shard": number})
    write_json(remote / "ledger" / "other.json", {})
    assert list(read_files(remote / "ledger", "[0-9]*.json")) == ["1.json", "2.json"]
    assert read_files(remote / "nothing", "*") == {}
    assert exists(remote / "ledger")
    assert not is_file(remote / "ledger")
    assert is_file(remote / "ledger" / "1.json")
    assert not exists(remote / "nothing")

    def broken(*_, **__):
        raise OSError("503 Slow Down")

    for name in ("info", "ls"):
        monkeypatch.setattr(type(remote.fs), name, broken)
    for ask in (exists, is_file, lambda path: read_files(path, "*"), RunManifest):
        with pytest.raises(OSError, match="503"):
            ask(remote / "ledger")


def test_one_holder_at_a_time_and_its_refreshes_keep_it(remote):
    with RemoteLock(remote, refresh_s=0.05, stale_s=1.0):
        first = read_json(remote / "lock.json")
        with pytest.raises(RunDirectoryError, match=rf"host {first['host']}, pid {first['pid']}"):
            RemoteLock(remote, stale_s=1.0).__enter__()
        time.sleep(2.1)
        held = read_json(remote / "lock.json")
        assert held["token"] == first["token"]
        assert held["refreshed"] > first["refreshed"]
    assert not (remote / "lock.json").exists()


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({}, False),
        ({"pid": 2**30}, True),
        ({"started": 1.0}, True),
        ({"host": "another", "refreshed": (datetime.now(UTC) - timedelta(minutes=3)).isoformat()}, True),
    ],
    ids=["alive", "dead", "number used again", "long silent"],
)
def test_a_lock_that_was_left_behind_is_taken_over(remote, change, free):
    with RemoteLock(remote):
        left = read_json(remote / "lock.json")
    write_json(remote / "lock.json", {**left, "token": "left", **change})
    lock = RemoteLock(remote, settle_s=0.0)
    if not free:
        with pytest.raises(RunDirectoryError, match="works in this run directory"), lock:
            pass
        assert read_json(remote / "lock.json")["token"] == "left"
        return
    with lock:
        assert read_json(remote / "lock.json")["token"] != "left"


def test_a_holder_that_was_taken_over_does_not_free_the_others_lock(remote):
    lock = RemoteLock(remote, refresh_s=60.0)
    with pytest.raises(RunDirectoryError, match="works in this run directory"), lock:
        write_json(remote / "lock.json", {**read_json(remote / "lock.json"), "token": "other"})
    assert read_json(remote / "lock.json")["token"] == "other"
