"""Photometry of an audited galaxy, brought to the unit and the frame of its spectrum."""

from __future__ import annotations

import numpy as np
import xarray as xr

from digs_survey.filters import load_filter
from digs_survey.report.figures.galaxy_plots import BandPoints
from digs_survey.spectra import flam_of_maggie

__all__ = ["band_points"]


def band_points(data: xr.Dataset, galaxy: int) -> BandPoints | None:
    """Return the photometry of a galaxy of the group ``galaxies`` of audit.zarr; None where there is none.

    Flux is in erg/s/cm2 per rest-frame Angstrom, at rest wavelengths: that of a galaxy of flat f_nu within the band.
    """
    if "band_flux" not in data:
        return None
    curves = [load_filter(str(name)) for name in data["filter"].values]
    stretch = 1 + float(data["redshift"].values[galaxy])
    pivot = np.array([curve.pivot for curve in curves])
    per_maggie = flam_of_maggie(pivot) * stretch
    flux = {
        name: data[f"band_{name}"].values[galaxy] * per_maggie for name in ("flux", "sigma", "best_npe", "best_mcmc")
    }
    return BandPoints(
        wavelength=pivot / stretch,
        width=np.array([curve.width for curve in curves]) / stretch,
        good=data["band_good"].values[galaxy].astype(bool),
        **flux,
    )
