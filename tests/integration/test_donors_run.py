"""A survey whose simulations take errors, gaps and redshift of the catalog's rows, from catalog to audit."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from survey import run_here
from test_row_noise_run import TOML

import digs_survey as ds
from digs_survey.catalog.prepare import reference_factor
from digs_survey.config import load_config
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.quality import QualityFlag
from digs_survey.run.verify import verify_run
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.simulate.simulation_set import FLUX_UNIT
from digs_survey.spectra import WavelengthGrid, rebin_matrix
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.universe import physical_theta

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cores")]

ROWS = 120
SNR = 15.0
SETTINGS = (
    *("--set", "noise.observing.donors=catalog", "--set", "simulate.simulations=1500", "--set", "train.epochs=2"),
    *("--set", "map.predictive_draws=0", "--set", "map.recalibrate=1000", "--set", "map.rows_per_shard=64"),
    *("--set", "importance.rows=none", "--set", "audit.checked_galaxies=0", "--set", "audit.sensitivity_rows=0"),
)


def make_catalog(folder):
    """Write galaxies with an S/N of 15 in each pixel, half of them at z = 0.05 and half near 0.25."""
    (folder / "survey.toml").write_text(TOML)
    config = load_config(folder / "survey.toml")
    prior, rng = config.make_prior(), np.random.default_rng(3)
    redshift = np.where(np.arange(ROWS) % 2, 0.25, 0.05) + np.linspace(0, 0.005, ROWS)
    theta = draw_theta(prior, 9, "test", 0, ROWS)
    fine = WavelengthGrid(np.arange(2990.0, 7010.0, 5.0))
    clean = BatchedModel.from_config(config.model, prior, fine).spectra(physical_theta(prior, theta, redshift))
    clean /= 1e-17 * reference_factor(redshift, config.model.zred)[:, None]
    observed = WavelengthGrid(np.arange(3700.0, 8000.0, 20.0), "observed")
    flux, ivar = np.zeros((ROWS, len(observed))), np.zeros((ROWS, len(observed)))
    for i, z in enumerate(redshift):
        edges = observed.edges / (1 + z)
        inside = np.flatnonzero((edges[:-1] >= fine.wavelength[0]) & (edges[1:] <= fine.wavelength[-1]))
        part = edges[inside[0] : inside[-1] + 2]
        flux[i, inside] = rebin_matrix(fine.wavelength, part) @ clean[i] / (1 + z)
        ivar[i, inside] = (SNR / flux[i, inside]) ** 2
    mask = (ivar == 0).astype(np.uint8)
    # The last galaxy has a redshift that is no donor's.
    redshift[-1] = 0.5
    noise = np.where(ivar > 0, rng.normal(size=flux.shape) / np.sqrt(np.where(ivar > 0, ivar, 1)), 0.0)
    ds.write_catalog(
        folder / "rows.zarr",
        grid=observed,
        flux=flux + noise,
        ivar=ivar,
        mask=mask,
        redshift=redshift,
        galaxy_id=np.arange(ROWS),
        flux_unit=f"1e-17 {FLUX_UNIT}",
    )


@pytest.fixture(scope="module")
def made(shared_ray, build_once):
    def build(folder):
        shared_ray.open()
        make_catalog(folder)
        finished = run_here("run", folder / "rows.zarr", "-c", folder / "survey.toml", "-o", folder / "run", *SETTINGS)
        assert finished.returncode == 0, finished.stderr
        (folder / "stderr").write_text(finished.stderr)

    return build_once("donors-run", build)


def test_simulations_have_the_redshifts_and_errors_of_donors_and_the_posterior_keeps_them(made):
    for name in ("simulations.zarr", "calibration.zarr"):
        redshift = zarr.open_group(str(made / "run" / name), mode="r")["redshift"][:]
        low = redshift < 0.15
        np.testing.assert_allclose(redshift, np.where(low, 0.0525, 0.2525), atol=0.01)
        assert abs(low.mean() - 0.5) < 0.1
    noise = FrozenPosterior.load(made / "run" / "model").noise
    # All rows but the one whose redshift is not in noise.observing.redshift.
    assert len(noise.donors.table) == ROWS - 1
    # Pixels of 20 Angstrom in the observed frame; elements of 50 at rest.
    expected = SNR * np.sqrt(2.5 * (1 + noise.donors.table[:, -1]))
    assert 1 < np.median(noise.donors.snr / expected) < 1.1


def test_a_finished_run_answers_and_verifies(made):
    again = run_here("run", made / "rows.zarr", "-c", made / "survey.toml", "-o", made / "run", *SETTINGS)
    assert again.returncode == 0, again.stderr
    assert "simulate: done already" in again.stderr
    assert verify_run(made / "run") == []


def test_a_row_at_another_redshift_than_the_donors_gets_a_bit(made):
    quality = pq.read_table(made / "run" / "percentiles.parquet")["quality"].to_numpy()
    assert np.flatnonzero(quality & int(QualityFlag.OUTSIDE_CONDITIONS)).tolist() == [ROWS - 1]


def test_percentiles_are_recalibrated_for_the_rows_that_are_mapped(made):
    assert "with the errors, gaps and redshifts of the catalog's rows" in (made / "stderr").read_text()
    told = json.loads((made / "run" / "manifest.json").read_text())["stages"]["map"]["recalibration"]
    tested = json.loads((made / "run" / "audit.json").read_text())["recalibration"]
    assert told["simulations"] == 1000
    for found in (told, tested):
        for inside in found["coverage_after"].values():
            np.testing.assert_allclose(inside, found["intervals"], atol=0.12)


def test_too_few_rows_are_refused_before_any_work(made, tmp_path):
    few = ("--set", "noise.observing.redshift=[0.2, 0.3]")
    done = run_here("run", made / "rows.zarr", "-c", made / "survey.toml", "-o", tmp_path / "run", *SETTINGS, *few)
    assert done.returncode != 0
    assert "expected at least 100 rows" in done.stderr
    assert "donors = 'none'" in done.stderr
    assert not (tmp_path / "run" / "simulations.zarr").exists()
    alone = run_here("simulate", "-c", made / "survey.toml", "-o", tmp_path / "alone", *SETTINGS)
    assert alone.returncode != 0
    assert "noise.observing.donors = 'catalog' needs a catalog" in alone.stderr


def test_a_catalog_that_grew_is_refused_by_a_run_and_mapped_by_the_posterior_as_it_is(made, tmp_path):
    catalog, run_dir = tmp_path / "rows.zarr", tmp_path / "run"
    for name, copy in (("rows.zarr", catalog), ("run", run_dir)):
        shutil.copytree(made / name, copy)
    assert "nothing to do" in run_here("run", catalog, "-o", run_dir, *SETTINGS).stderr
    redshift = zarr.open_group(str(catalog), mode="r+")["redshift"]
    redshift[0] = redshift[0] + 0.001
    refused = run_here("run", catalog, "-o", run_dir, *SETTINGS)
    assert refused.returncode == 6
    assert "redshifts and errors of the catalog" in refused.stderr
    assert "digs-survey map" in refused.stderr
    mapped = run_here("map", catalog, "-o", run_dir, *SETTINGS)
    assert mapped.returncode == 0, mapped.stderr
    assert "the catalog has changed since it was mapped" in mapped.stderr
