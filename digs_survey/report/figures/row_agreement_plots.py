"""Figures of the rows' agreement: what held-out spectra say of it, and how it is spread over the catalog."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.report.figures.style import BAND, INK, MCMC, NPE, Picture, canvas, encode, legend_above

__all__ = ["held_out", "spread"]

_WIDTH = 4.4


def held_out(expected: ArrayLike, found: ArrayLike, audited: ArrayLike, tolerance: float) -> Picture:
    """Found against expected disagreement (row,) of spectra that nothing was learned from, in sigma.

    ``audited`` (row,) tells rows with a chain from simulations with weights.
    """
    x, y, is_row = np.asarray(expected, dtype=float), np.asarray(found, dtype=float), np.asarray(audited, dtype=bool)
    low, high = min(x.min(), y.min(), tolerance) / 1.3, 1.3 * max(x.max(), y.max(), tolerance)
    figure = canvas(_WIDTH, 3.9)
    axes = figure.subplots()
    axes.axhspan(tolerance, high, color=BAND, lw=0, label=f"beyond {tolerance:g} σ")
    axes.plot([low, high], [low, high], color=INK, lw=0.8, ls="--", label="as expected")
    axes.plot(x[~is_row], y[~is_row], ".", color=NPE, ms=3, mew=0, ls="none", label="simulations")
    axes.plot(x[is_row], y[is_row], "X", color=MCMC, ms=7, mec="white", mew=0.5, ls="none", label="audited rows")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="expected, held out [σ]")
    axes.set_ylabel("distance from the exact posterior [σ]")
    legend_above(axes, 2)
    beyond = int((y > tolerance).sum())
    alt = f"found against expected disagreement of {(~is_row).sum():,} simulations and {is_row.sum():,} audited rows"
    return encode(figure, f"{alt}, {beyond:,} of them beyond {tolerance:g} sigma")


def spread(edges: NDArray, counts: NDArray, below: float) -> Picture:
    """How many rows have which agreement, and where it is too low."""
    figure = canvas(_WIDTH, 3.9)
    axes = figure.subplots()
    axes.stairs(counts, edges, color=NPE, lw=1.4)
    axes.axvspan(0, below, color=BAND, lw=0, zorder=0, label=f"below {below:g}")
    axes.set(xlim=(0, 1), xlabel="agreement with the exact posterior", ylabel="rows")
    if counts.max() > 0:
        axes.set(yscale="log", ylim=(0.7, 2 * counts.max()))
    legend_above(axes, 1)
    share = counts[edges[1:] <= below].sum() / max(1, counts.sum())
    return encode(figure, f"histogram of the agreement of {counts.sum():,} rows; {share:.1%} are below {below:g}")
