"""Posterior draws of prepared rows, condensed to percentiles and quality bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MapConfig
from digs_survey.importance.predictive_check import Checker, PredictiveCheck
from digs_survey.importance.psis import MIN_ESS, PARETO_K_LIMIT
from digs_survey.importance.weights import Importance, Weigher
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.drawn_rows import DrawnRows
from digs_survey.infer.quantiles import ordered_quantiles, positive_quantiles
from digs_survey.noise.trained_conditions import outside_conditions
from digs_survey.quality import NO_POSTERIOR, QualityFlag

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["RowResult", "infer_rows", "piles_up"]

_BLOCK_ROWS = 64
"""Rows whose draws are held at the same time, so that memory does not grow with the shard."""


@dataclass(frozen=True)
class RowResult:
    """What is known of each row after inference.

    Attributes
    ----------
    percentiles : ndarray of float32, shape (galaxy, parameter, quantile)
        In the parameters' units; NaN for rows without a posterior.
    quality : ndarray of int64, shape (galaxy,)
        Bits of :class:`~digs_survey.quality.QualityFlag`.
    n_good : ndarray of int32, shape (galaxy,)
        Good wavelength elements.
    importance : Importance or None
        Where the draws were weighed.
    derived : ndarray of float32, shape (galaxy, quantity, quantile), or None
        Where derived quantities are wanted; NaN as percentiles.
    samples : ndarray of float32, shape (galaxy, parameter, sample), or None
        Where draws are kept; NaN for rows of which none are.
    check : PredictiveCheck or None
        Where rows were held against spectra of their draws.
    """

    percentiles: NDArray[np.float32]
    quality: NDArray[np.int64]
    n_good: NDArray[np.int32]
    importance: Importance | None = None
    derived: NDArray[np.float32] | None = None
    samples: NDArray[np.float32] | None = None
    check: PredictiveCheck | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what there is, by the names of :mod:`~digs_survey.results.columns`."""
        found: dict[str, NDArray[Any] | None] = {
            "percentiles": self.percentiles,
            "quality": self.quality,
            "n_good": self.n_good,
            "derived": self.derived,
            "samples": self.samples,
        }
        if self.check is not None:
            found |= {
                "feature_distance": self.check.distance,
                "predictive_reduced_chi2": self.check.chi2,
                "predictive_pvalue": self.check.pvalue,
                "weight_scatter": self.check.scatter,
                "velocity_offset": self.check.velocity,
                "velocity_offset_error": self.check.velocity_error,
                "shift_pvalue": self.check.shift_pvalue,
                "step_pvalue": self.check.step_pvalue,
            }
        if self.importance is not None:
            found |= {
                "percentiles_weighted": self.importance.percentiles,
                "importance_ess": self.importance.ess,
                "importance_pareto_k": self.importance.pareto_k,
                "log_evidence": self.importance.log_evidence,
                "log_evidence_error": self.importance.log_evidence_error,
            }
        return {name: values for name, values in found.items() if values is not None}


def piles_up(u: NDArray[np.floating], edge_fraction: float, edge_mass: float) -> NDArray[np.bool_]:
    """Tell which posteriors (n,) have more than ``edge_mass`` of their draws at one edge of the prior.

    Parameters
    ----------
    u : ndarray, shape (n, ndim, draws)
        Draws in the unconstrained coordinates of the prior, the logit of its cumulative distribution.
    edge_fraction : float
        Share of the prior's probability in the strip at each edge.
    edge_mass : float
    """
    low = (u < logit(edge_fraction)).mean(axis=-1)
    high = (u > logit(1 - edge_fraction)).mean(axis=-1)
    return (np.maximum(low, high) > edge_mass).any(axis=-1)


