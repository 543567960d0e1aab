"""Row noise evaluated: likelihood, residuals and calibration against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from row_noise import ELEMENTS, GRID, dense_covariance, draw, row_noise, small_row, spectra
from scipy import stats

from digs_survey.jit import PLAIN
from digs_survey.noise.observation import join_observed, split_observed
from digs_survey.noise.row_likelihood import calibration_terms
from digs_survey.noise.row_noise import RowNoise


@pytest.mark.parametrize("settings", [{}, {"calibration_order": 0}, {"calibration_order": 3, "calibration_width": 0.4}])
def test_the_likelihood_is_the_normal_one_of_the_dense_covariance(settings):
    noise = row_noise(**settings)
    observed, models, good = small_row()
    x = split_observed(observed)[0][good]
    found = noise.log_likelihood(observed, models)
    square = np.nansum(noise.residuals(observed, models) ** 2, axis=-1)
    assert found.shape == (3,)
    for model, value, chi in zip(models, found, square, strict=True):
        covariance = dense_covariance(observed, model, good, noise.config)
        expected = stats.multivariate_normal(model[good], covariance).logpdf(x)
        assert value == pytest.approx(expected, rel=1e-9)
        assert noise.log_likelihood(observed, model) == pytest.approx(expected, rel=1e-9)
        assert chi == pytest.approx((x - model[good]) @ np.linalg.solve(covariance, x - model[good]), rel=1e-9)
    if settings.get("calibration_order") != 0:
        white = stats.multivariate_normal(models[0][good], np.diag(split_observed(observed)[1][good] ** -2.0)).logpdf(x)
        assert found[0] != pytest.approx(white, abs=0.01)


def test_compiled_and_plain_loops_agree_and_a_model_does_not_depend_on_its_place(monkeypatch):
    noise = row_noise()
    observed, models, _ = small_row(101)
    models = models[0] * np.random.default_rng(5).uniform(0.8, 1.2, (70, 1))
    found = noise.goodness(observed, models)
    shuffled = np.random.default_rng(6).permutation(70)
    for values, moved in zip(found, noise.goodness(observed, models[shuffled]), strict=True):
        np.testing.assert_array_equal(values[shuffled], moved)
    for k in (0, 31, 69):
        alone = [float(values[0]) for values in noise.goodness(observed, models[[k]])]
        assert alone == [float(values[k]) for values in found]
    monkeypatch.setenv(PLAIN, "1")
    np.testing.assert_allclose(noise.goodness(observed, models), found, rtol=1e-9)


def test_rows_and_models_pair_up_or_broadcast():
    noise = row_noise()
    observed, models, _ = small_row()
    rows = np.stack([observed, observed * np.linspace(0.9, 1.1, len(observed))])
    found = noise.log_likelihood(rows[:, None], models)
    assert found.shape == (2, 3)
    for row in range(2):
        np.testing.assert_allclose(found[row], noise.log_likelihood(rows[row], models), rtol=1e-12)
        paired = noise.log_likelihood(rows, models[[row, row]])
        np.testing.assert_allclose(paired, found[:, row], rtol=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_model_that_is_not_positive_is_impossible_where_there_is_data_and_nowhere_else(bad):
    noise = row_noise()
    observed, models, good = small_row()
    expected = noise.log_likelihood(observed, models)
    here, gap = models.copy(), models.copy()
    here[1, np.flatnonzero(good)[3]] = bad
    gap[1, np.flatnonzero(~good)[0]] = bad
    with np.errstate(invalid="ignore"):
        found = noise.log_likelihood(observed, here)
        np.testing.assert_array_equal(np.isnan(noise.residuals(observed, here)[[0, 2]]), [~good, ~good])
    assert found[1] == -np.inf
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    np.testing.assert_array_equal(noise.log_likelihood(observed, gap), expected)


def test_residuals_of_the_truth_are_standard_normals_and_need_the_calibration():
    noise = row_noise({"snr": (5.0, 100.0), "floor": (1e-9, 1e-9)}, calibration_width=0.1)
    flux, redshift = spectra(400)
    observed = draw(noise, flux, redshift)
    _, inverse, _ = split_observed(observed)
    residuals = noise.residuals(observed, flux)
    np.testing.assert_array_equal(np.isnan(residuals), inverse == 0)
    white = np.where(inverse > 0, residuals, 0.0)
    assert stats.kstest(white[inverse > 0], "norm").pvalue > 1e-3
    # Along each term of the calibration, where its part was taken out.
    shape = flux * inverse * calibration_terms(ELEMENTS, 6)[:, None]
    along = ((shape * white).sum(axis=-1) / np.sqrt((shape**2).sum(axis=-1))).ravel()
    raw = (((observed[:, :ELEMENTS] - flux) * inverse * shape).sum(axis=-1) / np.sqrt((shape**2).sum(axis=-1))).ravel()
    assert along.std() == pytest.approx(1, abs=0.07)
    assert raw.std() > 3


def test_the_floor_that_a_row_tells_of_is_what_it_was_drawn_with_but_for_its_noise():
    noise = row_noise()
    flux, redshift = spectra(500)
    observed = draw(noise, flux, redshift)
    assert np.nanstd(noise.residuals(observed, flux)) == pytest.approx(1, abs=0.03)
    without = RowNoise(noise.config.model_copy(update={"calibration_width": 0.0}), grid=GRID)
    assert np.nanstd(without.residuals(observed, flux)) > 1.1


@pytest.mark.parametrize("width", [0.03, 1e-3, 0.5])
def test_the_calibrated_model_has_the_polynomial_of_least_squares(width):
    noise = row_noise(calibration_order=4, calibration_width=width)
    observed, models, good = small_row(40)
    rows = np.stack([observed, observed])
    rows[1, :40] *= np.linspace(0.8, 1.1, 40)
    place = np.linspace(-1, 1, 40)
    terms = np.stack([np.polynomial.Chebyshev.basis(p)(place) for p in range(1, 5)], axis=1)
    found = noise.calibrated(rows[:, None], models)
    assert found.shape == (2, 3, 40)
    for i, row in enumerate(rows):
        flux, inverse, _ = split_observed(row)
        for model, its in zip(models, found[i], strict=True):
            # Residuals over their errors, and coefficients over their width: what the prior of them adds.
            equations = np.concatenate([terms[good] * (model * inverse)[good, None], np.eye(4) / width])
            wanted = np.concatenate([((flux - model) * inverse)[good], np.zeros(4)])
            polynomial = 1 + terms @ np.linalg.lstsq(equations, wanted, rcond=None)[0]
            np.testing.assert_allclose(its, model * polynomial, rtol=1e-9)
            np.testing.assert_allclose(noise.calibrated(row, model), model * polynomial, rtol=1e-9)


def test_a_calibration_error_is_what_the_calibrated_model_follows():
    noise = row_noise(calibration_order=3, calibration_width=0.1)
    place = np.linspace(-1, 1, ELEMENTS)
    flux, redshift = spectra(20)
    bend = 1 + 0.08 * place - 0.05 * (2 * place**2 - 1)
    inverse = 1e4 / flux * (np.arange(ELEMENTS) % 7 > 0)
    observed = join_observed(np.where(inverse > 0, flux * bend, 0.0), inverse, redshift)
    np.testing.assert_allclose(noise.calibrated(observed, flux), flux * bend, rtol=1e-5)
    none = row_noise(calibration_order=0)
    np.testing.assert_array_equal(none.calibrated(observed, flux), flux)
