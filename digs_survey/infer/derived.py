"""What follows from posterior draws: surviving mass, ages, star formation rates.

Rates and ages are the closed forms of the model's history. The share of the mass that is left comes from a table of
:class:`~digs_survey.sps.batched.BatchedModel`'s, made once: a survey has a thousand draws for every galaxy. Where the
history is in bins of age, this share is the exact sum over bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from digs_survey.config import ModelConfig
from digs_survey.parameters import BINNED, rate_at, time_of_rate
from digs_survey.prior import Prior
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.bins import BinWeights
from digs_survey.sps.burst import burst_place
from digs_survey.sps.formed import BinnedHistories, BurstHistories, histories
from digs_survey.sps.universe import at_zred, physical_names, physical_theta

__all__ = ["DerivedQuantities", "star_formation_rates"]

_AGES, _TIMES = 192, 96
"""Points of the table along log tage and log tau: it is linear in between to a few 1e-4 of the fraction."""


@dataclass(frozen=True)
class _Left:
    """Share of the mass that is left of histories in bins of age."""

    weights: BinWeights
    logzsol: NDArray[np.float64]
    fraction: NDArray[np.float64]

    def __call__(self, formed: BinnedHistories, logzsol: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share (...), linear in metallicity (...) between the populations'."""
        lower = np.clip(np.searchsorted(self.logzsol, logzsol, side="right") - 1, 0, self.logzsol.size - 2)
        upper_share = (logzsol - self.logzsol[lower]) / (self.logzsol[lower + 1] - self.logzsol[lower])
        poor, rich = (
            (formed.rates * np.diff(self.weights.integrals(self.fraction, node[..., None], formed.edges))).sum(-1)
            for node in (lower, lower + 1)
        )
        return np.asarray((1 - upper_share) * poor + upper_share * rich)


