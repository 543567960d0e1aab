"""How far the neural posteriors of calibration simulations are from the exact ones, by their importance weights.

Thousands of simulations cost what one emcee fit does: draws of each simulation's posterior are weighed with their exact
likelihood, and held against themselves with these weights. The weighted draws stand for the exact posterior where their
weights are good: a Pareto k below :data:`GOOD_K` and an effective sample size of
:data:`~digs_survey.importance.psis.MIN_ESS` or more. Other simulations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from digs_survey.audit.agreement_model import Compared
from digs_survey.audit.agreement_predictors import predictors
from digs_survey.audit.calibration.blocks import SimulationBlocks, count_simulations, run_blocks
from digs_survey.audit.calibration.calibrate import observe_rows
from digs_survey.audit.mcmc.distances import weighted_wasserstein_sigma
from digs_survey.config import SurveyConfig
from digs_survey.importance.predictive_check import Checker
from digs_survey.importance.psis import MIN_ESS, smooth_tail
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import effective_sample_size, log_ratios
from digs_survey.infer.drawn_rows import DrawnRows
from digs_survey.infer.quantiles import ordered_quantiles
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.sps.arrays import one_thread
from digs_survey.store.sharded import recorded_recipe

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["GOOD_K", "Weighed", "compare_simulations"]

GOOD_K = 0.5
"""Pareto k below which the weights have a variance, and averages with them errors that can be told."""
_DRAWS = 300
"""Draws of each simulation that are weighed, where the table has no importance weights: their distances are within 17 %
of those of 8,000 draws (1 sigma), and 4 % larger on average."""
_BLOCK = 64
"""Simulations that a worker takes at a time."""


@dataclass(frozen=True)
class Weighed:
    """Simulations whose draws were weighed, those without a posterior left out.

    Attributes
    ----------
    predictors : dict of str to ndarray of float64, shape (simulation,)
        As the table has them for rows.
    distance : ndarray of float64, shape (simulation,)
        Wasserstein distance of the farthest parameter, in half the 16-84 % width of the weighted draws.
    pareto_k, ess : ndarray of float64, shape (simulation,)
        Of the weights.
    """

    predictors: dict[str, NDArray[np.float64]]
    distance: NDArray[np.float64]
    pareto_k: NDArray[np.float64]
    ess: NDArray[np.float64]

    @property
    def good(self) -> NDArray[np.bool_]:
        """Whose weighted draws stand for the exact posterior, shape (simulation,)."""
        return (self.pareto_k < GOOD_K) & (self.ess >= MIN_ESS) & np.isfinite(self.distance)

    @property
    def compared(self) -> Compared:
        """What agreement is learned from."""
        return Compared(self.predictors, np.where(self.good, self.distance, np.nan))

    def summary(self) -> dict[str, Any]:
        """Return what audit.json says of them: how many were weighed, and how many of these have good weights."""
        return {"weighed": self.good.size, "good": int(self.good.sum()), "max_pareto_k": GOOD_K, "min_ess": MIN_ESS}

    @classmethod
    def join(cls, parts: list[Weighed]) -> Weighed:
        """Return all parts as one, in their order."""
        arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("distance", "pareto_k", "ess"))
        return cls({n: np.concatenate([part.predictors[n] for part in parts]) for n in parts[0].predictors}, *arrays)


@dataclass(frozen=True)
class _Comparison(SimulationBlocks[Weighed]):
    """Simulations to be held against their own importance weights."""

    posterior: FrozenPosterior
    config: SurveyConfig
    levels: NDArray[np.float64] | None
    doing: ClassVar[str] = "weighing"

    @cached_property
    def checker(self) -> Checker:
        predictive = max(1, self.config.map.predictive_draws)
        return Checker(self.posterior, SpectrumLikelihood.of_posterior(self.posterior), predictive)

    def work(self, start: int, theta: NDArray[np.float64], flux: NDArray[np.float64]) -> Weighed:
        with one_thread():
            return self._work(start, flux)

    def _work(self, start: int, clean: NDArray[np.float64]) -> Weighed:
        posterior, settings = self.posterior, self.config.map
        noise, prior = posterior.noise, posterior.prior
        columns = noise.columns(clean.shape[1])
        uniform = row_uniforms(self.config.seed, "noise/calibration", start, start + len(clean), columns)
        rows, errors = observe_rows(noise, clean, uniform, settings.min_good_fraction)
        kept = np.flatnonzero((rows.quality & NO_POSTERIOR) == 0)
        known = DrawnRows.of(posterior, rows, kept, settings.draws, is_sorted=False).with_finite_draws()
        flux, good, draws = known.flux, known.good, known.theta
        errors = None if errors is None else errors[:, known.rows]
        extra: dict[str, NDArray[np.floating]] = {}
        if settings.predictive_draws:
            check = self.checker(flux, good, errors, draws)
            extra |= {"feature_distance": check.distance, "predictive_reduced_chi2": check.chi2}
            extra |= {"weight_scatter": check.scatter}
        weighed = self._weighed_draws(flux, draws)
        # A constant changes neither the weights' shape nor what is weighted with them.
        log_weights = log_ratios(posterior, self.checker.likelihood, weighed, flux, good, errors, normalised=False)
        distance, k, ess = _distances(weighed, log_weights)
        if self._weighs_all:
            extra |= {"importance_ess": ess, "importance_pareto_k": k}
        levels = np.asarray(settings.quantiles) if self.levels is None else self.levels
        found = predictors(
            prior,
            settings.quantiles,
            ordered_quantiles(known.ordered, levels, prior),
            np.where(known.outside, int(QualityFlag.OUTSIDE_SIMULATIONS), 0),
            good.sum(axis=1),
            good.shape[1],
            extra,
        )
        return Weighed(found, distance, k, ess)

    @property
    def _weighs_all(self) -> bool:
        return self.config.importance.rows == "all"

    def _weighed_draws(self, flux: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """Draws (n, draw, ndim) to be weighed: as many as in the table, where that has weights, else a few."""
        wanted, there = self.config.importance.draws if self._weighs_all else _DRAWS, draws.shape[1]
        if wanted == there or (wanted < there and not self._weighs_all):
            return np.ascontiguousarray(draws[:, :wanted])
        return self.posterior.sample(flux, wanted)


def _distances(
    theta: NDArray[np.float64], log_weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return distance of the farthest parameter, Pareto k and sample size (n,) of weighted draws; NaN without any."""
    distance, k, ess = np.full((3, len(theta)), np.nan)
    for row in np.flatnonzero(np.isfinite(log_weights.max(axis=1, initial=-np.inf))):
        smoothed, k[row] = smooth_tail(log_weights[row])
        ess[row] = effective_sample_size(log_weights[row])
        distance[row] = weighted_wasserstein_sigma(theta[row], smoothed).max()
    return distance, k, ess


