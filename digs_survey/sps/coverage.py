"""Whether a source of populations can make what is asked of it, found out before any work."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digs_survey.config import ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bands import Bands
from digs_survey.sps.fsps import require_fsps
from digs_survey.sps.grid import check_coverage
from digs_survey.sps.prospector import check_gas_of_source, import_prospector
from digs_survey.sps.sampling import GridSampling
from digs_survey.sps.universe import physical_prior

__all__ = ["check_source"]

_MIST_LOG_AGE = np.array([5.0, 10.3])
"""Ends of log10 age/yr of the MIST isochrones; a file that lists them does not exist."""


def check_source(model: ModelConfig, prior: Prior, grid: WavelengthGrid, bands: Bands | None = None) -> None:
    """Refuse a prior or a grid that the configured source does not cover, and a source that does not work.

    Takes seconds: Prospector is imported, and for ``fsps`` the data are tried in a subprocess.

    Parameters
    ----------
    model : ModelConfig
    prior : Prior
    grid : WavelengthGrid
        Of the catalog, or the configured one.
    bands : Bands, optional
        Filters, where there is photometry.

    Raises
    ------
    ConfigError
        If the prior reaches beyond the populations' metallicities or ages, or the grid, with what smoothing
        needs at its ends, beyond their wavelengths.
    MissingDependencyError
        If the source's data are missing or do not work.
    """
    if model.source == "fsps":
        require_fsps()
    import_prospector()
    # It is Prospector's, which may be imported from here on.
    from digs_survey.sps.bc03 import bc03_coverage

    log_z, log_age, wavelength = _fsps_coverage() if model.source == "fsps" else bc03_coverage()
    asked = physical_prior(prior)
    check_coverage(asked, log_z, log_age, model.source)
    check_gas_of_source(asked, model.source)
    needed = grid.edges
    if wavelength[0] <= needed[0] and needed[-1] <= wavelength[-1]:
        needed = GridSampling(model, grid, prior.bounds("sigma_smooth")).wavelength
    if needed[0] < wavelength[0] or needed[-1] > wavelength[-1]:
        raise ConfigError(
            f"grid: source {model.source!r} covers {wavelength[0]:g} to {wavelength[-1]:g} Angstrom, found {grid}, "
            f"for which {needed[0]:g} to {needed[-1]:g} is needed; leave out the elements beyond"
        )
    light = wavelength if bands is None else bands.grid.wavelength
    if light[0] < wavelength[0] or light[-1] > wavelength[-1]:
        raise ConfigError(
            f"photometry.filters: source {model.source!r} covers {wavelength[0]:g} to {wavelength[-1]:g} Angstrom, and "
            f"filters see {light[0]:g} to {light[-1]:g} Angstrom at rest; leave out the filters "
            "beyond, or narrow photometry.rest_angstrom"
        )


def _fsps_coverage() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return log10 Z/Zsun, the ends of log10 age/yr, and wavelengths in Angstrom of FSPS's MIST and MILES."""
    home = Path(os.environ["SPS_HOME"])
    names = (home / "ISOCHRONES" / "MIST" / "zlegend.dat").read_text(encoding="utf-8").split()
    log_z = np.array([float(name.replace("m", "-").replace("p", "")) for name in names])
    return log_z, _MIST_LOG_AGE, np.loadtxt(home / "SPECTRA" / "MILES" / "miles.lambda")
