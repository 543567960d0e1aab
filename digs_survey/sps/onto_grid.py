"""From the wavelengths of the populations to the elements of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

__all__ = ["OntoGrid"]

_TOGETHER = 16
"""Elements that are computed with one product of matrices: few enough that they need the same wavelengths."""


class OntoGrid:
    """Brings spectra onto a grid in one or more ways, as small dense products.

    Parameters
    ----------
    ways : sequence of csr_array, each (wavelength, element)
    """

    def __init__(self, ways: Sequence[csr_array]) -> None:
        self._ways, self._elements = len(ways), ways[0].shape[1]
        self._blocks = []
        columns = [csc_array(way) for way in ways]
        for start in range(0, self._elements, _TOGETHER):
            blocks = [of_way[:, start : start + _TOGETHER] for of_way in columns]
            if blocks[0].nnz:
                near = slice(int(blocks[0].indices.min()), int(blocks[0].indices.max()) + 1)
                block = np.concatenate([part[near].toarray() for part in blocks], axis=1).astype(np.float32)
                self._blocks.append((near, slice(start, start + blocks[0].shape[1]), block))

    def __call__(self, spectra: NDArray[np.floating]) -> NDArray[np.float32]:
        """Bring spectra (node, age, wavelength) onto the grid: (node, age, way * element)."""
        flat = spectra.reshape(-1, spectra.shape[-1])
        found = np.zeros((len(flat), self._ways, self._elements), dtype=np.float32)
        for near, to, block in self._blocks:
            found[:, :, to] = (flat[:, near] @ block).reshape(len(flat), self._ways, to.stop - to.start)
        return found.reshape(*spectra.shape[:2], self._ways * self._elements)
