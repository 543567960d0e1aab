"""The survey as a whole: what the model made is inside, and what was planted in it is named."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from synthetic_run import NOISE, LinearGaussian, add_survey, build_run

from digs_survey.audit.domain import domain_check as inside
from digs_survey.audit.domain import misspecification
from digs_survey.audit.domain.domain_check import POPULATIONS, check_survey, choose_rows
from digs_survey.audit.domain.misspecification import discrepancy, distance_excess, share_excess
from digs_survey.audit.domain.stack import Stack, band_ranges, observed_bands, observed_ranges, ranges
from digs_survey.audit.sample import read_rows
from digs_survey.catalog import Catalog, write_catalog
from digs_survey.config import NoiseConfig, SurveyConfig
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.identity import RunIdentity
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.noise.model import NoiseModel
from digs_survey.quality import QualityFlag
from digs_survey.report.html import write_report
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.storage import ArraySpec, create_dataset, read_json

ROWS = 300
MODEL = LinearGaussian()
GRID = WavelengthGrid(MODEL.wave)
CONFIG = SurveyConfig.model_validate({"audit": {"checked_galaxies": ROWS, "predictive_draws": 32}})
WIGGLE = (MODEL.wave > 6050) & (MODEL.wave < 6350)


class Linear:
    def spectra(self, theta):
        return MODEL.flux(theta)


class ExactPosterior:
    """Of the linear Gaussian model, with whitened principal components of its spectra as features."""

    prior, grid = MODEL.prior, GRID
    noise = NoiseModel.from_config(NoiseConfig(fraction=float(np.expm1(NOISE)), space="log10"))
    lost = ()

    def __init__(self):
        rng = np.random.default_rng(100)
        log = np.log(self.noise.draw(MODEL.flux(MODEL.theta(rng, 4000)), rng))
        self.mean = log.mean(axis=0)
        variance, vectors = np.linalg.eigh(np.cov(log, rowvar=False))
        self.projection = vectors[:, -12:] / np.sqrt(variance[-12:])
        self.base = rng.normal(size=(64, 5)) @ np.linalg.cholesky(MODEL.covariance).T

    def sample(self, flux, draws):
        # Row by row: what a product of several gives depends on their number, in its last digits.
        theta = np.stack([MODEL.mean(row)[None] + self.base[:draws] for row in flux])
        theta[[bool(set(row) & set(self.lost)) for row in flux]] = np.nan
        return theta

    def features(self, flux):
        return np.stack([(np.log(row) - self.mean) @ self.projection for row in flux]).astype(np.float32)

    def feature_distance(self, flux):
        return np.sqrt(np.square(self.features(flux)).mean(axis=1))


@pytest.fixture(autouse=True)
def shuffles(monkeypatch):
    monkeypatch.setattr(misspecification, "_SHUFFLES", 99)


@pytest.fixture
def posterior(monkeypatch):
    monkeypatch.setattr(SpectrumLikelihood, "of_posterior", lambda known: SpectrumLikelihood(Linear(), known.noise))
    return ExactPosterior()


@pytest.fixture
def check(tmp_path, posterior):
    """Write the run of a survey with these spectra, and check it."""

    def checked(flux, *, good=None, quality=None, config=CONFIG, rows_per_shard=1024):
        good = np.ones(flux.shape, dtype=bool) if good is None else good
        write_catalog(
            tmp_path / "catalog.zarr",
            grid=GRID,
            flux=flux,
            ivar=(NOISE * flux) ** -2.0,
            mask=(~good).astype(int),
            redshift=np.full(len(flux), config.model.zred),
            galaxy_id=np.arange(len(flux)),
            flux_unit="erg / (s cm2 Angstrom)",
            rows_per_shard=rows_per_shard,
        )
        quality = np.zeros(len(flux), dtype=np.int64) if quality is None else quality
        create_dataset(
            tmp_path / "posterior.zarr",
            {"quality": ArraySpec(("galaxy",), quality.shape, "int64")},
            {"quality": quality},
        )
        theta = MODEL.theta(np.random.default_rng(2), 2 * ROWS)
        clean = {"flux": MODEL.flux(theta).astype(np.float32)}
        specs = {"flux": ArraySpec(("simulation", "wavelength"), clean["flux"].shape, "float32")}
        create_dataset(tmp_path / "calibration.zarr", specs, clean)
        identity = RunIdentity.of_config(config, GRID, posterior.noise)
        return check_survey(posterior, identity, Catalog.open(tmp_path / "catalog.zarr"), tmp_path, config)

    return checked


def survey(rows=ROWS, seed=0, noise=1.0, narrow=None):
    """Spectra as the model makes them, some of their noise and of a part of the prior."""
    rng = np.random.default_rng(seed)
    theta = MODEL.theta(rng, rows)
    if narrow is not None:
        theta = MODEL.centre + narrow * MODEL.spread + 0.3 * (theta - MODEL.centre)
    return MODEL.flux(theta) * np.exp(noise * NOISE * rng.normal(size=(rows, len(GRID))))


def test_what_the_model_made_is_inside(check):
    found = check(survey())
    told = found.summary()
    assert (told["verdict"], told["reasons"], told["departures"]) == ("inside", [], [])
    assert (told["rows"], told["simulations"], told["excluded_nan"]) == (ROWS, ROWS, 0)
    assert set(told["chi2_median"]) == set(POPULATIONS)
    for value in told["chi2_median"].values():
        assert value == pytest.approx(1, abs=0.06)
    for test in told["misspecification"].values():
        assert test["pvalue"] > 0.01
        assert (test["rows"], test["simulations"]) == (150, 150)
    far = told["shares"]["distance_above_99%"]
    assert far["interval"][0] <= far["share"] <= far["interval"][1]
    assert told["min_sigma"] == pytest.approx(5 * (2 / ROWS) ** 0.5, rel=0.1)
    assert told["distance_median"]["survey"] == pytest.approx(told["distance_median"]["replicated"], rel=0.1)
    arrays = found.arrays()
    assert arrays["residual_sigma"].shape == (3, len(GRID))
    assert np.abs(arrays["residual_sigma"]).max() < 0.3
    np.testing.assert_allclose(arrays["residual_sigma_error"], ROWS**-0.5, rtol=0.3)


def test_a_narrow_survey_is_not_distributed_like_the_prior_and_is_inside(check):
    told = check(survey(narrow=0.8)).summary()
    assert told["verdict"] == "inside"
    tests = told["misspecification"]
    assert tests["features"]["pvalue"] == pytest.approx(1 / 100)
    assert tests["residuals"]["pvalue"] > 0.01


def test_a_line_and_a_wiggle_in_all_rows_are_named_and_nothing_else(check):
    flux, line = survey(), 60
    flux[:, line] *= 1.2
    flux[:, WIGGLE] *= 1 + 0.03 * np.where(np.arange(WIGGLE.sum()) % 4 < 2, 1, -1)
    told = check(flux).summary()
    assert told["verdict"] == "not described"
    assert told["misspecification"]["residuals"]["pvalue"] == pytest.approx(1 / 100)
    inside_line = [one for one in told["departures"] if one["low"] <= MODEL.wave[line] <= one["high"]]
    assert [one["elements"] for one in inside_line] == [1]
    assert inside_line[0]["sigma"] > 2
    assert inside_line[0]["percent"] == pytest.approx(20, abs=3)
    others = [one for one in told["departures"] if one not in inside_line]
    low, high = MODEL.wave[WIGGLE][0] - 25, MODEL.wave[WIGGLE][-1] + 25
    assert sum(one["elements"] for one in others) >= 0.6 * WIGGLE.sum()
    assert all(low <= one["low"] < one["high"] <= high for one in others)
    assert {np.sign(one["sigma"]) for one in others} == {1, -1}
    assert {np.sign(one["percent"]) == np.sign(one["sigma"]) for one in others} == {True}


@pytest.mark.parametrize(
    ("noise", "tail", "centre"), [(2.0, "pvalue_below_1e-05", 4.0), (0.5, "pvalue_above_0.99", 0.25)]
)
def test_noise_that_is_not_what_it_is_taken_for_is_told_by_p_values(check, noise, tail, centre):
    told = check(survey(noise=noise)).summary()
    assert told["verdict"] == "partly outside"
    assert tail in told["reasons"]
    assert told["shares"][tail]["share"] > 0.9
    assert told["departures"] == []
    assert told["chi2_median"]["survey"] == pytest.approx(centre, rel=0.1, abs=0.05)
    assert told["chi2_median"]["replicated"] == pytest.approx(1, abs=0.06)


def test_galaxies_that_were_never_simulated_are_counted(check):
    flux = survey()
    flux[::12] *= np.exp(3 * np.sin(MODEL.wave / 400))
    told = check(flux).summary()
    assert told["verdict"] == "partly outside"
    assert told["shares"]["distance_above_99.9%"]["beyond"] == pytest.approx(ROWS / 12, abs=3)
    assert "distance_above_99.9%" in told["reasons"]
    assert told["departures"] == []


def test_one_broken_row_changes_no_verdict_and_a_row_without_draws_is_counted(check, posterior):
    flux = survey()
    flux[3] *= np.where(np.arange(len(GRID)) % 2, 100, 0.01)
    posterior.lost = (flux.astype(np.float32)[5, 0].astype(float),)
    found = check(flux)
    told = found.summary()
    assert (told["verdict"], told["rows"], told["excluded_nan"]) == ("inside", ROWS - 1, 1)
    assert np.isnan(found.arrays()["pvalue"][5])
    assert (found.arrays()["count"][0] == ROWS - 1).all()
    assert told["shares"]["pvalue_below_1e-05"]["beyond"] == 1


def test_masked_elements_do_not_count(check):
    flux, good = survey(), np.ones((ROWS, len(GRID)), dtype=bool)
    good[:, 10], good[::2, 20] = False, False
    flux[~good] *= 50
    found = check(flux, good=good)
    count = found.arrays()["count"]
    assert (count[[0, 2], 10] == 0).all()
    assert (count[[0, 2], 20] == ROWS // 2).all()
    assert count[1, 10] == ROWS
    assert np.isnan(found.arrays()["residual_sigma"][0, 10])
    assert found.summary()["departures"] == []


def test_rows_and_seed_alone_decide(check, monkeypatch):
    quality = np.zeros(ROWS, dtype=np.int64)
    quality[7] = int(QualityFlag.BAD_REDSHIFT)
    config = CONFIG.model_copy(update={"audit": CONFIG.audit.model_copy(update={"checked_galaxies": 40})})
    flux = survey()
    first = check(flux, quality=quality, config=config)
    monkeypatch.setattr(inside, "_BLOCK", 7)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(99)
    second = check(flux, quality=quality, config=config, rows_per_shard=16)
    torch.set_num_threads(threads)
    assert first.summary() == second.summary()
    for name, values in first.arrays().items():
        np.testing.assert_array_equal(values, second.arrays()[name])
    other = check(flux, quality=quality, config=config.model_copy(update={"seed": 5}))
    assert set(other.rows) != set(first.rows)


def test_every_row_with_a_posterior_has_the_same_chance():
    quality = np.where(np.arange(50) % 5 == 0, int(QualityFlag.FEW_GOOD_ELEMENTS), int(QualityFlag.FILLED_ELEMENTS))
    taken = np.bincount(np.concatenate([choose_rows(quality, 10, seed) for seed in range(400)]), minlength=50)
    assert (taken[::5] == 0).all()
    expected = 400 * 10 / 40
    assert chi2.sf(((taken[taken > 0] - expected) ** 2 / expected).sum() / 0.75, 39) > 1e-3
    assert choose_rows(quality, 100, 0).tolist() == np.flatnonzero(np.arange(50) % 5).tolist()


def test_rows_are_read_as_they_stand_in_the_catalog(check, tmp_path):
    check(survey(50), rows_per_shard=16)
    catalog = Catalog.open(tmp_path / "catalog.zarr")
    assert catalog.chunk_rows == 16
    some = np.array([0, 3, 15, 16, 33, 34, 49])
    whole, part = catalog.rows(0, 50), read_rows(catalog, some)
    for field in fields(part):
        np.testing.assert_array_equal(getattr(part, field.name), getattr(whole, field.name)[some])
    assert read_rows(catalog, some[:0]).flux.shape == (0, len(GRID))


def test_a_catalog_without_posteriors_is_unknown(check):
    quality = np.full(20, int(QualityFlag.BAD_REDSHIFT))
    found = check(survey(20), quality=quality)
    assert (found.summary()["verdict"], found.summary()["rows"]) == ("unknown", 0)
    assert found.arrays()["residual_sigma"].shape == (3, len(GRID))


def test_the_distance_of_a_frozen_posterior_is_that_of_its_features():
    golden = Path(__file__).parents[1] / "golden"
    flux = np.load(golden / "expected.npz")["flux"]
    posterior = FrozenPosterior.load(golden)
    features = posterior.features(flux)
    assert features.shape == (len(flux), 8)
    np.testing.assert_allclose(np.sqrt((features**2).mean(axis=1)), posterior.feature_distance(flux), rtol=1e-5)


def test_misspecification_finds_a_shift_and_no_more():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(600, 6)).astype(np.float32)
    right = [discrepancy(rng.normal(size=(200, 6)), y, seed).pvalue for seed in range(8)]
    assert min(right) > 0.005
    assert np.mean(right) == pytest.approx(0.5, abs=0.35)
    x = rng.normal(size=(200, 6)) + [0.7, 0, 0, 0, 0, 0]
    x[:3] = np.nan
    found = discrepancy(x, y, 0)
    assert (found.pvalue, found.rows, found.excluded_nan) == (1 / 100, 197, 3)
    assert found.mmd > found.expected[1] > found.expected[0]
    assert discrepancy(x[:4], y, 0) is None
    assert discrepancy(np.ones((9, 6)), np.ones((20, 6)), 0) is None


def test_counts_beyond_a_percentile_are_too_many_as_often_as_they_should():
    rng = np.random.default_rng(1)
    found = [distance_excess(rng.random(200), rng.random(300), 0.99).pvalue for _ in range(400)]
    for level in (0.01, 0.05, 0.2):
        assert (np.array(found) <= level).mean() <= level + 3 * np.sqrt(level / 400)
    assert np.mean(np.array(found) <= 0.2) > 0.08
    assert distance_excess(rng.random(200) + 0.1, rng.random(300), 0.99).pvalue < 1e-3
    shares = [share_excess(rng.random(200) < 0.02, rng.random(300) < 0.02, 0.02).pvalue for _ in range(1000)]
    assert (np.array(shares) <= 0.05).mean() <= 0.06
    told = share_excess(np.arange(200) < 20, np.arange(300) < 3, 0.01)
    assert (told.beyond, told.share, told.simulations_share) == (20, 0.1, 0.01)
    assert told.pvalue < 1e-4


def test_a_stack_has_the_errors_of_its_means():
    rng = np.random.default_rng(3)
    means, middles, stacks = [], [], []
    for _ in range(200):
        values = rng.normal(size=(100, 4)) + 0.5
        stacks.append(Stack.of(values, 5 * values))
        means.append(stacks[-1].sigma)
        middles.append(stacks[-1].percent)
    assert np.std(means) == pytest.approx(np.mean([one.error for one in stacks]), rel=0.1)
    assert np.std(middles) == pytest.approx(np.mean([one.percent_error for one in stacks]), rel=0.15)
    values[4:, 2] = np.nan
    assert np.isnan(Stack.of(values, values).sigma).tolist() == [False, False, True, False]


def residuals(rng, rows=100):
    """Residuals of rows in units of the noise and in per cent, a tenth of them missing."""
    sigma = np.where(rng.random((rows, len(GRID))) < 0.1, np.nan, rng.normal(size=(rows, len(GRID))))
    return sigma, 5 * sigma


def test_broad_bands_of_surveys_that_are_right_do_not_depart():
    rng = np.random.default_rng(11)
    false = sum(bool(band_ranges(residuals(rng), [residuals(rng), residuals(rng)], GRID)) for _ in range(100))
    assert false == 0


def test_a_broad_feature_is_found_that_no_element_shows():
    rng = np.random.default_rng(12)
    bump = 0.42 * np.exp(-0.5 * ((np.arange(len(GRID)) - 70) / 8) ** 2)
    seen, seen_by_elements = 0, 0
    for _ in range(20):
        (sigma, percent), *references = (residuals(rng) for _ in range(3))
        sigma, percent = sigma + bump, percent + 5 * bump
        found = band_ranges((sigma, percent), references, GRID)
        stack, *others = (Stack.of(*one) for one in ((sigma, percent), *references))
        seen += bool(found)
        seen_by_elements += bool(ranges(stack, others, GRID.edges))
        for one in found:
            assert one["low"] < GRID.wavelength[78]
            assert one["high"] > GRID.wavelength[62]
            assert one["sigma"] > 0.3
            assert one["percent"] > 0
            assert one["elements"] >= 5
    assert seen >= 18
    assert seen_by_elements <= 4


def in_observed_bands(rng, fault=0.0):
    """Bands of rows at redshifts 0 to 0.5, with a fault from 6000 to 6300 Angstrom."""
    redshift = 0.5 * rng.random(200)
    sigma, percent = residuals(rng, 200)
    seen = GRID.wavelength * (1 + redshift[:, None])
    sigma = sigma + np.where((seen > 6000) & (seen < 6300), fault, 0.0)
    return (sigma, percent), observed_bands(sigma, percent, redshift, GRID)


def test_a_fault_that_stays_in_place_in_the_observed_frame_is_found_there_alone():
    rng = np.random.default_rng(14)
    for _ in range(10):
        (rest, bands), *others = in_observed_bands(rng, 0.8), in_observed_bands(rng), in_observed_bands(rng)
        found = observed_ranges(bands, [one for _, one in others])
        assert found
        assert min(one["low"] for one in found) > 5800
        assert max(one["high"] for one in found) < 6500
        assert max(one["sigma"] for one in found) > 0.4
        assert not ranges(Stack.of(*rest), [Stack.of(*one) for one, _ in others], GRID.edges)


def test_bands_in_the_observed_frame_of_surveys_that_are_right_do_not_depart():
    rng = np.random.default_rng(15)
    made = [in_observed_bands(rng)[1] for _ in range(90)]
    assert not any(observed_ranges(made[i], [made[i + 1], made[i + 2]]) for i in range(0, 90, 3))


def test_rows_whose_redshift_is_not_known_have_no_observed_bands():
    lost = np.full((10, len(GRID)), np.nan)
    bands = observed_bands(lost, lost, np.zeros(10), GRID)
    assert np.isnan(bands).all()
    assert observed_ranges(bands, [bands, bands]) == []


def test_the_report_shows_it_and_says_where(check, tmp_path):
    folder, audit = build_run(tmp_path / "run", galaxies=1, converged=1, simulations=60, rows=40)
    for name in ("audit.zarr/calibration", "audit.zarr/galaxies", "posterior.zarr", "percentiles.parquet"):
        shutil.rmtree(folder / name, ignore_errors=True)
    flux = survey()
    flux[:, 60] *= 1.2
    found = check(flux)
    add_survey(folder, audit, found)
    page = write_report(folder).read_text()
    low, high = GRID.edges[60:62]
    where = f"The model does NOT describe the survey&#39;s flux at {low:.0f}–{high:.0f} Å (+"
    assert page.count(where) == 2, "in the verdict and in the section"
    assert f"it departs from the simulations at {low:.0f} to {high:.0f} Angstrom" in page
    assert '<data id="inside-verdict" value="NO">NO</data>' in page
    pvalue = read_json(folder / "audit.json")["domain"]["misspecification"]["features"]["pvalue"]
    assert f'<data id="mmd-features" value="{pvalue:.2g}' in page
    far = found.summary()["shares"]["distance_above_99.9%"]
    assert f"{far['beyond']} rows are further than {far['limit']:.3g}" in page
