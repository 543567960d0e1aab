r"""Is the posterior right? Ranks, coverage and recovery on simulations that it never saw.

Let :math:`\theta^*` be drawn from the prior, :math:`x` simulated from it, and :math:`\theta_1 \ldots
\theta_S` drawn from :math:`q(\theta | x)`. If :math:`q` is the posterior, the rank of :math:`\theta^*`
among the draws is uniform on :math:`0 \ldots S` for each parameter (simulation-based calibration: Talts
et al. 2018, arXiv:1804.06788), and its central interval of level :math:`c` holds :math:`\theta^*` in a
share :math:`c` of all simulations. Coverage follows from ranks alone: the interval of level :math:`c`
holds the truth where :math:`|F - 1/2| \le c/2`, with :math:`F = (\mathrm{rank} + 1/2)/(S + 1)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from digs_survey.errors import RunDirectoryError
from digs_survey.infer.percentiles import draw_quantiles
from digs_survey.simulate.seeding import row_uniforms

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior
    from digs_survey.simulate.noise import NoiseModel

__all__ = [
    "LEVELS",
    "REPORTED_LEVELS",
    "Calibration",
    "calibrate",
    "calibrate_posterior",
    "coverage_band",
    "rank_histogram",
]

REPORTED_LEVELS = (0.5, 0.68, 0.9, 0.95)
LEVELS = tuple(sorted({round(0.05 * i, 2) for i in range(1, 20)} | set(REPORTED_LEVELS)))
"""Levels of the central intervals whose coverage is measured."""
_RECOVERY = (0.16, 0.5, 0.84)
_BLOCK = 256


@dataclass(frozen=True)
class Calibration:
    """Calibration of a posterior; simulations with a NaN have been taken out and counted.

    Attributes
    ----------
    theta : ndarray of float64, shape (simulation, parameter)
        The truth.
    ranks : ndarray of int32, shape (simulation, parameter)
        Number of draws below the truth, 0 to ``draws``.
    percentiles : ndarray of float64, shape (simulation, parameter, quantile)
        The posterior's, at the quantiles that were asked for.
    chi : ndarray of float64, shape (simulation, parameter)
        (median - truth) / half the 16-84 % width.
    draws : int
        Draws for each simulation.
    excluded : int
        Simulations left out because the truth or a draw was not finite.
    """

    theta: NDArray[np.float64]
    ranks: NDArray[np.int32]
    percentiles: NDArray[np.float64]
    chi: NDArray[np.float64]
    draws: int
    excluded: int

    @property
    def fraction(self) -> NDArray[np.float64]:
        """Ranks as fractions in (0, 1), shape (simulation, parameter): uniform if calibrated."""
        return (self.ranks + 0.5) / (self.draws + 1)

    def coverage(self, levels: Sequence[float] = LEVELS) -> NDArray[np.float64]:
        """Share (level, parameter) of truths inside the central interval of each level."""
        distance = 2 * np.abs(self.fraction - 0.5)
        return np.stack([(distance <= level).mean(axis=0) for level in levels])

    def ks_pvalues(self) -> NDArray[np.float64]:
        """p-value (parameter,) of the Kolmogorov-Smirnov test of the ranks against the uniform."""
        return np.array([stats.kstest(column, "uniform").pvalue for column in self.fraction.T])

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the ``calibration`` entry of audit.json; None where no simulation is left."""
        known = len(self.theta) > 0

        def named(values: NDArray[np.float64]) -> dict[str, float | None]:
            plain = (float(value) if np.isfinite(value) else None for value in values)
            return dict(zip(names, plain, strict=True))

        nothing = np.full(len(names), np.nan)
        coverage = self.coverage(REPORTED_LEVELS) if known else np.stack([nothing] * len(REPORTED_LEVELS))
        return {
            "simulations": len(self.theta),
            "excluded_nan": self.excluded,
            "draws": self.draws,
            "ks_pvalue": named(self.ks_pvalues() if known else nothing),
            "coverage": {f"{q:g}": named(row) for q, row in zip(REPORTED_LEVELS, coverage, strict=True)},
            "chi_mean": named(self.chi.mean(axis=0) if known else nothing),
            "chi_std": named(self.chi.std(axis=0) if known else nothing),
        }


