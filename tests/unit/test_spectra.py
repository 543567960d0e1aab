"""Wavelength grids and flux-conserving resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digs_survey.config import load_config
from digs_survey.spectra import WavelengthGrid, air_to_vacuum, rebin_matrix, rebin_spectrum, vacuum_to_air


def test_the_papers_grid():
    grid = WavelengthGrid.from_config(load_config("digs2022").grid)
    assert len(grid) == 138
    assert (grid.wavelength[0], grid.wavelength[-1]) == (3060.0, 9910.0)
    assert (grid.edges[0], grid.edges[-1]) == (3035.0, 9935.0)
    assert str(grid) == "138 elements, 3060 to 9910 Angstrom in steps of 50, rest frame, vacuum"
    assert WavelengthGrid.from_dict(grid.to_dict()) == grid
    assert WavelengthGrid(grid.wavelength, medium="air") != grid


def test_wavelengths_in_float32_make_the_same_grid():
    wave = np.arange(3600.3, 9800, 0.8)
    grid, rounded = WavelengthGrid(wave), WavelengthGrid(wave.astype(np.float32))
    assert np.abs(grid.wavelength - rounded.wavelength).max() > 1e-4
    assert grid == rounded
    assert grid.difference(rounded) == ""


def test_the_largest_difference_of_grids_is_named():
    wave = np.arange(4000.0, 4500, 50)
    other = wave.copy()
    other[3] += 0.06
    other[5] += 0.02
    assert WavelengthGrid(other) != WavelengthGrid(wave)
    said = WavelengthGrid(other).difference(WavelengthGrid(wave))
    assert said.startswith("wavelengths that differ by up to 0.06 Angstrom (4150.06, not 4150, at element 3)")
    assert WavelengthGrid(wave, medium="air").difference(WavelengthGrid(wave)) == "medium air, not vacuum"
    assert WavelengthGrid(wave[1:]).difference(WavelengthGrid(wave)) == "9 elements, not 10"


@pytest.mark.parametrize("wave", [[1.0], [2.0, 1.0], [1.0, np.nan], [-1.0, 1.0]])
def test_a_wrong_grid_is_refused(wave):
    with pytest.raises(ValueError, match="strictly increasing"):
        WavelengthGrid(np.array(wave))


@settings(deadline=None, max_examples=50)
@given(st.integers(5, 60), st.integers(1, 12), st.integers(0, 2**31))
def test_rebinning_conserves_flux(samples, elements, seed):
    rng = np.random.default_rng(seed)
    wave = 4000 + np.cumsum(rng.uniform(0.5, 5, samples))
    edges = np.sort(rng.uniform(wave[0], wave[-1], elements + 1))
    flux = rng.uniform(0, 1, samples)
    matrix = rebin_matrix(wave, edges)
    mean = matrix @ flux
    dense = np.union1d(wave, edges)
    dense = dense[(dense >= edges[0]) & (dense <= edges[-1])]
    total = np.trapezoid(np.interp(dense, wave, flux), dense)
    assert (mean * np.diff(edges)).sum() == pytest.approx(total, rel=1e-9)
    assert np.allclose(matrix.sum(axis=1), 1)


def test_rebinning_beyond_the_spectrum_is_refused():
    with pytest.raises(ValueError, match="elements reach from 1 to 4"):
        rebin_matrix([2.0, 3.0, 5.0], [1.0, 4.0])


def test_observed_spectra_keep_flux_errors_and_masks():
    rng = np.random.default_rng(0)
    pixel_edges = np.linspace(4000, 4200, 401)
    edges = np.linspace(4010, 4190, 10)
    ivar = np.full(400, 4.0)
    ivar[200:260] = 0.0
    trials = np.array(
        [rebin_spectrum(pixel_edges, 3 + 0.5 * rng.standard_normal(400), ivar, edges)[0] for _ in range(2000)]
    )
    _, inverse, mask = rebin_spectrum(pixel_edges, np.full(400, 3.0), ivar, edges)
    good = mask == 0
    assert 1 <= (~good).sum() <= 2
    assert np.allclose(trials[:, good].mean(0), 3, atol=0.01)
    assert np.allclose(trials[:, good].std(0), inverse[good] ** -0.5, rtol=0.06)
    assert (trials[:, ~good] == 0).all()
    assert (inverse[~good] == 0).all()


def test_air_and_vacuum():
    # Halpha and [O III]: the NIST wavelengths in air and vacuum.
    assert np.allclose(vacuum_to_air([6564.614, 5008.240]), [6562.801, 5006.843], atol=2e-3)
    wave = np.linspace(3000, 10000, 50)
    assert np.allclose(air_to_vacuum(vacuum_to_air(wave)), wave, atol=1e-6)
