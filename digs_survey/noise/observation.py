"""One row of a survey as a single array, which a posterior that knows the row's own errors is shown.

The columns are the flux of each element, the inverse of its standard error (0 where there is no data), and last the
redshift. Noiseless spectra have flux and redshift alone. Both come as numpy arrays or as torch tensors.
"""

from __future__ import annotations

from typing import Any

from digs_survey.sps.arrays import namespace

__all__ = ["elements_of", "join_clean", "join_observed", "split_clean", "split_observed"]


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
