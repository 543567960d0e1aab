"""The figure of a population: shares of bins, their uncertainty, the stacked posteriors and the prior."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from digs_survey.report.figures.style import BAND, INK, NPE, PANEL, TRUTH, canvas, label, legend_above, style

__all__ = ["population_png"]


def population_png(parameter: str, table: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Draw the columns of a :class:`~digs_survey.refine.population.Population` as densities, and return a PNG."""
    edges = np.append(table["bin_low"], table["bin_high"][-1])
    width = np.diff(edges)
    with style():
        figure = canvas(1.4 * PANEL, PANEL)
        axes = figure.add_subplot()
        low, high = table["share_p16"] / width, table["share_p84"] / width
        axes.stairs(high, edges, baseline=low, fill=True, color=BAND, label="16 to 84 %")
        axes.stairs(table["share"] / width, edges, color=NPE, lw=1.6, label="population")
        axes.stairs(table["stacked"] / width, edges, color=INK, ls="--", label="stacked posteriors")
        axes.stairs(table["prior"] / width, edges, color=TRUTH, ls=":", label="prior of the run")
        axes.set(xlabel=label(parameter), ylabel="density", xlim=(edges[0], edges[-1]))
        axes.set_ylim(bottom=0)
        legend_above(axes, 2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
