"""FSPS's simple populations as an :class:`SSPGrid`: computed once by python-fsps, then kept on disk.

Between the isochrones' metallicities FSPS's stars are linear in log10 Z. Its gas is the rate of ionising photons,
which is linear too, times emission tables that are exponential in log10 Z between nodes of their own; so the gas
has a panel between each two neighbouring nodes of either kind, and is a polynomial there.

Gas of a metallicity and log U of its own is kept as these tables are, at their nodes: continuum and lines apart, for
the photons of one of the stars' metallicities.

FSPS keeps its state in Fortran, shared by all its objects in a process, and ends the process on an error: so the
populations are computed in a process of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from scipy.sparse import csr_array

from digs_survey.errors import MissingDependencyError
from digs_survey.sps.free_gas import FreeGas, GasRanges
from digs_survey.sps.fsps import FSPS_SETTINGS, require_fsps
from digs_survey.sps.grid import SSPGrid

__all__ = ["cache_folder", "read_fsps"]

_FORMAT = 1
_DEGREE = 4
_DATA = ("ISOCHRONES/MIST", "SPECTRA", "nebular")
_LYMAN_LIMIT = 912.0
"""In Angstrom: FSPS's gas takes all light of the stars up to here."""
_LIGHTSPEED = 2.9979e18
"""In Angstrom/s, as FSPS has it."""
_DARK = 1e-60
"""In the logarithm of the emission, what stands for none."""
_NOTHING = 1e-12
"""FSPS writes a tiny number where there is no gas; this, of the brightest population's lines, is none."""
_SECONDS = 3_600
_FREE = "free_"
"""Begins the names of a kept file's arrays that are those of :class:`FreeGas`."""


def cache_folder() -> Path:
    """Return where computed populations are kept: ``DIGS_SURVEY_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("DIGS_SURVEY_CACHE"):
        return Path(chosen)
    from astropy.config import get_cache_dir_path

    return Path(get_cache_dir_path("digs-survey"))


def fsps_gas_coverage() -> GasRanges:
    """Return log10 Z/Zsun and log10 U that FSPS's emission tables cover."""
    log_z, log_u = _gas_nodes(Path(os.environ["SPS_HOME"]))
    return GasRanges((float(log_z[0]), float(log_z[-1])), (float(log_u[0]), float(log_u[-1])))


def read_fsps(*, gas_logu: float = -2.0, nebular: bool = True, free_gas: GasRanges | None = None) -> SSPGrid:
    """Return FSPS's populations, on its own wavelengths and ages.

    The first call for given data and settings computes them (some minutes) and keeps them (about 150 MB) under
    :func:`cache_folder`, named by a hash of the versions, the libraries, the data files' names and sizes, and the
    settings.

    Parameters
    ----------
    gas_logu : float
        log10 of the ionisation parameter.
    nebular : bool
        Whether to have gas; its metallicity is that of the stars.
    free_gas : GasRanges, optional
        Ranges of the gas's metallicity and log U, for gas that follows neither the stars nor ``gas_logu``.

    Raises
    ------
    MissingDependencyError
        If FSPS or its data do not work.
    """
    status = require_fsps()
    home = Path(os.environ["SPS_HOME"])
    recipe: dict[str, Any] = {
        "format": _FORMAT,
        "fsps": version("fsps"),
        "libraries": status.libraries,
        "data": _listing(home),
        "degree": _DEGREE,
        "settings": {**FSPS_SETTINGS, "sfh": 0, "gas_logu": gas_logu},
        "nebular": nebular,
    }
    if free_gas is not None:
        recipe |= {"settings": {**FSPS_SETTINGS, "sfh": 0, "nebemlineinspec": False}, "free_gas": True}
    text = json.dumps(recipe, sort_keys=True)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fsps-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            _compute(path, text)
    with np.load(path) as kept:
        arrays: dict[str, Any] = dict(kept)
    table = {name.removeprefix(_FREE): arrays.pop(name) for name in list(arrays) if name.startswith(_FREE)}
    arrays["gas_degree"] = int(arrays["gas_degree"])
    if free_gas is None:
        return SSPGrid(**arrays)
    profiles = _line_profiles(arrays["wavelength"], arrays["line_wavelength"])
    return SSPGrid(**arrays, free_gas=FreeGas(**table, profiles=profiles).within(free_gas))


