"""A spectrum on a coarse grid, by its means over hat functions: what :mod:`~digs_survey.sps.bands` sees of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = ["hat_matrix"]

_CELLS = 128
"""Cells of the quadrature in each step of the grid."""


def hat_matrix(wavelength: NDArray[np.float64], nodes: NDArray[np.float64]) -> csr_array:
    r"""Return the matrix from a spectrum to its means over hat functions.

    Hat k is :math:`\Lambda_k = \max(0, 1 - |\ln\lambda - \ln\lambda_k| / h)`, and the mean :math:`\frac{1}{h} \int f
    \Lambda_k \, d\ln\lambda`. The hats about all nodes add up to 1, so that no light is left out, nor counted twice.

    Parameters
    ----------
    wavelength : ndarray, shape (sample,)
        Where the spectrum is given, increasing; it is linear between. It must reach one step beyond the nodes.
    nodes : ndarray, shape (element,)
        At equal steps h in ln wavelength.

    Returns
    -------
    csr_array, shape (element, sample)

    Raises
    ------
    ValueError
        If the spectrum ends before the hats.
    """
    step = np.log(nodes[-1] / nodes[0]) / (nodes.size - 1)
    place = np.arange(-_CELLS, nodes.size * _CELLS) + 0.5
    at = nodes[0] * np.exp(step * place / _CELLS)
    if at[0] < wavelength[0] or at[-1] > wavelength[-1]:
        raise ValueError(
            f"hats reach from {at[0]:g} to {at[-1]:g} Angstrom, the spectrum from {wavelength[0]:g} to "
            f"{wavelength[-1]:g}"
        )
    upper = np.clip(np.searchsorted(wavelength, at), 1, wavelength.size - 1)
    share = (at - wavelength[upper - 1]) / (wavelength[upper] - wavelength[upper - 1])
    below = np.floor(place / _CELLS).astype(np.int64)
    rise = place / _CELLS - below
    entries = [
        (hat * sample / _CELLS, element, column)
        for element, hat in ((below, 1 - rise), (below + 1, rise))
        for column, sample in ((upper - 1, 1 - share), (upper, share))
    ]
    weights, rows, columns = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    inside = (rows >= 0) & (rows < nodes.size)
    return csr_array((weights[inside], (rows[inside], columns[inside])), shape=(nodes.size, wavelength.size))
