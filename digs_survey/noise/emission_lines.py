"""The emission lines of gas whose strength and width the model does not know well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from digs_survey.spectra import C_KMS, WavelengthGrid, vacuum_to_air

__all__ = ["EMISSION_LINES", "on_emission_lines"]

EMISSION_LINES: dict[str, tuple[float, ...]] = {
    "[OII]": (3727.09, 3729.88),
    "[NeIII]": (3869.86,),
    "Hbeta": (4862.68,),
    "[OIII]": (4960.30, 5008.24),
    "HeI": (5877.25,),
    "[OI]": (6302.05,),
    "[NII]": (6549.86, 6585.27),
    "Halpha": (6564.61,),
    "[SII]": (6718.29, 6732.67),
    "[SIII]": (9071.1, 9533.2),
}
"""Vacuum wavelengths at rest in Angstrom, as in the line list of the SDSS pipelines. The model has one ionisation
parameter, and one width for stars and gas; higher Balmer lines, which are mostly seen in absorption, are not here."""
_HALF_WIDTH_KMS = 750.0
"""Covers lines of a dispersion up to 300 km/s."""


def on_emission_lines(grid: WavelengthGrid) -> NDArray[np.bool_]:
    """Tell which elements (wavelength,) of a rest-frame grid touch a line, 750 km/s to either side."""
    centres = np.array([line for lines in EMISSION_LINES.values() for line in lines])
    reach = centres * (_HALF_WIDTH_KMS / C_KMS)
    low, high = centres - reach, centres + reach
    if grid.medium == "air":
        low, high = vacuum_to_air(low), vacuum_to_air(high)
    edges = grid.edges
    touched = (edges[:-1, None] < high) & (edges[1:, None] > low)
    return np.asarray(touched.any(axis=1))
