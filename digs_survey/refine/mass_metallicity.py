"""The prior of the metallicity that depends on the mass: the relation of nearby galaxies, made wider.

Gallazzi et al. (2005), MNRAS 362, 41, Table 2: the median, and the 16 % and 84 % quantiles, of the stellar metallicity
of galaxies from the Sloan survey in bins of their stellar mass. As in Prospector (``prospect.models.priors_beta``) and
Leja et al. (2019), ApJ 876, 3, the metallicity of a mass is normal about the median with twice the observed scatter
for its sigma, (84 % - 16 %), between two ends.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, model_validator
from scipy.special import ndtr

__all__ = ["MassMetallicity"]

_RELATION = np.array(
    [
        (8.87, -0.60, -1.11, 0.00),
        (9.07, -0.61, -1.07, 0.00),
        (9.27, -0.65, -1.10, -0.05),
        (9.47, -0.61, -1.03, -0.01),
        (9.68, -0.52, -0.97, 0.05),
        (9.87, -0.41, -0.90, 0.09),
        (10.07, -0.23, -0.80, 0.14),
        (10.27, -0.11, -0.65, 0.17),
        (10.47, -0.01, -0.41, 0.20),
        (10.68, 0.04, -0.24, 0.22),
        (10.87, 0.07, -0.14, 0.24),
        (11.07, 0.10, -0.09, 0.25),
        (11.27, 0.12, -0.06, 0.26),
        (11.47, 0.13, -0.04, 0.28),
        (11.68, 0.14, -0.03, 0.29),
        (11.87, 0.15, -0.03, 0.30),
    ]
)
"""log10 of the mass in solar masses, for a Chabrier (2003) initial mass function, and the quantiles 50 %, 16 % and 84 %
of log10 Z / Zsun; masses and quantiles are as Prospector's file ``gallazzi_05_massmet.txt`` has them."""


class MassMetallicity(BaseModel):
    """A prior of ``logzsol`` for a given ``logmass``, cut at ``low`` and ``high``.

    The relation is kept at its first and last values below 10^8.87 and above 10^11.87 solar masses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prior: Literal["mass_metallicity"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> MassMetallicity:
        if not self.low < self.high:
            raise ValueError(f"expected finite low < high, found [{self.low:g}, {self.high:g}]")
        return self

    def mean_and_sigma(self, logmass: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Middle and width (...) of the normal distribution, before it is cut, at masses (...)."""
        at = np.asarray(logmass, dtype=float)
        middle, low, high = (np.asarray(np.interp(at, _RELATION[:, 0], column)) for column in _RELATION.T[1:])
        return middle, high - low

    def log_pdf(self, value: ArrayLike, logmass: ArrayLike) -> NDArray[np.float64]:
        """Log density of metallicities (...) between the ends, given masses (...)."""
        mean, sigma = self.mean_and_sigma(logmass)
        whole = self._share(self.low, self.high, mean, sigma)
        place = (np.asarray(value, dtype=float) - mean) / sigma
        return -0.5 * np.square(place) - np.log(sigma * math.sqrt(2 * math.pi) * whole)

    def outside(self, low: float, high: float, logmass: ArrayLike) -> NDArray[np.float64]:
        """Share (...) of the distribution at masses (...) that is not between two other ends."""
        mean, sigma = self.mean_and_sigma(logmass)
        inner = max(self.low, low), min(self.high, high)
        inside = self._share(*inner, mean, sigma) / self._share(self.low, self.high, mean, sigma)
        return 1 - np.clip(inside, 0, 1)

    @staticmethod
    def _share(low: float, high: float, mean: Any, sigma: Any) -> NDArray[np.float64]:
        return np.asarray(ndtr((high - mean) / sigma) - ndtr((low - mean) / sigma))

    def __str__(self) -> str:
        """Return what people call it."""
        return "mass-metallicity relation"
