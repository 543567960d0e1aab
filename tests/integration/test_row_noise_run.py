"""A survey in the observed frame, whose rows differ in noise, gaps and redshift, from catalog to report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from survey import ROW_NETWORK, contents, run_here

import digs_survey as ds
from digs_survey.catalog.prepare import reference_factor
from digs_survey.config import load_config
from digs_survey.quality import QualityFlag
from digs_survey.run.verify import verify_run
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.simulate.simulation_set import FLUX_UNIT
from digs_survey.spectra import WavelengthGrid, rebin_matrix
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.universe import age_of_universe, physical_theta

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cores")]

ROWS = 24
TOML = """
seed = 5
[model]
age = "tage_tuniv"
[grid]
start_angstrom = 3025.0
stop_angstrom = 6975.0
step_angstrom = 50.0
[prior]
sigma_smooth = { low = 100.0, high = 400.0 }
[noise]
kind = "row"
calibration_order = 2
[noise.observing]
redshift = [0.01, 0.3]
red_end_angstrom = [8000.0, 9000.0]
[simulate]
simulations = 3000
rows_per_shard = 500
engine = "batched"
"""
TOML += ROW_NETWORK
TOML += """
[map]
draws = 200
rows_per_shard = 8
min_good_fraction = 0.1
derived = ["tage", "surviving_mass", "mass_weighted_age"]
predictive_draws = 16
[importance]
rows = "all"
draws = 200
simulations = 40
[audit]
galaxies = 1
calibration_simulations = 200
calibration_draws = 100
predictive_draws = 8
checked_galaxies = 20
sensitivity_rows = 16
[audit.mcmc]
engine = "batched"
walkers = 16
steps = 60
max_steps = 60
burn_in = [40]
"""


def make_catalogs(folder):
    """Write the configuration, and the same galaxies in the observed frame and at rest."""
    (folder / "survey.toml").write_text(TOML)
    config = load_config(folder / "survey.toml")
    prior, rng = config.make_prior(), np.random.default_rng(3)
    theta, redshift = draw_theta(prior, 9, "test", 0, ROWS), np.linspace(0.02, 0.29, ROWS)
    fine = WavelengthGrid(np.arange(2990.0, 7010.0, 5.0))
    rest = WavelengthGrid.from_config(config.grid)
    clean = BatchedModel.from_config(config.model, prior, fine).spectra(physical_theta(prior, theta, redshift))
    clean /= 1e-17 * reference_factor(redshift, config.model.zred)[:, None]
    observed = WavelengthGrid(np.arange(3700.0, 8500.0, 10.0), "observed")
    common = {"redshift": redshift, "galaxy_id": 500 + np.arange(ROWS), "flux_unit": f"1e-17 {FLUX_UNIT}"}
    flux, ivar = np.zeros((ROWS, len(observed))), np.zeros((ROWS, len(observed)))
    at_rest = np.stack([rebin_matrix(fine.wavelength, rest.edges) @ row for row in clean])
    for i, z in enumerate(redshift):
        edges = observed.edges / (1 + z)
        inside = np.flatnonzero((edges[:-1] >= fine.wavelength[0]) & (edges[1:] <= fine.wavelength[-1]))
        part = edges[inside[0] : inside[-1] + 2]
        flux[i, inside] = rebin_matrix(fine.wavelength, part) @ clean[i] / (1 + z)
        ivar[i, inside] = (20 / np.median(flux[i, inside])) ** 2
    noise = np.where(ivar > 0, rng.normal(size=flux.shape) / np.sqrt(np.where(ivar > 0, ivar, 1)), 0.0)
    mask = (ivar == 0).astype(np.uint8)
    mask[3, 200:260] = 1
    ds.write_catalog(folder / "observed.zarr", grid=observed, flux=flux + noise, ivar=ivar, mask=mask, **common)
    ds.write_catalog(
        folder / "clean.zarr", grid=observed, flux=flux, ivar=ivar, mask=(ivar == 0).astype(np.uint8), **common
    )
    seen = np.stack(
        [np.interp(rest.wavelength, observed.wavelength / (1 + z), ivar[i]) for i, z in enumerate(redshift)]
    )
    ivar_rest = 5 * seen / (1 + redshift[:, None]) ** 2
    good = (rest.edges[1:] * (1 + redshift[:, None]) < observed.edges[-1]) & (
        rest.edges[:-1] * (1 + redshift[:, None]) > observed.edges[0]
    )
    ds.write_catalog(
        folder / "rest.zarr",
        grid=rest,
        flux=np.where(good, at_rest, 0.0),
        ivar=np.where(good, ivar_rest, 0.0),
        mask=(~good).astype(np.uint8),
        **common,
    )


@pytest.fixture(scope="module")
def made(shared_ray, build_once):
    def build(folder):
        shared_ray.open()
        make_catalogs(folder)
        finished = run_here("run", folder / "observed.zarr", "-c", folder / "survey.toml", "-o", folder / "run")
        assert finished.returncode == 0, finished.stderr
        (folder / "stderr").write_text(finished.stderr)

    return build_once("row-noise-run", build)


def table_of(run_dir):
    return pq.read_table(run_dir / "percentiles.parquet").to_pandas()


def test_every_row_has_a_posterior_whose_age_is_below_that_of_the_universe(made):
    table = table_of(made / "run")
    assert len(table) == ROWS
    assert np.isfinite(table.logmass_p50).all()
    assert "all 24 rows have a posterior" in (made / "stderr").read_text()
    universe = age_of_universe(table.redshift)
    # Each is a smooth quantile in a coordinate of its own.
    np.testing.assert_allclose(table.tage_p50, table.tage_tuniv_p50 * universe, rtol=0.01)
    assert (table.tage_p97_5 <= universe).all()
    assert (table.n_good < 79).all()
    report = (made / "run" / "report.html").read_text()
    assert "own errors and gaps" in report


def test_a_row_comes_out_bit_for_bit_again_and_the_run_verifies(made):
    opened = ds.open_run(made / "run")
    (again,) = opened.replay(507)
    assert again.identical, again.differing
    assert verify_run(made / "run") == []
    draws = opened.posterior(507)
    assert draws.parameters[3] == "tage_tuniv"
    # The table has smooth quantiles of the same draws.
    mass = draws.theta[:, 0]
    assert abs(np.median(mass) - table_of(made / "run").logmass_p50[7]) < 0.1 * mass.std()


def test_shards_and_order_of_rows_do_not_matter(made, tmp_path):
    redo = run_here(
        *("map", made / "observed.zarr", "--model", made / "run" / "model", "-o", tmp_path / "run"),
        *("-c", made / "survey.toml", "--set", "map.rows_per_shard=5"),
    )
    assert redo.returncode == 0, redo.stderr
    one, other = (zarr.open_group(str(d / "posterior.zarr"), mode="r") for d in (made / "run", tmp_path / "run"))
    for name in ("percentiles", "derived", "quality", "importance_ess", "predictive_pvalue"):
        np.testing.assert_array_equal(one[name][:], other[name][:])


def test_the_frame_of_the_catalog_does_not_matter(made, tmp_path):
    for name in ("clean", "rest"):
        done = run_here(
            *("map", made / f"{name}.zarr", "--model", made / "run" / "model", "-o", tmp_path / name),
            *("-c", made / "survey.toml", "--set", "importance.rows=audit"),
        )
        assert done.returncode == 0, done.stderr
    observed, rest = table_of(tmp_path / "clean"), table_of(tmp_path / "rest")
    width = (observed.logmass_p84 - observed.logmass_p16) / 2
    difference = observed.logmass_p50 - rest.logmass_p50
    # A factor of 1 + z that is missing would be 0.06 dex on average.
    assert abs(difference.mean()) < 0.03
    assert (difference.abs() < 0.6 * width + 0.02).all()


def test_emcee_and_weights_know_the_redshift(made):
    summary = json.loads((made / "run" / "audit.json").read_text())
    assert summary["mcmc"]["max_log_likelihood_difference"] < 0.1
    assert summary["importance"]["simulations"]["without_weights"] == 0
    assert set(summary["calibration"]["by_redshift"]) == set(summary["parameters"])
    bins = summary["calibration"]["by_redshift"]["logmass"]
    assert 0.01 < bins[0]["low"] < bins[-1]["high"] < 0.3


def test_rows_that_cannot_be_used_have_their_bits_and_a_line_says_why(made, tmp_path):
    shutil.copytree(made / "observed.zarr", tmp_path / "bad.zarr")
    group = zarr.open_group(str(tmp_path / "bad.zarr"))
    group["redshift"][0], group["redshift"][1] = np.nan, 5.0
    group["ivar"][2] = 0.0
    group["flux"][4] *= 1e12
    done = run_here(
        *("map", tmp_path / "bad.zarr", "--model", made / "run" / "model", "-o", tmp_path / "run"),
        *("-c", made / "survey.toml"),
    )
    assert done.returncode == 0, done.stderr
    assert "have no posterior" in done.stderr
    assert "(map.min_good_fraction = 0.1)" in done.stderr
    table, good = table_of(tmp_path / "run"), table_of(made / "run")
    assert table.quality[0] & QualityFlag.BAD_REDSHIFT
    assert table.quality[1] & (QualityFlag.OUTSIDE_SIMULATIONS | QualityFlag.FEW_GOOD_ELEMENTS)
    assert table.quality[2] & QualityFlag.FEW_GOOD_ELEMENTS
    assert table.quality[4] & QualityFlag.OUTSIDE_SIMULATIONS
    assert table[5:].equals(good[5:])


def test_the_error_floor_is_fitted_and_kept(made, tmp_path):
    fit = ("--set", "map.error_floor=fit", "--set", "importance.rows=audit")
    catalog = tmp_path / "observed.zarr"
    shutil.copytree(made / "observed.zarr", catalog)
    what = ("map", catalog, "--model", made / "run" / "model", "-o", tmp_path / "run")
    first = run_here(*what, "-c", made / "survey.toml", *fit)
    assert first.returncode == 0, first.stderr
    assert "error floor" in first.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    fitted = manifest["inputs"]["error_floor"]
    assert manifest["stages"]["map"]["key"]["map"]["error_floor"] == fitted["floor"]
    assert fitted["rows"] == ROWS
    before = contents(tmp_path / "run" / "posterior.zarr")
    again = run_here(*what, "-c", made / "survey.toml", *fit)
    assert again.returncode == 0, again.stderr
    assert "map: done already" in again.stderr
    assert contents(tmp_path / "run" / "posterior.zarr") == before
    other = run_here(*what, "-c", made / "survey.toml", "--set", "map.error_floor=0.2", *fit[2:])
    assert other.returncode == 6
    assert "map.error_floor" in other.stderr
    ivar = zarr.open_group(str(catalog), mode="r+")["ivar"]
    ivar[:] = 4 * ivar[:]
    changed = run_here(*what, "-c", made / "survey.toml", *fit)
    assert changed.returncode == 0, changed.stderr
    assert "the error floor is fitted to the catalog" in changed.stderr
    refitted = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert refitted["inputs"]["error_floor"]["floor"] > fitted["floor"]
    assert refitted["stages"]["map"]["key"]["map"]["error_floor"] == refitted["inputs"]["error_floor"]["floor"]


def test_elements_wider_than_the_posteriors_are_refused(made, tmp_path):
    grid = WavelengthGrid(np.arange(3100.0, 6900.0, 200.0))
    ds.write_catalog(
        tmp_path / "wide.zarr",
        grid=grid,
        flux=np.ones((2, len(grid))),
        ivar=np.ones((2, len(grid))),
        mask=np.zeros((2, len(grid)), dtype=np.uint8),
        redshift=np.array([0.1, 0.2]),
        galaxy_id=np.arange(2),
        flux_unit=f"1e-17 {FLUX_UNIT}",
    )
    done = run_here(
        *("map", tmp_path / "wide.zarr", "--model", made / "run" / "model", "-o", tmp_path / "run"),
        *("-c", made / "survey.toml"),
    )
    assert done.returncode == 4
    assert "up to 200 Angstrom wide, and the posterior's 50" in done.stderr
    assert "--step-angstrom" in done.stderr
