r"""Whether the posterior is right everywhere, or only on average: ranks in bins of what the data tell.

Of an exact posterior the rank of the truth is uniform whatever was observed, so that it is uniform in each bin of any
function of the data: of the posterior's median, which says where in the prior a galaxy seems to lie, or of the
signal-to-noise. A posterior that is too narrow in one bin and too wide in another may look right on average. Bins of
the *truth* are no such test: near an edge of the prior even the exact posterior leans inwards, since a truth at the
edge has all of the other possible values on one side. :func:`strip_summary` shows them for what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from digs_survey.audit.calibration.uniformity import RankTest, departures

__all__ = ["BINS", "STRIPS", "bin_summary", "bin_tests", "split", "strip_summary"]

BINS = 5
"""Bins with the same number of simulations each."""
_FEWEST = 20
"""Simulations in a bin."""
STRIPS = 10
"""Strips of the prior with the same share of it each."""
_LEVEL = 0.68


def split(values: ArrayLike) -> list[NDArray[np.intp]]:
    """Simulations of each bin of a value (simulation,), in increasing order of the bins.

    Empty where the value hardly varies, as S/N does under noise that is a share of the flux, or where there are too
    few simulations.
    """
    known = np.asarray(values, dtype=float)
    if known.size < BINS * _FEWEST or not np.isfinite(known).all() or np.ptp(known) <= 1e-6 * np.abs(known).max():
        return []
    return np.array_split(np.argsort(known, kind="stable"), BINS)


def bin_tests(values: ArrayLike, fraction: ArrayLike, along: str, quantity: str) -> list[RankTest]:
    """Test whether one parameter's ranks are the same in all bins of a value, by Kruskal and Wallis.

    Parameters
    ----------
    values : array_like, shape (simulation,)
        A function of the data.
    fraction : array_like, shape (simulation,)
        The parameter's ranks of the truth, as fractions in (0, 1).
    along : str
        What the value is; the tests are of the kinds "rank by ..." and "spread by ...".
    quantity : str
        The parameter.
    """
    ranks, bins = np.asarray(fraction, dtype=float), split(values)
    if not bins:
        return []
    found = []
    for kind, column in (("rank", ranks), ("spread", np.abs(2 * ranks - 1))):
        groups = [column[members] for members in bins]
        same = np.ptp(column) == 0
        statistic, pvalue = (0.0, 1.0) if same else stats.kruskal(*groups)
        found.append(RankTest(f"{kind} by {along}", quantity, float(statistic), float(pvalue)))
    return found


def bin_summary(values: ArrayLike, fraction: ArrayLike) -> list[dict[str, Any]]:
    """Coverage and departure of one parameter in each bin of a value.

    Takes what :func:`bin_tests` takes. Each entry has ``low`` and ``high``, the range of the value; ``simulations``;
    ``coverage`` of the 68 % interval with ``coverage_error``, the standard error that a right posterior has; and what
    :func:`~digs_survey.audit.calibration.uniformity.departures` gives.
    """
    known, ranks = np.asarray(values, dtype=float), np.asarray(fraction, dtype=float)
    return [
        {
            "low": float(known[members[0]]),
            "high": float(known[members[-1]]),
            "simulations": members.size,
            "coverage": float((np.abs(2 * ranks[members] - 1) <= _LEVEL).mean()),
            "coverage_error": float(np.sqrt(_LEVEL * (1 - _LEVEL) / members.size)),
            **{name: float(value[0]) for name, value in departures(ranks[members, None]).items()},
        }
        for members in split(known)
    ]


def strip_summary(
    position: ArrayLike, pull: ArrayLike, fraction: ArrayLike, again: ArrayLike | None = None
) -> list[dict[str, Any]]:
    """Bias and coverage of one parameter in strips of the prior, by where the truth lies.

    What a user meets who asks for galaxies near an edge of the prior. It is no test, since the exact posterior, too,
    leans inwards there; how far can be told where draws are given that stand for truths, as they may if they are of the
    exact posterior.

    Parameters
    ----------
    position : array_like, shape (simulation,)
        The prior's CDF at the truth.
    pull : array_like, shape (simulation,)
        (median - truth) / half the 16-84 % width; those that are not finite do not count for the bias.
    fraction : array_like, shape (simulation,)
        Ranks of the truth, as fractions in (0, 1).
    again : array_like, shape (3, draw), optional
        The three of draws that stand for truths.

    Returns
    -------
    list of dict
        One for each strip, from the prior's lower edge on: ``low`` and ``high``, the CDF at its edges; ``simulations``;
        ``bias``, the mean of pull, with its standard error ``bias_error``; ``coverage`` of the 68 % interval with
        ``coverage_error``, the standard error of a share of 68 %; ``bias_if_exact`` and ``coverage_if_exact``. None
        where too few simulations tell. Empty where the position is not known.
    """
    told = np.array([position, pull, fraction], dtype=float)
    if not (told.size and np.isfinite(told[0]).all()):
        return []
    if_exact = np.empty((3, 0)) if again is None else np.asarray(again, dtype=float)
    found = []
    for (count, bias, error, covered), (_, exact_bias, _, exact_covered), k in zip(
        _strips(told), _strips(if_exact), range(STRIPS), strict=True
    ):
        found.append(
            {
                "low": k / STRIPS,
                "high": (k + 1) / STRIPS,
                "simulations": count,
                "bias": bias,
                "bias_error": error,
                "coverage": covered,
                "coverage_error": None if bias is None else float(np.sqrt(_LEVEL * (1 - _LEVEL) / count)),
                "bias_if_exact": exact_bias,
                "coverage_if_exact": exact_covered,
            }
        )
    return found


def _strips(told: NDArray[np.float64]) -> list[tuple[int, float | None, float | None, float | None]]:
    """Count, mean pull, its standard error, and coverage in each strip, of position, pull and fraction (3, n)."""
    strip = np.clip((told[0] * STRIPS).astype(int), 0, STRIPS - 1)
    found: list[tuple[int, float | None, float | None, float | None]] = []
    for k in range(STRIPS):
        _, pull, fraction = told[:, strip == k]
        known = pull[np.isfinite(pull)]
        if known.size < 2:
            found.append((pull.size, None, None, None))
            continue
        covered = float((np.abs(2 * fraction - 1) <= _LEVEL).mean())
        found.append((pull.size, float(known.mean()), float(known.std(ddof=1) / np.sqrt(known.size)), covered))
    return found
