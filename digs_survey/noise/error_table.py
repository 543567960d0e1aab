"""A survey's errors, row by row, as its noise model needs them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.catalog.gaps import fill
from digs_survey.config import NoiseConfig
from digs_survey.errors import CatalogError

__all__ = ["noise_table", "row_errors"]

_MIN_KNOWN = 0.5
"""Share of a row's elements whose error must be known for the row to stand for the catalog's noise."""


def row_errors(config: NoiseConfig, flux: ArrayLike, ivar: ArrayLike, good: ArrayLike) -> NDArray[np.float64]:
    """Errors of observed rows in the terms that a configuration splits them into.

    Parameters
    ----------
    config : NoiseConfig
        Of kind "constant" or "catalog".
    flux, ivar : array_like, shape (n, wavelength)
        Observed flux F and its inverse variance, brought to the distance of the simulations.
    good : array_like of bool, shape (n, wavelength)
        Elements that count.

    Returns
    -------
    ndarray of float64, shape (terms, n, wavelength)
        With S the 1-sigma error. Constant noise: S. Catalog noise: S / F. With ``poisson_share`` p: the error
        of read-out and sky, S sqrt(1 - p), and the Poisson error at unit flux, S sqrt(p / max(F, S)).
        Elements that are not good are filled from their neighbours in the row (NaN if the row has no other); so are,
        for S / F, those without positive flux.
    """
    flux, ivar = np.asarray(flux, dtype=float), np.asarray(ivar, dtype=float)
    known = np.asarray(good, dtype=bool) & (ivar > 0)
    if config.kind == "catalog" and config.poisson_share is None:
        known &= flux > 0
    flux, error = np.where(known, flux, 1.0), 1.0 / np.sqrt(np.where(known, ivar, 1.0))
    if config.kind == "constant":
        terms = [error]
    elif config.poisson_share is None:
        terms = [error / flux]
    else:
        poisson = config.poisson_share
        terms = [error * np.sqrt(1 - poisson), error * np.sqrt(poisson / np.maximum(flux, error))]
    return np.stack([fill(term, known) for term in terms])


def noise_table(
    config: NoiseConfig, errors: ArrayLike, good: ArrayLike, seed: int, limit: int = 4096
) -> NDArray[np.float64]:
    """Choose what stands for the survey's noise: rows of a catalog, or their median for constant noise.

    Whole rows are kept, so that the errors of neighbouring elements stay together; masked elements are
    filled by linear interpolation along the row.

    Parameters
    ----------
    config : NoiseConfig
        Of kind "constant" or "catalog".
    errors : array_like, shape (terms, n, wavelength)
        As :func:`row_errors` gives them.
    good : array_like of bool, shape (n, wavelength)
        Elements whose error is known.
    seed : int
        Chooses the rows if there are more than ``limit``.
    limit : int
        Most rows in the table.

    Returns
    -------
    ndarray of float64, shape (terms, rows, wavelength)
        In the order of the catalog; one row for constant noise.

    Raises
    ------
    CatalogError
        If no row has half its elements good.
    """
    errors = np.asarray(errors, dtype=float)
    known = np.asarray(good, dtype=bool) & np.isfinite(errors).all(axis=0) & (errors > 0).any(axis=0)
    usable = np.flatnonzero(known.mean(axis=1) >= _MIN_KNOWN)
    if usable.size == 0:
        raise CatalogError(
            f"noise.kind = {config.kind!r}: expected rows with at least {_MIN_KNOWN:.0%} of their elements good, "
            f"found none among {known.shape[0]}; set noise.kind = 'fractional' or repair ivar and mask"
        )
    if config.kind == "constant":
        return np.median([fill(term[usable], known[usable]) for term in errors], axis=1, keepdims=True)
    if usable.size > limit:
        usable = np.sort(np.random.default_rng(seed).choice(usable, size=limit, replace=False))
    return np.stack([fill(term[usable], known[usable]) for term in errors])
