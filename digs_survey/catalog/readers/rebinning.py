"""Spectra brought to a catalog's elements: a row that cannot be is left out with its reason, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.elements import Elements
from digs_survey.catalog.readers.flux_units import STORED_UNIT
from digs_survey.catalog.readers.grid_choice import MAX_ELEMENTS, GridChoice, too_many
from digs_survey.catalog.readers.reading import LeftOut
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.catalog.rest_frame import to_rest_frame
from digs_survey.errors import CatalogError
from digs_survey.spectra import WavelengthGrid

__all__ = ["Rebinned", "rebinned"]

_ROWS = 512
"""At a time, so that memory does not grow with a block."""


@dataclass(frozen=True, eq=False)
class Rebinned:
    """Rows on the elements of a catalog.

    Attributes
    ----------
    spectra : Spectra
        The rows, for all but their fluxes.
    first : int
        Number of the first element.
    flux, ivar : ndarray of float32, shape (n, element)
        0 where an element has too few good pixels.
    """

    spectra: Spectra
    first: int
    flux: NDArray[np.float32]
    ivar: NDArray[np.float32]


def rebinned(spectra: Spectra, elements: Elements, choice: GridChoice) -> Iterator[Rebinned | LeftOut]:
    """Bring spectra, each of which has a good pixel, to the elements that they reach, some hundred at a time.

    Raises
    ------
    CatalogError
        The rows together reach over more elements than a catalog can have.
    """
    for start in range(0, len(spectra), _ROWS):
        block = spectra.take(slice(start, start + _ROWS)) if len(spectra) > _ROWS else spectra
        factor, why = choice.dereddening(block)
        if why is not None:
            yield LeftOut(why, len(block))
            continue
        if factor is not None:
            wrong = np.asarray(np.isnan(factor).any(axis=1))
            if wrong.any():
                yield LeftOut("deredden: E(B-V) is not a number, is negative, or is not Schlegel's", int(wrong.sum()))
                block, factor = block.take(~wrong), factor[~wrong]
        low, high = _reach(block, choice.frame)
        least, greatest = choice.ends
        outside = (high < least) | (low > greatest)
        if outside.any():
            seen = f"{low[outside].min():.1f} to {high[outside].max():.1f} Angstrom"
            yield LeftOut(f"no good pixel between start and stop (pixels reach from {seen})", int(outside.sum()))
        wide = np.zeros(len(block), dtype=bool)
        if (~outside).any() and _count(elements, choice, low[~outside].min(), high[~outside].max()) > MAX_ELEMENTS:
            wide = np.array([_count(elements, choice, *ends) > MAX_ELEMENTS for ends in zip(low, high, strict=True)])
            wide &= ~outside
            if wide.any():
                yield LeftOut(too_many(), int(wide.sum()))
        keep = ~(outside | wide)
        if keep.any():
            whole = keep.all()
            yield from _on_elements(
                block if whole else block.take(keep),
                None if factor is None else factor[keep],
                choice.covering(elements, low[keep].min(), high[keep].max()),
                elements,
                choice,
            )


def _on_elements(
    block: Spectra, factor: NDArray[np.float64] | None, reach: tuple[int, int], elements: Elements, choice: GridChoice
) -> Iterator[Rebinned | LeftOut]:
    first, stop = reach
    if stop - first > MAX_ELEMENTS:
        raise CatalogError(too_many())
    target = WavelengthGrid(elements.centres(first, max(stop, first + 2))).edges
    flux, ivar = block.flux, block.ivar
    if factor is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            flux, ivar = flux * factor, ivar / factor**2
    wide = to_rest_frame(block.edges, flux, ivar, block.good, block.stretch(choice.frame) - 1, target)
    with np.errstate(over="ignore", under="ignore"):
        narrow = [values.astype(np.float32) for values in wide]
    lost = ~np.isfinite(narrow[0]) | ~np.isfinite(narrow[1]) | ((narrow[1] == 0) & (wide[1] != 0))
    out_of_range = lost.any(axis=1)
    empty = ~out_of_range & ~(narrow[1] > 0).any(axis=1)
    if out_of_range.any():
        yield LeftOut(f"flux or ivar out of range in {STORED_UNIT}: is its unit right?", int(out_of_range.sum()))
    if empty.any():
        yield LeftOut("good pixels cover no element by half; give a narrower step_angstrom", int(empty.sum()))
    keep = ~(out_of_range | empty)
    if keep.all():
        yield Rebinned(block, first, narrow[0], narrow[1])
    elif keep.any():
        yield Rebinned(block.take(keep), first, narrow[0][keep], narrow[1][keep])


def _reach(block: Spectra, frame: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the good pixels of each row (n,) begin and end, in Angstrom and a frame."""
    # The first edge lies as far below the first pixel as the second above, which may be beyond zero.
    edges, stretch = np.maximum(block.edges, block.wavelength[0] / 2), block.stretch(frame)
    first = block.good.argmax(axis=1)
    last = block.good.shape[1] - block.good[:, ::-1].argmax(axis=1)
    return edges[first] / stretch, edges[last] / stretch


def _count(elements: Elements, choice: GridChoice, low: float, high: float) -> int:
    first, stop = choice.covering(elements, float(low), float(high))
    return stop - first
