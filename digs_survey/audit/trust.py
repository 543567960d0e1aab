r"""A trust number for every row, learned on the audited ones: the chance that emcee would agree with its posterior.

For audited rows the disagreement is known: the Wasserstein distance of the parameter that is farthest from emcee's, in
emcee's half-width. Its logarithm is modelled as a linear function of quantities that the table has for all
rows, each written such that more of it is worse (:data:`PREDICTORS`); coefficients are not negative, so that no row
is trusted more for being stranger, and shrunk (ridge), by as much as cross-validation likes best. With the scatter s of
held-out rows about their prediction y,

.. math:: \mathrm{trust} = \Phi\left(\frac{\ln t - y}{s}\right)

is the chance of a disagreement below the tolerance t. Whether trust knows anything is measured on held-out rows
too: the area under the ROC curve for telling rows beyond the tolerance from the others, and the rank correlation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from digs_survey.parameters import Prior
from digs_survey.quality import QualityFlag

__all__ = ["PREDICTORS", "MIN_ROWS", "TrustModel", "predictors", "fit_trust", "read_predictors"]

PREDICTORS = {
    "narrow": "mean of -ln of the 16-84 % widths, as shares of the prior",
    "edge": "-ln of the median's distance from the nearest edge of the prior, as a share of it",
    "lost": "share of elements that are not good",
    "outside": "1 with the bit OUTSIDE_SIMULATIONS",
    "distance": "ln of feature_distance",
    "chi2": "ln of predictive_reduced_chi2",
    "weights": "ln of weight_scatter",
    "ess": "-ln of importance_ess",
    "pareto_k": "importance_pareto_k",
}
"""What a row is judged by, as far as its table has it."""
MIN_ROWS = 20
"""Audited rows below which nothing is learned from them."""
_MIN_SHARE = 1e-4
_WORST_K, _MIN_ESS = 1.5, 1.0
_FOLDS = 10
_PENALTIES = np.logspace(-1, 3, 5)
_RESAMPLED = 1_000
_COLUMNS = ("centre", "scale", "coefficient")


@dataclass(frozen=True)
class TrustModel:
    """Trust as a function of predictors.

    Attributes
    ----------
    names : tuple of str
        Of :data:`PREDICTORS`.
    centre, scale, coefficient : ndarray of float64, shape (predictor,)
        Of ``intercept + coefficient @ (predictor - centre) / scale``, the expected ln of the disagreement.
    intercept, scatter : float
        ``scatter`` is that of held-out rows.
    tolerance : float
        In emcee's half 16-84 % width.
    """

    names: tuple[str, ...]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    coefficient: NDArray[np.float64]
    intercept: float
    scatter: float
    tolerance: float

    def log_disagreement(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the expected ln of the disagreement (row,) for predictors (row, predictor)."""
        scaled = (np.asarray(values, dtype=float) - self.centre) / self.scale
        return self.intercept + scaled @ self.coefficient

    def trust(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the trust (row,), 0 to 1, for predictors (row, predictor); NaN where one is NaN."""
        return stats.norm.cdf((np.log(self.tolerance) - self.log_disagreement(values)) / self.scatter)

    def to_dict(self) -> dict[str, Any]:
        """Return the model as JSON holds it."""
        columns = {name: getattr(self, name).tolist() for name in _COLUMNS}
        return {
            "predictors": {name: {key: columns[key][i] for key in _COLUMNS} for i, name in enumerate(self.names)},
            "intercept": self.intercept,
            "scatter": self.scatter,
            "tolerance_sigma": self.tolerance,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrustModel:
        """Read what :meth:`to_dict` returned."""
        parts = {key: np.array([one[key] for one in data["predictors"].values()]) for key in _COLUMNS}
        return cls(
            tuple(data["predictors"]),
            **parts,
            intercept=data["intercept"],
            scatter=data["scatter"],
            tolerance=data["tolerance_sigma"],
        )


def predictors(
    prior: Prior,
    quantiles: Sequence[float],
    percentiles: NDArray[np.floating],
    quality: NDArray[np.integer],
    n_good: NDArray[np.integer],
    elements: int,
    extra: Mapping[str, NDArray[np.floating]],
) -> dict[str, NDArray[np.float64]]:
    """Return what rows are judged by, (row,) each; NaN for rows without a posterior.

    Parameters
    ----------
    prior : Prior
    quantiles : sequence of float
    percentiles : ndarray, shape (row, parameter, quantile)
    quality, n_good : ndarray, shape (row,)
    elements : int
        Of the grid.
    extra : mapping of str to ndarray, shape (row,)
        Of feature_distance, predictive_reduced_chi2, weight_scatter, importance_ess and importance_pareto_k those
        that there are. Draws that could not be weighed count as the worst.
    """
    low, middle, high = (int(np.argmin(np.abs(np.asarray(quantiles) - q))) for q in (0.16, 0.5, 0.84))
    place = prior.cdf(np.moveaxis(np.asarray(percentiles, dtype=float), -1, 0))
    width = np.maximum(place[high] - place[low], _MIN_SHARE)
    reach = np.maximum(np.minimum(place[middle], 1 - place[middle]), _MIN_SHARE)
    found = {
        "narrow": -np.log(width).mean(axis=-1),
        "edge": -np.log(reach.min(axis=-1)),
        "lost": 1 - np.asarray(n_good, dtype=float) / elements,
        "outside": ((np.asarray(quality) & int(QualityFlag.OUTSIDE_SIMULATIONS)) != 0).astype(float),
    }
    given = {name: np.asarray(values, dtype=float) for name, values in extra.items()}
    with np.errstate(divide="ignore"):
        if "feature_distance" in given:
            found["distance"] = np.log(given["feature_distance"])
        if "predictive_reduced_chi2" in given:
            found["chi2"] = np.log(given["predictive_reduced_chi2"])
        if "weight_scatter" in given:
            found["weights"] = np.log(np.maximum(given["weight_scatter"], _MIN_SHARE))
    if "importance_ess" in given:
        found["ess"] = -np.log(np.nan_to_num(given["importance_ess"], nan=_MIN_ESS))
    if "importance_pareto_k" in given:
        found["pareto_k"] = np.nan_to_num(given["importance_pareto_k"], nan=_WORST_K, posinf=_WORST_K)
    return found


def read_predictors(result: Any, rows: Any, prior: Prior, elements: int) -> dict[str, NDArray[np.float64]]:
    """Return :func:`predictors` of some rows (a slice, or increasing numbers) of an open ``posterior.zarr``."""
    at = rows if isinstance(rows, slice) else np.asarray(rows)

    def read(name: str) -> NDArray[Any]:
        array = result[name]
        return array[at] if isinstance(at, slice) else array.oindex[at]

    names = ("feature_distance", "predictive_reduced_chi2", "weight_scatter", "importance_ess", "importance_pareto_k")
    return predictors(
        prior,
        result["quantile"][:].tolist(),
        read("percentiles"),
        read("quality"),
        read("n_good"),
        elements,
        {name: read(name) for name in names if name in result},
    )


def fit_trust(
    found: Mapping[str, NDArray[np.float64]], disagreement: ArrayLike, tolerance: float, seed: int
) -> tuple[TrustModel | None, dict[str, Any]]:
    """Learn trust from audited rows, and measure on held-out ones what it is worth.

    Parameters
    ----------
    found : mapping of str to ndarray, shape (row,)
        From :func:`predictors`, of the audited rows.
    disagreement : array_like, shape (row,)
        Of each row's posterior from emcee's; NaN where no chain converged.
    tolerance : float
        What is no disagreement yet.
    seed : int

    Returns
    -------
    TrustModel or None
        None where fewer than :data:`MIN_ROWS` rows are known.
    dict
        The ``trust`` entry of audit.json: ``rows`` that were learned from, ``beyond_tolerance`` of them, the model, and
        for held-out rows ``auc`` with ``auc_95`` (bootstrap; None unless rows of both kinds are known),
        ``rank_correlation`` with its p-value (None where no predictor means anything), ``mean_trust`` beside the
        ``share_within`` that it should be, and ``held_out``: expected and found disagreement of each row.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = tuple(found)
    values = np.stack([found[name] for name in names], axis=-1) if names else np.empty((0, 0))
    known = np.isfinite(values).all(axis=-1) & np.isfinite(disagreement) & (np.asarray(disagreement) > 0)
    values, target = values[known], np.log(np.asarray(disagreement, dtype=float)[known])
    beyond = target > np.log(tolerance)
    told: dict[str, Any] = {
        "rows": len(values),
        "beyond_tolerance": int(beyond.sum()),
        "tolerance_sigma": tolerance,
    }
    if len(values) < MIN_ROWS:
        return None, told | {"model": None}
    folds = KFold(_FOLDS, shuffle=True, random_state=seed % 2**32)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge(positive=True)),
        {"ridge__alpha": _PENALTIES},
        cv=KFold(_FOLDS // 2, shuffle=True, random_state=seed % 2**32),
        scoring="neg_mean_squared_error",
    )
    expected, score = np.empty(len(values)), np.empty(len(values))
    for learned, held in folds.split(values):
        search.fit(values[learned], target[learned])
        expected[held] = search.predict(values[held])
        # The mean of those learned from is low where the held-out ones are high: it must not rank them.
        score[held] = expected[held] - search.predict(values.mean(axis=0, keepdims=True))
    scaler, ridge = search.fit(values, target).best_estimator_
    model = TrustModel(
        names,
        scaler.mean_,
        scaler.scale_,
        ridge.coef_,
        float(ridge.intercept_),
        float(np.sqrt(np.mean((target - expected) ** 2))),
        tolerance,
    )
    told["rank_correlation"] = told["rank_correlation_pvalue"] = None
    if np.ptp(score) > 0:
        correlation = stats.spearmanr(score, target)
        told |= {"rank_correlation": float(correlation.statistic), "rank_correlation_pvalue": float(correlation.pvalue)}
    held_trust = stats.norm.cdf((np.log(tolerance) - expected) / model.scatter)
    auc, limits = _auc(beyond, score, seed)
    return model, told | {
        "auc": auc,
        "auc_95": limits,
        "mean_trust": float(held_trust.mean()),
        "share_within": float(1 - beyond.mean()),
        "held_out": {"expected": np.exp(expected).tolist(), "found": np.exp(target).tolist()},
        "model": model.to_dict(),
    }


def _auc(beyond: NDArray[np.bool_], score: NDArray[np.float64], seed: int) -> tuple[float | None, list[float] | None]:
    """Area under the ROC curve, and its 95 % interval over resampled rows; None if rows are of one kind."""
    from sklearn.metrics import roc_auc_score

    if beyond.all() or not beyond.any():
        return None, None
    rng = np.random.default_rng([seed, *b"auc"])
    picks = rng.integers(beyond.size, size=(_RESAMPLED, beyond.size))
    mixed = [pick for pick in picks if 0 < beyond[pick].sum() < pick.size]
    areas = [roc_auc_score(beyond[pick], score[pick]) for pick in mixed]
    return float(roc_auc_score(beyond, score)), np.quantile(areas, (0.025, 0.975)).tolist()
