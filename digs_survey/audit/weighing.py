"""How far the posterior is from the exact one: importance weights of simulations and of the audited rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from digs_survey.audit.calibration.blocks import SimulationBlocks, count_simulations, run_blocks
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import SurveyConfig
from digs_survey.importance.psis import PARETO_K_LIMIT, smooth_tail
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import Importance, Weigher, log_ratios, simulated_importance

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["importance_summary", "smoothed_log_weights", "weigh_calibration", "weigh_rows"]

_BLOCK = 128
"""Simulations that a worker weighs before it takes others."""


@dataclass(frozen=True)
class _Weighed(SimulationBlocks[Importance]):
    """Simulations to be weighed."""

    posterior: FrozenPosterior
    draws: int
    seed: int
    doing: ClassVar[str] = "weighing"

    @cached_property
    def likelihood(self) -> SpectrumLikelihood:
        return SpectrumLikelihood.of_posterior(self.posterior)

    def work(self, start: int, theta: NDArray[np.float64], flux: NDArray[np.float64]) -> Importance:
        posterior, likelihood = self.posterior, self.likelihood
        return simulated_importance(
            posterior, theta, flux, posterior.noise, self.draws, self.seed, start=start, likelihood=likelihood
        )


def weigh_calibration(
    posterior: FrozenPosterior,
    path: Path,
    config: SurveyConfig,
    *,
    workers: int | None = 0,
    address: str | None = None,
) -> tuple[Importance, float]:
    """Weigh the first simulations of ``calibration.zarr``, with the noise that they are calibrated with.

    Takes the posterior, and what :func:`~digs_survey.audit.calibration.calibrate.calibrate_posterior` takes of the
    same name.

    Returns
    -------
    Importance
        The same on any number of workers.
    float
        Processor time in seconds.
    """
    count = count_simulations(path, config.importance.simulations, config.audit.calibration_simulations)
    draws = config.importance.draws
    blocks = _Weighed(path, count, _BLOCK, posterior, draws, config.seed)
    found, used_s = run_blocks(blocks, workers=workers, address=address)
    whole = Importance.unknown(count, posterior.prior.ndim, found[0].percentiles.shape[-1])
    for block, some in enumerate(found):
        start = block * _BLOCK
        whole.put(np.arange(start, start + some.ess.size), some)
    return whole, used_s


def weigh_rows(
    posterior: FrozenPosterior, rows: PreparedRows, theta: NDArray[np.float64], config: SurveyConfig
) -> Importance:
    """Weigh rows of a catalog; ``theta`` (row, draw, parameter) are used where they are as many as are wanted."""
    likelihood = SpectrumLikelihood.of_posterior(posterior)
    weigher = Weigher(posterior, likelihood, config.importance.draws, config.map.quantiles)
    errors = posterior.noise.errors_of(rows.flux, rows.ivar, rows.good)
    return weigher(rows.flux, rows.good, errors, theta)


def smoothed_log_weights(
    posterior: FrozenPosterior, rows: PreparedRows, theta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Natural logs (row, draw) of the normalised, smoothed weights of draws (row, draw, parameter); NaN if unknown."""
    found = np.full(theta.shape[:2], np.nan)
    known = np.flatnonzero(np.isfinite(theta).all(axis=(1, 2)))
    errors = posterior.noise.errors_of(rows.flux[known], rows.ivar[known], rows.good[known])
    likelihood = SpectrumLikelihood.of_posterior(posterior)
    log_weights = log_ratios(posterior, likelihood, theta[known], rows.flux[known], rows.good[known], errors)
    for row, values in zip(known, log_weights, strict=True):
        if np.isfinite(values.max()):
            smoothed, _ = smooth_tail(values)
            found[row] = smoothed - logsumexp(smoothed)
    return found


def importance_summary(importance: Importance, draws: int) -> dict[str, Any]:
    """Return the numbers of an entry of audit.json; None where no row has weights.

    ``ess_share`` is the effective sample size over the number of draws: its percentiles 16, 50 and 84 over the rows.
    ``pareto_k_above`` is the share of rows with a tail heavier than 0.7, those without weights included.
    """
    known = np.isfinite(importance.ess)
    share, k = importance.ess[known].astype(float) / draws, importance.pareto_k
    low, median, high = np.quantile(share, (0.16, 0.5, 0.84)).tolist() if known.any() else [None] * 3
    return {
        "rows": k.size,
        "without_weights": int((~known).sum()),
        "draws": draws,
        "ess_share_median": median,
        "ess_share_16": low,
        "ess_share_84": high,
        "pareto_k_above": float((~(k <= PARETO_K_LIMIT)).mean()) if k.size else None,
        "log_evidence_error_median": float(np.median(importance.log_evidence_error[known])) if known.any() else None,
    }
