"""What follows from star formation histories alone: when their mass formed, and how fast it forms now or then.

Shares, rates and times of one solar mass formed, in closed form, for histories that are functions of time and for those
in bins of age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from digs_survey.parameters import BINNED
from digs_survey.sps.bins import bin_edges, bin_rates, binned_columns
from digs_survey.sps.burst import burst_age
from digs_survey.sps.history import POWERS, formed_since, mass_formed, mass_weighted_age, star_formation_rate

__all__ = ["BinnedHistories", "BurstHistories", "Histories", "TimedHistories", "histories"]

_POINTS, _LOG_TIMES = 8_193, (-10.0, 14.0)
"""Of the table of the time by which a share has formed, along the natural log of the age in e-folding times."""


class Histories(Protocol):
    """Star formation histories (...) of one solar mass formed each."""

    def formed_since(self, time_gyr: float) -> NDArray[np.float64]:
        """Share (...) of the mass that formed within the last ``time_gyr``."""
        ...

    def mass_weighted_age(self) -> NDArray[np.float64]:
        """Mean age (...) in Gyr of the mass formed."""
        ...

    def lookback_of(self, share: float) -> NDArray[np.float64]:
        """Lookback time (...) in Gyr at which a share of the mass had formed."""
        ...

    def rate_at(self, lookback_gyr: float) -> NDArray[np.float64]:
        """Star formation rate (...) in 1/yr at a lookback time; 0 before the galaxy began."""
        ...


@dataclass(frozen=True)
class TimedHistories:
    """Histories that are functions of the time since their onset.

    Attributes
    ----------
    sfh : {"delayed_tau", "tau", "constant"}
    tage, tau : ndarray, shape (...)
        Ages and e-folding times in Gyr; the latter count for nothing where the rate is constant.
    """

    sfh: str
    tage: NDArray[np.float64]
    tau: NDArray[np.float64]

    def formed_since(self, time_gyr: float) -> NDArray[np.float64]:
        """Share (...) of the mass that formed within the last ``time_gyr``."""
        return np.asarray(formed_since(self.sfh, time_gyr, self.tage, self.tau))

    def mass_weighted_age(self) -> NDArray[np.float64]:
        """Mean age (...) in Gyr of the mass formed."""
        return np.asarray(mass_weighted_age(self.sfh, self.tage, self.tau))

    def lookback_of(self, share: float) -> NDArray[np.float64]:
        """Lookback time (...) in Gyr at which a share of the mass had formed, to some 1e-6 of the age."""
        if self.sfh == "constant":
            return self.tage * (1 - share)
        log_age, before = _when(self.sfh, share)
        return self.tage * (1 - np.interp(np.log(self.tage / self.tau), log_age, before))

    def rate_at(self, lookback_gyr: float) -> NDArray[np.float64]:
        """Star formation rate (...) in 1/yr at a lookback time; 0 before the galaxy began."""
        time = np.ravel(self.tage - lookback_gyr)
        begun, tau = np.maximum(time, 0.0), np.ravel(self.tau)
        rate = star_formation_rate(self.sfh, tau)(begun[:, None])[:, 0].reshape(self.tage.shape)
        # The rates and their integrals have one unit if time counts in e-folding times.
        scale = 1.0 if self.sfh == "constant" else self.tau
        formed = mass_formed(self.sfh, self.tage, self.tau) * scale * 1e9
        return np.where(self.tage > lookback_gyr, rate / formed, 0.0)

    def lookback_of_each(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """As :meth:`lookback_of`, for shares (...) of their own."""
        if self.sfh == "constant":
            return self.tage * (1 - share)
        formed = share * mass_formed(self.sfh, self.tage, self.tau)
        return self.tage - self.tau * gammaincinv(POWERS[self.sfh], formed)


@dataclass(frozen=True)
class BurstHistories:
    """Histories with a burst on top.

    Attributes
    ----------
    smooth : TimedHistories
    share : ndarray, shape (...)
        Of the mass that formed in the burst.
    age : ndarray, shape (...)
        Of the burst in Gyr.
    """

    smooth: TimedHistories
    share: NDArray[np.float64]
    age: NDArray[np.float64]

    def formed_since(self, time_gyr: float) -> NDArray[np.float64]:
        """Share (...) of the mass that formed within the last ``time_gyr``."""
        return (1 - self.share) * self.smooth.formed_since(time_gyr) + self.share * (self.age <= time_gyr)

    def mass_weighted_age(self) -> NDArray[np.float64]:
        """Mean age (...) in Gyr of the mass formed."""
        return (1 - self.share) * self.smooth.mass_weighted_age() + self.share * self.age

    def lookback_of(self, share: float) -> NDArray[np.float64]:
        """Lookback time (...) in Gyr at which a share of the mass had formed."""
        rest = np.maximum(1 - self.share, np.finfo(float).tiny)
        late = np.asarray(formed_since(self.smooth.sfh, self.age, self.smooth.tage, self.smooth.tau))
        before = rest * (1 - late)
        smooth = np.where(share <= before, share, share - self.share) / rest
        found = self.smooth.lookback_of_each(np.clip(smooth, 0.0, 1.0))
        return np.where((before < share) & (share <= before + self.share), self.age, found)

    def rate_at(self, lookback_gyr: float) -> NDArray[np.float64]:
        """Star formation rate (...) in 1/yr at a lookback time, without the burst, which takes no time."""
        return (1 - self.share) * self.smooth.rate_at(lookback_gyr)


@cache
def _when(sfh: str, share: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the age (point,) by which a share of the mass had formed, and the log of the age in e-folding times."""
    log_age = np.linspace(*_LOG_TIMES, _POINTS)
    age = np.exp(log_age)
    formed = mass_formed(sfh, age, np.ones_like(age))
    return log_age, gammaincinv(POWERS[sfh], share * formed) / age


