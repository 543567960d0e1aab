from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
from identities import identity_of
from mapping import GRID, PRIOR, ROWS, ZRED, files, make_catalog, make_model, run, values
from pyarrow import parquet

from digs_survey.catalog import Catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.config import load_config
from digs_survey.errors import CatalogError, ConfigError, MissingDependencyError, StageError
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.infer import map_catalog as map_stage
from digs_survey.infer.rows import infer_rows
from digs_survey.quality import QualityFlag
from digs_survey.results.columns import percentile
from digs_survey.results.dataset import reconcile
from digs_survey.results.table import ResultTable
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return make_catalog(tmp_path_factory.mktemp("catalog") / "catalog.zarr")


def copy_of(done, folder):
    """Copy a finished map, so that a test may damage it."""
    shutil.copytree(done.out.parent, folder, dirs_exist_ok=True)
    return SimpleNamespace(out=folder / done.out.name, ledger=Ledger(folder / "ledger" / "map"))


def same_rows(one, other):
    names = ("percentiles", "quality", "n_good")
    return one.galaxy_id.equals(other.galaxy_id) and all(
        one[name].values.tobytes() == other[name].values.tobytes() for name in names
    )


@pytest.fixture(scope="module")
def mapped(shared_ray, catalog, model, tmp_path_factory):
    shared_ray.open()
    return run(tmp_path_factory.mktemp("mapped"), catalog, model)


def test_percentiles_are_those_of_the_posterior_and_xarray_reads_them(mapped, catalog, model):
    rows = Catalog.open(catalog).rows(0, ROWS)
    expected = infer_rows(FrozenPosterior.load(model), prepare(rows, "rest", ZRED, 0.8), mapped.config.map)
    data = values(mapped.out)
    assert data.percentiles.dims == ("galaxy", "parameter", "quantile")
    assert data.percentiles.values.tobytes() == expected.percentiles.tobytes()
    np.testing.assert_array_equal(data.quality, expected.quality)
    np.testing.assert_array_equal(data.n_good, expected.n_good)
    assert data.coords["galaxy_id"].values.tolist() == rows.galaxy_id.tolist()
    assert data.coords["parameter"].values.tolist() == list(PRIOR.names)
    assert data.coords["quantile"].values.tolist() == [0.025, 0.16, 0.5, 0.84, 0.975]
    assert data.percentiles.attrs["parameter_units"]["tage"] == "Gyr"
    assert data.quality.values[17] & QualityFlag.FILLED_ELEMENTS
    assert (np.diff(data.percentiles.values, axis=2) > 0).all()
    assert mapped.ledger.totals()[0] == sum(mapped.calls) == ROWS
    assert all(r["core_s"] > 0 and r["attempt"] for r in mapped.ledger.records().values())


def test_a_garbage_row_changes_no_other_row_nor_do_larger_shards(ray_cores, mapped, model, tmp_path):
    bad = [3, 64, 149]

    def spoil(flux, mask):
        flux[bad[0]] = np.nan
        flux[bad[1]] *= 1e20
        mask[bad[2]] = 1

    spoiled = run(tmp_path, make_catalog(tmp_path / "catalog.zarr", spoil), model, shard=64)
    ours, theirs = values(spoiled.out), values(mapped.out)
    others = np.setdiff1d(np.arange(ROWS), bad)
    assert same_rows(ours.isel(galaxy=others), theirs.isel(galaxy=others))
    lost = ours.isel(galaxy=bad)
    assert np.isnan(lost.percentiles.values).all(axis=(1, 2)).tolist()[::2] == [True, True]
    assert (lost.quality.values != 0).all()
    assert lost.quality.values[1] & QualityFlag.OUTSIDE_SIMULATIONS


def test_resume_does_only_what_is_missing(ray_cores, mapped, catalog, model, tmp_path, monkeypatch):
    first = copy_of(mapped, tmp_path)
    marks = files(first.ledger.folder)
    (first.ledger.folder / "00000003.json").unlink()
    (first.out / "quality" / "c" / "3").write_bytes(b"half a shard")
    (first.out / "quality" / "c" / ".left-behind.partial").touch()
    again = run(tmp_path, catalog, model)
    assert again.calls == [ROWS - 7, 7]
    assert files(first.out) == files(mapped.out)
    redone = files(first.ledger.folder)
    assert {name for name in marks if marks[name] != redone[name]} == {"00000003.json"}

    monkeypatch.setattr(map_stage, "ray_session", lambda address: pytest.fail("nothing was left to do"))
    assert run(tmp_path, catalog, model).calls == [ROWS]


def test_other_settings_start_afresh_and_one_shard_for_all_gives_the_same_rows(
    ray_cores, mapped, catalog, model, tmp_path
):
    copy_of(mapped, tmp_path)
    other = run(tmp_path, catalog, model, shard=ROWS)
    assert other.calls == [0, ROWS]
    assert list(other.ledger.records()) == [0]
    assert same_rows(values(other.out), values(mapped.out))


