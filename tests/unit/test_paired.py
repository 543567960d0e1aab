"""A galaxy's spectrum and the light that photometry sees, in batches and by Prospector."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from prospect.models import SedModel
from sedpy.observate import getSED, load_filters

from digs_survey.catalog.prepare import reference_factor
from digs_survey.config import ModelConfig, load_config
from digs_survey.parameters import SPEC_NORM
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bands import Bands
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.bc03 import BC03Basis, read_bc03
from digs_survey.sps.paired import PairedModel, light_model
from digs_survey.sps.prospector import ProspectorSimulator, _parameters
from digs_survey.sps.universe import physical_prior, physical_theta

NAMES = ("galex_NUV", "sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "sdss_z0", "twomass_Ks")
BANDS = Bands(NAMES, (0.01, 0.6))
GRID = WavelengthGrid(np.arange(3500.0, 9000.0, 50.0))
CONFIG = load_config("survey")
PRIOR = CONFIG.make_prior().without("sigma_smooth")


def rows_of(prior, count):
    """Points all over the prior, and its corners."""
    corners = prior.from_unit_cube(np.array(list(itertools.product((1e-9, 1 - 1e-9), repeat=prior.ndim))))
    return np.concatenate([prior.from_unit_cube(np.random.default_rng(1).random((count, prior.ndim))), corners])


@pytest.fixture(scope="module")
def light():
    return light_model(CONFIG.model, PRIOR, BANDS.grid)


def test_light_in_batches_is_prospectors(light):
    theta = rows_of(physical_prior(PRIOR), 40)
    one_by_one = ProspectorSimulator.of_light(CONFIG.model, PRIOR, BANDS.grid).spectra(theta)
    difference = np.abs(light.spectra(theta) / one_by_one - 1)
    # The largest are of single elements in the ultraviolet, which a band has many of.
    assert difference.max() < 2e-3
    assert np.quantile(difference, 0.999) < 5e-4


def test_light_behind_other_dust_is_prospectors():
    model = ModelConfig(dust_law="kriek_conroy")
    prior = Prior({"dust_index": (-1.0, 0.4), "dust1": (0.0, 2.0)})
    bands = Bands(["sdss_u0", "sdss_g0"], (0.2, 0.6))
    theta = rows_of(prior, 20)
    batched = light_model(model, prior, bands.grid).spectra(theta)
    one_by_one = ProspectorSimulator.of_light(model, prior, bands.grid).spectra(theta)
    np.testing.assert_allclose(batched, one_by_one, rtol=1e-3)


def test_light_of_free_gas_is_prospectors():
    prior = Prior({"gas_logu": (-4.0, -1.0)})
    bands = Bands(["sdss_g0"], (0.1, 0.2))
    theta = rows_of(prior, 10)[:20]
    batched = light_model(ModelConfig(), prior, bands.grid).spectra(theta)
    one_by_one = ProspectorSimulator.of_light(ModelConfig(), prior, bands.grid).spectra(theta)
    np.testing.assert_allclose(batched, one_by_one, rtol=2e-3)


def test_maggies_are_prospectors_at_the_galaxys_redshift(light, monkeypatch):
    """From draws of the prior to fluxes: distance, redshift, dust, gas and filters, by Prospector and sedpy."""
    monkeypatch.setattr("prospect.sources.ssp_basis.getSED", getSED, raising=False)
    wave = np.geomspace(1_100.0, 26_000.0, 40_000)
    basis, filters = BC03Basis(read_bc03(wave)), load_filters(NAMES)
    rng = np.random.default_rng(5)
    theta, redshift = PRIOR.from_unit_cube(rng.random((30, PRIOR.ndim))), rng.uniform(0.01, 0.6, 30)
    physical = physical_theta(PRIOR, theta, redshift)
    maggies = BANDS.maggies(light.spectra(physical), redshift)
    maggies /= reference_factor(redshift, CONFIG.model.zred)[:, None]
    at, priors = physical_prior(PRIOR), PRIOR.prospector_priors()
    for row, z, found in zip(physical, redshift, maggies, strict=True):
        model = CONFIG.model.model_copy(update={"zred": float(z)})
        predictor = SedModel(_parameters(model, at, priors, smoothed=False))
        predictor.set_parameters(row)
        _, phot, _ = basis.get_spectrum(outwave=wave * (1 + z), filters=filters, **predictor.params)
        counted = BANDS.counted([z])[0]
        difference = np.abs(found / phot - 1)[counted]
        assert np.median(difference) < 3e-4
        # Lines at the edge of a filter.
        assert difference.max() < 0.01


def test_the_aperture_factor_multiplies_the_spectrum_alone(light):
    spectrum = BatchedModel.from_config(CONFIG.model, PRIOR, GRID)
    physical = physical_prior(PRIOR)
    theta = rows_of(physical, 30)
    names, redshift = physical.names, np.linspace(0.01, 0.6, len(theta))
    plain = PairedModel(spectrum, light, names, BANDS).spectra(theta, redshift)
    assert plain.shape == (len(theta), len(GRID) + len(NAMES))
    np.testing.assert_array_equal(plain[:, : len(GRID)], spectrum.spectra(theta))
    np.testing.assert_array_equal(plain[:, len(GRID) :], BANDS.maggies(light.spectra(theta), redshift))
    share = np.linspace(0.1, 1.2, len(theta))
    # The factor may stand anywhere among the columns.
    with_factor = PairedModel(spectrum, light, (names[0], SPEC_NORM, *names[1:]), BANDS)
    found = with_factor.spectra(np.insert(theta, 1, share, axis=1), redshift)
    np.testing.assert_allclose(found[:, : len(GRID)], share[:, None] * plain[:, : len(GRID)], rtol=1e-15)
    np.testing.assert_array_equal(found[:, len(GRID) :], plain[:, len(GRID) :])
    assert with_factor.by_itself == spectrum.by_itself
    # Many models of one galaxy.
    of_one = with_factor.spectra(np.insert(theta, 1, share, axis=1), redshift[3])
    np.testing.assert_array_equal(of_one[3], found[3])
    on_torch = with_factor.spectra(torch.as_tensor(np.insert(theta, 1, share, axis=1)), torch.as_tensor(redshift))
    np.testing.assert_allclose(on_torch.numpy(), found, rtol=2e-4)


def test_both_engines_pair_the_same_samplings():
    prior = Prior({"sigma_smooth": (100.0, 300.0)})
    bands = Bands(["sdss_r0"], (0.1, 0.2))
    theta = rows_of(prior, 5)[:8]
    batched = PairedModel.from_config(ModelConfig(), prior, GRID, bands)
    assert batched.light.prior.names == tuple(name for name in prior.names if name != "sigma_smooth")
    by_prospector = PairedModel.of_prospector(ModelConfig(), prior, GRID, bands)
    for one, other in zip(batched.parts(theta), by_prospector.parts(theta), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)
    np.testing.assert_allclose(batched.spectra(theta, 0.15), by_prospector.spectra(theta, 0.15), rtol=1e-3)
