"""What the audit does for one galaxy: emcee with the model's spectra, and spectra of posterior draws."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey import formats
from digs_survey.audit.mcmc.chain import prior_points, run_chain, start_points
from digs_survey.audit.mcmc.distances import classifier_accuracy, sliced_distance, wasserstein_sigma
from digs_survey.audit.mcmc.moves import Proposals
from digs_survey.audit.mcmc.target import AtRedshift, GalaxyPosterior, Simulator
from digs_survey.audit.residuals import BAND, predictive_band
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MCMCConfig
from digs_survey.identity import RunIdentity
from digs_survey.sps.param_file import ParamFile
from digs_survey.store.storage import checksum, read_arrays, write_arrays

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["FitSetup", "GalaxyFit", "GalaxyJob", "fit_with", "galaxy_jobs", "mcmc_draw_count"]

_MOST_DRAWS = 4_000
_CHECKED = 32
"""Draws of a chain on batched spectra that Prospector computes too."""
_REPEATS = 50
"""Of a batch of likelihoods, whose time is short."""


@dataclass(frozen=True)
class FitSetup:
    """What all galaxies of an audit share.

    Attributes
    ----------
    identity : RunIdentity
        Its seed, model, prior, noise and grid are used, and its posterior for moves "neural".
    mcmc : MCMCConfig
    param_file : ParamFile or None
        The model's, where it has one.
    """

    identity: RunIdentity
    mcmc: MCMCConfig
    param_file: ParamFile | None = None

    def digest(self, *more: Any) -> str:
        """Hash of all that decides a fit, besides the galaxy."""
        settings = self.mcmc.model_dump(mode="json", exclude={"timeout_s"})
        neural = ("posterior",) if self.mcmc.moves == "neural" else ()
        return self.identity.digest(
            "seed", "model", "prior", "noise", "grid", *neural, format=formats.AUDIT, mcmc=settings, more=list(more)
        )


@dataclass(frozen=True)
class GalaxyJob:
    """One galaxy of the audit.

    Attributes
    ----------
    row : int
        Row of the catalog; with the run's seed it decides the random numbers.
    flux, good : ndarray, shape (wavelength,)
        The prepared observation: f_lambda in erg/s/cm2/Angstrom at the reference distance, and which
        elements count.
    errors : ndarray, shape (terms, wavelength), or None
        For catalog noise: its errors, as :meth:`~digs_survey.noise.model.NoiseModel.errors_of` gives them.
    start : ndarray, shape (draw, parameter)
        Draws of the neural posterior, from which walkers start.
    predictive : ndarray, shape (spectrum, parameter)
        Draws of the neural posterior whose spectra are computed.
    """

    row: int
    flux: NDArray[np.float64]
    good: NDArray[np.bool_]
    errors: NDArray[np.float64] | None
    start: NDArray[np.float64]
    predictive: NDArray[np.float64]


def galaxy_jobs(
    rows: Sequence[int],
    seen: PreparedRows,
    errors: NDArray[np.float64] | None,
    theta: NDArray[np.float64],
    predictive: int,
) -> list[GalaxyJob]:
    """Make the jobs of prepared rows (n,), of their errors (terms, n, wavelength), and of draws (n, draw, parameter).

    Spectra of the first ``predictive`` draws are computed.
    """
    return [
        GalaxyJob(
            row=row,
            flux=seen.flux[i],
            good=seen.good[i],
            errors=None if errors is None else errors[:, i],
            start=theta[i],
            predictive=theta[i, :predictive],
        )
        for i, row in enumerate(rows)
    ]


@dataclass(frozen=True)
class GalaxyFit:
    """The outcome of a :class:`GalaxyJob`; NaN throughout, and ``error`` set, if it failed.

    Attributes
    ----------
    draws : ndarray, shape (mcmc_draw, parameter)
        Draws of the chain, thinned at random to the number that all galaxies have.
    walkers : ndarray of float32, shape (walker, step, parameter)
        Evenly thinned steps of every walker of every ensemble.
    r_hat : ndarray, shape (parameter,)
        Of the ensembles; NaN for a single one.
    wasserstein_sigma : ndarray, shape (parameter,)
    sliced_distance, c2st : float
        How far ``start`` is from the chain, from :mod:`~digs_survey.audit.mcmc.distances`.
    autocorrelation_time : ndarray, shape (parameter,)
        In steps.
    converged : bool
    steps : int
    acceptance : float
    likelihoods : int
        How often the chain asked for the likelihood of one theta, burn-in included.
    core_s, job_core_s : float
        Processor time of the first ensemble alone, and of the whole job: all ensembles, spectra of ``predictive``,
        distances, and what the other engine computed again.
    other_core_s : float
        Of one of ``likelihoods``, were it by the engine that the chain did not use; NaN if it was not tried. Those
        outside the prior take no spectrum, by either.
    log_likelihood_difference : float
        Largest difference between both engines among the checked draws; 0 if the other was not tried.
    best_mcmc, best_npe : ndarray, shape (wavelength,)
        Spectrum of the likeliest draw of the chain, and of the likeliest among ``predictive``.
    band : ndarray, shape (3, wavelength)
        Percentiles 16, 50 and 84 of the noiseless spectra of ``predictive``.
    error : str
        Why the job failed; empty if it did not.
    """

    draws: NDArray[np.float64]
    walkers: NDArray[np.floating]
    r_hat: NDArray[np.float64]
    job_core_s: float
    wasserstein_sigma: NDArray[np.float64]
    sliced_distance: float
    c2st: float
    autocorrelation_time: NDArray[np.float64]
    converged: bool
    steps: int
    acceptance: float
    likelihoods: int
    core_s: float
    other_core_s: float
    log_likelihood_difference: float
    best_mcmc: NDArray[np.float64]
    best_npe: NDArray[np.float64]
    band: NDArray[np.float64]
    error: str = ""

    @classmethod
    def failed(cls, setup: FitSetup, error: str) -> GalaxyFit:
        """Return the outcome of a job that failed twice."""
        ndim, elements = setup.identity.prior.ndim, len(setup.identity.grid) + setup.identity.noise.band_count
        return cls(
            draws=np.full((mcmc_draw_count(setup.mcmc), ndim), np.nan),
            walkers=np.full((setup.mcmc.walkers * len(setup.mcmc.starts), _kept_steps(setup.mcmc), ndim), np.nan),
            r_hat=np.full(ndim, np.nan),
            job_core_s=float("nan"),
            wasserstein_sigma=np.full(ndim, np.nan),
            sliced_distance=float("nan"),
            c2st=float("nan"),
            autocorrelation_time=np.full(ndim, np.nan),
            converged=False,
            steps=0,
            acceptance=float("nan"),
            likelihoods=0,
            core_s=float("nan"),
            other_core_s=float("nan"),
            log_likelihood_difference=float("nan"),
            best_mcmc=np.full(elements, np.nan),
            best_npe=np.full(elements, np.nan),
            band=np.full((len(BAND), elements), np.nan),
            error=error,
        )

    def save(self, path: Path) -> None:
        """Write the outcome to a file that is there in full or not at all."""
        write_arrays(path, vars(self))

    def checksum(self) -> str:
        """SHA-256 of the draws and spectra."""
        return checksum(self.draws, self.best_mcmc, self.best_npe, self.band)

    @classmethod
    def load(cls, path: Path) -> GalaxyFit:
        """Read what :meth:`save` wrote."""
        values: dict[str, Any] = read_arrays(path)
        return cls(**{name: value.item() if value.ndim == 0 else value for name, value in values.items()})


def _starts(setup: FitSetup, job: GalaxyJob) -> list[NDArray[np.float64]]:
    """Starting points of the ensembles, in the order of the configuration."""
    prior, count, points = setup.identity.prior, setup.mcmc.walkers, []
    for number, start in enumerate(setup.mcmc.starts):
        seed = _seed(setup.identity.seed, f"start/{number}" if number else "start", job.row)
        points.append(
            prior_points(prior, count, seed) if start == "prior" else start_points(job.start, prior, count, seed)
        )
    return points


def _kept_steps(config: MCMCConfig) -> int:
    return min(_MOST_DRAWS // config.walkers, config.steps, config.max_steps)


def mcmc_draw_count(config: MCMCConfig) -> int:
    """Number of draws that every chain of this configuration can be thinned to."""
    return min(_MOST_DRAWS, config.walkers * min(config.steps, config.max_steps))


def fit_with(
    simulator: Simulator,
    setup: FitSetup,
    job: GalaxyJob,
    other: Simulator | None = None,
    neural: FrozenPosterior | None = None,
) -> GalaxyFit:
    """Run the chain of one galaxy, and compute the spectra of its posterior draws.

    Parameters
    ----------
    simulator : Simulator
        Of the chain's spectra.
    setup : FitSetup
    job : GalaxyJob
    other : Simulator, optional
        Of the engine that the chain does not use: computes some of its draws again, for the check and for its cost.
    neural : FrozenPosterior, optional
        Of the run, where moves are "neural".
    """
    began, identity = time.process_time(), setup.identity
    about = (identity.noise, identity.prior, job.flux, job.good, job.errors)
    redshift = identity.noise.redshift_of(job.flux)
    simulator = AtRedshift(simulator, identity.prior, redshift)
    other = None if other is None else AtRedshift(other, identity.prior, redshift)
    posterior = GalaxyPosterior(simulator, *about)
    proposals = None if neural is None else partial(Proposals, neural, job.flux, job.row)
    seed = _seed(setup.identity.seed, "mcmc", job.row)
    chain = run_chain(posterior, _starts(setup, job), setup.mcmc, seed, proposals)
    rng = np.random.default_rng(_seed(setup.identity.seed, "thin", job.row))
    kept = np.sort(rng.choice(len(chain.draws), size=mcmc_draw_count(setup.mcmc), replace=False))
    cost, difference = float("nan"), 0.0
    if other is not None:
        # Prospector takes long; of batches, as many as emcee asks for at once.
        most, times = (_CHECKED, 1) if setup.mcmc.engine == "batched" else (setup.mcmc.walkers // 2, _REPEATS)
        some = rng.choice(kept, size=min(most, kept.size), replace=False)
        recompute = GalaxyPosterior(other, *about)
        started = time.process_time()
        for _ in range(times):
            again = recompute(chain.draws[some])
        # Draws are inside the prior; of what the chain asked for, some was not, and cost nothing.
        cost = posterior.inside_share * (time.process_time() - started) / (times * some.size)
        difference = float(np.abs(again - chain.log_prob[some]).max())
    spectra = simulator.spectra(job.predictive)
    even = np.linspace(0, chain.steps - 1, _kept_steps(setup.mcmc)).round().astype(int)
    draws, distance_seed = chain.draws[kept], _seed(setup.identity.seed, "distance", job.row)
    return GalaxyFit(
        draws=draws,
        walkers=chain.walkers[even].swapaxes(0, 1).astype(np.float32),
        r_hat=chain.r_hat,
        wasserstein_sigma=wasserstein_sigma(job.start, draws),
        sliced_distance=sliced_distance(job.start, draws, distance_seed),
        c2st=classifier_accuracy(job.start, draws, distance_seed),
        autocorrelation_time=chain.autocorrelation_time,
        converged=chain.converged,
        steps=chain.steps,
        acceptance=chain.acceptance,
        likelihoods=chain.evaluations,
        core_s=chain.core_s,
        other_core_s=cost,
        log_likelihood_difference=difference,
        best_mcmc=simulator.spectra(chain.draws[np.argmax(chain.log_prob)][None])[0],
        best_npe=spectra[int(np.argmax(posterior.log_likelihood(spectra)))],
        band=predictive_band(spectra),
        job_core_s=time.process_time() - began,
    )


def _seed(run_seed: int, use: str, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{use}/{row}".encode()).digest()[:8], "little")
