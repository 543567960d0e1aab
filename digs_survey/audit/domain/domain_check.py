r"""Whether the survey as a whole is inside what was simulated.

Three populations are held against spectra of their own posteriors: rows of the catalog, drawn at random; simulations
that the posterior has not seen, drawn from the prior; and replications of the rows, for each of which one draw of the
row's posterior is simulated with the row's own noise and gaps (:math:`x^{rep}` of Gelman, Meng & Stern 1996, Stat.
Sinica 6, 733). The simulations tell what the network was trained for. The replications tell what the rows would look
like if the model were right: a survey is not distributed like the prior, but it should be distributed like these.

Residuals are stacked at rest, where what the model lacks stays in place, and in the observed frame, where the faults of
an instrument do: there with the likeliest calibration of each row, so that what the noise model allows for is no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.special import ndtri

from digs_survey.audit.calibration.calibrate import observe_rows
from digs_survey.audit.calibration.uniformity import SIGNIFICANCE
from digs_survey.audit.domain.misspecification import Excess, discrepancy, distance_excess, share_excess
from digs_survey.audit.domain.stack import (
    CLIP,
    Stack,
    band_ranges,
    departing,
    min_sigma,
    observed_bands,
    observed_ranges,
    ranges,
)
from digs_survey.audit.mcmc.agreement import median_of
from digs_survey.audit.sample import prepare_rows
from digs_survey.catalog import Catalog
from digs_survey.catalog.gaps import fill_flux
from digs_survey.config import SurveyConfig
from digs_survey.identity import RunIdentity
from digs_survey.importance.predictive_check import Checker, judge
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.noise.observation import clean_spectra
from digs_survey.quality import NO_POSTERIOR
from digs_survey.simulate.seeding import row_uniforms, stream_key
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import one_thread

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior
    from digs_survey.noise.model import NoiseModel

__all__ = [
    "OUTSIDE_VERDICTS",
    "POPULATIONS",
    "DomainCheck",
    "Judgement",
    "Population",
    "ObservedRows",
    "check_survey",
    "choose_rows",
    "compare_survey",
    "population_of",
]

POPULATIONS = ("survey", "simulations", "replicated")
OUTSIDE_VERDICTS = {
    "partly outside": "partly outside of what was simulated",
    "not described": "NOT described by the model",
}
"""Verdicts on a survey that is not inside what was simulated, and their words."""
_BLOCK = 256
"""Rows whose draws are held at the same time."""
_MIN_EXCESS = 0.01
"""Share of the rows by which tails must differ: fewer are the business of each row's quality bits."""


@dataclass(frozen=True)
class ObservedRows:
    """Rows as the posterior takes them.

    Attributes
    ----------
    rows : ndarray of int64, shape (row,)
        Numbers that decide the random numbers of their replications.
    flux : ndarray, shape (row, column)
    good : ndarray of bool, shape (row, wavelength)
    errors : ndarray, shape (terms, row, wavelength), or None
    """

    rows: NDArray[np.int64]

    flux: NDArray[np.float64]
    good: NDArray[np.bool_]
    errors: NDArray[np.float64] | None

    def take(self, first: int, every: int) -> ObservedRows:
        """Return every so many rows, from the first one on."""
        some = slice(first, None, every)
        errors = None if self.errors is None else self.errors[:, some]
        return ObservedRows(self.rows[some], self.flux[some], self.good[some], errors)


