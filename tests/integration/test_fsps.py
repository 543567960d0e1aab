"""FSPS through Prospector, in a process of its own: FSPS's data is read once, and its memory given back."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

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
from digs_survey.parameters import Prior
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
np.savez(sys.argv[1], fsps=spectra, bc03=bc03.spectra(rows), libraries=status.libraries,
         settings=json.dumps(settings), wave=wave, depth=-np.log(dusty / clear), curve=calzetti_curve(wave),
         refused=refused)
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
        "from digs_survey.config import GridConfig, ModelConfig\nfrom digs_survey.parameters import Prior\n"
        "from digs_survey.spectra import WavelengthGrid\n"
        f"from digs_survey.sps.{build}ModelConfig(), Prior(), WavelengthGrid.from_config(GridConfig()))\n"
    )
    environment = {**os.environ, "SPS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "MissingDependencyError: Prospector cannot be imported" in done.stderr
    assert "unset SPS_HOME" in done.stderr
