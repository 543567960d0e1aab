"""Predictive checks: the right chi-square, p-values that gather where they should, and a bit for odd spectra."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, norm

from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MapConfig, NoiseConfig
from digs_survey.importance.predictive_check import Checker, PredictiveCheck, judge
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.infer.rows import infer_rows
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.spectra import WavelengthGrid

ELEMENTS, FRACTION = 40, 0.05
PRIOR = Prior({"logmass": (8, 13)}, left_out=("logzsol", "dust2", "tage", "logtau"))
NOISE_CONFIG = NoiseConfig(fraction=FRACTION, space="log10")


class Flat:
    """Flux that is the mass in every element."""

    def spectra(self, theta):
        return 10 ** theta[:, :1] * np.ones(ELEMENTS)


class ExactPosterior:
    """Of Flat under noise in log10 flux: the mean of log flux, with a normal error."""

    prior, width = PRIOR, 1.0
    grid = WavelengthGrid(np.linspace(4000.0, 8000.0, ELEMENTS))

    def __init__(self, noise):
        self.noise = noise

    def draw_and_judge(self, flux, draws, ordered):
        assert not ordered
        rng = np.random.default_rng(1)
        centre = np.log10(flux).mean(axis=1)
        mass = centre[:, None] + np.log10(1 + FRACTION) / np.sqrt(ELEMENTS) * rng.normal(size=(len(flux), draws))
        return PRIOR.to_unconstrained(mass[..., None]).transpose(0, 2, 1).astype(np.float32), np.zeros(len(flux), bool)

    def log_prob(self, theta, flux, *, normalised=True):
        centre = np.log10(flux).mean(axis=1)[:, None]
        return norm.logpdf(theta[..., 0], centre, self.width * np.log10(1 + FRACTION) / np.sqrt(ELEMENTS))

    def feature_distance(self, flux):
        return np.abs(np.log10(flux) - 10).mean(axis=1)


@pytest.fixture
def noise():
    from digs_survey.noise.model import NoiseModel

    return NoiseModel.from_config(NOISE_CONFIG)


def prepare(flux, quality=None, good=None):
    good = np.ones(flux.shape, dtype=bool) if good is None else good
    quality = np.zeros(len(flux), dtype=np.int64) if quality is None else np.array(quality, dtype=np.int64)
    return PreparedRows(flux, good.astype(float), good, quality)


def infer(noise, rows, **settings):
    config = MapConfig(draws=64, predictive_draws=16, **settings)
    posterior = ExactPosterior(noise)
    checker = Checker(posterior, SpectrumLikelihood(Flat(), noise), config.predictive_draws)
    return infer_rows(posterior, rows, config, checker=checker)


def observed(noise, count, seed=0):
    theta = np.random.default_rng(seed).uniform(9, 12, (count, 1))
    return noise.draw(Flat().spectra(theta), np.random.default_rng(seed + 1))


def test_chi_square_and_p_value_by_hand(noise):
    flux = observed(noise, 3)
    good = np.ones(flux.shape, dtype=bool)
    good[1, 5:9] = False
    flux[1, 5:9] = 1e30
    posterior = ExactPosterior(noise)
    theta = np.full((3, 1, 1), 10.0)
    check = Checker(posterior, SpectrumLikelihood(Flat(), noise), 1)(flux, good, None, theta)
    for row in range(3):
        used = np.log(flux[row, good[row]])
        square = (((used - 10 * np.log(10)) / np.log1p(FRACTION)) ** 2).sum()
        assert check.chi2[row] == pytest.approx(square / used.size, rel=1e-6)
        assert check.pvalue[row] == pytest.approx(chi2.sf(square, used.size), rel=1e-6, abs=1e-300)
    np.testing.assert_allclose(check.distance, posterior.feature_distance(flux), rtol=1e-6)


def test_p_values_of_good_rows_gather_about_a_half_and_are_not_too_bold(noise):
    check = infer(noise, prepare(observed(noise, 4000))).check
    assert check.pvalue.mean() == pytest.approx(0.5, abs=0.03)
    for small in (0.01, 0.05, 0.2):
        assert (check.pvalue < small).mean() < 2 * small
    assert check.chi2.mean() == pytest.approx(1, abs=0.02)


def test_a_few_wild_draws_neither_hide_a_bad_fit_nor_spoil_a_good_one():
    rng = np.random.default_rng(5)
    good, bad = rng.normal(size=(64, ELEMENTS)), 3 * rng.normal(size=(64, ELEMENTS))
    good, bad = (np.square(residuals).sum(axis=1) for residuals in (good, bad))
    for some in (1, 31):
        assert judge(np.concatenate([bad[some:], np.zeros(some)]), ELEMENTS)[1] < 1e-5
        value, pvalue = judge(np.concatenate([good[some:], 1e12 * bad[:some]]), ELEMENTS)
        assert pvalue > 1e-3
        assert value < 2


def test_weights_do_not_scatter_if_the_posterior_is_exact_and_do_if_it_is_not(noise):
    flux = observed(noise, 50)
    assert infer(noise, prepare(flux)).check.scatter.max() < 1e-3

    class Wide(ExactPosterior):
        width = 2.0

    posterior, config = Wide(noise), MapConfig(draws=64, predictive_draws=64)
    checker = Checker(posterior, SpectrumLikelihood(Flat(), noise), 64)
    check = infer_rows(posterior, prepare(flux), config, checker=checker).check
    # ln w = -3 z^2 / 8 + constant for z of unit variance; its median absolute deviation in 64 of these draws
    z = np.random.default_rng(1).normal(size=(50, 64))
    expected = 1.4826 * np.median(np.abs(3 / 8 * (z**2 - np.median(z**2, axis=1)[:, None])), axis=1)
    np.testing.assert_allclose(check.scatter, expected, rtol=0.02)


def test_a_spectrum_that_the_model_cannot_make_gets_its_bit_and_no_other_does(noise):
    flux = observed(noise, 200)
    flux[7, 10:14] *= 1.5
    flux[11] *= np.linspace(0.7, 1.4, ELEMENTS)
    result = infer(noise, prepare(flux))
    marked = np.flatnonzero(result.quality & int(QualityFlag.POOR_FIT))
    assert marked.tolist() == [7, 11]
    assert (result.check.pvalue[marked] < 1e-5).all()
    assert not (infer(noise, prepare(flux), min_pvalue=0.0).quality & int(QualityFlag.POOR_FIT)).any()


def test_rows_do_not_know_each_other_and_those_without_a_posterior_hold_nan(noise):
    flux = observed(noise, 70)
    bad = np.zeros(70, dtype=int)
    bad[3] = int(QualityFlag.BAD_REDSHIFT)
    whole = infer(noise, prepare(flux, bad))
    assert np.isnan([whole.check.pvalue[3], whole.check.chi2[3], whole.check.distance[3]]).all()
    assert np.isfinite(np.delete(whole.check.pvalue, 3)).all()

    class SameDraws(ExactPosterior):
        def draw_and_judge(self, flux, draws, ordered):
            mass = np.log10(flux).mean(axis=1)[:, None] + np.linspace(-0.003, 0.003, draws)
            u = PRIOR.to_unconstrained(mass[..., None]).transpose(0, 2, 1).astype(np.float32)
            return u, np.zeros(len(flux), bool)

    posterior, config = SameDraws(noise), MapConfig(draws=64, predictive_draws=16)
    checker = Checker(posterior, SpectrumLikelihood(Flat(), noise), 16)
    together = infer_rows(posterior, prepare(flux), config, checker=checker).check
    alone = [infer_rows(posterior, prepare(flux[[k]]), config, checker=checker).check for k in range(70)]
    for name in ("distance", "chi2", "pvalue", "scatter"):
        assert getattr(together, name).tolist() == [getattr(one, name)[0] for one in alone]


def test_each_p_value_has_its_bit():
    check = PredictiveCheck.unknown(5)
    check.pvalue[:], check.shift_pvalue[:], check.step_pvalue[:] = 0.5, 0.5, 0.5
    check.pvalue[1] = check.shift_pvalue[2] = check.step_pvalue[3] = 1e-6
    poor, step = int(QualityFlag.POOR_FIT), int(QualityFlag.CALIBRATION_STEP)
    assert check.quality(1e-5).tolist() == [0, poor, poor, step, 0]
    assert not PredictiveCheck.unknown(2).quality(1e-5).any()