@dataclass(frozen=True)
class Population:
    """Spectra held against spectra of their posteriors; NaN throughout where a posterior is not finite.

    Attributes
    ----------
    features : ndarray of float32, shape (row, features)
        Whitened.
    distance, chi2, pvalue : ndarray of float64, shape (row,)
        As :class:`~digs_survey.importance.predictive_check.PredictiveCheck` has them.
    sigma : ndarray of float32, shape (row, wavelength)
        Residual from the median of the predictive spectra in units of the noise about it; NaN where not good.
    percent : ndarray of float32, shape (row, wavelength)
        The same in per cent of that median.
    observed_sigma, observed_percent : ndarray of float32, shape (row, band)
        What is left with the likeliest calibration, in bands of observed wavelength
        (:func:`~digs_survey.audit.domain.stack.observed_bands`); NaN where redshifts are not known.
    """

    features: NDArray[np.float32]
    distance: NDArray[np.float64]
    chi2: NDArray[np.float64]
    pvalue: NDArray[np.float64]
    sigma: NDArray[np.float32]
    percent: NDArray[np.float32]
    observed_sigma: NDArray[np.float32]
    observed_percent: NDArray[np.float32]

    @classmethod
    def of(cls, checker: Checker, block: ObservedRows, theta: NDArray[np.float64]) -> Population:
        """Hold the rows of a block against spectra of draws theta (row, draw, ndim); each row by itself."""
        posterior, noise, flux = checker.posterior, checker.likelihood.noise, block.flux
        chi2, pvalue = np.full((2, len(flux)), np.nan)
        # Of photometry there is no more than its part in chi-square.
        elements = slice(len(posterior.grid))
        sigma, percent, left, left_percent = np.full((4, len(flux), len(posterior.grid)), np.nan, dtype=np.float32)
        redshift = noise.redshift_of(flux)
        with one_thread(), np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for row in np.flatnonzero(np.isfinite(theta).all(axis=(1, 2))):
                good, own = block.good[row], None if block.errors is None else block.errors[:, row]
                spectra = checker.spectra(theta[row], flux[row])
                chi2[row], pvalue[row] = judge(noise.goodness(flux[row], spectra, good, own)[0], int(good.sum()))
                middle = np.median(spectra, axis=0)
                seen, width = np.where(good, noise.spectrum_of(flux[row]), np.nan), noise.sigma(middle, own)
                sigma[row], percent[row] = ((seen - middle) / width)[elements], (100 * (seen / middle - 1))[elements]
                if np.isfinite(redshift[row]):
                    calibrated = noise.calibrated(flux[row], middle)
                    left[row] = ((seen - calibrated) / width)[elements]
                    left_percent[row] = (100 * (seen / calibrated - 1))[elements]
        observed = observed_bands(left, left_percent, np.nan_to_num(redshift), posterior.grid)
        features, distance = posterior.features(flux), posterior.feature_distance(flux)
        return cls(features, distance, chi2, pvalue, sigma, percent, *observed)

    @classmethod
    def join(cls, parts: list[Population], grid: WavelengthGrid) -> Population:
        """Return all parts as one; empty where there are none."""
        if not parts:
            empty, none = np.zeros((0, len(grid)), dtype=np.float32), np.zeros(0)
            return cls(empty, none, none, none, empty, empty, *observed_bands(empty, empty, none, grid))
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @property
    def residuals(self) -> NDArray[np.float32]:
        """``sigma`` as whole vectors: cut as in a stack, 0 where not good, NaN for rows that are not known."""
        whole = np.clip(np.where(np.isfinite(self.sigma), self.sigma, 0), -CLIP, CLIP)
        whole[~self.known] = np.nan
        return whole

    @property
    def known(self) -> NDArray[np.bool_]:
        """Rows (row,) whose distance and p-value are finite."""
        return np.isfinite(self.distance) & np.isfinite(self.pvalue)


@dataclass(frozen=True)
class Judgement:
    """What a survey's rows say of it as a whole; see :meth:`DomainCheck.summary`.

    Attributes
    ----------
    shares : dict of str to Excess
        Of rows that stand out; empty where nothing is known.
    reasons : list of str
        Those that are too large.
    departures, observed_departures : list of dict
        Where stacked residuals depart, at rest and in the observed frame.
    """

    shares: dict[str, Excess]
    reasons: list[str]
    departures: list[dict[str, Any]]
    observed_departures: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """One of "inside", "unknown" and those of :data:`OUTSIDE_VERDICTS`."""
        if self.departures or self.observed_departures:
            return "not described"
        return "partly outside" if self.reasons else "inside" if self.shares else "unknown"


