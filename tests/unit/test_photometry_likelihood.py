"""The likelihood of a spectrum with photometry, from draws of the prior: one for weights and for both of emcee's."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.audit.mcmc.target import AtRedshift, GalaxyPosterior
from digs_survey.config import load_config
from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_clean, split_observed
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.paired import PairedModel, batched_model, predict

GRID = WavelengthGrid(np.arange(4000.0, 5000.0, 50.0))
FILTERS = ("sdss_g0", "sdss_r0", "twomass_Ks")
CONFIG = load_config("survey")
PRIOR = CONFIG.make_prior().without("sigma_smooth")


@pytest.fixture(scope="module")
def noise():
    every = {"missing_band": 0.0, "without_photometry": 0.0, "without_spectrum": 0.0}
    photometry = PhotometryConfig(filters=FILTERS, snr=(50.0, 100.0), **every)
    return NoiseModel.from_config(CONFIG.noise.model_copy(update={"photometry": photometry})).on(GRID)


@pytest.fixture(scope="module")
def model(noise):
    made = batched_model(CONFIG.model, PRIOR, GRID, noise.photometry_bands)
    assert isinstance(made, PairedModel)
    return made


def test_simulations_are_spectra_maggies_and_redshift(model, noise):
    theta, clean = simulated_spectra(model, PRIOR, noise, 1, "calibration", 3, 9)
    flux, redshift = split_clean(clean)
    assert flux.shape == (6, len(GRID) + len(FILTERS))
    np.testing.assert_allclose(flux, predict(model, PRIOR, theta, redshift), rtol=1e-6)


def test_weights_and_chains_have_the_same_likelihood_and_the_truth_is_likely(model, noise):
    theta, clean = simulated_spectra(model, PRIOR, noise, 1, "calibration", 0, 4)
    observed = noise.draw(clean, np.random.default_rng(2))
    likelihood = SpectrumLikelihood(model, noise, PRIOR)
    # The truth, twice the mass, and other galaxies of the prior.
    brighter = theta.copy()
    brighter[:, PRIOR.index("logmass")] += 0.3
    draws = np.stack([theta, brighter, np.roll(theta, 1, axis=0)], axis=1)
    inside = np.isfinite(PRIOR.log_prob(draws))
    draws[~inside] = np.repeat(theta[:, None], 3, axis=1)[~inside]
    good = split_observed(observed)[1] > 0
    found = likelihood(draws, observed, good)
    np.testing.assert_allclose(
        likelihood.spectra_of_rows(draws, observed)[2], likelihood.spectra(draws[2], observed[2])
    )
    for row in range(4):
        chain = AtRedshift(model, PRIOR, noise.redshift_of(observed[row]))
        target = GalaxyPosterior(chain, noise, PRIOR, observed[row], good[row])
        expected = found[row] + PRIOR.log_prob(draws[row])
        np.testing.assert_allclose(target(draws[row]), expected, rtol=1e-6)
    assert (found[:, 0] > found[:, 2]).all()
    assert (found[inside[:, 1], 0] > found[inside[:, 1], 1]).all()


def test_photometry_tells_what_a_spectrum_that_is_missing_cannot(model, noise):
    """The mass follows from the bands alone, and from the spectrum alone when there are none."""
    theta, clean = simulated_spectra(model, PRIOR, noise, 1, "calibration", 5, 6)
    observed = noise.draw(clean, np.random.default_rng(3))
    elements = len(GRID) + len(FILTERS)
    shifts = np.linspace(-0.2, 0.2, 41)
    draws = np.repeat(theta, 41, axis=0)
    draws[:, PRIOR.index("logmass")] += shifts
    models = predict(model, PRIOR, theta, split_clean(clean)[1]) * 10 ** shifts[:, None]
    likeliest = {}
    for name, gone in {"photometry": slice(0, len(GRID)), "spectrum": slice(len(GRID), elements)}.items():
        part = observed.copy()
        part[:, elements:][:, gone] = 0.0
        density = noise.log_likelihood(part[0], models)
        assert np.isfinite(density).all()
        likeliest[name] = shifts[density.argmax()]
    assert abs(likeliest["photometry"]) <= 0.05
    assert abs(likeliest["spectrum"]) <= 0.1
