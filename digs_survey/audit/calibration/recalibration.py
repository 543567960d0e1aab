r"""Levels at which a posterior's percentiles hold the share of truths that they name, learned on simulations.

Let :math:`F` be the share of a posterior's draws below the truth. If the posterior is right :math:`F` is uniform; if
not, its p-quantile over simulations, t, is the level at which the posterior's own quantile has a share p of the truths
below it: the percentile p is then given as the posterior's quantile at t. With the k-th of n ordered values taken at
p = k / (n + 1) this holds in expectation for a new simulation, whatever the posterior is (Vovk, Gammerman & Shafer
2005, Algorithmic Learning in a Random World, on conformal prediction).

It corrects each parameter on average over the prior: a posterior that is too narrow in one place and too wide in
another stays so. Draws stay as they are, so that joint regions and what is derived from draws are not corrected. No
level holds a truth that lies beyond all draws.

A posterior that is shown the errors of each row was trained for more conditions than a survey has. Its levels are
learned on simulations with the errors, gaps and redshifts of the rows that are mapped, treated as the map treats them
(:func:`~digs_survey.noise.donor_rows.noise_of_rows`): the average is then one over the survey's rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.audit.calibration.calibrate import calibrate_model
from digs_survey.audit.calibration.calibration import Calibration
from digs_survey.catalog import Catalog
from digs_survey.config import SurveyConfig
from digs_survey.noise.donor_rows import noise_of_rows
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.row_noise import RowNoise
from digs_survey.sps.arrays import one_thread

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = [
    "central_coverage",
    "corrected_levels",
    "coverage_told",
    "cross_validated_coverage",
    "recalibrate",
    "shares_below",
    "survey_conditions",
]

_FOLDS = 5


def shares_below(calibration: Calibration) -> NDArray[np.float64]:
    """Share (simulation, parameter) of the draws below the truth; beyond 0 and 1 where it lies beyond all draws."""
    ranks = calibration.ranks
    return np.where(ranks == 0, -1.0, np.where(ranks == calibration.draws, 2.0, calibration.fraction))


def corrected_levels(fraction: ArrayLike, quantiles: Sequence[float]) -> NDArray[np.float64]:
    """Levels (parameter, quantile) of the posterior that hold the shares ``quantiles`` of truths.

    Parameters
    ----------
    fraction : array_like, shape (simulation, parameter)
        From :func:`shares_below`.
    quantiles : sequence of float
        Between 0 and 1.
    """
    return np.clip(np.quantile(np.asarray(fraction, dtype=float), quantiles, axis=0, method="weibull").T, 0, 1)


def central_coverage(fraction: ArrayLike, levels: ArrayLike) -> NDArray[np.float64]:
    """Share (parameter, interval) of truths between each pair of opposite quantiles, the outermost first.

    Parameters
    ----------
    fraction : array_like, shape (simulation, parameter)
    levels : array_like, shape (parameter, quantile)
        Increasing.
    """
    share, level = np.asarray(fraction, dtype=float), np.asarray(levels, dtype=float)
    pairs = level.shape[1] // 2
    inside = [(level[:, k] <= share) & (share <= level[:, -1 - k]) for k in range(pairs)]
    return np.stack([one.mean(axis=0) for one in inside], axis=-1)


def cross_validated_coverage(fraction: ArrayLike, quantiles: Sequence[float]) -> NDArray[np.float64]:
    """Coverage (parameter, interval) with levels learned on four fifths of the simulations, of the fifth left out."""
    share = np.asarray(fraction, dtype=float)
    fold = np.arange(len(share)) % _FOLDS
    found = [central_coverage(share[fold == k], corrected_levels(share[fold != k], quantiles)) for k in range(_FOLDS)]
    return np.average(found, axis=0, weights=np.bincount(fold))


def recalibrate(
    posterior: FrozenPosterior, config: SurveyConfig, catalog: Catalog | None = None
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Learn the levels of ``config.map.quantiles`` on ``config.map.recalibrate`` simulations of their own.

    They are apart from those of the training set and of the audit, so that the audit is a test of them.

    Parameters
    ----------
    posterior : FrozenPosterior
    config : SurveyConfig
    catalog : Catalog, optional
        That is mapped; needed with row noise.

    Returns
    -------
    levels : dict of str to list of float
        For each parameter.
    told : dict
        ``simulations``, ``intervals`` (the nominal shares of pairs of opposite quantiles), and for each parameter
        ``coverage_before`` and, cross-validated, ``coverage_after``.

    Raises
    ------
    ConfigError
        With row noise, if no row of the catalog can be used.
    """
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/recalibrate".encode()).digest()[:8], "little") >> 1
    settings = config.map
    quantiles, names = settings.quantiles, posterior.prior.names
    # The levels are part of what a map is resumed by: the same to the bit on any number of cores.
    with one_thread():
        simulated = calibrate_model(
            posterior,
            settings.recalibrate,
            seed,
            draws=settings.draws,
            min_good_fraction=settings.min_good_fraction,
            noise=survey_conditions(posterior, config, catalog),
        )
        fraction = shares_below(simulated)
    levels = corrected_levels(fraction, quantiles)
    after = cross_validated_coverage(fraction, quantiles)
    return dict(zip(names, levels.tolist(), strict=True)), coverage_told(fraction, quantiles, names, after)


def survey_conditions(posterior: FrozenPosterior, config: SurveyConfig, catalog: Catalog | None) -> NoiseModel:
    """Return a posterior's noise, under the conditions of the catalog's rows where it is shown these."""
    noise = posterior.noise
    if not isinstance(noise, RowNoise):
        return noise
    if catalog is None:
        raise ValueError("expected a catalog, whose errors, gaps and redshifts row noise is recalibrated for")
    return noise_of_rows(noise, posterior.grid, posterior.model.zred, catalog, config.map, config.seed)


def coverage_told(
    fraction: NDArray[np.float64], quantiles: Sequence[float], names: Sequence[str], after: NDArray[np.float64]
) -> dict[str, Any]:
    """Return what a manifest and audit.json tell of a recalibration; see :func:`recalibrate`.

    Parameters
    ----------
    fraction : ndarray, shape (simulation, parameter)
        From :func:`shares_below`.
    quantiles : sequence of float
    names : sequence of str
        Of the parameters.
    after : ndarray, shape (parameter, interval)
        Coverage of the recalibrated intervals.
    """
    before = central_coverage(fraction, np.broadcast_to(quantiles, (len(names), len(quantiles))))
    return {
        "simulations": len(fraction),
        "intervals": [quantiles[-1 - k] - quantiles[k] for k in range(len(quantiles) // 2)],
        "coverage_before": dict(zip(names, before.tolist(), strict=True)),
        "coverage_after": dict(zip(names, after.tolist(), strict=True)),
    }
