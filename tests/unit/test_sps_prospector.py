from __future__ import annotations

import numpy as np
import pytest
from astropy.cosmology import WMAP9

from digs_survey.config import GridConfig, ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid, air_to_vacuum
from digs_survey.sps import sampling
from digs_survey.sps.prospector import ProspectorSimulator

PRIOR = Prior()
GRID = WavelengthGrid.from_config(GridConfig())
PAPER = np.array([10.51, -0.41, 0.65, 1.63, np.log10(0.11)])
"""The paper's example galaxy."""


def theta(**changes):
    values = PAPER.copy()
    for name, value in changes.items():
        values[PRIOR.index(name)] = value
    return values


@pytest.fixture(scope="module")
def simulator():
    return ProspectorSimulator(ModelConfig(), PRIOR, GRID)


def at(wavelength):
    return int(np.abs(GRID.wavelength - wavelength).argmin())


def test_spectra_are_finite_positive_and_row_by_row(simulator):
    rows = PRIOR.from_unit_cube(np.random.default_rng(1).random((200, 5)))
    flux = simulator.spectra(rows)
    assert flux.shape == (200, len(GRID))
    assert np.isfinite(flux).all()
    assert (flux > 0).all()
    np.testing.assert_array_equal(flux[17], simulator.spectrum(rows[17]))


@pytest.mark.parametrize("resampling", ["mean", "point"])
def test_converged_in_wavelength_sampling(monkeypatch, resampling):
    rows = PRIOR.from_unit_cube(np.random.default_rng(2).random((12, 5)))
    model = ModelConfig(resampling=resampling)
    flux = ProspectorSimulator(model, PRIOR, GRID).spectra(rows)
    monkeypatch.setattr(sampling, "_POINTS_PER_SIGMA", 15.0)
    finer = ProspectorSimulator(model, PRIOR, GRID)
    assert finer.obs["wavelength"].size > 12_000
    np.testing.assert_allclose(flux, finer.spectra(rows), rtol=1.2e-4)


def test_smoothing_is_the_gaussian_asked_for(simulator):
    """Against Prospector's own slow, direct convolution of the unsmoothed spectrum, in velocity."""
    from prospect.utils.smoothing import smooth_vel

    wave, lnu, _ = simulator.sps.get_galaxy_spectrum(logzsol=-0.41, dust2=0.65, tage=1.63, tau=0.11, sigma_smooth=350.0)
    points = simulator.obs["wavelength"][200:-200:400]
    flux, _, _ = simulator.model.predict(PAPER, obs=simulator.obs, sps=simulator.sps)
    direct = smooth_vel(wave * (1 + 1e-5), lnu, points, 350.0) / points**2
    np.testing.assert_allclose(flux[200:-200:400] / direct, flux[200] / direct[0], rtol=2e-5)


def test_mass_is_a_scale(simulator):
    heavier = simulator.spectrum(theta(logmass=11.51))
    np.testing.assert_allclose(heavier, 10 * simulator.spectrum(PAPER), rtol=1e-12)


def test_amplitude_is_that_of_the_wmap9_distance(simulator):
    wave, lnu, _ = simulator.sps.get_galaxy_spectrum(logzsol=-0.41, dust2=0.65, tage=1.63, tau=0.11)
    edges = GRID.edges
    fine = np.linspace(edges[0], edges[-1], 200_000)
    luminosity = np.trapezoid(np.interp(fine, wave, lnu * 2.998e18 / wave**2), fine) * 3.846e33 * 10**10.51
    received = (simulator.spectrum(PAPER) * np.diff(edges)).sum()
    distance = WMAP9.luminosity_distance(1e-5).to_value("cm")
    assert received * 4 * np.pi * distance**2 == pytest.approx(luminosity, rel=1e-3)


def test_redshift_only_moves_the_distance(simulator):
    far = ProspectorSimulator(ModelConfig(zred=0.1), PRIOR, GRID).spectrum(PAPER)
    ratio = (WMAP9.luminosity_distance(1e-5) / WMAP9.luminosity_distance(0.1)).value ** 2
    np.testing.assert_allclose(far, ratio * simulator.spectrum(PAPER), rtol=2e-5)


