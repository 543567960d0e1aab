"""How spectra are brought onto the coarse grid that photometry sees: not smoothed, and by means over hats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.hats import hat_matrix
from digs_survey.sps.sampling import GridSampling

__all__ = ["HatSampling"]

_SAMPLES = 16
"""Samples of the populations in each step of the grid; a line keeps its place between them."""
_MARGIN = 4
"""Samples beyond the ends of the hats."""


class HatSampling(GridSampling):
    """The sampling of a coarse grid.

    A line spread changes nothing in a band hundreds of Angstrom wide, so that there is none.

    Parameters
    ----------
    grid : WavelengthGrid
        Nodes at equal steps in ln wavelength, rest frame, vacuum: those of
        :class:`~digs_survey.sps.bands.Bands`.
    """

    by_prospector = False
    tolerance = 1e-4

    def __init__(self, grid: WavelengthGrid) -> None:
        self.grid = grid
        first, last = np.log(grid.wavelength[[0, -1]])
        step = (last - first) / (len(grid) - 1)
        beyond = _SAMPLES + _MARGIN
        count = (len(grid) - 1) * _SAMPLES + 2 * beyond + 1
        self.wavelength = np.exp(first + step / _SAMPLES * (np.arange(count) - beyond))

    def points(
        self, wavelength: NDArray[np.float64], sigma_kms: float | None = None
    ) -> tuple[NDArray[np.float64], csr_array]:
        """Return the samples within reach of the hats and one more at either end, and the matrix (element, sample - 2)
        of all but these; see the base class.
        """
        first = max(int(np.searchsorted(wavelength, self.wavelength[_MARGIN - 1], side="right")) - 2, 0)
        last = int(np.searchsorted(wavelength, self.wavelength[-_MARGIN])) + 2
        near = wavelength[first:last]
        return near, hat_matrix(near[1:-1], self.grid.wavelength)

    def matrix(self, wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the matrix (wavelength, element) from Lsun/Hz to Lsun/Angstrom; see the base class."""
        from prospect.sources.constants import lightspeed

        return (hat_matrix(wavelength, self.grid.wavelength) * (lightspeed / wavelength**2)).toarray().T
