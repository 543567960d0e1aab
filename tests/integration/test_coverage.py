"""What FSPS covers, read from its files, against FSPS itself; and what lies beyond it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("fsps") is None, reason="python-fsps is not installed"),
]

SCRIPT = """
import sys
import fsps
import numpy as np
from digs_survey.config import ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.coverage import _fsps_coverage, check_source

def refused(prior, wavelength):
    try:
        check_source(ModelConfig(source="fsps"), prior, WavelengthGrid(wavelength))
    except ConfigError as error:
        return str(error)
    return ""

optical = np.arange(3000.0, 9000.0, 50.0)
messages = [
    refused(Prior(), optical),
    refused(Prior({"logzsol": (-3, 0)}), optical),
    refused(Prior({"tage": (1, 21)}), optical),
    refused(Prior(), np.arange(95.0, 9000.0, 5.0)),
]
log_z, log_age, wavelength = _fsps_coverage()
populations = fsps.StellarPopulation(zcontinuous=1)
np.savez(sys.argv[1], log_z=log_z, log_age=log_age, wavelength=wavelength, ages=populations.ssp_ages,
         z=populations.zlegend / populations.solar_metallicity, wavelengths=populations.wavelengths,
         messages=messages)
"""


@pytest.fixture(scope="module")
def found(sps_home, tmp_path_factory):
    out = tmp_path_factory.mktemp("coverage") / "found.npz"
    environment = {**os.environ, "SPS_HOME": str(sps_home)}
    subprocess.run([sys.executable, "-c", SCRIPT, out], env=environment, check=True, timeout=600)
    return np.load(out)


def test_the_files_say_what_fsps_says(found):
    np.testing.assert_allclose(found["log_z"], np.log10(found["z"]), atol=1e-3)
    np.testing.assert_allclose(found["log_age"], found["ages"][[0, -1]], atol=1e-6)
    np.testing.assert_allclose(found["wavelength"], found["wavelengths"], rtol=1e-6)


def test_what_fsps_does_not_cover_is_refused(found):
    inside, metallicity, age, blue = found["messages"]
    assert inside == ""
    assert metallicity == "prior.logzsol: source 'fsps' covers -2.5 to 0.5, found -3 to 0"
    assert age == "prior.tage: source 'fsps' covers 0 to 19.95, found 1 to 21"
    assert blue.startswith("grid: source 'fsps' covers 91 to 1e+08 Angstrom, found 1781 elements, 95 to 8995")
