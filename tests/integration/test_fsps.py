"""FSPS through Prospector, in a process of its own: FSPS's data is read once, and its memory given back."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from references import dn4000, hdelta_a
from scipy.ndimage import gaussian_filter1d

from digs_survey.sps.bc03 import read_bc03

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("fsps") is None,
        reason="python-fsps is not installed (pip install 'fsps==0.4.8')",
    ),
]

SCRIPT = """
import json, sys
import numpy as np
from digs_survey.config import GridConfig, ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.fsps import check_fsps
from digs_survey.sps.grid import calzetti_curve
from digs_survey.sps.prospector import ProspectorSimulator

grid, prior = WavelengthGrid.from_config(GridConfig()), Prior()
status = check_fsps()
fsps = ProspectorSimulator(ModelConfig(source="fsps"), prior, grid)
bc03 = ProspectorSimulator(ModelConfig(), prior, grid)
paper = np.array([10.51, -0.41, 0.65, 1.63, np.log10(0.11)])
rows = np.array([paper, paper + [1, 0, 0, 0, 0], [10, -0.45, 0.2, 0.3, 0.5], [10, -0.3, 0.2, 3.5, 0.5]])
spectra = fsps.spectra(rows)
settings = {k: float(fsps.sps.ssp.params[k]) for k in
            ("sfh", "imf_type", "dust_type", "add_neb_emission", "add_neb_continuum",
             "gas_logu", "gas_logz", "logzsol")}
params = fsps.model.params
clear, dusty = (fsps.sps.get_galaxy_spectrum(**{**params, "dust2": d})[1].copy() for d in (0.0, 1.0))
wave = fsps.sps.wavelengths
try:
    ProspectorSimulator(ModelConfig(source="fsps"), Prior({"logzsol": (-3.0, 0.0)}), grid)
    refused = ""
except ConfigError as error:
    refused = str(error)

young = {**params, "logzsol": 0.0, "gas_logz": 0.0, "tage": 0.02, "tau": 1.0, "dust2": 0.0}
glow, bare = (fsps.sps.get_galaxy_spectrum(**{**young, "add_neb_emission": on})[1].copy() for on in (True, False))
ssp = fsps.sps.ssp
for name, value in {"sfh": 0, "tage": 0.0, "dust2": 0.0, "add_neb_emission": True}.items():
    ssp.params[name] = value
decrement = ssp.emline_luminosity[:, [abs(ssp.emline_wavelengths - w).argmin() for w in (6564.6, 4862.7)]]
ssp.params["add_neb_emission"] = False
simple = [(ssp.get_spectrum(peraa=True)[1].copy(), ssp.stellar_mass.copy())
          for ssp.params["logzsol"] in (-0.7, 0.0)]
np.savez(sys.argv[1], fsps=spectra, bc03=bc03.spectra(rows), libraries=status.libraries,
         settings=json.dumps(settings), wave=wave, depth=-np.log(dusty / clear), curve=calzetti_curve(wave),
         refused=refused, gas=glow - bare, decrement=decrement, log_age=ssp.ssp_ages,
         simple=[s for s, _ in simple], mass=[m for _, m in simple])