@dataclass(frozen=True)
class DomainCheck:
    """A survey's rows beside simulations and replications of the rows.

    Attributes
    ----------
    rows : ndarray of int64, shape (row,)
        Rows of the catalog, increasing.
    populations : dict of str to Population
        By the names of :data:`POPULATIONS`.
    stacks : dict of str to Stack
    grid : WavelengthGrid
    seed : int
    """

    rows: NDArray[np.int64]
    populations: dict[str, Population]
    stacks: dict[str, Stack]
    grid: WavelengthGrid
    seed: int

    @cached_property
    def judgement(self) -> Judgement:
        """What is told of the survey; its verdict is "unknown" where no row, or no simulation, has numbers."""
        survey, simulated = self.populations["survey"], self.populations["simulations"]
        some, known = survey.known, simulated.known
        if not some.any() or not known.any():
            return Judgement({}, [], [], [])
        far, near = survey.distance[some], simulated.distance[known]
        p, q = survey.pvalue[some], simulated.pvalue[known]
        shares = {f"distance_above_{100 * level:g}%": distance_excess(far, near, level) for level in (0.99, 0.999)}
        shares |= {f"pvalue_below_{small:g}": share_excess(p < small, q < small, small) for small in (0.01, 1e-5)}
        shares["pvalue_above_0.99"] = share_excess(p > 0.99, q > 0.99, 0.99)
        reasons = [
            name
            for name, one in shares.items()
            if one.pvalue < SIGNIFICANCE / len(shares) and one.share - one.simulations_share > _MIN_EXCESS
        ]
        stack, *references = (self.stacks[name] for name in POPULATIONS)
        populations = [self.populations[name] for name in POPULATIONS]
        residuals = [(one.sigma, one.percent) for one in populations]
        found = ranges(stack, references, self.grid.edges) or band_ranges(residuals[0], residuals[1:], self.grid)
        bands, *others = ((one.observed_sigma, one.observed_percent) for one in populations)
        return Judgement(shares, reasons, found, observed_ranges(bands, others))

    def summary(self) -> dict[str, Any]:
        """Return the entry ``domain`` of audit.json.

        ``verdict`` is "inside"; "partly outside" where more rows than simulations have features far from the training
        set or spectra that their posteriors do not explain (``reasons``); "not described" where the stacked residuals
        of some elements depart, or, if of none, those of some broad bands (``departures``; ``min_sigma`` is what would
        have been seen in the median element), or of some bands in the observed frame (``observed_departures``);
        "unknown" where there are no rows. At most 2 % of the surveys that are simulations are called anything but
        inside. ``misspecification`` is not part of it: "features" compares with the simulations, and is rejected for
        any survey that is not distributed like the prior; "residuals" compares with the replications, whatever galaxies
        there are.
        """
        survey, simulated = self.populations["survey"], self.populations["simulations"]
        some, known, judged = survey.known, simulated.known, self.judgement
        told: dict[str, Any] = {
            "rows": int(some.sum()),
            "excluded_nan": int((~some).sum()),
            "simulations": int(known.sum()),
            "simulations_excluded_nan": int((~known).sum()),
            "verdict": judged.verdict,
            "reasons": judged.reasons,
            "departures": judged.departures,
            "observed_departures": judged.observed_departures,
        }
        if judged.verdict == "unknown":
            return told
        tests = {
            "features": discrepancy(survey.features, simulated.features, self.seed),
            "residuals": discrepancy(survey.residuals, self.populations["replicated"].residuals, self.seed),
        }
        return told | {
            "shares": {name: one.to_dict() for name, one in judged.shares.items()},
            "min_sigma": min_sigma(self.stacks["survey"], [self.stacks[name] for name in POPULATIONS[1:]]),
            "distance_median": {name: median_of(one.distance) for name, one in self.populations.items()},
            "chi2_median": {name: median_of(one.chi2) for name, one in self.populations.items()},
            "misspecification": {name: one and one.to_dict() for name, one in tests.items()},
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the group ``survey`` of audit.zarr."""
        survey, simulated = self.populations["survey"], self.populations["simulations"]
        arrays: dict[str, NDArray[Any]] = {"row": self.rows, "population": np.array(POPULATIONS)}
        for name in ("feature_distance", "chi2", "pvalue"):
            arrays[name] = getattr(survey, name.removeprefix("feature_"))
            arrays[f"simulated_{name}"] = getattr(simulated, name.removeprefix("feature_"))
        stacks = [self.stacks[name] for name in POPULATIONS]
        arrays["residual_errors"] = np.array([departing(stacks[0], one)[1] for one in stacks[1:]])
        for name in ("count", "sigma", "error", "percent", "percent_error"):
            key = "count" if name == "count" else "residual_sigma_error" if name == "error" else f"residual_{name}"
            arrays[key] = np.array([getattr(stack, name) for stack in stacks])
        return arrays


def check_survey(
    posterior: FrozenPosterior, identity: RunIdentity, catalog: Catalog, run_dir: Path, config: SurveyConfig
) -> DomainCheck:
    """Hold ``config.audit.checked_galaxies`` rows and as many simulations against their posteriors.

    The result depends on the rows and the run's seed alone. Draws and spectra are held one block at a time; across
    blocks 8 bytes are kept for each element of each spectrum.

    Parameters
    ----------
    posterior : FrozenPosterior
        Its card's model predicts, with its noise.
    identity : RunIdentity
        Of the run.
    catalog : Catalog
        On the posterior's grid.
    run_dir : Path
        Holds ``posterior.zarr`` of this catalog and ``calibration.zarr``.
    config : SurveyConfig
    """
    checker = Checker(posterior, SpectrumLikelihood.of_posterior(posterior), config.audit.predictive_draws)
    result: Any = zarr.open_group(str(run_dir / "posterior.zarr"), mode="r")
    rows = choose_rows(result["quality"][:], config.audit.checked_galaxies, config.seed)
    count = min(config.audit.checked_galaxies, config.audit.calibration_simulations)
    survey = _survey_blocks(catalog, rows, identity, config)
    simulated = _simulated_blocks(run_dir / "calibration.zarr", count, posterior.noise, config)
    return compare_survey(checker, survey, population_of(checker, simulated), config.seed)


def compare_survey(checker: Checker, survey: Iterable[ObservedRows], simulations: Population, seed: int) -> DomainCheck:
    """Hold blocks of a survey's spectra against spectra of their posteriors, and both against simulations."""
    posterior, rows, seen, again = checker.posterior, [np.zeros(0, dtype=np.int64)], [], []
    for block in survey:
        rows.append(block.rows)
        theta = posterior.sample(block.flux, checker.draws)
        seen.append(Population.of(checker, block, theta))
        again.append(population_of(checker, [_replicate(checker, block, theta, seed)]))
    joined = (Population.join(parts, posterior.grid) for parts in (seen, [simulations], again))
    populations = dict(zip(POPULATIONS, joined, strict=True))
    stacks = {name: Stack.of(one.sigma, one.percent) for name, one in populations.items()}
    return DomainCheck(np.concatenate(rows), populations, stacks, posterior.grid, seed)


def population_of(checker: Checker, blocks: Iterable[ObservedRows]) -> Population:
    """Hold blocks of spectra against spectra of their posteriors."""
    sample, draws = checker.posterior.sample, checker.draws
    parts = [Population.of(checker, block, sample(block.flux, draws)) for block in blocks]
    return Population.join(parts, checker.posterior.grid)


def choose_rows(quality: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw rows (n,) that have a posterior, without replacement, each with the same chance; increasing."""
    eligible = np.flatnonzero((quality & NO_POSTERIOR) == 0)
    rng = np.random.default_rng(stream_key(seed, "inside/rows"))
    return np.sort(rng.choice(eligible, min(count, eligible.size), replace=False))


def _survey_blocks(
    catalog: Catalog, rows: NDArray[np.int64], identity: RunIdentity, config: SurveyConfig
) -> Iterator[ObservedRows]:
    for start in range(0, rows.size, _BLOCK):
        some = rows[start : start + _BLOCK]
        seen = prepare_rows(catalog, some.tolist(), identity, config)
        yield ObservedRows(some, seen.flux, seen.good, identity.noise.errors_of(seen.flux, seen.ivar, seen.good))


def _simulated_blocks(path: Path, count: int, noise: NoiseModel, config: SurveyConfig) -> Iterator[ObservedRows]:
    """Observe the first simulations as the calibration does; those that get no posterior are left out."""
    group: Any = zarr.open_group(str(path), mode="r")
    count = min(count, group["flux"].shape[0])
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        clean = np.asarray(clean_spectra(group)[start:stop], dtype=float)
        uniform = row_uniforms(config.seed, "noise/calibration", start, stop, noise.columns(clean.shape[1]))
        rows, errors = observe_rows(noise, clean, uniform, config.map.min_good_fraction)
        kept = (rows.quality & NO_POSTERIOR) == 0
        own = None if errors is None else errors[:, kept]
        yield ObservedRows(start + np.flatnonzero(kept), rows.flux[kept], rows.good[kept], own)


def _replicate(checker: Checker, block: ObservedRows, theta: NDArray[np.float64], seed: int) -> ObservedRows:
    """Simulate a draw of each row's posterior with the row's noise and gaps; rows without finite draws stay."""
    noise, elements = checker.likelihood.noise, block.good.shape[1]
    columns = 1 + noise.normals(elements)
    flux, good = block.flux.copy(), block.good.copy()
    with one_thread():
        for i in np.flatnonzero(np.isfinite(theta).all(axis=(1, 2))):
            row = int(block.rows[i])
            uniform = row_uniforms(seed, "inside/replicated", row, row + 1, columns)[0]
            clean = checker.likelihood.spectra(theta[i, [int(uniform[0] * theta.shape[1])]], flux[i])
            own = None if block.errors is None else block.errors[:, [i]]
            flux[i] = noise.redraw(clean, flux[[i]], ndtri(uniform[None, 1:]), own)[0]
    if noise.config.by_row:
        return replace(block, flux=flux, good=good)
    if not noise.keeps_negative:
        good &= flux > 0
    return replace(block, flux=fill_flux(flux, good, linear=noise.keeps_negative), good=good)
