r"""Agreement: how likely the neural posterior of a row agrees with the exact posterior of the same model.

It does not say that the model is right. A posterior may agree with the exact one of a model that does not describe
the galaxy.

Two kinds of spectra show how far the neural posterior is from the exact one: simulations whose draws have good
importance weights, and audited rows whose chains converged. Both give the same measure, the disagreement: the
Wasserstein distance of the farthest parameter, in half the 16-84 % width of the exact posterior. Its logarithm is
modelled as a linear function of what the table has for all rows
(:data:`~digs_survey.audit.agreement_predictors.PREDICTORS`). Coefficients are not negative, so that agreement never
increases with a predictor, and they are shrunk (ridge) by as much as cross-validation likes best. With the scatter s
of held-out spectra about their prediction y,

.. math:: \mathrm{agreement} = \Phi\left(\frac{\ln t - y}{s}\right)

is the chance of a disagreement below the tolerance t.

Rows of a survey may disagree more than simulations with the same predictors. The mean excess of the audited rows over
the prediction, shrunk towards zero while they are few, is added to y for all rows; it is never negative.

What agreement is worth is measured on held-out spectra: the area under the ROC curve for telling those beyond the
tolerance from the others, and the rank correlation, for both kinds together and for the audited rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import nnls

__all__ = ["MIN_ROWS", "AgreementModel", "Compared", "fit_agreement"]

MIN_ROWS = 20
"""Spectra of both kinds below which nothing is learned from them."""
_FOLDS = 10
_PENALTIES = np.logspace(-1, 3, 5)
_PRIOR_ROWS = 5
"""Audited rows that an excess of zero counts as."""
_RESAMPLED = 1_000
_COLUMNS = ("centre", "scale", "coefficient")


@dataclass(frozen=True)
class Compared:
    """Spectra whose neural posteriors were held against exact ones.

    Attributes
    ----------
    predictors : mapping of str to ndarray, shape (row,)
        From :func:`~digs_survey.audit.agreement_predictors.predictors`.
    disagreement : ndarray of float64, shape (row,)
        NaN where the exact posterior is not known.
    """

    predictors: Mapping[str, NDArray[np.float64]]
    disagreement: NDArray[np.float64]

    def known(self, names: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return predictors (row, predictor) and ln disagreement (row,) of the rows that have all of them."""
        values = np.stack([np.asarray(self.predictors[name], dtype=float) for name in names], axis=-1)
        distance = np.asarray(self.disagreement, dtype=float)
        some = np.isfinite(values).all(axis=-1) & np.isfinite(distance) & (distance > 0)
        return values[some], np.log(distance[some])