"""


@pytest.fixture(scope="module")
def results(sps_home, tmp_path_factory):
    out = tmp_path_factory.mktemp("spectra") / "fsps.npz"
    environment = {**os.environ, "SPS_HOME": str(sps_home)}
    subprocess.run([sys.executable, "-c", SCRIPT, out], env=environment, check=True, timeout=600)
    return np.load(out)


def test_libraries(results):
    assert tuple(results["libraries"][:2]) == ("mist", "miles")


def test_settings_of_the_paper(results):

    settings = json.loads(str(results["settings"]))
    assert settings["sfh"] == 4
    assert settings["imf_type"] == settings["dust_type"] == 2
    assert settings["add_neb_emission"] == settings["add_neb_continuum"] == 1
    assert settings["gas_logu"] == -2
    assert settings["gas_logz"] == settings["logzsol"] == pytest.approx(-0.3)


def test_spectra_are_finite_and_mass_is_a_scale(results):
    flux = results["fsps"]
    assert np.isfinite(flux).all()
    assert (flux > 0).all()
    np.testing.assert_allclose(flux[1], 10 * flux[0], rtol=1e-9)


def test_agrees_with_bc03(results):
    """Other isochrones, other spectra, one recipe: shapes within a factor of 1.5, amplitudes within 30 %."""
    ratio = results["fsps"] / results["bc03"]
    level = np.median(ratio, axis=1)
    assert (np.abs(np.log(level)) < np.log(1.3)).all()
    shape = ratio / level[:, None]
    assert (np.abs(np.log(shape)) < np.log(1.5)).mean() > 0.98


def test_both_sources_have_the_same_dust(results):
    optical = (results["wave"] > 1200) & (results["wave"] < 9900)
    np.testing.assert_allclose(results["depth"][optical], results["curve"][optical], atol=1e-5)


def test_a_prior_beyond_the_isochrones_is_refused(results):
    assert "source 'fsps' covers -2.5 to 0.5" in str(results["refused"])


# What follows has room for the stand-in data, which are approximate.


def test_lines_are_at_vacuum_wavelengths(results):
    wave, flux = results["wave"], results["gas"]
    for centre in (4862.68, 5008.24, 6564.61):
        near = np.abs(wave - centre) < 6
        x, y = wave[near], flux[near] - np.interp(wave[near], wave[near][[0, -1]], flux[near][[0, -1]])
        assert np.trapezoid(x * y, x) / np.trapezoid(y, x) == pytest.approx(centre, abs=0.15)


@pytest.mark.parametrize("low", [4000, 4800, 5500, 6400])
def test_stars_of_both_sources_are_at_the_same_wavelengths(results, low):
    """Old solar stars without their continua, cross-correlated; vacuum and air are 83 km/s apart."""
    wave = np.geomspace(low, 1.14 * low, 6000)
    bc03 = read_bc03(np.geomspace(low - 30, 1.14 * low + 30, 8192), nebular=False)
    ours = np.interp(wave, bc03.wavelength, bc03.spectra[4, np.searchsorted(bc03.log_age, 10.0)])
    theirs = results["simple"][1][np.searchsorted(results["log_age"], 10.0)]

    def features(flux):
        smooth = gaussian_filter1d(flux, 10)
        return (smooth / gaussian_filter1d(smooth, 300))[600:-600]

    velocity = np.arange(-100.0, 101.0, 2.0)
    alike = [
        np.corrcoef(features(ours), features(np.interp(wave * (1 + v / 299_792), results["wave"], theirs)))[0, 1]
        for v in velocity
    ]
    assert max(alike) > 0.98
    assert abs(velocity[np.argmax(alike)]) < 15


def test_balmer_decrement_before_dust(results):
    alpha, beta = results["decrement"].T
    # FSPS's solar gas holds grains and metals and is cool (Byler et al. 2017, ApJ 840, 44): 3.02 to 3.07.
    np.testing.assert_allclose((alpha / beta)[results["log_age"] < 7], 3.04, atol=0.08)


def test_surviving_mass_holds_remnants(results):
    """Kroupa IMF: some 0.6 of the mass is left after 10 Gyr as stars and remnants; bc03 counts the stars alone."""
    at = {age: int(np.abs(results["log_age"] - age).argmin()) for age in (6.0, 8.0, 10.0)}
    for mass in results["mass"]:
        assert mass[at[6.0]] == pytest.approx(1, abs=0.02)
        assert 0.7 < mass[at[8.0]] < 0.85
        assert 0.55 < mass[at[10.0]] < 0.65


def test_the_break_and_hdelta_move_with_age(results):
    """As in tests/integration/test_fidelity_physics.py, with room for other tracks and libraries."""
    ages = results["log_age"]
    for populations in results["simple"]:
        index = np.array([dn4000(results["wave"], flux) for flux in populations])
        balmer = np.array([hdelta_a(results["wave"], flux) for flux in populations])
        at = [int(np.abs(ages - age).argmin()) for age in (7.0, 8.0, 8.5, 9.0, 9.5, 10.0)]
        assert (np.diff(index[at]) > 0).all()
        assert 0.9 < index[at[0]] < 1.15
        assert 1.5 < index[at[-1]] < 2.3
        old = ages > 7.5
        assert 8.0 < ages[old][balmer[old].argmax()] < 8.9
        assert 7 < balmer[old].max() < 12
        assert balmer[at[-1]] < 1


@pytest.mark.parametrize(
    "build",
    [
        "prospector import ProspectorSimulator\nProspectorSimulator(",
        "batched import BatchedModel\nBatchedModel.from_config(",
    ],
)
def test_bc03_with_an_unusable_sps_home(tmp_path, build):
    """Prospector imports python-fsps wherever SPS_HOME is set, and fails if files are missing there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "emlines_info.dat").touch()
    script = (
        "from digs_survey.config import GridConfig, ModelConfig\nfrom digs_survey.prior import Prior\n"
        "from digs_survey.spectra import WavelengthGrid\n"
        f"from digs_survey.sps.{build}ModelConfig(), Prior(), WavelengthGrid.from_config(GridConfig()))\n"
    )
    environment = {**os.environ, "SPS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "MissingDependencyError: Prospector cannot be imported" in done.stderr
    assert "unset SPS_HOME" in done.stderr
