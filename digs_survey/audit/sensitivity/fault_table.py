"""A table of what faults would do to a posterior: how many rows they bias, and how many of these get a bit.

Each fault is put into the same simulated rows. A row is biased where the median of a parameter is more than three of
its half 16-84 % widths from the truth and, without the fault, is not. A free line spread does not count: it is there
to keep the other parameters right. A row is flagged where it has POOR_FIT, CALIBRATION_STEP, OUTSIDE_SIMULATIONS or
OUTSIDE_CONDITIONS, as the map would give them, and where the galaxy lies beyond the prior PRIOR_EDGE, which is what
this bit is for. Percentiles are those before any recalibration.

A fault that all rows share may show in no single one. The rows are therefore also taken for a survey, and held against
those without the fault as the audit does (:mod:`~digs_survey.audit.domain.domain_check`): where its verdict is not
"inside", escalation caps the agreement of all rows and marks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from digs_survey.audit.domain.domain_check import OUTSIDE_VERDICTS, ObservedRows, compare_survey, population_of
from digs_survey.audit.sensitivity.simulated_faults import BEYOND_PRIOR, FAULTS, SIGMA, Simulator, Truth, faulty_rows
from digs_survey.config import MapConfig
from digs_survey.importance.predictive_check import Checker
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.infer.rows import infer_rows
from digs_survey.quality import NO_POSTERIOR, QualityFlag

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["FAR", "NO_FAULT", "Sensitivity", "measure_sensitivity", "worst_faults"]

FAR = 3.0
"""Half-widths from the truth beyond which a parameter is biased."""
NO_FAULT = "no fault"
_BITS = int(
    QualityFlag.POOR_FIT
    | QualityFlag.CALIBRATION_STEP
    | QualityFlag.OUTSIDE_SIMULATIONS
    | QualityFlag.OUTSIDE_CONDITIONS
)
_BITS_BEYOND = _BITS | int(QualityFlag.PRIOR_EDGE)
_QUANTILES = (0.16, 0.5, 0.84)
_LEAST_DRAWS = 16
_NAMED = 3
"""Faults that the words name."""


@dataclass(frozen=True)
class Sensitivity:
    """What one fault does.

    Attributes
    ----------
    fault : str
    rows : int
        Simulated rows that have a posterior with and without the fault.
    biased : float or None
        Share of these that the fault biases (for "no fault": that are biased); None where there are no rows.
    flagged : float or None
        Share of all of them that have a bit; None where there are no rows.
    flagged_of_biased : float or None
        Share of the biased ones that have one; None where there are none.
    interval : list of float or None
        95 % of that share (Clopper and Pearson 1934).
    worst : str or None
        Parameter that most biased rows have furthest off.
    verdict : str
        Of the check of a survey whose rows all have the fault.
    """

    fault: str
    rows: int
    biased: float | None
    flagged: float | None
    flagged_of_biased: float | None
    interval: list[float] | None
    worst: str | None
    verdict: str

    @property
    def unnoticed(self) -> float:
        """Share of the rows that are biased and have no bit."""
        return (self.biased or 0.0) * (1 - (self.flagged_of_biased or 0.0))

    def to_dict(self) -> dict[str, object]:
        """Return an entry of audit.json."""
        return asdict(self) | {"unnoticed": self.unnoticed}


def measure_sensitivity(
    posterior: FrozenPosterior,
    settings: MapConfig,
    count: int,
    seed: int,
    names: tuple[str, ...] = FAULTS,
) -> list[Sensitivity]:
    """Put faults into simulated rows, and infer these as the map would.

    Parameters
    ----------
    posterior : FrozenPosterior
        Its own model is simulated, with its own noise.
    settings : MapConfig
        Its draws, min_good_fraction and min_pvalue are used, and its predictive_draws where there are 16 or more (else
        32, since without any nothing would be noticed).
    count : int
        Rows.
    seed : int
    names : tuple of str
        Faults; those that this posterior's model cannot have are left out.

    Returns
    -------
    list of Sensitivity
        The first one is "no fault".
    """
    draws = settings.predictive_draws if settings.predictive_draws >= _LEAST_DRAWS else 32
    plainly = settings.model_copy(update={"quantiles": _QUANTILES, "samples": 0})
    checker = Checker(posterior, SpectrumLikelihood.of_posterior(posterior), draws)
    simulator = Simulator(posterior, checker.likelihood.model, count, seed, settings.min_good_fraction)
    least = _pulls(posterior, checker, simulator.plain, plainly)
    # Halves of the rows without a fault, against each other: the same rows would never differ.
    plain = _spectra(posterior, simulator.plain)
    half = population_of(checker, [plain.take(1, 2)])
    verdict = compare_survey(checker, [plain.take(0, 2)], half, seed).judgement.verdict
    found, simulated = (
        [_sensitivity(NO_FAULT, posterior, least, np.zeros(count), verdict)],
        population_of(checker, [plain]),
    )
    for name, truth in faulty_rows(simulator, names):
        bits = _BITS_BEYOND if name in BEYOND_PRIOR else _BITS
        pulls = _pulls(posterior, checker, truth, plainly, bits)
        verdict = compare_survey(checker, [_spectra(posterior, truth)], simulated, seed).judgement.verdict
        found.append(_sensitivity(name, posterior, pulls, least[0].max(axis=1), verdict))
    return found


def _spectra(posterior: FrozenPosterior, truth: Truth) -> ObservedRows:
    """Rows that have a posterior, as the check of a survey takes them."""
    kept = np.flatnonzero((truth.rows.quality & int(NO_POSTERIOR)) == 0)
    rows = truth.rows.take(kept)
    return ObservedRows(kept, rows.flux, rows.good, posterior.noise.errors_of(rows.flux, rows.ivar, rows.good))


def worst_faults(faults: Sequence[Mapping[str, Any]]) -> str:
    """Say which faults, of the entry ``sensitivity`` of audit.json, would bias most rows without a bit."""
    bad = sorted((one for one in faults if one["fault"] != NO_FAULT and one["unnoticed"]), key=_unnoticed)
    if not bad:
        return "Every simulated row that one of the faults biases gets a quality bit."
    hidden = [one for one in bad if one["verdict"] not in OUTSIDE_VERDICTS]
    words = []
    if hidden:
        words.append(
            f"Rows would be biased without a bit most often by: {_listed(hidden)}. Rule these out by other means."
        )
    if told := [one for one in bad if one["verdict"] in OUTSIDE_VERDICTS]:
        words.append(
            f"Single rows do not show all of these faults, but the check of the survey does where all rows have "
            f"them: {_listed(told)}."
        )
    return " ".join(words)


def _listed(faults: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['fault']} ({one['unnoticed']:.0%} of the rows)" for one in faults[:_NAMED])


def _unnoticed(one: Mapping[str, Any]) -> float:
    return -float(one["unnoticed"])


def _pulls(
    posterior: FrozenPosterior, checker: Checker, truth: Truth, settings: MapConfig, bits: int = _BITS
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Distances of the medians from the truth (row, ndim) in half-widths, NaN without a posterior; who is flagged."""
    found = infer_rows(posterior, truth.rows, settings, checker=checker)
    low, middle, high = np.moveaxis(found.percentiles.astype(float), -1, 0)
    pulls = np.abs(middle - truth.theta) / np.maximum(0.5 * (high - low), 1e-6)
    # A row of which the network gives no finite draws is no biased one: it has no numbers, and its bit.
    pulls[~np.isfinite(pulls) & ((found.quality & int(NO_POSTERIOR)) == 0)[:, None]] = 0.0
    if SIGMA in posterior.prior.names:
        pulls[:, posterior.prior.index(SIGMA)] *= 0
    return pulls, (found.quality & bits) != 0


def _sensitivity(
    name: str,
    posterior: FrozenPosterior,
    found: tuple[NDArray[np.float64], NDArray[np.bool_]],
    before: NDArray[np.float64],
    verdict: str,
) -> Sensitivity:
    pulls, flagged = found
    known = np.isfinite(pulls).all(axis=1) & np.isfinite(before)
    pulls, flagged, before = pulls[known], flagged[known], before[known]
    if not len(pulls):
        return Sensitivity(name, 0, None, None, None, None, None, verdict)
    biased = (pulls.max(axis=1) > FAR) & (before <= FAR)
    number, noticed = int(biased.sum()), int((biased & flagged).sum())
    share = interval = worst = None
    if number:
        share = noticed / number
        low, high = stats.binomtest(noticed, number).proportion_ci(0.95, method="exact")
        interval = [float(low), float(high)]
        furthest = np.bincount(pulls[biased].argmax(axis=1), minlength=posterior.prior.ndim)
        worst = posterior.prior.names[int(furthest.argmax())]
    shares = float(biased.mean()), float(flagged.mean())
    return Sensitivity(name, len(pulls), *shares, share, interval, worst, verdict)
