"""``open_run`` on the finished run of the tiny survey, against what the command line and the files say."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import digs_survey as ds
from digs_survey.errors import CatalogError, RunDirectoryError

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(finished_run):
    return ds.open_run(finished_run.run_dir)


def test_the_table_is_that_of_the_escalation(opened):
    table = opened.table()
    assert table.num_rows == opened.rows == 48
    assert {"agreement", "tier"} <= set(table.column_names)
    assert table.to_pandas().equals(pq.read_table(opened.run_dir / "results.parquet").to_pandas())
    assert opened.table(["galaxy_id", "tage_p50"]).column_names == ["galaxy_id", "tage_p50"]


def test_draws_of_one_galaxy_have_the_percentiles_of_the_table(opened):
    draws = opened.posterior(1007)
    assert (draws.galaxy_id, draws.row, draws.theta.shape) == (1007, 7, (200, 5))
    assert draws.units[draws.parameters.index("tage")] == "Gyr"
    with opened.dataset() as data:
        expected = data["percentiles"].sel(quantile=0.5).values[7]
        assert draws.quality == data["quality"].values[7]
    # The table has smooth quantiles of the same draws.
    assert (np.abs(np.median(draws.theta, axis=0) - expected) < 0.1 * draws.theta.std(axis=0)).all()
    assert opened.posterior("1007", draws=64).theta.shape == (64, 5)
    with pytest.raises(CatalogError, match="galaxy_id 5: expected one row .* found 0"):
        opened.posterior(5)


def test_what_the_audit_found_and_how_far_the_stages_are(opened):
    assert opened.audit == json.loads((opened.run_dir / "audit.json").read_text())
    assert {stage.stage: stage.status for stage in opened.status()} == dict.fromkeys(
        ("simulate", "train", "map", "audit", "escalate", "report"), "done"
    )
    assert opened.identity.posterior_hash == opened.audit["posterior"]


def test_one_row_again_and_an_export(opened, tmp_path):
    (again,) = opened.replay(1007)
    assert again.identical, again.differing
    opened.export(tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 49


def test_what_is_not_there_yet_names_the_command_that_makes_it(tmp_path, finished_run):
    for name in ("manifest.json", "config.toml"):
        (tmp_path / name).write_bytes((finished_run.run_dir / name).read_bytes())
    half = ds.open_run(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"has no audit.json; run 'digs-survey audit' first"):
        _ = half.audit
    with pytest.raises(RunDirectoryError, match=r"has no results.parquet; run 'digs-survey map' first"):
        half.table()
