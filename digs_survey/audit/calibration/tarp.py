r"""Is the joint posterior right? Expected coverage of regions about random points (TARP).

For each simulation a reference point :math:`\theta_r` is drawn without a look at the truth. The draws of
:math:`q(\theta | x)` that are nearer to it than the truth :math:`\theta^*` are a share :math:`f` of all; it is
the credibility of the ball about :math:`\theta_r` on whose surface the truth lies. If :math:`q` is the
posterior, :math:`f` is uniform, and the expected coverage at a level, the share of simulations with :math:`f`
below it, is that level (Lemos, Coogan et al. 2023, arXiv:2302.03026, algorithm 2). Unlike the ranks of one
parameter at a time, the balls see a wrong correlation.

Distances are measured in the unit cube of the prior, in which the reference points are uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["BAND_LEVEL", "credibility", "tarp_band", "tarp_coverage", "tarp_summary"]

BAND_LEVEL = 0.95
"""How often the curve of a calibrated posterior stays within its band at all levels at once."""


def credibility(theta: ArrayLike, draws: ArrayLike, uniform: ArrayLike) -> NDArray[np.float64]:
    """Credibility of the ball about a random reference point that reaches to the truth.

    Parameters
    ----------
    theta : array_like, shape (simulation, parameter)
        The truth, in the unit cube of the prior.
    draws : array_like, shape (simulation, draw, parameter)
        Draws of the posterior, likewise; all finite.
    uniform : array_like, shape (simulation, parameter + 1)
        Random numbers in (0, 1): the reference points, and the place of the truth between two draws.

    Returns
    -------
    ndarray of float64, shape (simulation,)
        In (0, 1); uniform, and not only on the steps that so many draws have, if the posterior is right.
    """
    truth, sample, random = (np.asarray(x, dtype=float) for x in (theta, draws, uniform))
    reference = random[:, :-1]
    radius = np.square(truth - reference).sum(axis=-1)
    nearer = np.square(sample - reference[:, None]).sum(axis=-1) < radius[:, None]
    return (nearer.sum(axis=1) + random[:, -1]) / (sample.shape[1] + 1)


def tarp_coverage(credible: ArrayLike, levels: Sequence[float]) -> NDArray[np.float64]:
    """Expected coverage (level,): the share of credibilities (simulation,) that are not above each level."""
    ordered = np.sort(np.asarray(credible, dtype=float))
    return np.searchsorted(ordered, np.asarray(levels, dtype=float), side="right") / ordered.size


def tarp_band(simulations: int) -> float:
    """Half-width of the band that holds the whole curve of a calibrated posterior in 95 % of all trials.

    The quantile of Kolmogorov and Smirnov's largest distance between the CDF of so many uniform numbers and the
    diagonal, which is exact for any number of simulations.
    """
    return float(stats.kstwo.ppf(BAND_LEVEL, simulations))


def tarp_summary(credible: NDArray[np.float64], levels: Sequence[float]) -> dict[str, Any] | None:
    """Return the entry ``calibration.tarp`` of audit.json; None if there are no credibilities.

    ``max_deviation`` is the largest distance of the curve from the diagonal, at any level and not only at those
    listed; ``inside`` tells whether it is below ``band``, which is the same as ``pvalue`` above 0.05.
    """
    if credible.size == 0 or not np.isfinite(credible).all():
        return None
    test, band = stats.kstest(credible, "uniform"), tarp_band(credible.size)
    return {
        "levels": [float(level) for level in levels],
        "coverage": tarp_coverage(credible, levels).tolist(),
        "band": band,
        "band_kind": f"simultaneous {BAND_LEVEL:.0%} band of a calibrated posterior (Kolmogorov-Smirnov)",
        "max_deviation": float(test.statistic),
        "pvalue": float(test.pvalue),
        "inside": bool(test.statistic <= band),
    }