def infer_rows(
    posterior: FrozenPosterior,
    prepared: PreparedRows,
    map_config: MapConfig,
    weigher: Weigher | None = None,
    derive: DerivedQuantities | None = None,
    keep: NDArray[np.bool_] | None = None,
    checker: Checker | None = None,
    levels: NDArray[np.float64] | None = None,
) -> RowResult:
    """Percentiles and quality bits of prepared rows; each row's result depends on that row alone.

    Parameters
    ----------
    posterior : FrozenPosterior
    prepared : PreparedRows
        Rows on the posterior's grid, n in all.
    map_config : MapConfig
        Its draws, quantiles, samples, edge_fraction and edge_mass are used.
    weigher : Weigher, optional
        Of the same posterior, where importance weights are wanted.
    derive : DerivedQuantities, optional
        Of the posterior's model, where derived quantities are wanted.
    keep : ndarray of bool, shape (n,), optional
        Rows whose draws are kept, as far as ``map_config.samples`` asks for any; all, if left out.
    checker : Checker, optional
        Of the same posterior, where rows are to be held against spectra of their draws.
    levels : ndarray, shape (ndim, quantile), optional
        Levels of the draws that are given for ``map_config.quantiles`` of the parameters, from a recalibration.

    Returns
    -------
    RowResult
        Adds PRIOR_EDGE, OUTSIDE_SIMULATIONS, OUTSIDE_CONDITIONS, UNEVEN_WEIGHTS, POOR_FIT and CALIBRATION_STEP to
        the bits of ``prepared``. Rows whose bits say that they have no posterior hold NaN. So do rows so far outside
        the simulations that the network gives no finite draws; they have OUTSIDE_SIMULATIONS.
    """
    size, ndim, quantiles = prepared.quality.size, posterior.prior.ndim, map_config.quantiles
    result = RowResult(
        _nan(size, ndim, len(quantiles)),
        prepared.quality.copy(),
        prepared.n_good,
        None if weigher is None else Importance.unknown(size, ndim, len(weigher.quantiles)),
        None if derive is None else _nan(size, len(derive.names), len(quantiles)),
        _nan(size, ndim, map_config.samples) if map_config.samples else None,
        None if checker is None else PredictiveCheck.unknown(size),
    )
    # Percentiles alone take each parameter by itself, and sorted draws are quicker to make.
    is_sorted = all(part is None for part in (weigher, derive, checker, result.samples))
    with_posterior = np.flatnonzero((result.quality & NO_POSTERIOR) == 0)
    unlike = outside_conditions(posterior.noise, prepared)
    result.quality[with_posterior[unlike[with_posterior]]] |= QualityFlag.OUTSIDE_CONDITIONS
    for start in range(0, with_posterior.size, _BLOCK_ROWS):
        rows = with_posterior[start : start + _BLOCK_ROWS]
        drawn = DrawnRows.of(posterior, prepared, rows, map_config.draws, is_sorted)
        _put_percentiles(result, drawn, map_config, quantiles if levels is None else levels)
        if weigher is not None and result.importance is not None:
            _put_importance(result.importance, result.quality, drawn, weigher)
        known = drawn.with_finite_draws()
        if checker is not None and result.check is not None:
            _put_check(result.check, result.quality, known, checker, map_config.min_pvalue)
        if derive is not None and result.derived is not None:
            result.derived[known.rows] = positive_quantiles(derive(known.theta, known.redshift[:, None]), quantiles)
        if result.samples is not None:
            _put_samples(result.samples, drawn, keep)
    return result


def _put_percentiles(result: RowResult, drawn: DrawnRows, settings: MapConfig, levels: ArrayLike) -> None:
    """Write percentiles, and the bits that draws alone decide."""
    finite, prior = drawn.finite, drawn.posterior.prior
    result.percentiles[drawn.rows[finite]] = ordered_quantiles(drawn.ordered[finite], levels, prior)
    edge = piles_up(drawn.ordered, settings.edge_fraction, settings.edge_mass)
    result.quality[drawn.rows[finite & edge]] |= QualityFlag.PRIOR_EDGE
    result.quality[drawn.rows[~finite | drawn.outside]] |= QualityFlag.OUTSIDE_SIMULATIONS


def _put_importance(importance: Importance, quality: NDArray[np.int64], drawn: DrawnRows, weigher: Weigher) -> None:
    """Write what the importance weights say, and UNEVEN_WEIGHTS."""
    found = weigher(drawn.flux, drawn.good, drawn.errors, drawn.theta)
    importance.put(drawn.rows, found)
    uneven = drawn.finite & ~((found.pareto_k <= PARETO_K_LIMIT) & (found.ess >= MIN_ESS))
    quality[drawn.rows[uneven]] |= QualityFlag.UNEVEN_WEIGHTS


def _put_check(
    check: PredictiveCheck, quality: NDArray[np.int64], known: DrawnRows, checker: Checker, min_pvalue: float
) -> None:
    """Write what the predictive spectra of rows with finite draws say, and its bits."""
    found = checker(known.flux, known.good, known.errors, known.theta)
    check.put(known.rows, found)
    quality[known.rows] |= found.quality(min_pvalue)


def _put_samples(samples: NDArray[np.float32], drawn: DrawnRows, keep: NDArray[np.bool_] | None) -> None:
    """Write evenly thinned draws of the rows of which some are kept."""
    some = drawn.finite if keep is None else drawn.finite & keep[drawn.rows]
    thinned = np.linspace(0, drawn.u.shape[-1] - 1, samples.shape[-1]).round().astype(int)
    theta = drawn.posterior.prior.from_unconstrained(drawn.u[some][..., thinned].transpose(0, 2, 1))
    samples[drawn.rows[some]] = theta.transpose(0, 2, 1)


def _nan(*shape: int) -> NDArray[np.float32]:
    return np.full(shape, np.nan, dtype=np.float32)
