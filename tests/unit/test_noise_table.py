"""What a catalog's rows tell of its noise."""

from __future__ import annotations

import re

import numpy as np
import pytest

from digs_survey.catalog import Catalog, write_catalog
from digs_survey.config import NoiseConfig, load_config
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.logs.progress import ProgressReporter
from digs_survey.noise.error_table import noise_table, row_errors
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.survey_noise import survey_noise
from digs_survey.run.manifest import RunManifest
from digs_survey.run.survey import Survey
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.storage import ArraySpec, create_dataset

CATALOG = NoiseConfig(kind="catalog")


def test_errors_of_observed_rows():
    flux = np.array([[2.0, 4.0, np.nan, 4.0], [1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    ivar = np.array([[4.0, 4.0, 0.0, 16.0], [1.0, 1.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    good = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    nothing = [np.nan] * 4
    relative = NoiseModel.from_config(CATALOG).errors_of(flux, ivar, good)
    np.testing.assert_allclose(relative, [[[0.25, 0.125, 0.09375, 0.0625], [1.0, 0.75, 0.5, 0.5], nothing]])
    constant = row_errors(NoiseConfig(kind="constant"), flux, ivar, good)
    np.testing.assert_allclose(constant, [[[0.5, 0.5, 0.375, 0.25], [1.0, 1.0, 0.5, 0.5], nothing]])
    for kind in ("fractional", "constant"):
        assert NoiseModel.from_config(NoiseConfig(kind=kind)).errors_of(flux, ivar, good) is None


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_row_has_its_own_variance_at_its_own_flux(share):
    config = NoiseConfig(kind="catalog", fraction=0.0, poisson_share=share)
    flux, ivar = np.array([[1.0, 5.0, 20.0]]), np.array([[4.0, 1.0, 0.25]])
    errors = row_errors(config, flux, ivar, np.ones((1, 3), dtype=bool))
    noise = NoiseModel.from_config(config, errors)
    np.testing.assert_allclose(noise.sigma(flux, errors) ** 2, 1 / ivar)
    np.testing.assert_allclose(noise.sigma(4 * flux, errors) ** 2, (1 + 3 * share) / ivar)
    # A flux below its own error, by chance next to nothing, does not make the photons' noise boundless.
    faint = row_errors(config, 1e-6 * flux, ivar, np.ones((1, 3), dtype=bool))
    np.testing.assert_allclose(noise.sigma(flux, faint) ** 2, (1 - share) / ivar + share * flux / np.sqrt(ivar))


def test_noise_table_is_a_seeded_sample_of_whole_rows():
    rows = np.arange(1, 41)[:, None] * np.array([0.01, 0.02, 0.03, 0.04])
    good = np.ones(rows.shape, dtype=bool)
    good[::2, 2] = False
    good[7, :3] = False
    rows[::2, 2] = np.nan
    table = noise_table(CATALOG, rows[None], good, seed=5, limit=10)
    assert table.shape == (1, 10, 4)
    np.testing.assert_allclose(table / table[..., :1], np.broadcast_to([1, 2, 3, 4], table.shape))
    np.testing.assert_array_equal(table, noise_table(CATALOG, rows[None], good, seed=5, limit=10))
    assert not np.array_equal(table, noise_table(CATALOG, rows[None], good, seed=6, limit=10))
    assert noise_table(CATALOG, rows[None], good, seed=5).shape == (1, 39, 4)
    both = noise_table(NoiseConfig(kind="catalog", poisson_share=0.5), [rows, 2 * rows], good, seed=5, limit=10)
    np.testing.assert_allclose(both, [table[0], 2 * table[0]])
    with pytest.raises(CatalogError, match="half|50%"):
        noise_table(CATALOG, rows[None], np.zeros_like(good), seed=5)


def survey(folder, *settings: str) -> tuple[Survey, list[str]]:
    said: list[str] = []
    progress = ProgressReporter(quiet=True)
    progress.say = said.append
    config = load_config(None, [f"noise.{setting}" for setting in settings])
    return Survey(folder, config, RunManifest(folder), progress), said


def test_noise_that_hides_the_simulations_is_told_and_what_does_not_fit_is_refused(tmp_path):
    flux = np.full((100, 20), 1e-9)
    create_dataset(
        tmp_path / "simulations.zarr", {"flux": ArraySpec(("row", "wavelength"), flux.shape, "float32")}, {"flux": flux}
    )
    quiet, said = survey(tmp_path, "kind=constant", "sigma_flam=1e-10")
    quiet._noise(tmp_path / "simulations.zarr")
    assert not said
    loud, said = survey(tmp_path, "kind=constant", "sigma_flam=1e-9")
    loud._noise(tmp_path / "simulations.zarr")
    assert re.search("makes 1[4-8]% of the simulations' elements negative", said[0])
    with pytest.raises(ConfigError, match="expected one number or 20"):
        survey(tmp_path, "kind=constant", "sigma_flam=[1e-9, 1e-9]")[0]._noise(tmp_path / "simulations.zarr")
    with pytest.raises(CatalogError, match=r"'constant' needs a catalog \(or noise.sigma_flam\)"):
        survey(tmp_path, "kind=constant")[0]._noise(tmp_path / "simulations.zarr")


def test_constant_noise_is_the_median_row():
    rows = np.array([[1.0, 2.0, np.nan], [3.0, 2.0, 5.0], [9.0, 7.0, 6.0], [50.0, np.nan, np.nan]])
    table = noise_table(NoiseConfig(kind="constant"), rows[None], np.isfinite(rows), seed=0)
    np.testing.assert_allclose(table, [[[3.0, 2.0, 5.0]]])


@pytest.mark.parametrize("setting", ["kind=catalog", "kind=constant"])
def test_rows_that_cannot_be_inferred_do_not_speak_for_the_survey(tmp_path, setting):
    grid, rng = WavelengthGrid(np.arange(4000.0, 5000.0, 50.0)), np.random.default_rng(0)
    flux = rng.uniform(1, 2, (6, len(grid)))
    mask = np.zeros(flux.shape, dtype=np.uint8)
    mask[4, : len(grid) // 3] = 1  # too few elements for a posterior, but more than half
    redshift = np.array([1e-5] * 5 + [np.nan])
    write_catalog(
        tmp_path / "catalog.zarr",
        grid=grid,
        flux=flux,
        ivar=(0.1 * flux) ** -2.0,
        mask=mask,
        redshift=redshift,
        galaxy_id=np.arange(6),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    noise = survey_noise(load_config(None, [f"noise.{setting}"]), Catalog.open(tmp_path / "catalog.zarr"))
    if setting == "kind=catalog":
        np.testing.assert_allclose(noise.table, np.full((1, 4, len(grid)), 0.1), rtol=1e-6)
    else:
        np.testing.assert_allclose(noise.table[0, 0], 1e-18 * np.median(flux[:4], axis=0), rtol=1e-6)
