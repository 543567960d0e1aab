"""Catalogs of galaxies that never were: right after preparation, streamed, and with the faults asked for."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from digs_survey.catalog import Catalog, validate_catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.config import MapConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import prepare_for
from digs_survey.quality import QualityFlag
from digs_survey.simulate.mock_catalog import FAULTS, fake_catalog
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.universe import physical_theta

ROWS = 700
SHORT = ["grid.start_angstrom=4000", "grid.stop_angstrom=6000", "grid.step_angstrom=100"]
CONFIG = load_config(None, SHORT)
EXPECTED = {
    "none": QualityFlag(0),
    "NaN flux": QualityFlag.NONFINITE_FLUX | QualityFlag.FILLED_ELEMENTS,
    "infinite flux": QualityFlag.NONFINITE_FLUX | QualityFlag.FILLED_ELEMENTS,
    "negative ivar": QualityFlag.BAD_IVAR | QualityFlag.FILLED_ELEMENTS,
    "zero flux": QualityFlag.NONPOSITIVE_FLUX | QualityFlag.FEW_GOOD_ELEMENTS,
    "flux of 1e30": QualityFlag(0),  # only the posterior tells that no mass of its prior is so bright
    "all masked": QualityFlag.FEW_GOOD_ELEMENTS,
    "duplicated id": QualityFlag.DUPLICATE_ID,
    "redshift of 99": QualityFlag.BAD_REDSHIFT,
}


def ready(path, start=0, stop=ROWS, config=CONFIG):
    return prepare(Catalog.open(path).rows(start, stop), "rest", config.model.zred, 0.8)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("fake") / "clean.zarr"
    steps = []
    fake_catalog(path, CONFIG, ROWS, models=50, rows_per_shard=256, advance=steps.append)
    assert steps == [256, 256, 188]
    return path


def test_rows_are_their_truth_with_the_noise_of_the_survey(clean):
    catalog, rows = Catalog.open(clean), ready(clean)
    assert not rows.quality.any()
    prior, columns = CONFIG.make_prior(), catalog.columns(0, ROWS)
    theta = np.stack([columns[f"true_{name}"] for name in prior.names], axis=1)
    assert len(np.unique(theta[:, 0])) == 50
    spectra = BatchedModel.from_config(CONFIG.model, prior, WavelengthGrid.from_config(CONFIG.grid)).spectra(theta)
    residuals = NoiseModel.from_config(CONFIG.noise).residuals(rows.flux, spectra)
    assert residuals.std() == pytest.approx(1.0, abs=0.02)
    assert residuals.mean() == pytest.approx(0.0, abs=0.03)
    # Two rows of one model have noise of their own.
    assert np.abs(np.corrcoef(residuals[:200]) - np.eye(200)).mean() < 0.25
    np.testing.assert_allclose(rows.ivar**-0.5, 0.05 * spectra, rtol=1e-5)
    redshift = catalog.redshift(0, ROWS)
    assert redshift.min() < 0.03
    assert redshift.max() > 0.29


def test_a_longer_catalog_begins_with_a_shorter_one_whatever_the_shards(clean, tmp_path):
    fake_catalog(tmp_path / "long.zarr", CONFIG, ROWS + 300, models=50, rows_per_shard=512)
    one, other = Catalog.open(clean).rows(0, ROWS), Catalog.open(tmp_path / "long.zarr").rows(0, ROWS)
    for name in ("flux", "ivar", "good", "redshift", "galaxy_id"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def test_every_fault_has_its_bit_and_leaves_the_others_as_they_are(clean, tmp_path):
    path = tmp_path / "bad.zarr"
    fake_catalog(path, CONFIG, ROWS, models=50, bad=0.2, rows_per_shard=256)
    report = validate_catalog(path)
    assert not report.errors
    fault, rows = Catalog.open(path).columns(0, ROWS)["fault"], ready(path)
    assert np.bincount(fault, minlength=len(FAULTS))[1:].min() >= 5
    assert (fault > 0).mean() == pytest.approx(0.2, abs=0.04)
    for number, name in enumerate(FAULTS):
        here = fault == number
        assert ((rows.quality[here] & EXPECTED[name]) == EXPECTED[name]).all(), name
        # Besides, duplicates take the id of the first row.
        assert not (rows.quality[here] & ~EXPECTED[name] & ~QualityFlag.DUPLICATE_ID).any(), name
    good = fault == 0
    assert rows.flux[good].tobytes() == ready(clean).flux[good].tobytes()


def test_negative_flux_is_measured_and_only_missing_stretches_are_masked(tmp_path):
    missing = ["noise.missing.probability=0.5", "noise.missing.elements=[3, 3]", "noise.missing.stretches=1"]
    config = load_config("faint", missing)
    fake_catalog(tmp_path / "faint.zarr", config, 200, models=50)
    rows = Catalog.open(tmp_path / "faint.zarr").rows(0, 200)
    assert 0.05 < (rows.flux <= 0).mean() < 0.3
    assert set((~rows.good).sum(axis=1)) <= {0, 1, 2, 3}
    assert (~rows.good).any(axis=1).mean() == pytest.approx(0.5, abs=0.12)


def test_rows_with_noise_of_their_own_are_what_the_posterior_is_shown(tmp_path):
    row = ["noise.kind=row", "noise.calibration_order=0", "train.whitening=least_squares", "train.components=8"]
    config = load_config(None, [*SHORT, *row])
    fake_catalog(tmp_path / "survey.zarr", config, 300, models=100)
    catalog = Catalog.open(tmp_path / "survey.zarr")
    rows, grid = catalog.rows(0, 300), WavelengthGrid.from_config(config.grid)
    noise, settings = NoiseModel.from_config(config.noise).on(grid), MapConfig(error_floor=0.0, min_good_fraction=0.1)
    ready = prepare_for(noise, grid, config.model.zred, settings, rows, catalog.grid)
    low, high = config.noise.observing.redshift
    assert ((low <= rows.redshift) & (rows.redshift <= high)).all()
    assert len(np.unique(rows.redshift)) > 50
    assert (rows.good.mean(axis=1) > 0.1).all()
    assert rows.good.mean(axis=1).std() > 0.02
    # The truth is as likely as it should be, given each row's own errors and gaps.
    prior = config.make_prior()
    with xr.open_zarr(tmp_path / "survey.zarr", consolidated=False) as written:
        theta = np.stack([written[f"true_{name}"].values for name in prior.names], axis=1)
    model = BatchedModel.from_config(config.model, prior, grid)
    truth = model.spectra(physical_theta(prior, theta, rows.redshift))
    flux, inverse, _ = split_observed(ready.flux)
    pulls = ((flux - truth) * inverse)[ready.good]
    assert pulls.size > 2_000
    assert pulls.std() == pytest.approx(1, abs=0.05)
    assert np.median(np.abs(pulls)) / 0.6745 == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (["noise.kind=catalog"], {}, "takes errors from a catalog"),
        (["noise.kind=constant"], {}, "takes errors from a catalog"),
        ([], {"rows": 0}, "rows: expected at least 1, found 0"),
        ([], {"bad": 1.5}, "bad: expected 0 to 1, found 1.5"),
        ([], {"redshifts": (0.0, 0.1)}, "redshifts: expected a range"),
    ],
)
def test_what_cannot_be_faked_is_refused(overrides, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fake_catalog(tmp_path / "no.zarr", load_config(None, overrides), **{"rows": 3, **settings})
    assert not list(tmp_path.iterdir())