def test_a_failing_shard_is_named_with_its_cause_and_leaves_the_others_alone(
    ray_cores, mapped, catalog, model, tmp_path
):
    done = copy_of(mapped, tmp_path)
    (done.ledger.folder / "00000003.json").unlink()
    (done.ledger.folder / "00000005.json").unlink()
    (done.out / "quality" / "c" / "3").unlink()
    (done.out / "quality" / "c" / "3").mkdir()
    with pytest.raises(StageError, match=r"shard 3 \(rows 21 to 27\).*IsADirectoryError") as raised:
        run(tmp_path, catalog, model)
    assert isinstance(raised.value.__cause__, IsADirectoryError)
    assert done.ledger.is_done(5)
    (failed,) = done.ledger.pace().failed
    assert failed["shard"] == 3
    assert failed["error"].startswith("IsADirectoryError")


@pytest.mark.slow
def test_two_workers_of_which_one_dies_write_the_same_bytes(ray_cores, mapped, catalog, model, tmp_path, monkeypatch):
    died = tmp_path / "died"

    class DiesOnce(map_stage.ShardWorker):
        def work(self, shard):
            if shard == 2 and not died.exists():
                died.touch()
                os._exit(1)
            return super().work(shard)

    monkeypatch.setattr(map_stage, "ShardWorker", DiesOnce)
    once = run(tmp_path, catalog, model, workers=2)
    assert died.exists()
    assert files(once.out) == files(mapped.out)


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_named(ray_cores, mapped, catalog, model, tmp_path, monkeypatch):
    class AlwaysDies(map_stage.ShardWorker):
        def work(self, shard):
            os._exit(1)

    done = copy_of(mapped, tmp_path)
    (done.ledger.folder / "00000002.json").unlink()
    monkeypatch.setattr(map_stage, "ShardWorker", AlwaysDies)
    monkeypatch.setattr("digs_survey.cluster.actors._RETRIES", 1)
    with pytest.raises(StageError, match=r"shard 2 \(rows 14 to 20\).*2 workers died"):
        run(tmp_path, catalog, model)
    assert 2 not in done.ledger.records()


def test_a_worker_that_cannot_start_says_why(ray_cores, catalog, model, tmp_path, monkeypatch):
    class Unable(map_stage.ShardWorker):
        def __init__(self, task):
            raise OSError("no such model on this node")

    monkeypatch.setattr(map_stage, "ShardWorker", Unable)
    with pytest.raises(StageError, match=r"(?s)could not start.*no such model on this node"):
        run(tmp_path, catalog, model)


def test_counts_that_do_not_add_up_are_an_error(mapped, tmp_path):
    ledger = Ledger(tmp_path)
    for shard, record in mapped.ledger.records().items():
        ledger.mark(shard, rows=record["rows"] - (shard == 5), checksum="", core_s=0)
    with pytest.raises(StageError, match="150 rows in 22 shards, found 149 rows"):
        reconcile(mapped.out, mapped.table, ledger, rows=ROWS, rows_per_shard=7)
    ledger.forget(5)
    ledger.mark(5, rows=7, checksum="", core_s=0)
    reconcile(mapped.out, mapped.table, ledger, rows=ROWS, rows_per_shard=7)


def test_another_grid_is_refused_naming_both(model, tmp_path):
    shifted = WavelengthGrid(GRID.wavelength + 10)
    with pytest.raises(CatalogError, match=r"(?s)4010 to 4960.*4000 to 4950"):
        run(tmp_path, make_catalog(tmp_path / "catalog.zarr", grid=shifted), model)
    assert not (tmp_path / "posterior.zarr").exists()


def test_table_joins_the_survey_columns_in_order(mapped):
    assert len(list(mapped.table.iterdir())) == len(mapped.ledger.records()) == 22
    frame, data = pd.read_parquet(mapped.table), values(mapped.out)
    assert frame.galaxy_id.tolist() == data.galaxy_id.values.tolist()
    assert frame.ra.tolist() == np.linspace(0, 90, ROWS).tolist()
    assert frame.field.tolist()[:2] == ["north", "südlich"]
    for i, name in enumerate(PRIOR.names):
        for j, suffix in enumerate(["p2_5", "p16", "p50", "p84", "p97_5"]):
            np.testing.assert_array_equal(frame[f"{name}_{suffix}"], data.percentiles.values[:, i, j])
    np.testing.assert_array_equal(frame.quality, data.quality)
    np.testing.assert_array_equal(frame.n_good, data.n_good)

    schema = parquet.read_schema(mapped.table / "part-00000000.parquet")
    assert schema.field("ra").metadata[b"unit"] == b"deg"
    assert schema.field("tage_p2_5").metadata[b"unit"] == b"Gyr"
    assert b"2.5 %" in schema.field("tage_p2_5").metadata[b"description"]
    assert len(schema.metadata[b"model_hash"]) == 64
    assert b'"PRIOR_EDGE": {"bit": 256' in schema.metadata[b"quality_bits"]
    assert percentile("dust2", 0.29).name == "dust2_p29"


