"""Photometry in the report's figures."""

from __future__ import annotations

import numpy as np
import xarray as xr

from digs_survey.filters import load_filter
from digs_survey.report.band_points import band_points
from digs_survey.report.figures import galaxy_plots

FILTERS = ["sdss_g0", "twomass_Ks"]


def audited(maggies, redshift):
    shape, dims = (1, len(FILTERS)), ("galaxy", "filter")
    values = {name: (dims, np.full(shape, maggies)) for name in ("band_flux", "band_best_npe", "band_best_mcmc")}
    values |= {"band_sigma": (dims, np.full(shape, 0.1 * maggies)), "band_good": (dims, np.array([[1, 0]]))}
    return xr.Dataset(values | {"redshift": (("galaxy",), [redshift])}, coords={"filter": FILTERS})


def test_maggies_become_flux_per_rest_frame_angstrom():
    from astropy import units as u

    points, g = band_points(audited(2e-9, 0.5), 0), load_filter("sdss_g0")
    flat = (2e-9 * 3631 * u.Jy).to(u.Unit("erg / (s cm2 AA)"), u.spectral_density(g.pivot * u.AA)).value
    np.testing.assert_allclose(points.flux[0], 1.5 * flat, rtol=1e-6)
    np.testing.assert_allclose(points.sigma, 0.1 * points.flux)
    np.testing.assert_allclose([points.wavelength[0], points.width[0]], [g.pivot / 1.5, g.width / 1.5])
    assert points.good.tolist() == [True, False]
    assert band_points(xr.Dataset({"redshift": (("galaxy",), [0.1])}), 0) is None


def test_a_galaxy_without_a_spectrum_has_a_figure_of_its_bands():
    wave, points = np.linspace(4000.0, 5000.0, 20), band_points(audited(2e-9, 0.1), 0)
    nothing, model = np.zeros(20), np.full(20, points.flux[0])
    shown = {"sigma": np.ones(20), "good": nothing > 0, "best_npe": model, "best_mcmc": model, "axis": "wavelength"}
    alone, without = (
        galaxy_plots.spectrum(galaxy_plots.Spectrum(wave, nothing, **shown, bands=bands), True, "text")
        for bands in (points, None)
    )
    assert alone != without
