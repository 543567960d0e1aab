"""Populations smoothed by several sigmas, between which a free line spread is interpolated.

Between the nodes of a panel a smoothed spectrum is a polynomial in log sigma. The nodes are Chebyshev's. Their number
is measured: so many that no population is wrong by more than :data:`TOLERANCE` in any element. A galaxy is a sum of
populations with positive weights, so that its spectrum is not either. The worst elements lie beside a strong emission
line, whose light there depends steeply on sigma. A finer grid has more of them, and takes more nodes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from digs_survey.errors import NotBatchedError
from digs_survey.sps.grid import SSPGrid
from digs_survey.sps.parts import lagrange_shares
from digs_survey.sps.sampling import GridSampling

__all__ = ["TOLERANCE", "spread_nodes"]

TOLERANCE = 5e-4
"""Largest error of a population in an element, of its flux there, from interpolation in sigma."""
_PANEL_RATIO = 2.6
_FEWEST, _MOST = 4, 24


def spread_nodes(
    populations: SSPGrid, sampling: GridSampling, low: float, high: float
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Choose panels and nodes for sigma from ``low`` to ``high`` in km/s.

    Returns
    -------
    nodes : list of ndarray, each (node,)
        Logs of sigma at the nodes of each panel.
    edges : ndarray, shape (panel + 1,)
        Logs of sigma between the panels.

    Raises
    ------
    NotBatchedError
        If no number of nodes will do.
    """
    count = math.ceil(math.log(high / low) / math.log(_PANEL_RATIO))
    edges = np.linspace(math.log(low), math.log(high), count + 1)
    samples = _samples(populations)
    return [_nodes(samples, populations, sampling, *edges[i : i + 2]) for i in range(count)], edges


def _samples(populations: SSPGrid) -> NDArray[np.float64]:
    """Populations (population, wavelength) in f_nu that are hardest to interpolate: young ones with their gas, others.

    Of all metallicities of the gas.
    """
    young = populations.nebular.shape[1]
    ages = np.unique(np.linspace(0, max(young - 1, 0), 4).astype(int)) if young else np.empty(0, dtype=int)
    nearest = np.abs(populations.log_z[:, None] - populations.gas_log_z).argmin(axis=0)
    shining = populations.spectra[nearest][:, ages] + populations.nebular[:, ages]
    size = populations.wavelength.size
    if (free := populations.free_gas) is not None:
        ages = np.unique(np.linspace(0, free.photons.shape[1] - 1, 4).astype(int))
        nearest = np.abs(populations.log_z[:, None] - free.log_z).argmin(axis=0)
        glow = np.stack([[free.spectra(z, u)[ages] for z in free.log_z] for u in free.log_u])
        with_gas = populations.spectra[nearest][:, ages] + free.photons[nearest][:, ages, None] * glow
        shining = np.concatenate([shining.reshape(-1, size), with_gas.reshape(-1, size)])
    bare = populations.spectra[:, np.linspace(young, populations.log_age.size - 1, 3).astype(int)]
    return np.concatenate([shining.reshape(-1, size), bare.reshape(-1, size)]) * populations.lnu_factor()


def _nodes(
    samples: NDArray[np.float64], populations: SSPGrid, sampling: GridSampling, low: float, high: float
) -> NDArray[np.float64]:
    """Logs of sigma (node,) of one panel."""
    # Interpolated among so many, the samples are all but exact at any sigma.
    dense = _chebyshev(_MOST, low, high)
    exact = np.stack([sampling.matrix_at(populations.wavelength, sigma).T @ samples.T for sigma in np.exp(dense)])
    probes = np.linspace(low, high, 4 * _MOST)
    expected = np.tensordot(lagrange_shares(dense, probes), exact, 1)
    for count in range(_FEWEST, _MOST):
        nodes = _chebyshev(count, low, high)
        ways = lagrange_shares(nodes, probes) @ lagrange_shares(dense, nodes)
        if (np.abs(np.tensordot(ways, exact, 1) - expected) <= TOLERANCE * np.abs(expected)).all():
            return nodes
    raise NotBatchedError(
        f"prior.sigma_smooth: spectra between {math.exp(low):.4g} and {math.exp(high):.4g} km/s cannot be "
        f"interpolated to {TOLERANCE:.2%} on this grid, which wider elements allow"
    )


def _chebyshev(count: int, low: float, high: float) -> NDArray[np.float64]:
    """Chebyshev's nodes (count,) between two ends, increasing."""
    return 0.5 * (low + high) - 0.5 * (high - low) * np.cos(np.pi * (np.arange(count) + 0.5) / count)