def test_table_refuses_rows_without_a_result_or_a_reason(mapped, catalog, model):
    opened, posterior = Catalog.open(catalog), FrozenPosterior.load(model)
    rows, settings = slice(40, 47), mapped.config.map
    block = opened.rows(rows.start, rows.stop)
    result = infer_rows(posterior, prepare(block, "rest", ZRED, 0.8), settings)
    result.percentiles[4] = np.nan
    result.quality[4] = int(QualityFlag.PRIOR_EDGE | QualityFlag.FILLED_ELEMENTS)
    given = {"galaxy_id": block.galaxy_id, "redshift": block.redshift}
    table = ResultTable({name: {} for name in given}, PRIOR, settings.quantiles, (), posterior.hash, "")
    with pytest.raises(StageError, match=r"row 44 .* neither percentiles nor a bit"):
        table.part(rows.start, given, result.arrays())


def test_a_dead_address_is_named_within_seconds(tmp_path, catalog, model, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"):
        with pytest.raises(MissingDependencyError, match=address):
            run(tmp_path, catalog, model, address=address)
    assert time.monotonic() - started < 20


def p_name(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


DRIVER = """
import sys
from pathlib import Path
from digs_survey.catalog import Catalog
from digs_survey.config import load_config
from digs_survey.estimator.artefact import identify
from digs_survey.infer.map_catalog import map_catalog
from digs_survey.store.ledger import Ledger
catalog, model, folder = map(Path, sys.argv[1:])
config = load_config(None, ["map.rows_per_shard=7", "map.workers=2", "map.draws=20000"])
identity = identify(model, seed=2022, catalog=Catalog.open(catalog).fingerprint())
map_catalog(identity, catalog, folder / "posterior.zarr", config, ledger=Ledger(folder / "ledger" / "map"))
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(ray_cores, catalog, model, tmp_path):
    undisturbed = run(tmp_path / "undisturbed", catalog, model, draws=20_000)
    folder = tmp_path / "killed"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, catalog, model, folder])
    ours: list[psutil.Process] = []
    try:
        marks = folder / "ledger" / "map"
        deadline = time.monotonic() + 240
        while len(list(marks.glob("[0-9]*.json"))) < 3:
            assert driver.poll() is None, "the driver ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ours = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
        # Ray's two helper agents look for their parent once a minute; the test ends them below.
        working = [p for p in ours if not p_name(p).endswith("Agent")]
        assert not psutil.wait_procs(working, timeout=30)[1], "Ray's workers outlived their driver"
    finally:
        for process in [driver, *ours]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
    done = len(list(Path(marks).glob("[0-9]*.json")))
    assert 3 <= done < 22
    resumed = run(folder, catalog, model, draws=20_000)
    assert resumed.calls[0] == 7 * done
    assert files(folder / "posterior.zarr") == files(undisturbed.out)


def test_recalibrated_levels_are_used_recorded_and_part_of_the_recipe(ray_cores, catalog, model, tmp_path):
    levels = {name: [0.01, 0.1 + 0.01 * k, 0.5, 0.8, 0.99] for k, name in enumerate(PRIOR.names)}
    config = load_config(None, ["map.rows_per_shard=50", "map.draws=200"])
    out, ledger, calls = tmp_path / "posterior.zarr", Ledger(tmp_path / "ledger" / "map"), []
    identity = identity_of(model, catalog)
    for given in (levels, levels, None):
        map_stage.map_catalog(identity, catalog, out, config, ledger=ledger, levels=given, advance=calls.append)
        if given is None:
            break
        posterior, rows = FrozenPosterior.load(model), Catalog.open(catalog).rows(0, ROWS)
        table = np.array(list(levels.values()))
        expected = infer_rows(posterior, prepare(rows, "rest", ZRED, 0.8), config.map, levels=table)
        assert values(out).percentiles.values.tobytes() == expected.percentiles.tobytes()
        schema = parquet.read_schema(next((tmp_path / "percentiles.parquet").glob("*.parquet")))
        assert json.loads(schema.metadata[b"recalibration"]) == levels
        assert b"of the recalibrated posterior" in schema.field("tage_p50").metadata[b"description"]
    # Done the first time, kept the second, done anew without them.
    assert calls == [0, 50, 50, 50, 150, 0, 50, 50, 50]
    plain = infer_rows(posterior, prepare(rows, "rest", ZRED, 0.8), config.map)
    assert values(out).percentiles.values.tobytes() == plain.percentiles.tobytes()
    assert b"recalibration" not in parquet.read_schema(next((tmp_path / "percentiles.parquet").glob("*"))).metadata


def test_another_model_than_the_posteriors_is_refused_before_anything_is_written(catalog, model, tmp_path):
    config = load_config(None, ["model.gas_logu=-2.5"])
    with pytest.raises(ConfigError, match=r"model.gas_logu: posterior -2.0, configuration -2.5"):
        run(tmp_path, catalog, model, config=config)
    assert not list(tmp_path.iterdir())
