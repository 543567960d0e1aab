"""Score tests: standard normal where nothing is wrong, and a shift or a step by its size where there is one."""

from __future__ import annotations

import numpy as np
import pytest
from row_noise import ELEMENTS, GRID, QUIET, row_noise
from scipy.stats import kstest

from digs_survey.config import NoiseConfig
from digs_survey.importance.score_tests import ScoreTests
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import join_clean, split_observed
from digs_survey.spectra import C_KMS

WAVE = GRID.wavelength
LINES = np.random.default_rng(9).uniform(WAVE[0], WAVE[-1], 25)
FIXED = NoiseModel.from_config(NoiseConfig(fraction=0.02, space="log10"))
CORRELATED = NoiseModel.from_config(NoiseConfig(fraction=0.02, kernel=(1.0, 0.3)))
NOISES = {"row": row_noise({**QUIET, "snr": (40.0, 41.0)}, calibration_order=3), "log10": FIXED, "kernel": CORRELATED}


def model(theta, velocity=0.0):
    """Lines of 30 Angstrom on a continuum: brightness and slope are parameters (n, 2)."""
    wave = WAVE * (1 + velocity / C_KMS)
    lines = 1 - 0.3 * np.exp(-0.5 * ((wave - LINES[:, None]) / 30) ** 2).sum(axis=0)
    return np.exp(theta[:, :1] + theta[:, 1:] * (wave - 6000) / 3000) * lines


def scores(noise, rows, change=lambda flux: flux, velocity=0.0, seed=0):
    """Test rows whose posteriors are nearly exact, of a linear Gaussian model."""
    rng = np.random.default_rng(seed)
    theta, clean = np.zeros((rows, 2)), change(model(np.zeros((rows, 2)), velocity))
    redshift = np.full(rows, 0.1)
    by_row = noise.config.by_row
    observed = noise.draw(join_clean(clean, redshift) if by_row else clean, rng)
    tests = ScoreTests(GRID, noise, 2)
    jacobian = model(theta[:1]) * np.stack([np.ones(ELEMENTS), (WAVE - 6000) / 3000])
    found = []
    for row in observed:
        good = split_observed(row)[1] > 0 if by_row else np.ones(ELEMENTS, dtype=bool)
        errors = noise.errors_of(row[None], good, good) if by_row else None
        own = None if errors is None else errors[:, 0]
        residual, along, shared = noise.linearised(jacobian, row, model(theta[:1])[0], good, own)
        common = along @ shared.T
        covariance = np.linalg.inv(along @ along.T - common @ common.T)
        best = covariance @ (along @ residual - common @ (shared @ residual))
        spectra = model(best + rng.normal(size=(32, 2)) @ np.linalg.cholesky(covariance).T)
        found.append(tests(row, good, own, spectra))
    return found


@pytest.mark.parametrize("name", NOISES)
def test_where_nothing_is_wrong_they_are_as_bold_as_they_say(name):
    found = scores(NOISES[name], 300)
    pulls = np.array([one.velocity / one.velocity_error for one in found])
    assert kstest(pulls, "norm").pvalue > 1e-3
    for pvalues in ([one.shift_pvalue for one in found], [one.step_pvalue for one in found]):
        for small in (0.01, 0.05):
            assert (np.array(pvalues) < small).mean() <= small + 3 * np.sqrt(small / 300)
        assert min(pvalues) > 1e-5


@pytest.mark.parametrize("name", NOISES)
def test_a_shift_is_found_by_its_size(name):
    # The catalog's redshift is too large by 200 km/s: features lie too far in the blue.
    found = scores(NOISES[name], 40, velocity=200.0)
    size, error = (np.array([getattr(one, key) for one in found]) for key in ("velocity", "velocity_error"))
    assert size.mean() == pytest.approx(-200, abs=20)
    assert (size + 200).std() == pytest.approx(error.mean(), rel=0.4)
    assert np.median([one.shift_pvalue for one in found]) < 1e-5
    assert np.median([one.step_pvalue for one in found]) > 0.01
    far = scores(NOISES[name], 10, velocity=3000.0)
    assert max(one.shift_pvalue for one in far) < 1e-5


def test_a_step_is_found_and_is_no_shift():
    found = scores(FIXED, 20, change=lambda flux: flux * np.where(WAVE > 5321, 0.95, 1.0))
    assert max(one.step_pvalue for one in found) < 1e-5
    assert np.median([one.shift_pvalue for one in found]) > 0.01


def test_what_is_not_known_is_nan():
    spectra = model(np.zeros((8, 2)))
    found = ScoreTests(GRID, FIXED, 2)(spectra[0], np.zeros(ELEMENTS, dtype=bool), None, spectra)
    assert np.isnan([found.velocity, found.velocity_error, found.shift_pvalue, found.step_pvalue]).all()