@dataclass(frozen=True)
class AgreementModel:
    """Agreement as a function of predictors.

    Attributes
    ----------
    names : tuple of str
        Of :data:`~digs_survey.audit.agreement_predictors.PREDICTORS`.
    centre, scale, coefficient : ndarray of float64, shape (predictor,)
        Of ``intercept + coefficient @ (predictor - centre) / scale``, the expected ln of the disagreement.
    intercept, scatter : float
        ``scatter`` is that of held-out spectra.
    excess : float
        Of rows of the survey over simulations with the same predictors, in ln of the disagreement; not negative.
    tolerance : float
        In half the 16-84 % width of the exact posterior.
    """

    names: tuple[str, ...]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    coefficient: NDArray[np.float64]
    intercept: float
    scatter: float
    excess: float
    tolerance: float

    def log_disagreement(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the expected ln of the disagreement (row,) for predictors (row, predictor) of the survey's rows."""
        scaled = (np.asarray(values, dtype=float) - self.centre) / self.scale
        return self.intercept + self.excess + scaled @ self.coefficient

    def agreement(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the agreement (row,), 0 to 1, for predictors (row, predictor); NaN where one is NaN."""
        return _chance(self.log_disagreement(values), self.scatter, self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """Return the model as JSON holds it."""
        columns = {name: getattr(self, name).tolist() for name in _COLUMNS}
        return {
            "predictors": {name: {key: columns[key][i] for key in _COLUMNS} for i, name in enumerate(self.names)},
            "intercept": self.intercept,
            "scatter": self.scatter,
            "excess": self.excess,
            "tolerance_sigma": self.tolerance,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AgreementModel:
        """Read what :meth:`to_dict` returned."""
        parts = {key: np.array([one[key] for one in data["predictors"].values()]) for key in _COLUMNS}
        return cls(
            tuple(data["predictors"]),
            **parts,
            intercept=data["intercept"],
            scatter=data["scatter"],
            excess=data["excess"],
            tolerance=data["tolerance_sigma"],
        )


def fit_agreement(
    audited: Compared, simulated: Compared | None, tolerance: float, seed: int
) -> tuple[AgreementModel | None, dict[str, Any]]:
    """Learn agreement from audited rows and simulations, and measure on held-out ones what it is worth.

    Parameters
    ----------
    audited : Compared
        Held against emcee; NaN where no chain converged.
    simulated : Compared or None
        Held against their own importance weights; NaN where these are not good. They have the predictors of the rows.
    tolerance : float
        What is no disagreement yet.
    seed : int

    Returns
    -------
    AgreementModel or None
        None where fewer than :data:`MIN_ROWS` spectra are known.
    dict
        The entry ``row_agreement`` of audit.json: ``rows`` that were learned from, of which ``audited_rows`` and
        ``simulations``; ``beyond_tolerance`` of them; the model; and of held-out spectra what :func:`_worth` says, for
        all of them and, in ``audited``, for the audited rows alone (None where there are none). ``held_out`` has the
        expected and the found disagreement of each, and which of them are audited.
    """
    names = tuple(audited.predictors)
    groups = [one.known(names) for one in (audited, simulated) if one is not None]
    values, target = np.concatenate([one[0] for one in groups]), np.concatenate([one[1] for one in groups])
    is_row = np.arange(len(values)) < len(groups[0][0])
    told: dict[str, Any] = {
        "rows": len(values),
        "audited_rows": int(is_row.sum()),
        "simulations": int((~is_row).sum()),
        "beyond_tolerance": int((target > np.log(tolerance)).sum()),
        "tolerance_sigma": tolerance,
    }
    if len(values) < MIN_ROWS:
        return None, told | {"model": None}
    expected, score = np.empty(len(values)), np.empty(len(values))
    for learned, held in _folds(len(values), _FOLDS, seed):
        part = _Fit.of(values[learned], target[learned], is_row[learned], seed)
        # The means of those learned from are low where the held-out ones are high: they must not rank them.
        score[held] = (values[held] - part.centre) / part.scale @ part.coefficient
        expected[held] = part.intercept + score[held] + part.excess * is_row[held]
    whole = _Fit.of(values, target, is_row, seed)
    scatter = float(np.sqrt(np.mean((target - expected) ** 2)))
    model = AgreementModel(names, **vars(whole), scatter=scatter, tolerance=tolerance)
    chance = _chance(expected, model.scatter, tolerance)
    return model, told | {
        **_worth(target, score, chance, tolerance, seed),
        "audited": _worth(target[is_row], score[is_row], chance[is_row], tolerance, seed) if is_row.any() else None,
        "held_out": {
            "expected": np.exp(expected).round(4).tolist(),
            "found": np.exp(target).round(4).tolist(),
            "audited": is_row.tolist(),
        },
        "model": model.to_dict(),
    }


@dataclass(frozen=True)
class _Fit:
    """The ridge, and the audited rows' excess over it; attributes as of :class:`AgreementModel`."""

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    coefficient: NDArray[np.float64]
    intercept: float
    excess: float

    @classmethod
    def of(cls, values: NDArray[np.float64], target: NDArray[np.float64], is_row: NDArray[np.bool_], seed: int) -> _Fit:
        """Fit ln disagreement (row,) to predictors (row, predictor)."""
        errors = np.zeros(len(_PENALTIES))
        for learned, held in _folds(len(values), _FOLDS // 2, seed):
            scaled, centre, scale = _standardised(values[learned])
            mean = target[learned].mean()
            for k, penalty in enumerate(_PENALTIES):
                coefficient = _ridge(scaled, target[learned] - mean, penalty)
                errors[k] += np.square(target[held] - mean - (values[held] - centre) / scale @ coefficient).sum()
        scaled, centre, scale = _standardised(values)
        coefficient = _ridge(scaled, target - target.mean(), _PENALTIES[np.argmin(errors)])
        over = (target - target.mean() - scaled @ coefficient)[is_row]
        excess = max(0.0, float(over.sum() / (over.size + _PRIOR_ROWS)))
        return cls(centre, scale, coefficient, float(target.mean()), excess)


def _folds(count: int, folds: int, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to learn from, and rows that are held out, of each fold of a random order."""
    order = np.random.default_rng([seed, *b"folds"]).permutation(count)
    for held in np.array_split(order, folds):
        yield np.setdiff1d(order, held), held


def _standardised(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return values (row, predictor) with mean 0 and deviation 1, their means and deviations; 1 where these are 0."""
    centre, scale = values.mean(axis=0), values.std(axis=0)
    # A predictor that is the same everywhere leaves the last digits of its mean.
    scale = np.where(scale > 1e-12 * np.maximum(1, np.abs(centre)), scale, 1.0)
    return (values - centre) / scale, centre, scale


def _ridge(scaled: NDArray[np.float64], target: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Coefficients (predictor,), none negative, of the least squares with a penalty on their squares."""
    root = np.linalg.cholesky(scaled.T @ scaled + penalty * np.eye(scaled.shape[1]))
    return nnls(root.T, np.linalg.solve(root, scaled.T @ target))[0]


def _chance(log_disagreement: NDArray[np.float64], scatter: float, tolerance: float) -> NDArray[np.float64]:
    """Chance (row,) of a disagreement below the tolerance, for its expected ln and the scatter about it."""
    return stats.norm.cdf((np.log(tolerance) - log_disagreement) / scatter)


def _worth(
    target: NDArray[np.float64],
    score: NDArray[np.float64],
    chance: NDArray[np.float64],
    tolerance: float,
    seed: int,
) -> dict[str, Any]:
    """Say what agreement is worth on held-out spectra, of known ln disagreement (row,).

    ``auc`` with ``auc_95`` (bootstrap; None unless there are spectra on both sides of the tolerance),
    ``rank_correlation`` with its p-value (None where no predictor means anything, and of fewer than three), and
    ``mean_agreement`` beside the ``share_within`` that it should be.
    """
    beyond = target > np.log(tolerance)
    auc, limits = _auc(beyond, score, seed)
    worth: dict[str, Any] = {"auc": auc, "auc_95": limits, "rank_correlation": None, "rank_correlation_pvalue": None}
    if target.size > 2 and np.ptp(score) > 0:
        found = stats.spearmanr(score, target)
        worth |= {"rank_correlation": float(found.statistic), "rank_correlation_pvalue": float(found.pvalue)}
    return worth | {"mean_agreement": float(chance.mean()), "share_within": float(1 - beyond.mean())}


def _auc(beyond: NDArray[np.bool_], score: NDArray[np.float64], seed: int) -> tuple[float | None, list[float] | None]:
    """Area under the ROC curve, and its 95 % interval over resampled rows; None if rows are of one kind."""
    if beyond.all() or not beyond.any():
        return None, None
    rng = np.random.default_rng([seed, *b"auc"])
    picks = rng.integers(beyond.size, size=(_RESAMPLED, beyond.size))
    areas = [_area(beyond[pick], score[pick]) for pick in picks if 0 < beyond[pick].sum() < pick.size]
    return _area(beyond, score), np.quantile(areas, (0.025, 0.975)).tolist()


def _area(beyond: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Chance that a row beyond the tolerance has a higher score than one within; ties count half (Mann-Whitney)."""
    count = int(beyond.sum())
    above = stats.rankdata(score)[beyond].sum() - count * (count + 1) / 2
    return float(above / (count * (beyond.size - count)))
