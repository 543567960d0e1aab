"""A catalog that grew or was corrected: what is mapped again, and that the outcome is that of a map from nothing."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from mapping import GRID, ROWS, ZRED, files, flux_of, make_model, run

from digs_survey.catalog import Catalog, write_catalog
from digs_survey.infer import map_catalog as map_stage
from digs_survey.store.ledger import Ledger

SHARD = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def one_worker_here(monkeypatch):
    """Shards are mapped one after the other in this process: what is kept is no matter of where."""

    def work(worker, task, shards, workers, **_):
        here = worker(task)
        for shard in shards:
            yield shard, here.work(shard)

    monkeypatch.setattr(map_stage, "ray_session", lambda address: nullcontext(1))
    monkeypatch.setattr(map_stage, "run_on_actors", work)


@pytest.fixture
def mapped(build_once, model):
    def build(folder):
        run(folder, catalog_of(folder / "catalog.zarr", range(ROWS)), model, shard=SHARD)

    return build_once("mapped-before-a-change", build)


@pytest.fixture
def before(mapped, tmp_path):
    """A copy of a finished map."""
    folder = tmp_path / "run"
    shutil.copytree(mapped, folder)
    return SimpleNamespace(folder=folder, ledger=Ledger(folder / "ledger" / "map"))


def catalog_of(path, rows, *, ids=lambda ids: ids, units="deg"):
    """Write a catalog of some rows of a survey, which has 30 more than ``ROWS``."""
    take, flux = np.asarray(rows), flux_of(ROWS + 30, seed=2)[0] / 1e-8
    names = np.array([f"J{k:05d}+{'ab' * (k % 3)}" for k in range(ROWS + 30)])
    write_catalog(
        path,
        grid=GRID,
        flux=flux[take],
        ivar=1 / (0.05 * flux[take]) ** 2,
        mask=np.zeros((take.size, len(GRID)), dtype=np.uint8),
        redshift=np.full(take.size, ZRED),
        galaxy_id=ids(names[take]),
        flux_unit="1e-8 erg / (s cm2 Angstrom)",
        columns={
            "ra": (np.linspace(0, 90, ROWS + 30)[take], {"units": units}),
            "field": (np.array(["north", "südlich"])[take % 2], {}),
        },
        rows_per_shard=40,
    )
    return path


def kept_shards(ledger):
    return [shard for shard, record in sorted(ledger.records().items()) if record["kept"]]


def grown(path):
    return catalog_of(path, range(ROWS + 30))


def shrunk(path):
    return catalog_of(path, range(ROWS - 35))


def corrected(path):
    return catalog_of(path, [*range(50), 160, *range(51, ROWS)])


def one_identifier_twice(path):
    """Rows 5 and 170 share one: neither is new, and both change."""
    return catalog_of(path, range(ROWS + 30), ids=lambda ids: np.where(ids == "J00170+abab", "J00005+abab", ids))


def in_other_units(path):
    return catalog_of(path, range(ROWS), units="rad")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (grown, [0, 1, 2]),
        (shrunk, [0, 1]),
        (corrected, [0, 2, 3]),
        (one_identifier_twice, [1, 2]),
        (in_other_units, []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_shards_that_are_the_same_are_kept_and_the_bytes_are_those_of_a_map_from_nothing(
    before, model, tmp_path, change, kept
):
    catalog = change(tmp_path / "changed.zarr")
    again = run(before.folder, catalog, model, shard=SHARD)
    anew = run(tmp_path / "anew", catalog, model, shard=SHARD)
    assert kept_shards(again.ledger) == kept
    assert kept_shards(anew.ledger) == []
    assert files(again.out) == files(anew.out)
    assert files(again.table) == files(anew.table)
    assert again.ledger.totals()[0] == Catalog.open(catalog).n_rows
    assert not again.ledger.before.folder.exists()


def test_other_settings_keep_nothing(before, model, tmp_path):
    catalog = grown(tmp_path / "changed.zarr")
    assert kept_shards(run(before.folder, catalog, model, shard=SHARD, draws=150).ledger) == []


def test_after_a_kill_what_was_not_looked_at_yet_is_kept_still(before, model, tmp_path):
    catalog = grown(tmp_path / "changed.zarr")
    anew = run(tmp_path / "anew", catalog, model, shard=SHARD)
    ledger = before.ledger
    # As a process leaves it that was killed after it had set the markers aside, resized, and mapped shard 1.
    first = run(before.folder, catalog, model, shard=SHARD)
    for shard, record in ledger.records().items():
        if shard != 1:
            ledger.before.mark(shard, **{k: record[k] for k in ("rows", "checksum", "core_s", "input")})
            ledger.forget(shard)
    again = run(before.folder, catalog, model, shard=SHARD)
    assert again.calls == [SHARD, *first.calls[2:]]
    assert files(again.out) == files(anew.out)


def test_what_was_damaged_since_is_made_again(before, model, tmp_path):
    catalog = grown(tmp_path / "changed.zarr")
    dataset = before.folder / "posterior.zarr"
    (dataset / "quality" / "c" / "1").write_bytes(b"half a shard")
    shutil.copy(dataset / "percentiles" / "c" / "0" / "0" / "0", dataset / "percentiles" / "c" / "2" / "0" / "0")
    again = run(before.folder, catalog, model, shard=SHARD)
    assert kept_shards(again.ledger) == [0]
    assert files(again.out) == files(run(tmp_path / "anew", catalog, model, shard=SHARD).out)
