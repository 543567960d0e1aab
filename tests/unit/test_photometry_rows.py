"""A catalog's rows with photometry, as a posterior takes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit
from digs_survey.catalog import Catalog
from digs_survey.config import MapConfig, load_config
from digs_survey.identity import RunIdentity
from digs_survey.importance.score_tests import ScoreTests
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import prepare_for
from digs_survey.noise.trained_conditions import outside_conditions
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.simulate.mock_catalog import fake_catalog
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.paired import batched_model

FILTERS, ROWS, MODELS = ("sdss_g0", "sdss_r0", "twomass_Ks"), 40, 12
CONFIG = load_config(
    None,
    [
        "noise.kind=row",
        "train.whitening=least_squares",
        "grid.start_angstrom=4000",
        "grid.stop_angstrom=5000",
        "noise.observing.redshift=[0.05,0.3]",
        "noise.observing.masked_lines=0.0",
        "noise.observing.blue_end_angstrom=[3500.0,3600.0]",
        "model.parameters.spec_norm={low=0.1, high=1.0}",
        f"photometry.filters={list(FILTERS)}",
        "photometry.floor=[0.02, 0.03, 0.05]",
        "photometry.without_spectrum=0.3",
        "photometry.without_photometry=0.3",
    ],
)
GRID = WavelengthGrid.from_config(CONFIG.grid)
NOISE = NoiseModel.from_config(CONFIG.noise).on(GRID)
SETTINGS = MapConfig(error_floor=0.0, mask_lines=False, min_good_fraction=0.3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("catalog") / "c.zarr"
    fake_catalog(made, CONFIG, ROWS, models=MODELS, rows_per_shard=16)
    return made


@pytest.fixture(scope="module")
def clean():
    prior = CONFIG.make_prior()
    model = batched_model(CONFIG.model, prior, GRID, NOISE.photometry_bands)
    return simulated_spectra(model, prior, NOISE, CONFIG.seed, "fake", 0, MODELS)[1]


def prepared(rows, noise=NOISE, settings=SETTINGS):
    return prepare_for(noise, GRID, CONFIG.model.zred, settings, rows, GRID)


def with_settings(**changed):
    photometry = CONFIG.noise.photometry.model_copy(update=changed)
    return replace(NOISE, config=CONFIG.noise.model_copy(update={"photometry": photometry}))


def test_a_fake_catalog_holds_what_the_noise_gives(path, clean):
    rows = prepared(Catalog.open(path, FILTERS).rows(0, ROWS))
    model = (row_uniforms(CONFIG.seed, "fake", 0, ROWS, 3)[:, 0] * MODELS).astype(int)
    uniform = row_uniforms(CONFIG.seed, "noise/fake", 0, ROWS, NOISE.columns(clean.shape[1]))
    expected, inverse, redshift = split_observed(NOISE.observe(clean[model], uniform)[0])
    found, weight, _ = split_observed(rows.flux)
    kept = (rows.quality & int(NO_POSTERIOR)) == 0
    assert (rows.bands, rows.elements) == (3, len(GRID))
    assert kept.mean() > 0.9
    bands = slice(len(GRID), None)
    np.testing.assert_allclose(found[kept][:, bands], expected[kept][:, bands], rtol=1e-6)
    # The floor that the noise added was taken out of the catalog's errors, and is added again.
    np.testing.assert_allclose(weight[kept][:, bands], inverse[kept][:, bands], rtol=1e-6)
    short = kept & (rows.n_good == 0) & (inverse[:, : len(GRID)] > 0).any(axis=1)
    np.testing.assert_allclose(found[kept & ~short], expected[kept & ~short], rtol=1e-5, atol=1e-20)
    has = {"spectrum": rows.n_good > 0, "bands": rows.good[:, bands].any(axis=1)}
    for one, other in (("spectrum", "bands"), ("bands", "spectrum")):
        assert (kept & has[one] & ~has[other]).any()
    assert not outside_conditions(NOISE, rows.take(kept)).any()


def test_a_row_without_a_spectrum_needs_a_posterior_that_knows_such_rows(path):
    rows = Catalog.open(path, FILTERS).rows(0, ROWS)
    rows.good[:] = False
    alone = (rows.maggies_ivar > 0).any(axis=1)
    few = (prepared(rows).quality & QualityFlag.FEW_GOOD_ELEMENTS) != 0
    np.testing.assert_array_equal(few, ~alone)
    assert few.any()
    assert not few.all()
    with_spectra = prepared(rows, with_settings(without_spectrum=0.0))
    assert ((with_spectra.quality & QualityFlag.FEW_GOOD_ELEMENTS) != 0).all()


def test_a_spectrum_of_too_few_elements_leaves_photometry_alone(path):
    rows = Catalog.open(path, FILTERS).rows(0, ROWS)
    rows.good[:, 5:] = False
    alone = (rows.maggies_ivar > 0).any(axis=1)
    found = prepared(rows)
    assert (found.n_good[alone] == 0).all()
    assert not (found.quality[alone] & int(NO_POSTERIOR)).any()


def test_bands_that_are_no_measurement_get_a_bit_and_are_left_out(path):
    rows = Catalog.open(path, FILTERS).rows(0, ROWS)
    row = int(np.flatnonzero((rows.maggies_ivar > 0).all(axis=1))[0])
    rows.maggies[row, 1] = 1e40
    found = prepared(rows)
    assert found.quality[row] & QualityFlag.BAD_PHOTOMETRY
    assert found.good[row, len(GRID) :].tolist() == [True, False, True]
    assert not np.delete(found.quality & QualityFlag.BAD_PHOTOMETRY, row).any()


def test_a_catalog_that_was_opened_without_filters_is_refused_and_columns_may_be_missing(path):
    with pytest.raises(ValueError, match="expected 3 bands, as the noise has, found 0; open the catalog for"):
        prepared(Catalog.open(path).rows(0, 2))
    more = Catalog.open(path, (*FILTERS, "sdss_i0"))
    assert more.missing_filters == ("sdss_i0",)
    assert not more.rows(0, 5).maggies_ivar[:, 3].any()


def test_photometry_unlike_that_of_the_simulations_is_named(path):
    rows = Catalog.open(path, FILTERS).rows(0, ROWS)
    both = np.flatnonzero((rows.maggies_ivar > 0).all(axis=1))
    plain = prepared(rows).take(both)
    assert not outside_conditions(NOISE, plain).any()
    faint = replace(rows, maggies_ivar=rows.maggies_ivar / 1e6)
    assert outside_conditions(NOISE, prepared(faint).take(both)).all()
    always = with_settings(missing_band=0.0, without_photometry=0.0)
    assert not outside_conditions(always, plain).any()
    rows.maggies_ivar[both[0], 2] = 0.0
    rows.maggies_ivar[both[1]] = 0.0
    fewer = prepared(rows).take(both[:3])
    known = (fewer.quality & int(NO_POSTERIOR)) == 0
    assert (outside_conditions(always, fewer) | ~known)[:2].all()
    assert not outside_conditions(NOISE, fewer.take(known)).any()


def test_score_tests_look_at_the_spectrum_and_say_nothing_without_one(path, clean):
    scores = ScoreTests(GRID, NOISE, 2)
    found = prepared(Catalog.open(path, FILTERS).rows(0, ROWS))
    kept = (found.quality & int(NO_POSTERIOR)) == 0
    spectra = clean[:, :-1]
    for row, known in (
        (np.flatnonzero(kept & (found.n_good > 10))[0], True),
        (np.flatnonzero(kept & (found.n_good == 0))[0], False),
    ):
        one = scores(found.flux[row], found.good[row], None, spectra)
        assert np.isfinite(one.step_pvalue) == known
        assert np.isfinite(one.velocity) == known


def test_a_fit_that_failed_has_the_shapes_of_one_with_photometry():
    identity = RunIdentity.of_config(CONFIG, GRID)
    setup = FitSetup(identity, CONFIG.audit.mcmc)
    assert GalaxyFit.failed(setup, "timeout").best_npe.shape == (len(GRID) + len(FILTERS),)
