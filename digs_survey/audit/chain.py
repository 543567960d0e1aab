"""One ensemble chain (emcee), extended until its autocorrelation time says that it is long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.config import MCMCConfig
from digs_survey.errors import StageError
from digs_survey.parameters import Prior

__all__ = ["ChainResult", "run_chain", "start_points"]

_SPREAD = 1e-3


@dataclass(frozen=True)
class ChainResult:
    """What one chain gave; burn-in is not part of it.

    Attributes
    ----------
    draws : ndarray of float64, shape (steps * walkers, parameter)
        All walkers, step after step.
    log_prob : ndarray of float64, shape (steps * walkers,)
    autocorrelation_time : ndarray of float64, shape (parameter,)
        In steps, from the autocorrelation function averaged over walkers; NaN if a walker never moved.
    converged : bool
        Whether ``steps`` exceeds ``autocorrelation_times`` of them for every parameter.
    steps : int
    acceptance : float
        Share of proposals that were accepted.
    evaluations : int
        How often the density was asked for, burn-in included.
    core_seconds : float
        Processor time of the whole chain, burn-in included.
    """

    draws: NDArray[np.float64]
    log_prob: NDArray[np.float64]
    autocorrelation_time: NDArray[np.float64]
    converged: bool
    steps: int
    acceptance: float
    evaluations: int
    core_seconds: float


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
    start: NDArray[np.float64],
    config: MCMCConfig,
    seed: int,
) -> ChainResult:
    """Sample a density with emcee (Foreman-Mackey et al. 2013, arXiv:1202.3665).

    After the rounds of burn-in the chain runs ``config.steps``, and again and again as many, until it is
    longer than ``config.autocorrelation_times`` integrated autocorrelation times in every parameter, or
    ``config.max_steps`` long.

    Parameters
    ----------
    log_prob : callable
        Log density (n,) at theta (n, parameter), up to a constant; -inf outside its support. It is asked for half
        of the walkers at a time.
    start : ndarray, shape (walkers, parameter)
        At least two walkers for each parameter.
    config : MCMCConfig
    seed : int
        The same seed gives the same chain.

    Raises
    ------
    StageError
        If no walker has found a place with a density by the end of burn-in.
    """
    import emcee

    started = time.process_time()
    walkers, ndim = start.shape
    sampler = emcee.EnsembleSampler(walkers, ndim, log_prob, moves=_moves(config.moves), vectorize=True)
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    state = emcee.State(start, random_state=random.get_state())
    # emcee subtracts densities of -inf; and small matrix products set the flag now and then although all is finite.
    with np.errstate(invalid="ignore", divide="ignore"):
        for steps in config.burn_in:
            state = sampler.run_mcmc(state, steps, store=False)
            sampler.reset()
        if config.burn_in and np.isneginf(state.log_prob).all():
            raise StageError(
                f"no walker is where the posterior density is above zero after {sum(config.burn_in)} steps of burn-in "
                f"(theta {state.coords[0]}); the observation may be impossible under the configured noise"
            )
        done, converged = 0, False
        while not converged and done < config.max_steps:
            steps = min(config.steps, config.max_steps - done)
            state = sampler.run_mcmc(state, steps, skip_initial_state_check=True)
            done += steps
            tau = emcee.autocorr.integrated_time(sampler.get_chain(), tol=0)
            converged = bool(np.all(done > config.autocorrelation_times * tau))
    return ChainResult(
        draws=sampler.get_chain(flat=True),
        log_prob=sampler.get_log_prob(flat=True),
        autocorrelation_time=tau,
        converged=converged,
        steps=done,
        acceptance=float(sampler.acceptance_fraction.mean()),
        evaluations=walkers * (1 + sum(config.burn_in) + done),
        core_seconds=time.process_time() - started,
    )


def _moves(name: str) -> list[tuple[object, float]]:
    import emcee

    if name == "stretch":
        return [(emcee.moves.StretchMove(), 1.0)]
    # Fewer evaluations than differential evolution and stretch moves need along the curved degeneracy of age,
    # timescale and metallicity. Not emcee's DESnookerMove: in emcee 3.1.6 its proposals are not balanced, which
    # narrows a Gaussian in five dimensions by 16 %.
    return [(emcee.moves.KDEMove(), 0.6), (emcee.moves.DEMove(), 0.4)]