def test_prospector_knows_the_prior(simulator):
    rows = PRIOR.from_unit_cube(np.random.default_rng(3).random((5, 5)))
    assert tuple(simulator.model.theta_labels()) == PRIOR.names
    for row in rows:
        assert simulator.model.prior_product(row) == pytest.approx(float(PRIOR.log_prob(row)))
    assert not np.isfinite(simulator.model.prior_product(theta(tage=5.0)))


def test_dust_is_calzetti(simulator):
    clear, dusty = (simulator.spectrum(theta(dust2=d, tage=3.0)) for d in (0.0, 1.0))
    depth = -np.log(dusty / clear)
    assert depth[at(5510)] == pytest.approx(1.0, abs=0.01)
    assert (depth > 0).all()
    expected = (2.659 * (-2.156 + 1.509 / 0.376 - 0.198 / 0.376**2 + 0.011 / 0.376**3) + 4.05) / 4.05
    assert depth[at(3760)] == pytest.approx(expected, abs=0.01)


def test_older_is_redder_with_a_deeper_break(simulator):
    ages = [0.03, 0.1, 0.3, 1.0, 3.9]
    flux = simulator.spectra([theta(tage=age, logtau=-1.0) for age in ages])
    d4000 = flux[:, at(4050)] / flux[:, at(3910)]
    colour = flux[:, at(7000)] / flux[:, at(4250)]
    assert (np.diff(colour) > 0).all()
    assert (np.diff(d4000) > 0).all()


def test_young_galaxies_have_balmer_lines():
    """Fluxes of the lines in the smoothed spectrum, before dust: H-beta, and H-alpha with [N II]."""
    narrow = WavelengthGrid(np.arange(4700.0, 6800.0, 4.0))
    model = ModelConfig(smoothing_kms=150.0)
    young = theta(tage=0.02, logtau=0.0, dust2=0.0)
    gas, stars = (ProspectorSimulator(model.model_copy(update={"nebular": on}), PRIOR, narrow) for on in (True, False))
    lines = gas.spectrum(young) - stars.spectrum(young)

    def flux(centre):
        near = np.abs(narrow.wavelength - centre) < 50
        return (lines[near] - 0.5 * (lines[near][0] + lines[near][-1])).sum()

    wavelength, luminosity = gas.sps.get_galaxy_elines()
    alpha, beta, *nitrogen = (luminosity[np.abs(wavelength - w).argmin()] for w in (6564.6, 4862.7, 6585.3, 6549.9))
    assert alpha / beta == pytest.approx(2.86, abs=0.15)
    assert flux(6567) / flux(4862.7) == pytest.approx((alpha + sum(nitrogen)) / beta, rel=0.02)


def test_air_grid_is_the_same_galaxy_elsewhere(simulator):
    air = ProspectorSimulator(ModelConfig(), PRIOR, WavelengthGrid(GRID.wavelength, "rest", "air"))
    shifted = ProspectorSimulator(ModelConfig(), PRIOR, WavelengthGrid(air_to_vacuum(GRID.wavelength)))
    flux = air.spectrum(PAPER)
    np.testing.assert_allclose(flux, shifted.spectrum(PAPER), rtol=1e-5)
    assert np.abs(flux / simulator.spectrum(PAPER) - 1).max() > 1e-3


def test_the_papers_galaxy(simulator):
    """A 3e10 Msun galaxy, 1.6 Gyr after a short burst: M/L of order one, at 43 kpc."""
    flux = simulator.spectrum(PAPER)
    distance = WMAP9.luminosity_distance(1e-5).to_value("cm")
    luminosity = flux[at(5510)] * 5510 * 4 * np.pi * distance**2 / 3.828e33
    assert 9.5 < np.log10(luminosity) < 10.6
    assert 1.2 < flux[at(4050)] / flux[at(3910)] < 2.0


def test_refusals():
    with pytest.raises(ConfigError, match="rest-frame grid, found .*observed frame"):
        ProspectorSimulator(ModelConfig(), PRIOR, WavelengthGrid(GRID.wavelength, "observed"))
    with pytest.raises(ConfigError, match=r"prior.logzsol: source 'bc03' covers -2.301 to 0.699"):
        ProspectorSimulator(ModelConfig(), Prior({"logzsol": (-2.0, 1.0)}), GRID)
    with pytest.raises(ConfigError, match=r"prior.tage"):
        ProspectorSimulator(ModelConfig(), Prior({"tage": (0.0, 4.0)}), GRID)
