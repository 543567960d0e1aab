"""``digs-survey run`` for a catalog that has grown since: new rows are mapped, and what follows is of all rows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from survey import ROWS, run_here

from digs_survey.catalog import Catalog, write_catalog
from digs_survey.run.verify import verify_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cores")]


def grow(path):
    """Write a catalog again, with its first three rows once more under other identifiers."""
    catalog = Catalog.open(path)
    rows, take = catalog.rows(0, ROWS), [*range(ROWS), 0, 1, 2]
    write_catalog(
        path,
        grid=catalog.grid,
        flux=rows.flux[take],
        ivar=rows.ivar[take],
        mask=(~rows.good[take]).astype(np.uint8),
        redshift=rows.redshift[take],
        galaxy_id=[*rows.galaxy_id, 1, 2, 3],
        flux_unit="erg / (s cm2 Angstrom)",
    )


def test_new_rows_are_mapped_and_what_follows_is_made_again(finished_run, survey, tmp_path):
    catalog, run_dir = tmp_path / "catalog.zarr", tmp_path / "run"
    shutil.copytree(survey[0], catalog)
    shutil.copytree(finished_run.run_dir, run_dir)
    again = run_here("map", catalog, "-o", run_dir)
    assert "map: done already" in again.stderr
    before = pq.read_table(run_dir / "results.parquet").to_pandas()
    grow(catalog)
    refused = run_here("run", catalog, "-o", run_dir, "--set", "map.draws=150")
    assert refused.returncode == 6
    assert "map.draws: was 200, now 150" in refused.stderr
    assert "catalog:" not in refused.stderr
    assert len(pq.read_table(run_dir / "results.parquet")) == ROWS

    finished = run_here("run", catalog, "-o", run_dir)
    assert finished.returncode == 0, finished.stderr
    assert "train: done already" in finished.stderr
    assert f"map: {ROWS} of {ROWS + 3} rows keep their results" in finished.stderr
    after = pq.read_table(run_dir / "results.parquet").to_pandas()
    assert after.galaxy_id.tolist() == [*before.galaxy_id, 1, 2, 3]
    same = [name for name in after if name.endswith("_p50")]
    np.testing.assert_array_equal(after[same].to_numpy()[ROWS:], after[same].to_numpy()[:3])
    manifest = json.loads((run_dir / "manifest.json").read_text())
    fingerprint = Catalog.open(catalog).fingerprint()
    assert manifest["stages"]["audit"]["key"]["catalog"] == manifest["inputs"]["catalog"]["fingerprint"] == fingerprint
    assert manifest["stages"]["report"]["status"] == "done"
    assert verify_run(run_dir) == []
    assert "nothing to do" in run_here("run", catalog, "-o", run_dir).stderr


def test_a_catalog_elsewhere_is_not_taken_for_the_one_that_grew(finished_run, survey, tmp_path):
    run_dir, other = tmp_path / "run", tmp_path / "other.zarr"
    shutil.copytree(finished_run.run_dir, run_dir)
    shutil.copytree(survey[0], other)
    grow(other)
    refused = run_here("run", other, "-o", run_dir)
    assert refused.returncode == 6
    assert "catalog:" in refused.stderr
