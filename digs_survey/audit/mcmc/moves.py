"""How the walkers of emcee's ensembles propose where to go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import emcee
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from digs_survey.errors import StageError

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["KernelMove", "NeuralMove", "Proposals", "moves"]

_DEGREES_OF_FREEDOM = 8
_DRAWN = 4_096
"""Draws of the neural posterior that are made at once."""


class KernelMove(emcee.moves.RedBlueMove):  # type: ignore[misc]
    """Proposals from a kernel density estimate of the other half of the walkers.

    As emcee's ``KDEMove``, with Student kernels in place of Gaussian ones: their tails keep the density of a walker
    that is far from all others above zero. It does without the general estimator's checks, which take much of a
    chain's time. Kernels have the walkers' covariance, and Scott's bandwidth.
    """

    def get_proposal(
        self, sample: NDArray[np.float64], complement: Sequence[NDArray[np.float64]], random: RandomState
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Propose points (walker, parameter); the second array is ln of their chance in the other direction over it.

        Raises
        ------
        numpy.linalg.LinAlgError
            If the other walkers lie in one plane.
        """
        others = np.concatenate(complement)
        count, ndim = others.shape
        centre, bandwidth = others.mean(axis=0), count ** (-1 / (ndim + 4))
        scale = bandwidth * np.linalg.cholesky(np.atleast_2d(np.cov(others.T)))
        whiten = np.linalg.inv(scale).T
        nodes, here = (others - centre) @ whiten, (sample - centre) @ whiten
        stretch = np.sqrt(_DEGREES_OF_FREEDOM / random.chisquare(_DEGREES_OF_FREEDOM, size=(len(sample), 1)))
        there = nodes[random.randint(count, size=len(sample))] + stretch * random.standard_normal(sample.shape)
        both = np.concatenate([here, there])
        squared = (both**2).sum(axis=1)[:, None] + (nodes**2).sum(axis=1) - 2 * both @ nodes.T
        density = (1 + squared / _DEGREES_OF_FREEDOM) ** (-0.5 * (_DEGREES_OF_FREEDOM + ndim))
        log_density = np.log(density.sum(axis=1))
        return there @ scale.T + centre, log_density[: len(here)] - log_density[len(here) :]


class Proposals:
    """A galaxy's neural posterior as a distribution that walkers can be sent to.

    Parameters
    ----------
    posterior : FrozenPosterior
    observed : ndarray, shape (column,)
        What the posterior was shown of the galaxy.
    row : int
        Of the galaxy. Its draws depend on it and ``seed``.
    seed : int
    """

    def __init__(self, posterior: FrozenPosterior, observed: NDArray[np.floating], row: int, seed: int) -> None:
        self._posterior, self._observed, self._row = posterior, observed[None], row
        self._seeds = np.random.SeedSequence(seed)
        self._draws = self._endless()

    def draw(self, count: int) -> NDArray[np.float64]:
        """Draw theta (count, parameter) that were not drawn before."""
        return np.stack([next(self._draws) for _ in range(count)])

    def log_prob(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log density (n,) at theta (n, parameter), up to a constant of the galaxy."""
        return self._posterior.log_prob(theta[None], self._observed, normalised=False)[0]

    def _endless(self) -> Iterator[NDArray[np.float64]]:
        while True:
            seed = int(self._seeds.spawn(1)[0].generate_state(1)[0])
            drawn = self._posterior.sample(self._observed, _DRAWN, seed, base="random", rows=[self._row])[0]
            finite = drawn[np.isfinite(drawn).all(axis=1)]
            if not len(finite):
                raise StageError(f"audit.mcmc.moves = 'neural': row {self._row} has no finite draw of its posterior")
            yield from finite


class NeuralMove(emcee.moves.RedBlueMove):  # type: ignore[misc]
    """Proposals from the galaxy's neural posterior, wherever the walker is: an independence sampler.

    What the chain samples stays the exact posterior, since each proposal is accepted by its exact density over that of
    the neural posterior (Tierney 1994, Ann. Statist. 22, 1701). Where the neural posterior is good, a walker forgets
    where it was in a few steps. Where it is far too narrow, walkers stay in its tails, and other moves must do.

    Parameters
    ----------
    proposals : Proposals
    """

    def __init__(self, proposals: Proposals) -> None:
        super().__init__()
        self._proposals = proposals

    def get_proposal(
        self, sample: NDArray[np.float64], complement: Sequence[NDArray[np.float64]], random: RandomState
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Propose points (walker, parameter); the second array is ln of their chance in the other direction over it."""
        there = self._proposals.draw(len(sample))
        return there, self._proposals.log_prob(sample) - self._proposals.log_prob(there)


def moves(name: str, proposals: Proposals | None = None) -> list[tuple[emcee.moves.Move, float]]:
    """Return emcee's moves, and how often each is made, for a name of ``audit.mcmc.moves``.

    Raises
    ------
    ValueError
        If "neural" comes without ``proposals``.
    """
    if name == "neural":
        if proposals is None:
            raise ValueError("moves = 'neural' needs the galaxy's neural posterior")
        # A walker in a tail that the neural posterior hardly reaches needs another way out. Only the steps of stretches
        # are not all of the size of the whole ensemble.
        return [(NeuralMove(proposals), 0.5), (KernelMove(), 0.2), (emcee.moves.StretchMove(), 0.3)]
    if name == "stretch":
        return [(emcee.moves.StretchMove(), 1.0)]
    # Fewer evaluations than differential evolution and stretch moves need along the curved degeneracy of age,
    # timescale and metallicity. Not emcee's DESnookerMove: in emcee 3.1.6 its proposals are not balanced, which
    # narrows a Gaussian in five dimensions by 16 %.
    return [(KernelMove(), 0.8), (emcee.moves.DEMove(), 0.2)]
