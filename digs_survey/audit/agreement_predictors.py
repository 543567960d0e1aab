"""What the table knows of a row that bears on how far its neural posterior is from the exact one.

Each predictor is written such that more of it is worse. They are read from ``posterior.zarr`` for rows of the catalog,
and made in the same way for simulations (:mod:`~digs_survey.audit.simulated_agreement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag

__all__ = ["PREDICTORS", "predictors", "read_predictors"]

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
_MIN_SHARE = 1e-4
_WORST_K, _MIN_ESS = 1.5, 1.0


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
