r"""One verdict over many tests: whether anything shows that the posterior is wrong.

Let :math:`\theta^*` be the truth of a simulation and :math:`\theta_1 \ldots \theta_S` draws of its posterior. If the
posterior is right, all of them are exchangeable, so that the rank of the truth among the draws is uniform for *any*
quantity :math:`f(\theta, x)` (Talts et al. 2018, arXiv:1804.06788), and which quantities are looked at decides which
faults are seen (Modrák et al. 2023, arXiv:2211.02383):

========== =========================================================== ==================================
kind       quantity                                                    sees
========== =========================================================== ==================================
rank       a parameter                                                 shifts and skew
spread     its distance from the posterior's median, by ranks          widths, also where the shift is 0
distance   Mahalanobis distance from the centre of truth and draws     widths in all parameters together
pair       product of two parameters' deviations from that centre      a wrong or missing correlation
region     TARP's balls (:mod:`~digs_survey.audit.calibration.tarp`)               wrong shapes of the joint posterior
========== =========================================================== ==================================

Each is held against the uniform by Kolmogorov and Smirnov's test. The smallest p-value times the number of tests
(Bonferroni) is below :data:`SIGNIFICANCE` for at most that share of all right posteriors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import ndtri

__all__ = ["SIGNIFICANCE", "RankTest", "departures", "joint_fractions", "rank_tests", "verdict"]

SIGNIFICANCE = 0.02
"""How often a right posterior is called wrong by any of all tests, at most."""


@dataclass(frozen=True)
class RankTest:
    """One quantity's ranks against the uniform.

    Attributes
    ----------
    kind : {"rank", "spread", "distance", "pair", "region"}
    quantity : str
        The parameter, two of them joined by " x ", or "all".
    statistic : float
        Largest distance between the distribution of ranks and the uniform one.
    pvalue : float
    """

    kind: str
    quantity: str
    statistic: float
    pvalue: float


def joint_fractions(theta: ArrayLike, draws: ArrayLike) -> NDArray[np.float64]:
    """Ranks of the truth as fractions in (0, 1) for the quantities that join parameters.

    Parameters
    ----------
    theta : array_like, shape (simulation, parameter)
        The truth; finite.
    draws : array_like, shape (simulation, draw, parameter)
        Finite; more draws than parameters.

    Returns
    -------
    ndarray of float64, shape (simulation, 1 + pairs)
        The distance, then each pair in the order of :func:`itertools.combinations`.
    """
    truth, sample = np.asarray(theta, dtype=float), np.asarray(draws, dtype=float)
    # The truth is one of those that the centre and the scatter are taken from, or it would not be exchangeable.
    everyone = np.concatenate([truth[:, None], sample], axis=1)
    count, ndim = everyone.shape[1:]
    deviation = everyone - everyone.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(deviation).mean(axis=1, keepdims=True))
    deviation /= np.where(scale > 0, scale, 1.0)
    # Where draws coincide in a direction it counts for nothing, instead of without bounds.
    inverse = np.linalg.pinv(deviation.swapaxes(1, 2) @ deviation / count, rcond=1e-10, hermitian=True)
    pairs = combinations(range(ndim), 2)
    quantities = [np.einsum("nsi,nsi->ns", deviation @ inverse, deviation)]
    quantities += [deviation[..., i] * deviation[..., j] for i, j in pairs]
    below = [(q[:, 1:] < q[:, :1]).sum(axis=1) for q in quantities]
    return (np.stack(below, axis=1) + 0.5) / count


def rank_tests(
    fraction: NDArray[np.float64], joint: NDArray[np.float64], credibility: NDArray[np.float64], names: Sequence[str]
) -> list[RankTest]:
    """Hold every quantity against the uniform.

    Parameters
    ----------
    fraction : ndarray, shape (simulation, parameter)
        Ranks of the truth in each parameter, as fractions in (0, 1).
    joint : ndarray, shape (simulation, 1 + pairs)
        From :func:`joint_fractions`.
    credibility : ndarray, shape (simulation,)
        Of TARP's balls; left out where it is not known.
    names : sequence of str
    """
    columns = [("rank", name, column) for name, column in zip(names, fraction.T, strict=True)]
    columns += [("spread", name, np.abs(2 * column - 1)) for _, name, column in columns]
    labels = [" x ".join(pair) for pair in combinations(names, 2)]
    # A single parameter's distance is its spread.
    if labels:
        columns += [("distance", "all", joint[:, 0])]
        columns += [("pair", label, column) for label, column in zip(labels, joint.T[1:], strict=True)]
    if np.isfinite(credibility).all():
        columns += [("region", "all", credibility)]
    found = [(kind, quantity, stats.kstest(column, "uniform")) for kind, quantity, column in columns]
    return [RankTest(kind, quantity, float(test.statistic), float(test.pvalue)) for kind, quantity, test in found]


def verdict(tests: Sequence[RankTest]) -> tuple[float, list[RankTest]]:
    """Return the corrected p-value of all tests, and those that say by themselves that the posterior is wrong."""
    corrected = min(1.0, len(tests) * min(test.pvalue for test in tests))
    return corrected, [test for test in tests if len(tests) * test.pvalue <= SIGNIFICANCE]


def departures(fraction: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """How far each parameter's posterior is off, from the ranks of the truth, with standard errors.

    Ranks become normal deviates; of a posterior that is the exact one but for a shift and a factor on its width, those
    are both known from their mean and their scatter.

    Parameters
    ----------
    fraction : ndarray, shape (simulation, parameter)
        Ranks as fractions in (0, 1).

    Returns
    -------
    dict of str to ndarray, shape (parameter,)
        ``shift_sigma``: the posterior less the exact one, in exact standard deviations. ``width_factor``: its width
        over the exact one. Both with ``..._error``, the standard error (of a normal distribution). NaN for fewer than
        two simulations.
    """
    count = len(fraction)
    if count < 2:
        unknown = np.full(fraction.shape[1], np.nan)
        return dict.fromkeys(("shift_sigma", "shift_sigma_error", "width_factor", "width_factor_error"), unknown)
    deviates = ndtri(fraction)
    factor = 1 / deviates.std(axis=0, ddof=1)
    # A truth at z of the exact posterior is at (z - shift) / factor of ours.
    shift = -deviates.mean(axis=0) * factor
    return {
        "shift_sigma": shift,
        "shift_sigma_error": np.sqrt(1 + 0.5 * shift**2) / np.sqrt(count),
        "width_factor": factor,
        "width_factor_error": factor / np.sqrt(2 * count),
    }
