"""Ages that know of the redshift: the age of the universe, and theta with ages in Gyr."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

from digs_survey.parameters import BINNED, MAX_REDSHIFT
from digs_survey.prior import Prior
from digs_survey.sps.arrays import namespace

__all__ = ["age_of_universe", "at_zred", "physical_names", "physical_prior", "physical_theta"]

_FARTHEST, _NODES = 30.0, 4_096


def age_of_universe(redshift: ArrayLike) -> NDArray[np.float64]:
    """Age of the universe (...) in Gyr at redshifts (...) from 0 to 30.

    In the WMAP9 cosmology (Hinshaw et al. 2013, ApJS 208, 19), which is Prospector's.

    Examples
    --------
    >>> round(float(age_of_universe(0.5)), 2)
    8.66
    """
    return np.asarray(_spline()(np.log1p(np.asarray(redshift, dtype=float))))


@cache
def _spline() -> CubicSpline:
    from astropy.cosmology import WMAP9

    log = np.linspace(0, np.log1p(_FARTHEST), _NODES)
    return CubicSpline(log, WMAP9.age(np.expm1(log)).to_value("Gyr"))


def physical_prior(prior: Prior) -> Prior:
    """Return the ranges that the model's spectra are asked for under a prior: those of :func:`physical_theta`.

    Where the prior has ``tage_tuniv``, ages reach from that share of the youngest universe to that of the oldest. Where
    it has bins of age, whose oldest edge is the age of the universe, ``tage`` is this age. A parameter that is fixed
    has a range of one value. What others alone are tied to is left out.
    """
    ranges = prior.ranges()
    ranges.pop("dust1_fraction", None)
    oldest = float(age_of_universe(0))
    if "tage_tuniv" in ranges:
        low, high = ranges.pop("tage_tuniv")
        ranges["tage"] = (low * float(age_of_universe(_FARTHEST)), high * oldest)
    elif _binned(ranges) and "tage" not in ranges:
        ranges["tage"] = (float(age_of_universe(MAX_REDSHIFT)), oldest)
    return Prior.of_ranges(ranges)


def physical_theta(prior: Prior, theta: NDArray[np.float64], redshift: ArrayLike) -> NDArray[np.float64]:
    """Return theta (..., ndim) of a prior as spectra take it: with ``tage`` in Gyr, and what is fixed or tied.

    Parameters
    ----------
    prior : Prior
    theta : ndarray, shape (..., ndim)
    redshift : array_like, shape (...)
        Broadcast against the rows of theta; of no use where the prior has ``tage`` itself. NaN where rows have none:
        then the age of the universe that bins of age reach back to is NaN too, and models take it for that at their
        ``zred`` (:func:`at_zred`).

    Returns
    -------
    ndarray, shape (..., parameter)
        Columns in the order of :func:`physical_names`; theta itself where nothing changes.
    """
    names = physical_names(prior)
    if names == prior.names:
        return theta
    columns = prior.complete({name: np.asarray(theta[..., i], dtype=float) for i, name in enumerate(prior.names)})
    if "tage_tuniv" in columns:
        columns["tage"] = columns["tage_tuniv"] * age_of_universe(redshift)
    elif "tage" not in columns and "tage" in names:
        columns["tage"] = np.broadcast_to(age_of_universe(redshift), theta.shape[:-1])
    return np.stack([columns[name] for name in names], axis=-1)


def physical_names(prior: Prior) -> tuple[str, ...]:
    """Return the names of the columns that :func:`physical_theta` gives."""
    return prior.names if prior.from_file else physical_prior(prior).names


def at_zred(names: tuple[str, ...], theta: Any, zred: float) -> Any:
    """Return physical theta (..., ndim) with the age of the universe at ``zred`` where that of bins is NaN."""
    if not _binned(names):
        return theta
    xp, column = namespace(theta), names.index("tage")
    unknown = xp.isnan(theta[..., column])
    if not unknown.any():
        return theta
    filled = theta.copy() if isinstance(theta, np.ndarray) else theta.clone()
    filled[..., column] = xp.where(unknown, float(age_of_universe(zred)), theta[..., column])
    return filled


def _binned(names: Iterable[str]) -> bool:
    return any(name.rpartition("_")[0] in BINNED.values() for name in names)
