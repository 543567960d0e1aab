"""Whole or nothing: files, datasets, markers, and the manifest's memory of what made them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from digs_survey.errors import RunDirectoryError
from digs_survey.run.manifest import RunManifest
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import ArraySpec, checksum, create_dataset, rows_of_shard, write_json, write_text


def test_dataset_opens_with_xarray_and_shards_are_whole(tmp_path):
    path = tmp_path / "d.zarr"
    arrays = {"flux": ArraySpec(("row", "wave"), (10, 3), "float32", rows_per_shard=4, attrs={"units": "Jy"})}
    create_dataset(path, arrays, {"flux": np.arange(30.0).reshape(10, 3)}, {"title": "t"})
    found = xr.open_zarr(path, consolidated=False)
    assert found.flux.dims == ("row", "wave")
    assert found.flux.attrs["units"] == "Jy"
    assert np.array_equal(found.flux, np.arange(30.0).reshape(10, 3))
    assert len([p for p in (path / "flux" / "c").rglob("*") if p.is_file()]) == 3
    assert [rows_of_shard(s, 10, 4) for s in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 10)]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_ledger(tmp_path):
    ledger = Ledger(tmp_path / "stage")
    assert ledger.pending(3) == [0, 1, 2]
    ledger.mark(1, rows=5, checksum="c", core_s=0.5)
    assert ledger.pending(3) == [0, 2]
    assert ledger.totals() == (5, 0.5)
    ledger.clear()
    assert ledger.pending(3) == [0, 1, 2]


def test_checksum_sees_bytes_dtype_and_shape():
    a = np.arange(6, dtype=np.float32)
    assert checksum(a) == checksum(a.copy())
    assert len({checksum(a), checksum(a.astype(float)), checksum(a.reshape(2, 3)), checksum(a + 1)}) == 4


def test_manifest_reuses_only_what_was_made_alike(tmp_path):
    manifest = RunManifest(tmp_path)
    key = {"train": {"epochs": 5, "seed": 1}, "data": "abc"}
    assert not manifest.reusable("train", key)
    with manifest.run("train", key, 1) as record:
        record.rows, record.core_s = 7, 1.5
    again = RunManifest(tmp_path)
    assert again.reusable("train", key)
    assert again.stages["train"]["rows"] == 7
    with pytest.raises(RunDirectoryError, match=r"train.epochs: was 5, now 6(.|\n)*--redo train"):
        again.reusable("train", {"train": {"epochs": 6, "seed": 1}, "data": "abc"})


def test_a_failed_stage_is_not_reused_and_its_time_counts(tmp_path):
    manifest = RunManifest(tmp_path)
    with pytest.raises(KeyError), manifest.run("map", {"a": 1}, 1):
        raise KeyError("x")
    assert manifest.stages["map"]["status"] == "failed"
    manifest.stages["map"]["wall_s"] = 100.0
    assert not manifest.reusable("map", {"a": 1})
    with manifest.run("map", {"a": 1}, 1):
        pass
    assert manifest.stages["map"]["status"] == "done"
    assert manifest.stages["map"]["wall_s"] >= 100.0


def test_a_setting_that_one_key_leaves_out_is_named_with_its_default(tmp_path):
    manifest = RunManifest(tmp_path)
    before = {"map": {"draws": 1000}, "noise": {"kind": "row"}, "seed": 1}
    after = {
        "map": {"draws": 1000, "error_floor": 0.1},
        "noise": {"kind": "row", "observing": {"snr": [5.0, 20.0], "gaps": 3}},
        "seed": 1,
        "pairs": "abc",
    }
    expected = {
        "map.error_floor: was 0.02 (the default), now 0.1",
        "noise.observing.snr: was [2.0, 60.0] (the default), now [5.0, 20.0]",
        "pairs: was not recorded, now 'abc'",
    }
    with manifest.run("map", before, 1):
        pass
    with pytest.raises(RunDirectoryError) as error:
        manifest.reusable("map", after)
    assert {line[4:] for line in str(error.value).splitlines() if line.startswith("  - ")} == expected
    with manifest.run("map", after, 1):
        pass
    with pytest.raises(RunDirectoryError, match=r"snr: was \[5.0, 20.0\], now \[2.0, 60.0\] \(the default\)"):
        manifest.reusable("map", before)