def calibrate(theta: ArrayLike, draws: ArrayLike, quantiles: Sequence[float] = _RECOVERY) -> Calibration:
    """Hold truths against draws of their posteriors.

    Parameters
    ----------
    theta : array_like, shape (simulation, parameter)
        The truth of each simulation.
    draws : array_like, shape (simulation, draw, parameter)
        Draws from the posterior of each simulation.
    quantiles : sequence of float
        At which percentiles are kept.
    """
    truth, sample = np.asarray(theta, dtype=float), np.asarray(draws, dtype=float)
    finite = np.isfinite(truth).all(axis=1) & np.isfinite(sample).all(axis=(1, 2))
    truth, sample = truth[finite], sample[finite]
    low, middle, high = np.moveaxis(draw_quantiles(sample, _RECOVERY), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        chi = (middle - truth) / (0.5 * (high - low))
    return Calibration(
        theta=truth,
        ranks=(sample < truth[:, None, :]).sum(axis=1).astype(np.int32),
        percentiles=draw_quantiles(sample, tuple(quantiles)),
        chi=chi,
        draws=sample.shape[1],
        excluded=int((~finite).sum()),
    )


def calibrate_posterior(
    posterior: FrozenPosterior,
    path: Path,
    noise: NoiseModel,
    seed: int,
    draws: int,
    quantiles: Sequence[float] = _RECOVERY,
    limit: int | None = None,
) -> Calibration:
    """Calibrate a frozen posterior on simulations on disk, a block of rows at a time.

    The noise of a simulation depends on the run's seed and its row alone.

    Parameters
    ----------
    posterior : FrozenPosterior
    path : Path
        ``calibration.zarr``: theta and noiseless flux, drawn independently of the training set.
    noise : NoiseModel
        From which each simulation gets one draw.
    seed : int
        The run's seed.
    draws : int
        Posterior draws for each simulation.
    quantiles : sequence of float
        At which percentiles are kept.
    limit : int, optional
        Use the first rows only.
    """
    arrays = dict(zarr.open_group(str(path), mode="r").arrays())
    if not {"theta", "flux"} <= set(arrays):
        raise RunDirectoryError(f"{path}: expected arrays theta and flux, found {sorted(arrays)}; simulate it again")
    theta, flux = arrays["theta"], arrays["flux"]
    count = theta.shape[0] if limit is None else min(limit, theta.shape[0])
    if count == 0:
        raise RunDirectoryError(f"{path}: expected at least one simulation, found none; simulate it again")
    parts = []
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        clean = np.asarray(flux[start:stop], dtype=float)
        random = row_uniforms(seed, "noise/calibration", start, stop, noise.columns(clean.shape[1]))
        noisy = noise.from_uniform(clean, random)
        truth = np.asarray(theta[start:stop], dtype=float)
        parts.append(calibrate(truth, posterior.sample(noisy, draws), quantiles))
    return Calibration(
        theta=np.concatenate([part.theta for part in parts]),
        ranks=np.concatenate([part.ranks for part in parts]),
        percentiles=np.concatenate([part.percentiles for part in parts]),
        chi=np.concatenate([part.chi for part in parts]),
        draws=draws,
        excluded=sum(part.excluded for part in parts),
    )


def rank_histogram(
    ranks: ArrayLike, draws: int, bins: int = 20, confidence: float = 0.95
) -> tuple[NDArray[np.int64], tuple[float, float]]:
    """Histogram of ranks, and the band in which each bar of a uniform histogram lies.

    Parameters
    ----------
    ranks : array_like of int, shape (simulation, parameter)
    draws : int
        The largest possible rank.
    bins : int
        Bars of equal width over (0, 1); at most ``draws + 1`` of them make sense.
    confidence : float
        Of the binomial band, for each bar on its own.

    Returns
    -------
    counts : ndarray of int64, shape (parameter, bins)
    band : (low, high)
    """
    fraction = (np.asarray(ranks) + 0.5) / (draws + 1)
    edges = np.linspace(0, 1, bins + 1)
    counts = np.stack([np.histogram(column, edges)[0] for column in fraction.T])
    low, high = stats.binom.interval(confidence, len(fraction), 1 / bins)
    return counts, (float(low), float(high))


def coverage_band(
    simulations: int, levels: Sequence[float] = LEVELS, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Band (low, high), each (level,), in which the coverage of a calibrated posterior lies at each level."""
    low, high = stats.binom.interval(confidence, simulations, np.asarray(levels))
    return low / simulations, high / simulations