@dataclass(frozen=True)
class BinnedHistories:
    """Histories of constant rates in bins of age.

    Attributes
    ----------
    rates : ndarray, shape (..., bin)
        Solar masses a Gyr, for one solar mass formed; the youngest bin first.
    edges : ndarray, shape (..., bin + 1)
        Of the bins in Gyr.
    """

    rates: NDArray[np.float64]
    edges: NDArray[np.float64]

    def formed_since(self, time_gyr: float) -> NDArray[np.float64]:
        """Share (...) of the mass that formed within the last ``time_gyr``."""
        return np.asarray((self.rates * np.diff(np.minimum(self.edges, time_gyr), axis=-1)).sum(axis=-1))

    def mass_weighted_age(self) -> NDArray[np.float64]:
        """Mean age (...) in Gyr of the mass formed."""
        return np.asarray((self.rates * np.diff(self.edges**2, axis=-1)).sum(axis=-1) / 2)

    def lookback_of(self, share: float) -> NDArray[np.float64]:
        """Lookback time (...) in Gyr at which a share of the mass had formed."""
        masses = self.rates * np.diff(self.edges, axis=-1)
        younger = np.cumsum(masses, axis=-1)
        wanted = 1 - share
        where = np.minimum((younger < wanted).sum(axis=-1), masses.shape[-1] - 1)[..., None]
        rate, mass, edge, upto = (
            np.take_along_axis(x, where, -1)[..., 0] for x in (self.rates, masses, self.edges, younger)
        )
        # Less than the bin's mass lies in it up to there, of which none forms where its rate is 0.
        rest = np.clip(wanted - (upto - mass), 0.0, mass)
        return edge + np.divide(rest, rate, out=np.zeros_like(rest), where=rate > 0)

    def rate_at(self, lookback_gyr: float) -> NDArray[np.float64]:
        """Star formation rate (...) in 1/yr at a lookback time; 0 before the universe began."""
        where = (self.edges[..., 1:-1] <= lookback_gyr).sum(axis=-1)[..., None]
        rate = np.take_along_axis(self.rates, where, -1)[..., 0] / 1e9
        return np.where(self.edges[..., -1] > lookback_gyr, rate, 0.0)


def histories(sfh: str, column: Mapping[str, NDArray[np.float64]]) -> Histories:
    """Return the histories (...) of parameters (...) by name, among them ``tage`` in Gyr."""
    tage = column["tage"]
    if sfh not in BINNED:
        logtau = column.get("logtau", np.zeros_like(tage))
        smooth = TimedHistories(sfh, tage, np.exp(logtau * np.log(10)))
        if "fburst" not in column:
            return smooth
        return BurstHistories(smooth, column["fburst"], burst_age(tage, column["fage_burst"]))
    names = tuple(column)
    values = np.stack([column[names[k]] for k in binned_columns(sfh, names)], axis=-1)
    edges = bin_edges(tage, values.shape[-1] + 1)
    return BinnedHistories(bin_rates(sfh, values, edges), edges)
