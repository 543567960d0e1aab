"""Whether python-fsps and its data can be used, found out without risking this process.

FSPS's Fortran ends the whole process when a data file is missing or belongs to another release, and no
exception can catch that. So files are looked for first, and the libraries are loaded in a subprocess.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from digs_survey.errors import MissingDependencyError

__all__ = ["FSPS_SETTINGS", "FSPSStatus", "check_fsps", "require_fsps"]

FSPS_SETTINGS = {
    "imf_type": 2,
    "dust_type": 2,
    "nebemlineinspec": True,
    "add_dust_emission": False,
}
"""Kroupa (2001) IMF, Calzetti attenuation, lines within the spectrum. Dust does not shine: both sources mean stars and
gas. Shortward of 1 micron nothing is missing; with ``dust2`` = 1, a few per cent at 1.2 micron and more beyond are."""

_INSTALL = "pip install 'fsps==0.4.8'"
_DATA = "git clone --branch v3.3 https://github.com/cconroy20/fsps and export SPS_HOME=<that folder>"
_WANTED = ("mist", "miles")
_MAX_PATH = 200
_TRIAL_SECONDS = 600
_TRIAL = """
import json, fsps
names = fsps.StellarPopulation(zcontinuous=1).libraries
print(json.dumps([n.decode() if isinstance(n, bytes) else str(n) for n in names]))
"""
_FILES = (
    "data/emlines_info.dat",
    "data/FILTER_LIST",
    "data/allfilters.dat",
    "data/allindices.dat",
    "data/magsun.dat",
    "ISOCHRONES/MIST/zlegend.dat",
    "ISOCHRONES/MIST/isoc_zp0.00.dat",
    "SPECTRA/MILES/zlegend.dat",
    "SPECTRA/MILES/miles.lambda",
    "SPECTRA/MILES/imiles_z0.0190.spectra.bin",
    "SPECTRA/Hot_spectra/WMBASIC.teff",
    "SPECTRA/AGB_spectra/Orich.spec",
    "nebular/ZAU_ND_mist.lines",
    "nebular/ZAU_ND_mist.cont",
    "dust/dustem/DL07_MW3.1_00.dat",
)
"""One file of each kind that MIST + MILES + DL07 reads; the trial finds what else is missing."""


_LINES = {
    "data/emlines_info.dat": 166,
    "SPECTRA/MILES/miles.lambda": 5994,
    "ISOCHRONES/MIST/zlegend.dat": 12,
}
"""Emission lines, wavelengths and metallicities for which python-fsps 0.4.8 and the data v3.3 are made, a line each."""


@dataclass(frozen=True)
class FSPSStatus:
    """What was found out about FSPS.

    Attributes
    ----------
    ok : bool
        Whether the source ``fsps`` works.
    problem, remedy : str
        What is wrong and what to do about it; empty if nothing is.
    libraries : tuple of str
        Isochrones, spectral library and dust emission that FSPS reports; empty unless they were loaded.
    standin : bool
        Whether the data are an approximate stand-in for tests and not the FSPS data (marker ``STANDIN.txt``).
    """

    ok: bool
    problem: str = ""
    remedy: str = ""
    libraries: tuple[str, ...] = ()
    standin: bool = False


def check_fsps() -> FSPSStatus:
    """Find out whether python-fsps 0.4.x and its data work together.

    Loads the libraries in a subprocess (about 10 s and 1 GB, once for each ``SPS_HOME``); never ends or
    changes this process.
    """
    return _check(os.environ.get("SPS_HOME"))


def require_fsps() -> FSPSStatus:
    """Return the status of a working FSPS.

    Raises
    ------
    MissingDependencyError
        If it does not work, with the remedy.
    """
    status = check_fsps()
    if not status.ok:
        raise MissingDependencyError(
            f"source 'fsps': {status.problem}; {status.remedy} (or use model.source = 'bc03', which needs no data)"
        )
    return status


@cache
def _check(home: str | None) -> FSPSStatus:
    if importlib.util.find_spec("fsps") is None:
        return FSPSStatus(False, "python-fsps is not installed", _INSTALL)
    found = version("fsps")
    if not found.startswith("0.4."):
        return FSPSStatus(False, f"python-fsps {found} is not built for MIST + MILES; expected 0.4.x", _INSTALL)
    if not home:
        return FSPSStatus(False, "SPS_HOME is not set; expected the folder of the FSPS data", _DATA)
    if len(home) >= _MAX_PATH:
        return FSPSStatus(
            False,
            f"SPS_HOME has {len(home)} characters; FSPS reads fewer than {_MAX_PATH}",
            "move the FSPS data to a shorter path",
        )
    folder = Path(home)
    standin = (folder / "STANDIN.txt").is_file()
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return FSPSStatus(False, f"SPS_HOME={home} lacks {some}", _DATA, standin=standin)
    for name, expected in _LINES.items():
        lines = (folder / name).read_bytes().split(b"\n")
        if (count := sum(bool(line.strip()) for line in lines)) != expected:
            return FSPSStatus(
                False,
                f"SPS_HOME={home} holds another release of the FSPS data: "
                f"{name} has {count} lines, v3.3 has {expected}",
                _DATA,
                standin=standin,
            )
    return _try(home, standin)


def _try(home: str, standin: bool) -> FSPSStatus:
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env={**os.environ, "SPS_HOME": home},
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return FSPSStatus(
            False, f"FSPS did not load its data from {home} within {_TRIAL_SECONDS} s", _DATA, standin=standin
        )
    answer = trial.stdout.strip().rpartition("\n")[2]
    # Fortran's STOP ends the process with status 0.
    if trial.returncode or not answer.startswith("["):
        said = (trial.stderr.strip() or trial.stdout.strip() or "no message").splitlines()
        return FSPSStatus(
            False,
            f"FSPS stopped loading its data from {home} (exit status {trial.returncode}): {said[-1].strip()}",
            f"use complete data of release v3.3: {_DATA}",
            standin=standin,
        )
    libraries = tuple(json.loads(answer))
    if libraries[:2] != _WANTED:
        return FSPSStatus(
            False,
            f"python-fsps was compiled for {' + '.join(libraries)}; expected {' + '.join(_WANTED)}",
            _INSTALL,
            libraries,
            standin,
        )
    return FSPSStatus(True, libraries=libraries, standin=standin)
