"""What holds posteriors against exact ones: importance weights, emcee, and the sample that gets it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from digs_survey.config.types import Count, Fraction, Positive, Section

__all__ = ["AuditConfig", "EscalateConfig", "ImportanceConfig", "MCMCConfig"]


class ImportanceConfig(Section):
    """Importance weights, which hold posterior draws against the exact posterior."""

    rows: Literal["none", "audit", "all"] = "none"
    """For nothing; for the audited rows and some of the calibration simulations; or for every row as well, with
    percentiles of the weighted draws and an evidence."""
    draws: Annotated[int, Field(ge=100)] = 1_000
    """Draws weighed for each row; the map's own where they are as many."""
    simulations: Count = 1_000
    """Calibration simulations that are weighed, at most."""


class MCMCConfig(Section):
    """emcee on the model's spectra with the survey's noise, one galaxy a job."""

    engine: Literal["prospector", "batched"] = "prospector"
    """Whose spectra: Prospector's own, or batches equal to them, some twenty times faster, of which Prospector computes
    a few again. The cost that the neural posterior is compared with is that of the engine."""
    walkers: Count = 32
    """At least two more than twice the parameters: each half proposes from the other's spread in all directions."""
    burn_in: tuple[Count, ...] = (250,)
    """Steps of each burn-in round, discarded."""
    steps: Count = 1_000
    """Steps after which convergence is first judged; the chain is then extended by as many as it lacks."""
    max_steps: Count = 4_000
    autocorrelation_times: Positive = 50.0
    """A chain has converged when it is longer than this many autocorrelation times."""
    starts: tuple[Literal["posterior", "prior"], ...] = ("posterior",)
    """One independent ensemble for each: from draws of the neural posterior, or from the prior. With several, they must
    also agree; the cost that the neural posterior is compared with is that of the first."""
    max_r_hat: Annotated[float, Field(gt=1)] = 1.01
    """Rank-normalised split R-hat (Vehtari et al. 2021) of the ensembles above which they do not agree."""
    timeout_s: Positive = 604_800.0
    """Seconds after which a fit is taken for stalled: its worker is ended, and the fit tried once more. A week, since
    with Prospector's spectra a fit may well take a day."""
    moves: Literal["stretch", "kde", "neural"] = "kde"
    """emcee's stretch move (its default, the paper's); proposals from a density estimate of the other walkers with a
    fifth of differential evolution; or these and as many proposals from the galaxy's neural posterior, for models of
    many parameters. The last samples the exact posterior too, but its cost is no longer that of a fit without us."""

    @model_validator(mode="after")
    def _starts(self) -> MCMCConfig:
        if not self.starts:
            raise ValueError("starts: expected at least one of 'posterior' and 'prior'")
        return self


class AuditConfig(Section):
    """The sampled subset that checks the posterior, and what it costs."""

    galaxies: Count = 4
    """Rows given to emcee, stratified in redshift, S/N and posterior position."""
    core_hours: Positive | None = None
    """What the fits may cost: with it, rows are fitted in random order, and none is begun any more when so much is
    used. The rows that were fitted stand for the others."""
    calibration_simulations: Count = 2_000
    """Independent simulations for ranks, coverage and recovery."""
    calibration_draws: Annotated[int, Field(ge=100)] = 1_000
    predictive_draws: Count = 64
    tolerance_sigma: Positive = 0.3
    """Wasserstein distance of a parameter from emcee's, in its half 16-84 % width, up to which a posterior agrees: a
    shift by 0.3 sigma, or a width wrong by 40 %. Agreement is the chance of staying below it."""
    agreement_simulations: Annotated[int, Field(ge=0)] = 1_000
    """Calibration simulations, at most, whose importance weights teach agreement beside the audited rows; 0 leaves them
    out."""
    checked_galaxies: Annotated[int, Field(ge=0)] = 1_000
    """Rows, drawn at random, of which the survey as a whole is held against the simulations; 0 leaves it out."""
    sensitivity_rows: Annotated[int, Field(ge=0)] = 100
    """Simulated rows into which faults are put (of calibration, redshift, noise, gaps, line spread, prior), to tell
    what each would cost and how often it would be noticed; 0 leaves it out."""
    mcmc: MCMCConfig = MCMCConfig()


class EscalateConfig(Section):
    """Better posteriors for the rows whose neural one probably does not agree: importance weights, then emcee."""

    agreement_threshold: Fraction = 0.5
    """Agreement below which a row is to have a better posterior, or the bit LOW_AGREEMENT."""
    agreement_cap: Fraction = 0.5
    """Highest agreement that rows are given where the survey as a whole is not inside what was simulated (``domain`` in
    audit.json). Rows whose agreement was higher have the bit AGREEMENT_CAPPED."""
    core_hours: Annotated[float, Field(ge=0)] = 0.0
    """What that may cost: nothing more is begun when so much is used, and fits under way come to their end. With 0,
    only rows that the audit has fitted anyway have better ones."""
    draws: Annotated[int, Field(ge=100)] = 4_000
    """Draws of a row that are weighed."""
    min_ess: Positive = 200.0
    """Effective sample size from which on weighted draws are good enough, with Pareto k up to 0.7."""
