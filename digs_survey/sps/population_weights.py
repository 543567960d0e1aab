"""Weights of the simple populations for theta of a model, whichever its star formation history."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.parameters import BINNED
from digs_survey.prior import Prior
from digs_survey.sps.arrays import namespace
from digs_survey.sps.bins import BinWeights, binned_weights
from digs_survey.sps.history import HistoryWeights, star_formation_rate

if TYPE_CHECKING:
    from digs_survey.sps.compiled_spectra import PackedHistory

__all__ = ["PopulationWeights"]


class PopulationWeights:
    """Solar masses in each population for one solar mass formed; numpy and torch alike.

    Parameters
    ----------
    log_age : ndarray, shape (age,)
        log10 age/yr of the populations.
    sfh : str
        ``model.sfh``.
    prior : Prior
        Whose columns theta has, with ``tage`` in Gyr.

    Attributes
    ----------
    of_bins : BinWeights
    """

    def __init__(self, log_age: NDArray[np.float64], sfh: str, prior: Prior) -> None:
        self.of_bins, self._sfh, self._names = BinWeights(log_age), sfh, prior.names
        self._columns = {name: prior.index(name) for name in prior.names}
        shortest = 10 ** prior.low[prior.index("logtau")] if "logtau" in prior.names else math.inf
        self._history = HistoryWeights(log_age, shortest)

    def __call__(self, theta: Any, dtype: Any) -> Any:
        """Weights (n, age) for theta (n, ndim)."""
        xp = namespace(theta)
        if self._sfh in BINNED:
            return xp.asarray(binned_weights(self._sfh, self.of_bins, self._names, theta), dtype=dtype)
        tage, tau = (xp.asarray(x, dtype=dtype) for x in (theta[:, self._columns["tage"]], self.tau(theta)))
        return self.of_time(tage, tau)

    def of_time(self, tage: Any, tau: Any) -> Any:
        """Weights (n, age) of a history that is a function of time, for ages and e-folding times (n,) in Gyr."""
        return self._history(star_formation_rate(self._sfh, tau), tage)

    def tau(self, theta: Any) -> Any:
        """e-folding times (n,) in Gyr, as far as the history has one."""
        column = self._columns.get("logtau")
        return namespace(theta).ones_like(theta[:, 0]) if column is None else 10 ** theta[:, column]

    def known(self, theta: NDArray[np.float64]) -> NDArray[np.float32]:
        """Weights that the compiled loops take as they are; (0, 0) where they make their own of the history."""
        if self._sfh in BINNED:
            return np.asarray(self(theta, np.float32))
        return np.zeros((0, 0), np.float32)

    @cached_property
    def packed(self) -> PackedHistory:
        """The history as the compiled loops take it."""
        from digs_survey.sps.compiled_spectra import CONSTANT, DELAYED, EXPONENTIAL

        # Of histories in bins, weights are known.
        rate = {"tau": EXPONENTIAL, "delayed_tau": DELAYED}.get(self._sfh, CONSTANT)
        return self._history.packed(rate)
