"""Ensemble chains (emcee), extended until their autocorrelation times say that they are long enough and they agree."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import emcee
import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.audit.mcmc.moves import Proposals, moves
from digs_survey.config import MCMCConfig
from digs_survey.errors import StageError
from digs_survey.prior import Prior

__all__ = ["ChainResult", "prior_points", "r_hat", "run_chain", "start_points"]

_SPREAD = 1e-3


@dataclass(frozen=True)
class ChainResult:
    """What the ensembles gave; burn-in is not part of it.

    Attributes
    ----------
    draws : ndarray of float64, shape (ensembles * steps * walkers, parameter)
        All walkers, step after step.
    log_prob : ndarray of float64, shape (ensembles * steps * walkers,)
    walkers : ndarray of float64, shape (steps, ensembles * walkers, parameter)
        The same draws, walker by walker.
    autocorrelation_time : ndarray of float64, shape (parameter,)
        In steps, from the autocorrelation function averaged over walkers, the longest of any ensemble; NaN if a
        walker never moved.
    r_hat : ndarray of float64, shape (parameter,)
        From :func:`r_hat`.
    converged : bool
        Whether ``steps`` exceeds ``autocorrelation_times`` of them for every parameter, and the ensembles agree.
    steps : int
        Of each ensemble.
    acceptance : float
        Share of proposals that were accepted.
    evaluations : int
        How often the first ensemble asked for the density, burn-in included.
    core_s : float
        Processor time, burn-in included, of the first ensemble, which would do by itself.
    """

    draws: NDArray[np.float64]
    log_prob: NDArray[np.float64]
    walkers: NDArray[np.float64]
    autocorrelation_time: NDArray[np.float64]
    r_hat: NDArray[np.float64]
    converged: bool
    steps: int
    acceptance: float
    evaluations: int
    core_s: float


def prior_points(prior: Prior, walkers: int, seed: int) -> NDArray[np.float64]:
    """Starting points (walkers, parameter) drawn from the prior."""
    return prior.from_unit_cube(np.random.default_rng(seed).random((walkers, prior.ndim)))


def start_points(draws: ArrayLike, prior: Prior, walkers: int, seed: int) -> NDArray[np.float64]:
    """Starting points of walkers, taken from draws of an approximate posterior.

    Each is moved by a thousandth of the way towards a random point of the prior, so that they span all
    directions even where draws coincide or pile up at an edge.

    Parameters
    ----------
    draws : array_like, shape (draw, parameter)
        Clipped to the prior's bounds.
    prior : Prior
    walkers : int
    seed : int

    Returns
    -------
    ndarray of float64, shape (walkers, parameter)
        Inside the prior.
    """
    inside = np.clip(np.asarray(draws, dtype=float), prior.low, prior.high)
    rng = np.random.default_rng(seed)
    chosen = inside[rng.choice(len(inside), size=walkers, replace=walkers > len(inside))]
    return (1 - _SPREAD) * chosen + _SPREAD * prior.from_unit_cube(rng.random(chosen.shape))


def run_chain(
    log_prob: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    starts: Sequence[NDArray[np.float64]],
    config: MCMCConfig,
    seed: int,
    proposals: Callable[[int], Proposals] | None = None,
) -> ChainResult:
    """Sample a density with emcee (Foreman-Mackey et al. 2013, arXiv:1202.3665), in ensembles that know nothing of
    each other.

    After the rounds of burn-in each ensemble runs ``config.steps``, and then on until it is longer than
    ``config.autocorrelation_times`` integrated autocorrelation times in every parameter and the ensembles agree to
    ``config.max_r_hat`` (:func:`r_hat`), or ``config.max_steps`` long. Each time it goes as far as the times found so
    far ask for.

    Parameters
    ----------
    log_prob : callable
        Log density (n,) at theta (n, parameter), up to a constant; -inf outside its support. It is asked for half
        of the walkers at a time.
    starts : sequence of ndarray, shape (walkers, parameter)
        One for each ensemble, with at least two walkers for each parameter. The cost is that of the first.
    config : MCMCConfig
    seed : int
        The same seed gives the same chain.
    proposals : callable, optional
        Gives the neural posterior for a seed, of which each ensemble has its own. Moves "neural" need it.

    Raises
    ------
    StageError
        If no walker of an ensemble has found a place with a density by the end of burn-in.
    """
    ensembles = [_Ensemble(log_prob, start, config, seed, number, proposals) for number, start in enumerate(starts)]
    done, converged, steps = 0, False, config.steps
    # emcee subtracts densities of -inf; and small matrix products set the flag now and then although all is finite.
    with np.errstate(invalid="ignore", divide="ignore"):
        for ensemble in ensembles:
            ensemble.burn_in()
        while not converged and done < config.max_steps:
            steps = min(steps, config.max_steps - done)
            tau = np.max([ensemble.extend(steps) for ensemble in ensembles], axis=0)
            done += steps
            needed = config.autocorrelation_times * tau.max()
            long_enough = bool(done > needed)
            # Ranks take a while: only where they decide, or are the last.
            if long_enough or done >= config.max_steps:
                agreement = r_hat([ensemble.chain for ensemble in ensembles])
                converged = long_enough and not (agreement > config.max_r_hat).any()
            steps = _further(config.steps, done, needed)
    first = ensembles[0]
    return ChainResult(
        draws=np.concatenate([ensemble.chain.reshape(-1, first.ndim) for ensemble in ensembles]),
        log_prob=np.concatenate([ensemble.sampler.get_log_prob(flat=True) for ensemble in ensembles]),
        walkers=np.concatenate([ensemble.chain for ensemble in ensembles], axis=1),
        autocorrelation_time=tau,
        r_hat=agreement,
        converged=converged,
        steps=done,
        acceptance=float(np.mean([ensemble.sampler.acceptance_fraction for ensemble in ensembles])),
        evaluations=len(starts[0]) * (1 + sum(config.burn_in) + done),
        core_s=first.core_s,
    )


def _further(steps: int, done: int, needed: float) -> int:
    """Steps until the times are found again: what is missing and a little, since times found grow with the chain."""
    if done <= needed:
        return math.ceil(min(max(1.05 * needed - done, steps / 5), done))
    # Long enough, but the ensembles are apart; or a walker never moved.
    return steps


def r_hat(chains: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Rank-normalised, folded split R-hat (parameter,) of independent ensembles: near 1 if they sample one density.

    Vehtari et al. (2021, Bayesian Analysis 16, 667, arXiv:1903.08008), as ArviZ computes it; its threshold is 1.01. It
    sees ensembles that differ in location or in scale, and needs neither a mean nor a variance. It cannot exceed about
    2 for two ensembles, however far apart they are.

    A chain here is one half of one ensemble: all its walkers at the first, or the last, half of its steps. Walkers of
    an ensemble depend on each other, so that none of them counts as a chain. Two ensembles thus give four chains.

    Parameters
    ----------
    chains : sequence of array_like, shape (step, walker, parameter)
        One for each ensemble, all of the same shape.

    Returns
    -------
    ndarray of float64, shape (parameter,)
        NaN for a single ensemble, which has nothing to agree with, and where no walker moved.
    """
    # ArviZ takes half a second to import.
    from arviz_stats.base import array_stats

    # Step after step, so that ArviZ splits the steps and not the walkers.
    draws = np.stack([np.asarray(chain, dtype=float).reshape(-1, np.shape(chain)[-1]) for chain in chains])
    if len(draws) < 2:
        return np.full(draws.shape[-1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(array_stats.rhat(draws, chain_axis=0, draw_axis=1, method="rank"), dtype=float)


class _Ensemble:
    """An ensemble of walkers, what it cost, and where it is."""

    def __init__(
        self,
        log_prob: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        start: NDArray[np.float64],
        config: MCMCConfig,
        seed: int,
        number: int,
        proposals: Callable[[int], Proposals] | None,
    ) -> None:
        walkers, self.ndim = start.shape
        sequence = np.random.SeedSequence(seed, spawn_key=(number,) if number else ())
        random = np.random.RandomState(np.random.MT19937(sequence))
        own = None if proposals is None else proposals(int(sequence.generate_state(1)[0]))
        self.sampler: Any = emcee.EnsembleSampler(
            walkers, self.ndim, log_prob, moves=moves(config.moves, own), vectorize=True
        )
        self._state: Any = emcee.State(start, random_state=random.get_state())
        self._rounds = config.burn_in
        self.core_s = 0.0

    def burn_in(self) -> None:
        started = time.process_time()
        for steps in self._rounds:
            self._state = self.sampler.run_mcmc(self._state, steps, store=False)
            self.sampler.reset()
        if self._rounds and np.isneginf(self._state.log_prob).all():
            raise StageError(
                f"no walker is where the posterior density is above zero after {sum(self._rounds)} steps of burn-in "
                f"(theta {self._state.coords[0]}); the observation may be impossible under the configured noise"
            )
        self.core_s += time.process_time() - started

    def extend(self, steps: int) -> NDArray[np.float64]:
        """Go on for some steps; return the autocorrelation times (parameter,) of all steps."""
        started = time.process_time()
        self._state = self.sampler.run_mcmc(self._state, steps, skip_initial_state_check=True)
        tau: NDArray[np.float64] = emcee.autocorr.integrated_time(self.sampler.get_chain(), tol=0)
        self.core_s += time.process_time() - started
        return tau

    @property
    def chain(self) -> NDArray[np.float64]:
        """Steps so far, shape (step, walker, parameter)."""
        steps: NDArray[np.float64] = self.sampler.get_chain()
        return steps
