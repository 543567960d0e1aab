"""Figures of the rows' trust: what held-out audited rows say of it, and how it is spread over the catalog."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.report.figures.style import BAND, INK, NPE, Picture, canvas, encode, legend_above

__all__ = ["held_out", "spread"]

_WIDTH = 4.4


def held_out(expected: ArrayLike, found: ArrayLike, tolerance: float) -> Picture:
    """Found against expected disagreement (row,) of audited rows that nothing was learned from, in sigma."""
    x, y = np.asarray(expected, dtype=float), np.asarray(found, dtype=float)
    low, high = min(x.min(), y.min(), tolerance) / 1.3, 1.3 * max(x.max(), y.max(), tolerance)
    figure = canvas(_WIDTH, 3.9)
    axes = figure.subplots()
    axes.axhspan(tolerance, high, color=BAND, lw=0, label=f"beyond {tolerance:g} σ")
    axes.plot([low, high], [low, high], color=INK, lw=0.8, ls="--", label="as expected")
    beyond = y > tolerance
    axes.plot(x[beyond], y[beyond], "X", color=NPE, ms=6, mec="white", mew=0.4, ls="none")
    axes.plot(x[~beyond], y[~beyond], "o", color=NPE, ms=4.5, mfc="white", ls="none")
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="expected, row held out [σ of emcee]"
    )
    axes.set_ylabel("distance from emcee [σ of emcee]")
    legend_above(axes, 2)
    alt = f"found against expected disagreement of {x.size} audited rows"
    return encode(figure, f"{alt}, {beyond.sum()} of them beyond {tolerance:g} sigma")


def spread(edges: NDArray, counts: NDArray, below: float) -> Picture:
    """How many rows have which trust, and where it is too low."""
    figure = canvas(_WIDTH, 3.9)
    axes = figure.subplots()
    axes.stairs(counts, edges, color=NPE, lw=1.4)
    axes.axvspan(0, below, color=BAND, lw=0, zorder=0, label=f"below {below:g}")
    axes.set(xlim=(0, 1), xlabel="trust: chance that emcee would agree", ylabel="rows")
    if counts.max() > 0:
        axes.set(yscale="log", ylim=(0.7, 2 * counts.max()))
    legend_above(axes, 1)
    share = counts[edges[1:] <= below].sum() / max(1, counts.sum())
    return encode(figure, f"histogram of the trust of {counts.sum():,} rows; {share:.1%} are below {below:g}")
