"""Figures of the run as a whole: the learning curve, the cost, and the catalog's medians."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from digs_survey.report.figures.style import BAND, INK, MCMC, NPE, Picture, canvas, encode, finite_span, label, panel

__all__ = ["cost", "learning_curve", "medians"]

_WIDTH = 4.4
_BASELINES = {"prospector": "emcee on Prospector's spectra", "batched": "emcee on spectra in batches"}


def learning_curve(epoch: NDArray, train: NDArray, validation: NDArray) -> Picture:
    """Training and validation loss (epoch,) in nats a galaxy, with the best epoch marked."""
    figure = canvas(_WIDTH, 3.2)
    axes = figure.subplots()
    axes.plot(epoch, train, color=INK, lw=1.1, ls="--", label="training")
    axes.plot(epoch, validation, color=NPE, lw=1.5, label="validation")
    alt = f"loss against epoch, {epoch.size} epochs"
    if np.isfinite(validation).any():
        best = int(np.nanargmin(validation))
        axes.plot(epoch[best], validation[best], "o", color=MCMC, ms=6, label=f"best: epoch {epoch[best]:g}")
        alt += f"; best validation loss {validation[best]:.3f} nats at epoch {epoch[best]:g}"
    late = slice(max(0, min(3, epoch.size // 4)), None)
    low, high = finite_span(train[late], validation[late], margin=0.08)
    axes.set(ylim=(low, high), xlabel="epoch", ylabel=r"$-\log\,q(\theta\,|\,x)$ per galaxy [nats]")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend()
    return encode(figure, alt)


def cost(fixed_s: float | None, npe_s: float, baselines: Mapping[str, Mapping[str, Any]], rows: int | None) -> Picture:
    """Core-hours against the number of galaxies, for NPE with its simulation and training and for both kinds of emcee.

    Parameters
    ----------
    fixed_s : float or None
        Core-seconds of simulation and training, if both are known.
    npe_s : float
        Core-seconds a galaxy.
    baselines : mapping
        As ``cost`` of audit.json has them.
    rows : int or None
        Rows of this catalog.
    """
    known = {name: one for name, one in baselines.items() if one.get("core_s_per_galaxy")}
    enough = {name: one["break_even_galaxies"] for name, one in known.items() if one.get("break_even_galaxies")}
    top = max([1e6, 10 * (rows or 0), *(100 * count for count in enough.values())])
    galaxies = np.geomspace(1, top, 200)
    figure = canvas(_WIDTH, 4.3)
    axes = figure.subplots()
    alt = "total core-hours against number of galaxies"
    for name, one in sorted(known.items(), reverse=True):
        color, line = (MCMC, "--") if name == "batched" else (INK, "-.")
        what = _BASELINES[name]
        axes.loglog(galaxies, one["core_s_per_galaxy"] * galaxies / 3600, color=color, lw=1.6, ls=line, label=what)
        if limits := one.get("core_s_per_galaxy_95"):
            low, high = (limit * galaxies / 3600 for limit in limits)
            axes.fill_between(galaxies, low, high, color=color, alpha=0.25, lw=0)
        if name in enough:
            axes.plot(enough[name], enough[name] * one["core_s_per_galaxy"] / 3600, "o", color=color, ms=6, zorder=4)
            alt += (
                f"; NPE is cheaper than {what} from {enough[name]:,.0f} galax{'y' if enough[name] == 1 else 'ies'} on"
            )
    if fixed_s is not None:
        whole = (fixed_s + npe_s * galaxies) / 3600
        axes.loglog(galaxies, whole, color=NPE, lw=1.8, label="NPE, with simulation and training")
    axes.loglog(galaxies, npe_s * galaxies / 3600, color=NPE, lw=1.0, ls=":", label="NPE, mapping only")
    if enough:
        axes.plot([], [], "o", color=INK, ms=6, ls="none", label="break-even")
    if rows:
        axes.axvline(rows, color=BAND, lw=1.4, zorder=0)
        across = axes.get_xaxis_transform()
        axes.text(rows, 0.03, "this catalog", transform=across, rotation=90, ha="right", fontsize=8.5)
    axes.set(xlim=(1, top), xlabel="galaxies", ylabel="core-hours")
    axes.legend(loc="upper left", fontsize=9)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1e4)
    return encode(figure, alt)


def medians(name: str, edges: NDArray, counts: NDArray) -> Picture:
    """Histogram of a parameter's median over the catalog, on the prior's range."""
    figure = panel(2.35)
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=NPE, alpha=0.35, lw=0)
    axes.stairs(counts, edges, color=NPE, lw=1.2)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, max(1.0, 1.1 * counts.max())), xlabel=label(name), ylabel="rows")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    centre = 0.5 * (edges[1:] + edges[:-1])
    typical = float(np.interp(0.5, np.cumsum(counts) / max(1, counts.sum()), centre))
    what = f"distribution of the posterior medians of {counts.sum()} rows"
    return encode(figure, f"{name}: {what}, half of them below about {typical:.3g}")
