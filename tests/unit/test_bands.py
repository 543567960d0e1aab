"""Fluxes through filters as a linear operator, against sedpy's and Prospector's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prospect.models import SedModel
from sedpy.observate import Filter as SedpyFilter
from sedpy.observate import getSED, load_filters

from digs_survey.config import ModelConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.filters import filter_names, load_filter, unknown_filter
from digs_survey.prior import Prior
from digs_survey.sps.bands import Bands
from digs_survey.sps.bc03 import BC03Basis, read_bc03
from digs_survey.sps.hats import hat_matrix
from digs_survey.sps.prospector import _parameters

NAMES = ("galex_NUV", "sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "sdss_z0", "subaru_suprimecam_ia624", "twomass_Ks")
WAVE = np.geomspace(1_100.0, 26_000.0, 40_000)


@pytest.fixture(scope="module")
def bands():
    return Bands(NAMES, (0.001, 0.6))


@pytest.fixture(scope="module")
def basis():
    return BC03Basis(read_bc03(WAVE))


def light_of(bands, flux):
    return (hat_matrix(WAVE, bands.grid.wavelength) @ flux.T).T


def by_sedpy(flux, redshift):
    """Maggies (n, band) of rest-frame flux per rest-frame Angstrom."""
    filters = load_filters(NAMES)
    rows = zip(flux, redshift, strict=True)
    return np.array([getSED(WAVE * (1 + z), g / (1 + z), filters, linear_flux=True) for g, z in rows])


def test_a_source_of_one_maggie_has_one_maggie_at_any_redshift(bands):
    redshift = np.random.default_rng(1).uniform(0.001, 0.6, 50)
    # Flat in f_nu; per rest-frame Angstrom it has 1 + z more, at a wavelength that is as much longer.
    flux = 3.631e-20 * 2.998e18 / WAVE**2 / (1 + redshift[:, None])
    maggies, counted = bands.maggies(light_of(bands, flux), redshift), bands.counted(redshift)
    assert counted[:, :6].any(axis=0).all()
    np.testing.assert_allclose(maggies[counted], 1.0, rtol=5e-4)
    np.testing.assert_allclose(maggies[:, 2:6], 1.0, rtol=2e-5)


def test_galaxies_have_sedpys_maggies(bands, basis):
    prior = load_config("survey").make_prior()
    rng = np.random.default_rng(2)
    theta, redshift = prior.from_unit_cube(rng.random((60, prior.ndim))), rng.uniform(0.001, 0.6, 60)
    values = [dict(zip(prior.names, row, strict=True)) for row in theta]
    flux = np.array(
        [
            basis.get_galaxy_spectrum(
                logzsol=v["logzsol"], dust2=v["dust2"], tau=10 ** v["logtau"], tage=10 * v["tage_tuniv"]
            )[1]
            / WAVE**2
            for v in values
        ]
    )
    counted = bands.counted(redshift)
    difference = np.abs(bands.maggies(light_of(bands, flux), redshift) / by_sedpy(flux, redshift) - 1)[counted]
    # What is left are lines at the edge of a filter.
    assert np.median(difference) < 1e-4
    assert np.quantile(difference, 0.95) < 1e-3
    assert difference.max() < 0.01


@pytest.mark.parametrize(("name", "within"), [("sdss_r0", 0.003), ("subaru_suprimecam_ia624", 0.02)])
def test_a_line_inside_a_band_has_its_light_wherever_it_lies(name, within):
    bands, curve = Bands([name], (0.0, 0.6)), SedpyFilter(name)
    low, high = load_filter(name).span
    inner = np.linspace(low + 0.3 * (high - low), high - 0.3 * (high - low), 31)
    # A line of 1e-14 erg/s/cm2 at rest wavelength 5000 Angstrom, brought to places within the band by redshift.
    redshift = inner / 5000.0 - 1
    width = 1.0
    flux = np.exp(-0.5 * ((WAVE - 5000.0) / width) ** 2) / (width * np.sqrt(2 * np.pi)) * 1e-14
    maggies = bands.maggies(np.tile(light_of(bands, flux[None]), (31, 1)), redshift)[:, 0]
    expected = 1e-14 * inner * np.interp(inner, curve.wavelength, curve.transmission)
    np.testing.assert_allclose(maggies * curve.ab_zero_counts, expected, rtol=within)


def test_photometry_is_prospectors(bands, basis, monkeypatch):
    # Prospector imports it only where python-fsps has its data.
    monkeypatch.setattr("prospect.sources.ssp_basis.getSED", getSED, raising=False)
    prior, model = Prior(), ModelConfig(zred=0.25)
    smoothing = ("sigma_smooth", "smoothtype", "fftsmooth")
    values = [v for v in _parameters(model, prior, prior.prospector_priors()) if v["name"] not in smoothing]
    predictor = SedModel(values)
    predictor.set_parameters(prior.from_unit_cube(np.full(prior.ndim, 0.4)))
    spectrum, phot, _ = BC03Basis(basis.grid).get_spectrum(
        outwave=1.25 * WAVE, filters=load_filters(NAMES), **predictor.params
    )
    maggies = bands.maggies(light_of(bands, 1.25 * spectrum[None]), np.array([0.25]))[0]
    counted = bands.counted([0.25])[0]
    assert counted.sum() >= 6
    np.testing.assert_allclose(maggies[counted], phot[counted], rtol=1e-3)


def test_rows_are_their_own_and_torch_agrees(bands, basis):
    rng = np.random.default_rng(3)
    light, redshift = rng.random((40, len(bands.grid))), rng.uniform(0.001, 0.6, 40)
    maggies = bands.maggies(light, redshift)
    assert maggies.shape == (40, len(NAMES))
    np.testing.assert_array_equal(maggies[7:8], bands.maggies(light[7:8], redshift[7:8]))
    np.testing.assert_allclose(maggies, np.einsum("nbk,nk->nb", bands.matrix(redshift), light), rtol=1e-12)
    on_torch = bands.maggies(torch.as_tensor(light), torch.as_tensor(redshift))
    np.testing.assert_allclose(on_torch.numpy(), maggies, rtol=1e-12)
    with pytest.raises(ValueError, match=f"expected {len(bands.grid)} elements, as the coarse grid has, found 3"):
        bands.maggies(light[:, :3], redshift)


def test_a_band_counts_where_all_of_it_is_described():
    bands = Bands(["galex_FUV", "sdss_r0", "wise_w1"], (0.0, 1.0))
    low, high = load_filter("galex_FUV").span[0], load_filter("wise_w1").span[1]
    assert bands.grid.wavelength[0] < 1216 < bands.grid.wavelength[15]
    assert bands.grid.wavelength[-15] < 25_000 < bands.grid.wavelength[-1]
    ends = np.array([low / 1216 - 1 - 1e-3, low / 1216 - 1 + 1e-3, high / 25_000 - 1 - 1e-3, high / 25_000 - 1 + 1e-3])
    np.testing.assert_array_equal(
        bands.counted(ends),
        [[True, True, False], [False, True, False], [False, True, False], [False, True, True]],
    )


def test_filters_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigError, match=r"found 'sdss_g'; did you mean sdss_g0, sdss_z0 or sdss_u0\?"):
        Bands(["sdss_g"], (0.0, 0.5))
    with pytest.raises(ConfigError, match="wise_w3 sees .* at no redshift from 0 to 0.5"):
        Bands(["sdss_g0", "wise_w3"], (0.0, 0.5))
    with pytest.raises(ConfigError, match="galex_FUV sees .* at no redshift from 0.4 to 0.5"):
        Bands(["galex_FUV"], (0.4, 0.5))
    with pytest.raises(ConfigError, match="expected at least one filter"):
        Bands([], (0.0, 0.5))
    assert "list_available_filters" in unknown_filter("a name that is like no other")


def test_names_without_regard_to_case_are_offered():
    assert "did you mean galex_NUV, galex_FUV or " in unknown_filter("GALEX_nuv")
    assert all(not unknown_filter(name) for name in filter_names())


def test_all_filters_are_read():
    for name in filter_names():
        band = load_filter(name)
        assert 0 < band.span[0] < band.pivot < band.span[1]
        assert (np.diff(band.wavelength) > 0).all()


def test_hats_hold_all_light_and_refuse_what_ends_before_them():
    nodes = np.geomspace(3000.0, 6000.0, 140)
    matrix = hat_matrix(WAVE, nodes)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-12)
    step = np.log(nodes[1] / nodes[0])
    line = np.zeros(WAVE.size)
    at = np.searchsorted(WAVE, 4321.0)
    line[at] = 1.0
    found = matrix @ line
    # The integral over ln wavelength, and the place.
    assert found.sum() * step == pytest.approx(0.5 * np.log(WAVE[at + 1] / WAVE[at - 1]), rel=1e-3)
    assert np.log(nodes) @ found / found.sum() == pytest.approx(np.log(WAVE[at]), abs=1e-6)
    with pytest.raises(ValueError, match="hats reach from"):
        hat_matrix(WAVE[WAVE > 3000], nodes)
