"""Weights of the simple populations for theta of a model, whichever its star formation history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.parameters import BINNED, BURST
from digs_survey.prior import Prior
from digs_survey.sps.arrays import namespace
from digs_survey.sps.bins import BinWeights, binned_weights
from digs_survey.sps.burst import PackedBurst, burst_age, burst_place, no_burst, with_burst
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
    log_age : ndarray, shape (age,)
    of_bins : BinWeights
    """

    def __init__(self, log_age: NDArray[np.float64], sfh: str, prior: Prior) -> None:
        self.log_age, self.of_bins, self._sfh, self._names = log_age, BinWeights(log_age), sfh, prior.names
        self._columns = {name: prior.index(name) for name in prior.names}
        shortest = 10 ** prior.low[prior.index("logtau")] if "logtau" in prior.names else math.inf
        self._history = HistoryWeights(log_age, shortest)

    def __call__(self, theta: Any, dtype: Any) -> Any:
        """Weights (n, age) for theta (n, ndim)."""
        xp = namespace(theta)
        if self._sfh in BINNED:
            return xp.asarray(binned_weights(self._sfh, self.of_bins, self._names, theta), dtype=dtype)
        tage, tau = (xp.asarray(x, dtype=dtype) for x in (theta[:, self._columns["tage"]], self.tau(theta)))
        weights = self.smooth(tage, tau)
        if "fburst" not in self._columns:
            return weights
        share, when = (theta[:, self._columns[name]] for name in BURST)
        return with_burst(weights, self.log_age, share, burst_age(theta[:, self._columns["tage"]], when))

    def smooth(self, tage: Any, tau: Any) -> Any:
        """Weights (n, age) of a history without burst or bins, for ages and e-folding times (n,) in Gyr."""
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

    def burst(self, columns: Mapping[str, NDArray[np.float64]]) -> PackedBurst:
        """Return the bursts of parameters (n,) by name, as the compiled loops take them."""
        if "fburst" not in columns:
            return no_burst()
        lower, older = burst_place(self.log_age, burst_age(columns["tage"], columns["fage_burst"]))
        return PackedBurst(columns["fburst"].astype(np.float32), lower, older.astype(np.float32))

    @cached_property
    def packed(self) -> PackedHistory:
        """The history as the compiled loops take it."""
        from digs_survey.sps.compiled_spectra import CONSTANT, DELAYED, EXPONENTIAL

        # Of histories in bins, weights are known.
        rate = {"tau": EXPONENTIAL, "delayed_tau": DELAYED}.get(self._sfh, CONSTANT)
        return self._history.packed(rate)