def compare_simulations(
    posterior: FrozenPosterior,
    path: Path,
    mapped: Path,
    config: SurveyConfig,
    *,
    workers: int | None = 0,
    address: str | None = None,
) -> tuple[Weighed, float]:
    """Hold the first simulations of ``calibration.zarr`` against their own importance weights.

    Parameters
    ----------
    posterior : FrozenPosterior
    path : Path
        ``calibration.zarr``. Simulations get the noise that they are calibrated with.
    mapped : Path
        ``posterior.zarr``, whose percentiles may be recalibrated.
    config : SurveyConfig
        ``audit.agreement_simulations`` are taken, as far as there are so many.
    workers, address
        As :func:`~digs_survey.audit.calibration.calibrate.calibrate_posterior` takes them.

    Returns
    -------
    Weighed
        The same on any number of workers.
    float
        Processor time in seconds.
    """
    count = count_simulations(path, config.audit.agreement_simulations, config.audit.calibration_simulations)
    levels = (recorded_recipe(mapped) or {}).get("levels")
    at = None if not levels else np.array([levels[name] for name in posterior.prior.names])
    blocks = _Comparison(path, count, _BLOCK, posterior, config, at)
    parts, used_s = run_blocks(blocks, workers=workers, address=address)
    return Weighed.join(parts), used_s
