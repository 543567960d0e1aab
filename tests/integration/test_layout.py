"""No value of a result depends on workers, on shards, on a row's place, or on what else is in the catalog."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import zarr
from identities import identity_of

from digs_survey.catalog import Catalog, write_catalog
from digs_survey.config import SurveyConfig, load_config
from digs_survey.estimator.features import Features
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import build_estimator
from digs_survey.infer.map_catalog import map_catalog
from digs_survey.noise.model import NoiseModel
from digs_survey.parameters import DERIVED
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.simulate.mock_catalog import FAULTS, fake_catalog
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.store.ledger import Ledger

ROWS = 4_500
OVERRIDES = (
    "grid.start_angstrom=4000.0",
    "grid.stop_angstrom=6000.0",
    "grid.step_angstrom=100.0",
    "train.hidden_features=10",
    "train.transforms=2",
    "train.embedding_features=8",
    "train.embedding_layers=1",
    "train.components=8",
)
CONFIG = load_config(None, OVERRIDES)
MAP = (
    "map.draws=32",
    f"map.derived={list(DERIVED)}".replace("'", '"'),
    "map.samples=4",
    "map.predictive_draws=4",
    "map.samples_column='fault'",
)


@pytest.fixture(scope="module", autouse=True)
def _four_cores(shared_ray):
    """A session in which four workers find room, whatever this machine has."""
    shared_ray.close()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Folder of a frozen posterior with random weights over features of the model's spectra."""
    prior, grid = CONFIG.make_prior(), WavelengthGrid.from_config(CONFIG.grid)
    theta = draw_theta(prior, 1, "test", 0, 2_000)
    flux = BatchedModel.from_config(CONFIG.model, prior, grid).spectra(theta)
    features = Features(len(grid), CONFIG.train, prior)
    features.fit(flux, flux, theta)
    folder = tmp_path_factory.mktemp("model")
    noise = NoiseModel.from_config(CONFIG.noise)
    freeze_posterior(folder, [build_estimator(CONFIG.train, features, seed=3)], CONFIG, grid, noise, training={})
    return folder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.zarr"
    fake_catalog(path, CONFIG, ROWS, models=200, bad=0.01, rows_per_shard=1_024)
    return path


def config_with(*overrides: str) -> SurveyConfig:
    return load_config(None, [*OVERRIDES, *MAP, *overrides])


def mapped(folder: Path, catalog: Path, model: Path, *overrides: str) -> dict[str, np.ndarray]:
    out = folder / "posterior.zarr"
    map_catalog(identity_of(model, catalog), catalog, out, config_with(*overrides), ledger=Ledger(folder / "ledger"))
    return {name: array[:] for name, array in zarr.open_group(str(out), mode="r").arrays()}


@pytest.fixture(scope="module")
def reference(catalog, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return mapped(folder, catalog, model, "map.workers=1", "map.rows_per_shard=4096"), folder


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name in one:
        texts = one[name].dtype.kind == "T"
        assert np.array_equal(one[name], other[name]) if texts else one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shard"), [(1, 256), (2, 4096), (4, 256)])
def test_workers_and_shards(reference, catalog, model, tmp_path, workers, shard):
    found = mapped(tmp_path, catalog, model, f"map.workers={workers}", f"map.rows_per_shard={shard}")
    same(found, reference[0])
    tables = [pd.read_parquet(folder / "percentiles.parquet") for folder in (tmp_path, reference[1])]
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_rows_in_another_order(reference, catalog, model, tmp_path):
    opened = Catalog.open(catalog)
    order = np.random.default_rng(5).permutation(ROWS)
    group = zarr.open_group(str(catalog), mode="r")
    # Written anew, and not copied: a row's place in its chunk changes too.
    columns = {name: (opened.column(name, 0, ROWS)[order], {}) for name in opened.survey_columns}
    write_catalog(
        tmp_path / "shuffled.zarr",
        grid=opened.grid,
        **{name: group[name][:][order] for name in ("flux", "ivar", "mask", "redshift", "galaxy_id")},
        flux_unit=group["flux"].attrs["units"],
        columns=columns,
    )
    found = mapped(tmp_path, tmp_path / "shuffled.zarr", model, "map.rows_per_shard=700")
    whole = {name: value[order] if len(value) == ROWS else value for name, value in reference[0].items()}
    same(found, whole)


def test_rows_lost_and_done_again(reference, catalog, model, tmp_path):
    settings = "map.workers=1", "map.rows_per_shard=4096"
    shutil.copytree(reference[1], tmp_path, dirs_exist_ok=True)
    Ledger(tmp_path / "ledger").forget(1)
    (tmp_path / "posterior.zarr" / "percentiles" / "c" / "1" / "0" / "0").unlink()
    same(mapped(tmp_path, catalog, model, *settings), reference[0])


def test_every_fault_has_its_bit_and_costs_no_other_row_anything(reference, catalog, model, tmp_path):
    clean = tmp_path / "clean.zarr"
    fake_catalog(clean, CONFIG, ROWS, models=200, rows_per_shard=1_024)
    fault = Catalog.open(catalog).column("fault", 0, ROWS)
    arrays = reference[0]
    bits = {
        "NaN flux": QualityFlag.NONFINITE_FLUX,
        "infinite flux": QualityFlag.NONFINITE_FLUX,
        "negative ivar": QualityFlag.BAD_IVAR,
        "zero flux": QualityFlag.NONPOSITIVE_FLUX,
        "flux of 1e30": QualityFlag.OUTSIDE_SIMULATIONS,
        "all masked": QualityFlag.FEW_GOOD_ELEMENTS,
        "duplicated id": QualityFlag.DUPLICATE_ID,
        "redshift of 99": QualityFlag.BAD_REDSHIFT,
    }
    for number, name in enumerate(FAULTS):
        rows = np.flatnonzero(fault == number)
        assert rows.size, name
        if number:
            assert (arrays["quality"][rows] & int(bits[name]) != 0).all(), name
    without = (arrays["quality"] & int(NO_POSTERIOR)) != 0
    assert np.isnan(arrays["percentiles"][without]).all()
    # The first row's identifier is the one that duplicates take.
    good = np.flatnonzero(fault == 0)[1:]
    found = mapped(tmp_path, clean, model, "map.rows_per_shard=4096")
    for name in ("percentiles", "quality", "n_good", "derived"):
        assert found[name][good].tobytes() == arrays[name][good].tobytes(), name
    kept = ~np.isnan(arrays["samples"]).any(axis=(1, 2))
    assert set(np.flatnonzero(kept)) == set(np.flatnonzero((fault != 0) & np.isfinite(arrays["percentiles"][:, 0, 0])))
    low, high = CONFIG.make_prior().low[:, None], CONFIG.make_prior().high[:, None]
    samples = arrays["samples"][kept]
    assert ((samples >= np.float32(low) - 1e-6) & (samples <= np.float32(high) + 1e-6)).all()
    assert np.isnan(found["samples"]).all()
