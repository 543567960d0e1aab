r"""Is the posterior right? Ranks, coverage and recovery on simulations that it never saw.

Let :math:`\theta^*` be drawn from the prior, :math:`x` simulated from it, and :math:`\theta_1 \ldots
\theta_S` drawn from :math:`q(\theta | x)`. If :math:`q` is the posterior, the rank of :math:`\theta^*`
among the draws is uniform on :math:`0 \ldots S` for each parameter (simulation-based calibration: Talts
et al. 2018, arXiv:1804.06788), and its central interval of level :math:`c` holds :math:`\theta^*` in a
share :math:`c` of all simulations. Coverage follows from ranks alone: the interval of level :math:`c`
holds the truth where :math:`|F - 1/2| \le c/2`, with :math:`F = (\mathrm{rank} + 1/2)/(S + 1)`.
:mod:`~digs_survey.audit.calibration.uniformity` makes one verdict of ranks of many kinds, and
:mod:`~digs_survey.audit.calibration.conditional` looks for places where the posterior is wrong though it is right on
average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from digs_survey.audit.calibration.conditional import bin_summary, bin_tests, strip_summary
from digs_survey.audit.calibration.tarp import credibility, tarp_summary
from digs_survey.audit.calibration.uniformity import (
    SIGNIFICANCE,
    RankTest,
    departures,
    joint_fractions,
    rank_tests,
    verdict,
)
from digs_survey.infer.quantiles import draw_quantiles

if TYPE_CHECKING:
    from digs_survey.prior import Prior

__all__ = [
    "LEVELS",
    "RANKS_SIGNIFICANCE",
    "RECOVERY",
    "REPORTED_LEVELS",
    "Calibration",
    "calibrate",
]

REPORTED_LEVELS = (0.5, 0.68, 0.9, 0.95)
LEVELS = tuple(sorted({round(0.05 * i, 2) for i in range(1, 20)} | set(REPORTED_LEVELS)))
"""Levels of the central intervals whose coverage is measured."""
RANKS_SIGNIFICANCE = 0.01
"""How often the ranks of a posterior that is right in all parameters are called uneven."""
RECOVERY = (0.16, 0.5, 0.84)
_BY_SIMULATION = (
    "theta",
    "ranks",
    "percentiles",
    "pull",
    "half_width",
    "credibility",
    "joint",
    "place",
    "snr",
    "redshift",
    "good_share",
    "position",
    "again",
    "outside",
)


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
    pull : ndarray of float64, shape (simulation, parameter)
        (median - truth) / half the 16-84 % width; not finite where that is zero.
    half_width : ndarray of float64, shape (simulation, parameter)
        Half the 16-84 % width of the posterior, in the parameter's unit.
    credibility : ndarray of float64, shape (simulation,)
        Of the balls of :mod:`~digs_survey.audit.calibration.tarp`; NaN if there were no reference points.
    joint : ndarray of float64, shape (simulation, 1 + pairs)
        From :func:`~digs_survey.audit.calibration.uniformity.joint_fractions`.
    place : ndarray of float64, shape (simulation, parameter)
        Median of the draws and the truth together: where the posterior is, as far as the rank of the truth does not
        depend on it.
    snr : ndarray of float64, shape (simulation,)
        Median signal-to-noise of the noisy spectrum; NaN if there was none.
    redshift, good_share : ndarray of float64, shape (simulation,)
        Redshift, and share of the elements that have data, of simulations that differ in them; else NaN.
    position : ndarray of float64, shape (simulation, parameter)
        The prior's CDF at the truth; NaN if no prior was given.
    again : ndarray of float64, shape (simulation, draw, 3, parameter)
        Position, pull and rank (as a fraction) that some draws would have if they were the truth, which a draw of the
        exact posterior might well be.
    outside : ndarray of float64, shape (simulation,)
        Share of the draws that the prior does not allow; NaN if no prior was given.
    draws : int
        Draws for each simulation.
    excluded : int
        Simulations left out because the truth or a draw was not finite.
    without_posterior : int
        Simulations left out because a row of a catalog like them would get no posterior.
    core_s : float
        Processor time that it took.
    planted : mapping of str to float
        For each fault that was planted in the posterior, the corrected p-value of all tests with it.
    """

    theta: NDArray[np.float64]
    ranks: NDArray[np.int32]
    percentiles: NDArray[np.float64]
    pull: NDArray[np.float64]
    half_width: NDArray[np.float64]
    credibility: NDArray[np.float64]
    joint: NDArray[np.float64]
    place: NDArray[np.float64]
    snr: NDArray[np.float64]
    redshift: NDArray[np.float64]
    good_share: NDArray[np.float64]
    position: NDArray[np.float64]
    again: NDArray[np.float64]
    outside: NDArray[np.float64]
    draws: int
    excluded: int
    without_posterior: int = 0
    core_s: float = 0.0
    planted: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence[Calibration]) -> Calibration:
        """Join the simulations of several calibrations with as many draws, in their order."""
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _BY_SIMULATION
        }
        excluded, without = (sum(getattr(part, name) for part in parts) for name in ("excluded", "without_posterior"))
        return cls(**joined, draws=parts[0].draws, excluded=excluded, without_posterior=without)

    @property
    def fraction(self) -> NDArray[np.float64]:
        """Ranks as fractions in (0, 1), shape (simulation, parameter): uniform if calibrated."""
        return (self.ranks + 0.5) / (self.draws + 1)

    def tests(self, names: Sequence[str]) -> list[RankTest]:
        """Every test of the posterior on these simulations: everywhere, and in bins of its median and of S/N.

        Where redshift and share of good elements differ, also in bins of these.
        """
        # Ranks come in steps, where the tests expect a continuous distribution: a place within the step, the same each
        # time, makes it one.
        steps = np.random.default_rng(0).random((len(self.theta), self.ranks.shape[1] + self.joint.shape[1])) - 0.5
        own, joint = np.split(steps / (self.draws + 1), [self.ranks.shape[1]], axis=1)
        fraction = self.fraction + own
        found = rank_tests(fraction, self.joint + joint, self.credibility, names)
        for name, column, place in zip(names, fraction.T, self.place.T, strict=True):
            found += bin_tests(place, column, "median", name)
            for along, values in self._conditions.items():
                found += bin_tests(values, column, along, name)
        return found

    @property
    def _conditions(self) -> dict[str, NDArray[np.float64]]:
        """What simulations (simulation,) were observed like, by the names of the tests in bins of it."""
        return {"S/N": self.snr, "redshift": self.redshift, "share of good elements": self.good_share}

    def coverage(self, levels: Sequence[float] = LEVELS) -> NDArray[np.float64]:
        """Share (level, parameter) of truths inside the central interval of each level."""
        distance = 2 * np.abs(self.fraction - 0.5)
        return np.stack([(distance <= level).mean(axis=0) for level in levels])

    def ks_pvalues(self) -> NDArray[np.float64]:
        """p-value (parameter,) of the Kolmogorov-Smirnov test of the ranks against the uniform."""
        return np.array([stats.kstest(column, "uniform").pvalue for column in self.fraction.T])

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the ``calibration`` entry of audit.json; None where no simulation is left.

        ``ks_pvalue_corrected`` is the smallest p-value of the ranks times the number of parameters (Bonferroni), and
        ``ranks_uniform`` tells whether it is above :data:`RANKS_SIGNIFICANCE`; ``coverage_error`` is the largest
        |coverage - level| over the parameters; ``mean_half_width`` is half of the 16-84 % width. ``verdict`` joins all
        tests (:mod:`~digs_survey.audit.calibration.uniformity`): ``calibrated`` is false for at most ``significance``
        of all right posteriors, and ``found`` names the tests that say so by themselves;
        ``planted`` tells for each fault that was planted whether these simulations would have shown it.
        ``departures`` tells how far the posterior is off, and ``by_median``, ``by_snr``, ``by_redshift`` and
        ``by_good_share`` the same in bins of each parameter's median and of what was observed; ``by_truth`` tells how
        it does in strips of the prior, and ``leakage`` which share of all
        draws lies outside of it.
        """
        known = len(self.theta) > 0

        def named(values: NDArray[np.float64]) -> dict[str, float | None]:
            plain = (float(value) if np.isfinite(value) else None for value in values)
            return dict(zip(names, plain, strict=True))

        nothing = np.full(len(names), np.nan)
        # Draws that all lie on one edge of the prior have no width to measure by.
        pull = np.ma.masked_invalid(self.pull)
        coverage = self.coverage(REPORTED_LEVELS) if known else np.stack([nothing] * len(REPORTED_LEVELS))
        pvalues = self.ks_pvalues() if known else nothing
        corrected = min(1.0, len(names) * float(pvalues.min()))
        error = np.abs(coverage - np.array(REPORTED_LEVELS)[:, None]).max(axis=1)
        return {
            "simulations": len(self.theta),
            "excluded_nan": self.excluded,
            "without_posterior": self.without_posterior,
            "draws": self.draws,
            "ks_pvalue": named(pvalues),
            "ks_pvalue_corrected": corrected if known else None,
            "ranks_uniform": corrected > RANKS_SIGNIFICANCE if known else None,
            "coverage": {f"{q:g}": named(row) for q, row in zip(REPORTED_LEVELS, coverage, strict=True)},
            "coverage_error": {
                f"{q:g}": float(worst) if known else None for q, worst in zip(REPORTED_LEVELS, error, strict=True)
            },
            "mean_half_width": named(self.half_width.mean(axis=0) if known else nothing),
            "pull_mean": named(pull.mean(axis=0).filled(np.nan)),
            "pull_std": named(pull.std(axis=0).filled(np.nan)),
            "tarp": tarp_summary(self.credibility, LEVELS),
            "verdict": self._verdict(names) if len(self.theta) > 1 else None,
            "departures": {name: named(values) for name, values in departures(self.fraction).items()},
            "by_median": {
                name: bin_summary(place, column)
                for name, place, column in zip(names, self.place.T, self.fraction.T, strict=True)
            },
            **{
                key: {name: bin_summary(values, column) for name, column in zip(names, self.fraction.T, strict=True)}
                for key, values in zip(
                    ("by_snr", "by_redshift", "by_good_share"), self._conditions.values(), strict=True
                )
            },
            "by_truth": {
                name: strip_summary(position, pull, column, again)
                for name, position, pull, column, again in zip(
                    names,
                    self.position.T,
                    self.pull.T,
                    self.fraction.T,
                    self.again.reshape(-1, 3, len(names)).transpose(2, 1, 0),
                    strict=True,
                )
            },
            "leakage": float(self.outside.mean()) if known and np.isfinite(self.outside).all() else None,
        }

    def _verdict(self, names: Sequence[str]) -> dict[str, Any]:
        tests = self.tests(names)
        pvalue, found = verdict(tests)
        return {
            "calibrated": not found,
            "pvalue": pvalue,
            "significance": SIGNIFICANCE,
            "tests": len(tests),
            "planted": {name: pvalue <= SIGNIFICANCE for name, pvalue in self.planted.items()},
            "found": [asdict(test) for test in sorted(found, key=lambda test: test.pvalue)],
        }


def calibrate(
    theta: ArrayLike,
    draws: ArrayLike,
    quantiles: Sequence[float] = RECOVERY,
    prior: Prior | None = None,
    uniform: ArrayLike | None = None,
    snr: ArrayLike | None = None,
    again: ArrayLike | None = None,
    redshift: ArrayLike | None = None,
    good_share: ArrayLike | None = None,
) -> Calibration:
    """Hold truths against draws of their posteriors.

    Parameters
    ----------
    theta : array_like, shape (simulation, parameter)
        The truth of each simulation.
    draws : array_like, shape (simulation, draw, parameter)
        Draws from the posterior of each simulation.
    quantiles : sequence of float
        At which percentiles are kept.
    prior : Prior, optional
    uniform : array_like, shape (simulation, parameter + 1), optional
        Random numbers of the reference points in the prior's unit cube, as
        :func:`~digs_survey.audit.calibration.tarp.credibility` takes them.
    snr : array_like, shape (simulation,), optional
        Signal-to-noise of each simulation.
    again : array_like, shape (simulation, n), optional
        With a prior: random numbers that choose draws to be looked at as truths.
    redshift, good_share : array_like, shape (simulation,), optional
        Of simulations that differ in them.
    """
    truth, sample = np.asarray(theta, dtype=float), np.asarray(draws, dtype=float)
    finite = np.isfinite(truth).all(axis=1) & np.isfinite(sample).all(axis=(1, 2))
    truth, sample = truth[finite], sample[finite]
    percentiles = draw_quantiles(sample, (*RECOVERY, *quantiles))
    low, middle, high = np.moveaxis(percentiles[..., : len(RECOVERY)], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pull = (middle - truth) / (0.5 * (high - low))
    credible, outside, position = np.full(len(truth), np.nan), np.full(len(truth), np.nan), np.full(truth.shape, np.nan)
    if prior is not None:
        position, cube = prior.cdf(truth), prior.cdf(sample)
        outside = ((cube < 0) | (cube > 1)).any(axis=-1).mean(axis=1)
        if uniform is not None:
            credible = credibility(position, cube, np.asarray(uniform)[finite])
    retold = np.empty((len(truth), 0, 3, truth.shape[1]))
    if prior is not None and again is not None:
        chosen = (np.asarray(again, dtype=float)[finite] * sample.shape[1]).astype(int)
        picked = np.take_along_axis(sample, chosen[..., None], axis=1)
        below = np.stack([(sample < one[:, None]).sum(axis=1) for one in picked.swapaxes(0, 1)], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            own_chi = (middle[:, None] - picked) / (0.5 * (high - low))[:, None]
        retold = np.stack([prior.cdf(picked), own_chi, (below + 0.5) / sample.shape[1]], axis=2)
    return Calibration(
        theta=truth,
        ranks=(sample < truth[:, None, :]).sum(axis=1).astype(np.int32),
        percentiles=percentiles[..., len(RECOVERY) :],
        pull=pull,
        half_width=0.5 * (high - low),
        credibility=credible,
        joint=joint_fractions(truth, sample),
        place=np.median(np.concatenate([truth[:, None], sample], axis=1), axis=1),
        snr=_known(snr, finite),
        redshift=_known(redshift, finite),
        good_share=_known(good_share, finite),
        position=position,
        again=retold,
        outside=outside,
        draws=sample.shape[1],
        excluded=int((~finite).sum()),
    )


def _known(values: ArrayLike | None, finite: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values of the simulations that count; NaN where there are none."""
    return np.full(int(finite.sum()), np.nan) if values is None else np.asarray(values, dtype=float)[finite]