def _line_profiles(wavelength: NDArray[np.float64], positions: NDArray[np.float64]) -> csr_array:
    """FSPS's Gaussians (wavelength, line) in 1/Angstrom: their sigma is twice the step of the wavelengths."""
    from prospect.sources.constants import lightspeed

    step = np.clip(np.searchsorted(wavelength, positions, side="right") - 1, 0, wavelength.size - 2)
    sigma = 2 * (wavelength[step + 1] - wavelength[step])
    gauss = np.exp(-0.5 * ((wavelength[:, None] - positions) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    gauss[gauss < _NOTHING * gauss.max(axis=0)] = 0
    return csr_array(gauss * (positions**2 / _LIGHTSPEED) * (lightspeed / wavelength**2)[:, None])


def _listing(home: Path) -> str:
    """Return a digest of the names and sizes of the data files."""
    found = sorted(
        (file.relative_to(home).as_posix(), file.stat().st_size)
        for folder in _DATA
        for file in (home / folder).rglob("*")
        if file.is_file()
    )
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _compute(path: Path, recipe: str) -> None:
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(partial), recipe],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise MissingDependencyError(
                f"source 'fsps': FSPS stopped while computing its populations (exit status {done.returncode}): {said}; "
                "`digs-survey doctor` checks its data"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _extract(settings: dict[str, Any], nebular: bool, gas_nodes: NDArray[np.float64], degree: int) -> dict[str, Any]:
    """Let python-fsps compute what :class:`SSPGrid` holds; in a process that does nothing else."""
    import fsps
    from prospect.sources.constants import lightspeed

    populations = fsps.StellarPopulation(zcontinuous=1, **settings, add_neb_emission=nebular, add_neb_continuum=nebular)
    wavelength = populations.wavelengths
    # python-fsps's own conversion to Lsun/Angstrom rounds the speed of light differently from Prospector.
    to_angstrom = lightspeed / wavelength**2

    def spectra(logzsol: float, **changed: Any) -> NDArray[np.float64]:
        for name, value in {"logzsol": logzsol, "gas_logz": logzsol, **changed}.items():
            populations.params[name] = value
        return populations.get_spectrum(tage=0.0, peraa=False)[1] * to_angstrom

    log_z = np.log10(populations.zlegend / populations.solar_metallicity)
    log_age = populations.ssp_ages.copy()
    stars, living = [], []
    for node in log_z:
        stars.append(spectra(node, add_neb_emission=False, add_neb_continuum=False))
        living.append(populations.stellar_mass.copy())
    gas, lines = [], []
    edges = np.union1d(log_z, gas_nodes[(gas_nodes > log_z[0]) & (gas_nodes < log_z[-1])])
    panels = [np.linspace(low, high, degree + 1) for low, high in pairwise(edges)]
    gas_log_z = np.concatenate([panels[0][:1], *(panel[1:] for panel in panels)]) if nebular else log_z
    for node in gas_log_z if nebular else ():
        total = spectra(node, add_neb_emission=True, add_neb_continuum=True)
        emitted = populations.emline_luminosity.copy()
        bright = emitted.sum(axis=1)
        young = int(np.flatnonzero(bright > _NOTHING * bright.max())[-1]) + 1
        i = min(int(np.searchsorted(log_z, node, side="right")) - 1, log_z.size - 2)
        share = (node - log_z[i]) / (log_z[i + 1] - log_z[i])
        bare = (1 - share) * stars[i][:young] + share * stars[i + 1][:young]
        gas.append((total[:young] - bare).astype(np.float32))
        lines.append(emitted[:young])
    position = populations.emline_wavelengths if nebular else np.empty(0)
    return {
        "log_z": log_z,
        "log_age": log_age,
        "wavelength": wavelength,
        "spectra": np.array(stars, dtype=np.float32),
        "living_fraction": np.array(living),
        "gas_log_z": gas_log_z,
        "gas_degree": degree if nebular else 1,
        "nebular": np.array(gas) if nebular else np.empty((log_z.size, 0, wavelength.size), dtype=np.float32),
        "line_wavelength": position,
        "line_luminosity": np.array(lines) if nebular else np.empty((log_z.size, 0, 0)),
    }


def _extract_free(settings: dict[str, Any], of_z: NDArray[np.float64], of_u: NDArray[np.float64]) -> dict[str, Any]:
    """As :func:`_extract`, for gas of any metallicity and log U."""
    import fsps
    from prospect.sources.constants import lightspeed

    populations = fsps.StellarPopulation(zcontinuous=1, **settings, add_neb_emission=True, add_neb_continuum=True)
    wavelength = populations.wavelengths
    to_angstrom = lightspeed / wavelength**2

    def spectra(logzsol: float, nebular: bool, gas_logz: float = of_z[-1], gas_logu: float = of_u[-1]) -> Any:
        given = {"logzsol": logzsol, "gas_logz": gas_logz, "gas_logu": gas_logu}
        for name, value in (given | dict.fromkeys(("add_neb_emission", "add_neb_continuum"), nebular)).items():
            populations.params[name] = value
        return populations.get_spectrum(tage=0.0, peraa=False)[1] * to_angstrom

    log_z = np.log10(populations.zlegend / populations.solar_metallicity)
    solar = int(np.abs(log_z).argmin())
    stars, living, bright = [], [], []
    for node in log_z:
        stars.append(spectra(node, False))
        living.append(populations.stellar_mass.copy())
        spectra(node, True)
        bright.append(populations.emline_luminosity.sum(axis=1))
    light, shining = np.array(stars), np.array(bright)
    young = int(np.flatnonzero(shining[solar] > _NOTHING * shining[solar].max())[-1]) + 1
    light[:, :young, wavelength <= _LYMAN_LIMIT] = 0
    lines = np.empty((of_z.size, of_u.size, young, populations.emline_wavelengths.size))
    emission = np.empty((of_z.size, of_u.size, young, wavelength.size), dtype=np.float32)
    for i, j in np.ndindex(of_z.size, of_u.size):
        total = spectra(log_z[solar], True, float(of_z[i]), float(of_u[j]))[:young]
        emission[i, j] = np.log10(np.maximum(total - light[solar, :young], _DARK))
        lines[i, j] = np.log10(np.maximum(populations.emline_luminosity[:young], _DARK))
    return {
        "log_z": log_z,
        "log_age": populations.ssp_ages.copy(),
        "wavelength": wavelength,
        "spectra": light.astype(np.float32),
        "living_fraction": np.array(living),
        "gas_log_z": log_z,
        "gas_degree": np.array(1),
        "nebular": np.empty((log_z.size, 0, wavelength.size), dtype=np.float32),
        "line_wavelength": populations.emline_wavelengths,
        "line_luminosity": np.empty((log_z.size, 0, lines.shape[-1])),
        f"{_FREE}log_z": of_z,
        f"{_FREE}log_u": of_u,
        f"{_FREE}photons": shining[:, :young] / shining[solar, :young],
        f"{_FREE}emission": emission,
        f"{_FREE}lines": lines,
    }


def _gas_nodes(home: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metallicities and log U of FSPS's emission tables: first and last of three numbers above a block of the file."""
    heads = (line.split() for line in (home / "nebular" / "ZAU_ND_mist.lines").read_text().splitlines())
    found = [words for words in heads if len(words) == 3 and not words[0].startswith("#")]
    return np.unique([float(words[0]) for words in found]), np.unique([float(words[2]) for words in found])


def _main() -> None:
    path, recipe = sys.argv[1], json.loads(sys.argv[2])
    of_z, of_u = _gas_nodes(Path(os.environ["SPS_HOME"]))
    if recipe.get("free_gas"):
        np.savez(path, **_extract_free(recipe["settings"], of_z, of_u))
    else:
        np.savez(path, **_extract(recipe["settings"], recipe["nebular"], of_z, recipe["degree"]))


if __name__ == "__main__":
    _main()