@dataclass(frozen=True)
class _LeftOfMoment:
    """Share of the mass that is left of stars of one age."""

    log_age: NDArray[np.float64]
    logzsol: NDArray[np.float64]
    fraction: NDArray[np.float64]

    def __call__(self, age_gyr: NDArray[np.float64], logzsol: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share (...) for ages (...) in Gyr and metallicities (...), linear between the populations'."""
        younger, older = burst_place(self.log_age, age_gyr)
        where = [np.interp(logzsol, self.logzsol, np.arange(self.logzsol.size, dtype=float)), younger + older]
        return map_coordinates(self.fraction, where, order=1, mode="nearest", prefilter=False)


@dataclass(frozen=True)
class DerivedQuantities:
    """Computes derived quantities of draws; small enough to be sent to workers.

    Attributes
    ----------
    names : tuple of str
        ``tage``, those of :data:`~digs_survey.parameters.DERIVED`, and star formation rates at lookback times.
    prior : Prior
        That theta are of.
    sfh : str
        The model's history.
    log_tage, logtau, logzsol : ndarray
        Axes of the table: log10 of Gyr, the first two evenly spaced; the third are the populations' metallicities.
    fraction : ndarray of float64, shape (log_tage, logtau, logzsol)
        Share of the mass formed that is left.
    zred : float
        Redshift of rows without one.
    in_bins : _Left or None
        In the place of the table, where the history is in bins of age.
    moment : _LeftOfMoment or None
        Beside the table, where there is a burst.
    """

    names: tuple[str, ...]
    prior: Prior
    sfh: str
    log_tage: NDArray[np.float64]
    logtau: NDArray[np.float64]
    logzsol: NDArray[np.float64]
    fraction: NDArray[np.float64]
    zred: float
    in_bins: _Left | None = None
    moment: _LeftOfMoment | None = None

    @classmethod
    def of_model(
        cls, names: Sequence[str], sfh: str, model: BatchedModel, asked: Prior | None = None
    ) -> DerivedQuantities:
        """Tabulate the surviving fraction of a model over its prior; ``asked`` is the prior of theta, if another."""
        prior = model.prior
        if sfh in BINNED:
            none = np.empty(0)
            left = _Left(*model.living)
            return cls(tuple(names), asked or prior, sfh, none, none, none, none, model.zred, left)
        tage = prior.index("tage")
        log_tage = _axis(np.log10(prior.low[tage]), np.log10(prior.high[tage]), _AGES)
        logtau = np.zeros(1)
        if "logtau" in prior.names:
            column = prior.index("logtau")
            logtau = _axis(prior.low[column], prior.high[column], _TIMES)
        ages, times = (10 ** values.ravel() for values in np.meshgrid(log_tage, logtau, indexing="ij"))
        ages = np.minimum(ages, prior.high[tage])
        logzsol, fraction = model.surviving_fraction(ages, times)
        return cls(
            tuple(names),
            asked or prior,
            sfh,
            log_tage,
            logtau,
            logzsol,
            fraction.reshape(log_tage.size, logtau.size, logzsol.size),
            model.zred,
            moment=_LeftOfMoment(model.log_age, *model.living[1:]) if "fburst" in prior.names else None,
        )

    def __call__(self, theta: NDArray[np.float64], redshift: ArrayLike = np.nan) -> NDArray[np.float64]:
        """Quantities (..., name) of theta (..., ndim), inside the prior, in the units of DERIVED.

        ``redshift`` (...) is broadcast against the rows of theta; it counts where the prior has ``tage_tuniv`` or bins
        of age, and is NaN where rows have none.
        """
        column = _columns(self.prior, theta, redshift, self.zred)
        tage, mass, formed = column["tage"], _power_of_ten(column["logmass"]), histories(self.sfh, column)
        if self.in_bins is not None and isinstance(formed, BinnedHistories):
            left = self.in_bins(formed, column["logzsol"])
        else:
            left = self._left(tage, column.get("logtau", np.zeros_like(tage)), column["logzsol"])
            if self.moment is not None and isinstance(formed, BurstHistories):
                left = (1 - formed.share) * left + formed.share * self.moment(formed.age, column["logzsol"])
        known = {
            "tage": tage,
            "surviving_mass": mass * left,
            "mass_weighted_age": formed.mass_weighted_age(),
            "sfr_10": mass * formed.formed_since(0.01) / 1e7,
            "sfr_100": mass * formed.formed_since(0.1) / 1e8,
            "t50": formed.lookback_of(0.5),
            "t90": formed.lookback_of(0.9),
        }
        known |= {
            rate_at(time).name: mass * formed.rate_at(time)
            for time in map(time_of_rate, self.names)
            if time is not None
        }
        known |= {f"s{name}": known[name] / known["surviving_mass"] for name in ("sfr_10", "sfr_100")}
        return np.stack([known[name] for name in self.names], axis=-1)

    def _left(
        self, tage: NDArray[np.float64], logtau: NDArray[np.float64], logzsol: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Share of the mass that is left, interpolated in the table."""
        where = [
            _even_steps(np.log10(tage), self.log_tage),
            _even_steps(logtau, self.logtau),
            np.interp(logzsol, self.logzsol, np.arange(self.logzsol.size, dtype=float)),
        ]
        return map_coordinates(self.fraction, where, order=1, mode="nearest", prefilter=False)


def star_formation_rates(
    prior: Prior, model: ModelConfig, theta: NDArray[np.float64], redshift: ArrayLike, lookback_gyr: ArrayLike
) -> NDArray[np.float64]:
    """Star formation rates (..., time) in Msun/yr of theta (..., ndim) at lookback times (time,) in Gyr.

    Parameters
    ----------
    prior : Prior
        That theta are of.
    model : ModelConfig
    theta : ndarray, shape (..., ndim)
        Inside the prior.
    redshift : array_like, shape (...)
        Broadcast against the rows of theta; NaN where rows have none.
    lookback_gyr : array_like, shape (time,)
        Before the galaxy is seen. Before it began the rate is 0.
    """
    column = _columns(prior, theta, redshift, model.zred)
    formed, mass = histories(model.sfh, column), _power_of_ten(column["logmass"])
    return np.stack([mass * formed.rate_at(time) for time in np.asarray(lookback_gyr, dtype=float)], axis=-1)


def _columns(
    prior: Prior, theta: NDArray[np.float64], redshift: ArrayLike, zred: float
) -> dict[str, NDArray[np.float64]]:
    """Parameters (...) of theta (..., ndim) by name, as spectra take them."""
    names = physical_names(prior)
    physical = at_zred(names, physical_theta(prior, theta, redshift), zred)
    return {name: np.ascontiguousarray(physical[..., k]) for k, name in enumerate(names)}


def _axis(low: float, high: float, nodes: int) -> NDArray[np.float64]:
    """Return an evenly spaced axis; one node where there is one value."""
    return np.linspace(low, high, nodes if high > low else 1)


def _even_steps(values: NDArray[np.float64], axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of values along an evenly spaced axis, in steps."""
    return (values - axis[0]) * ((axis.size - 1) / (axis[-1] - axis[0])) if axis.size > 1 else np.zeros_like(values)


def _power_of_ten(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """10**values, by the exponential that numpy is quicker with."""
    return np.exp(values * np.log(10))
