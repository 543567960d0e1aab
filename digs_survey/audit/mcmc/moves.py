"""How the walkers of emcee's ensembles propose where to go."""

from __future__ import annotations

from collections.abc import Sequence

import emcee
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

__all__ = ["KernelMove", "moves"]

_DEGREES_OF_FREEDOM = 8


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


def moves(name: str) -> list[tuple[emcee.moves.Move, float]]:
    """Return emcee's moves, and how often each is made, for a name of ``audit.mcmc.moves``."""
    if name == "stretch":
        return [(emcee.moves.StretchMove(), 1.0)]
    # Fewer evaluations than differential evolution and stretch moves need along the curved degeneracy of age,
    # timescale and metallicity. Not emcee's DESnookerMove: in emcee 3.1.6 its proposals are not balanced, which
    # narrows a Gaussian in five dimensions by 16 %.
    return [(KernelMove(), 0.8), (emcee.moves.DEMove(), 0.2)]
