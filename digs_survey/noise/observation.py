"""One row of a survey as a single array, which a posterior that knows the row's own errors is shown.

The columns are the flux of each element, the inverse of its standard error (0 where there is no data), and last the
redshift. Noiseless spectra have flux and redshift alone. Both come as numpy arrays or as torch tensors. Where rows have
photometry, the fluxes through the filters, in maggies, follow those of the elements, and count as elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.sps.arrays import namespace

__all__ = [
    "CleanSpectra",
    "clean_spectra",
    "elements_of",
    "join_clean",
    "join_observed",
    "split_clean",
    "split_observed",
]


def join_observed(flux: Any, inverse_error: Any, redshift: Any) -> Any:
    """Join flux and inverse errors (n, wavelength) and redshifts (n,) to observations (n, 2 wavelength + 1)."""
    return namespace(flux).concatenate([flux, inverse_error, redshift[..., None]], -1)


def split_observed(observed: Any) -> tuple[Any, Any, Any]:
    """Return flux and inverse errors (..., wavelength) and redshifts (...) of observations."""
    elements = elements_of(observed)
    return observed[..., :elements], observed[..., elements:-1], observed[..., -1]


def elements_of(observed: Any) -> int:
    """Return how many wavelength elements observations (..., 2 wavelength + 1) have."""
    return int(observed.shape[-1]) // 2


def join_clean(flux: Any, redshift: Any) -> Any:
    """Join noiseless flux (n, wavelength) and redshifts (n,) to one array (n, wavelength + 1)."""
    return namespace(flux).concatenate([flux, redshift[..., None]], -1)


def split_clean(clean: Any) -> tuple[Any, Any]:
    """Return the flux (..., wavelength) and the redshifts (...) of noiseless spectra."""
    return clean[..., :-1], clean[..., -1]


@dataclass(frozen=True)
class CleanSpectra:
    """Noiseless spectra with redshifts in a dataset of simulations, read by slices of rows.

    Attributes
    ----------
    flux, redshift : Zarr arrays
        Of shapes (n, wavelength) and (n,).
    photometry : Zarr array, shape (n, band), or None
    light : Zarr array, shape (n, coarse element), or None
        What filters see, of simulations with photometry; it is not among the columns.
    """

    flux: Any
    redshift: Any
    photometry: Any = None
    light: Any = None

    @property
    def bands(self) -> int:
        """Fluxes through filters among the columns, between those of the spectrum and the redshift."""
        return 0 if self.photometry is None else int(self.photometry.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and columns with that of the redshift."""
        return self.flux.shape[0], self.flux.shape[1] + self.bands + 1

    @property
    def shards(self) -> Any:
        """Of the flux."""
        return self.flux.shards

    @property
    def chunks(self) -> Any:
        """Of the flux."""
        return self.flux.chunks

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        flux = self.flux[rows]
        if self.photometry is not None:
            flux = np.concatenate([flux, self.photometry[rows]], axis=1)
        return np.asarray(join_clean(flux, self.redshift[rows].astype(np.float32)))


def clean_spectra(group: Any) -> Any:
    """Return the noiseless spectra of a dataset of simulations: its flux, with photometry and redshifts where it has
    them.
    """
    if "redshift" not in group:
        return group["flux"]
    return CleanSpectra(
        group["flux"], group["redshift"], *(group[name] if name in group else None for name in ("photometry", "light"))
    )
