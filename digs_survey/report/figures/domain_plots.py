"""The survey beside the simulations: stacked residuals against wavelength, and each row's distance and p-value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from scipy.special import ndtri

from digs_survey.report.figures.style import (
    BAND,
    INK,
    MCMC,
    NARROW,
    NPE,
    WIDE,
    Picture,
    canvas,
    encode,
    finite_span,
    zero_line,
)

__all__ = ["outliers", "stacks"]

_WIDTH = 5.6
_MIN_P = 1e-15
"""p-value at which those below are drawn: at the edge of the figure."""
_TICKS = (0.999, 0.9, 0.5, 0.1, 0.01, 1e-3, 1e-5, 1e-8, 1e-12)


def stacks(
    wavelength: NDArray,
    sigma: NDArray,
    sigma_error: NDArray,
    percent: NDArray,
    percent_error: NDArray,
    departures: Sequence[dict[str, Any]],
    axis: str,
) -> Picture:
    """Stacked residuals, each (population, wavelength) of survey, simulations and replications, with 2 standard errors.

    Parameters
    ----------
    wavelength : ndarray, shape (wavelength,)
    sigma, percent : ndarray, shape (3, wavelength)
        Mean in units of the noise, median in per cent.
    sigma_error, percent_error : ndarray, shape (3, wavelength)
    departures : sequence of dict
        Ranges (``low``, ``high``) to mark.
    axis : str
        Label of the wavelengths.
    """
    wide, narrow = canvas(WIDE, 4.4), canvas(NARROW, 4.4)
    for figure in (wide, narrow):
        upper, lower = figure.subplots(2, 1, sharex=True)
        _stack(upper, wavelength, sigma, sigma_error, departures)
        _stack(lower, wavelength, percent, percent_error, departures)
        upper.set_ylabel(r"mean residual [$\sigma$]")
        lower.set_ylabel("median residual [%]")
        lower.set(xlim=(wavelength[0], wavelength[-1]), xlabel=axis)
        lower.xaxis.set_major_locator(MaxNLocator(10 if figure is wide else 5))
        columns = 4 if figure is wide else 2
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    worst = np.nanmax(np.abs(sigma[0]), initial=0.0)
    alt = (
        f"stacked residuals of the survey and of simulations; the survey's mean is at most {worst:.2f} sigma from zero"
    )
    if departures:
        where = ", ".join(f"{one['low']:.0f} to {one['high']:.0f} Angstrom" for one in departures)
        alt += f"; it departs from the simulations at {where}"
    else:
        alt += "; it departs from the simulations nowhere"
    return encode(wide, alt).with_narrow(encode(narrow, alt))


def _stack(axes: Any, wave: NDArray, value: NDArray, error: NDArray, departures: Sequence[dict[str, Any]]) -> None:
    for number, one in enumerate(departures):
        name = "departs" if number == 0 else None
        axes.axvspan(one["low"], one["high"], fc="none", ec=MCMC, hatch="////", alpha=0.45, lw=0, zorder=0, label=name)
    zero_line(axes)
    low, high = value - 2 * error, value + 2 * error
    axes.fill_between(wave, low[1], high[1], step="mid", color=BAND, lw=0, label=r"simulations, $\pm 2$ errors")
    axes.plot(wave, value[2], color=INK, lw=0.9, ls=":", drawstyle="steps-mid", label="the rows as the model has them")
    axes.fill_between(wave, low[0], high[0], step="mid", color=NPE, alpha=0.3, lw=0)
    axes.plot(wave, value[0], color=NPE, lw=1.4, drawstyle="steps-mid", label=r"survey, $\pm 2$ errors")
    reach = 1.1 * max(np.abs(finite_span(low[:2], high[:2], margin=0)))
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def outliers(
    distance: NDArray,
    pvalue: NDArray,
    simulated_distance: NDArray,
    simulated_pvalue: NDArray,
    limit: float,
    small: float,
) -> Picture:
    """Feature distance against predictive p-value of each row, over the simulations.

    Parameters
    ----------
    distance, pvalue : ndarray, shape (row,)
    simulated_distance, simulated_pvalue : ndarray, shape (simulation,)
    limit, small : float
        Distance above which, and p-value below which, rows stand out.
    """
    out = (distance > limit) | (pvalue < small)
    figure: Figure = canvas(_WIDTH, 4.3)
    axes = figure.subplots()
    axes.scatter(
        simulated_distance,
        _height(simulated_pvalue),
        s=22,
        marker="+",
        linewidths=0.7,
        color="#8A9099",
        label=f"simulations ({simulated_distance.size:,})",
    )
    axes.scatter(distance[~out], _height(pvalue[~out]), s=7, color=NPE, lw=0, label=f"survey ({int((~out).sum()):,})")
    if out.any():
        face: Any = {"facecolors": "white", "edgecolors": MCMC, "linewidths": 1.1}
        name = f"survey, beyond a limit ({int(out.sum()):,})"
        axes.scatter(distance[out], _height(pvalue[out]), s=30, marker="^", **face, label=name, zorder=3)
    axes.axvline(limit, color=INK, lw=0.8, ls="--")
    axes.axhline(_height(small), color=INK, lw=0.8, ls=":")
    axes.set_xscale("log")
    low, high = finite_span(np.log10(distance), np.log10(simulated_distance), [np.log10(limit)])
    axes.set_xlim(10**low, 10**high)
    steps = (1, 1.5, 2, 3, 5, 7) if high - low < 1.2 else (1, 3) if high - low < 3 else (1,)
    places = [step * 10.0**power for power in range(-3, 31) for step in steps if low <= np.log10(step) + power <= high]
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_formatter(NullFormatter())
    bottom, top = finite_span(_height(pvalue), _height(simulated_pvalue), [_height(small)])
    axes.set_ylim(bottom, top)
    shown = [p for p in _TICKS if bottom <= _height(p) <= top]
    axes.set_yticks([_height(p) for p in shown], [f"{p:g}" for p in shown])
    axes.set(
        xlabel="distance of the features (rms; simulations: some 1)", ylabel="predictive p-value (less likely: up)"
    )
    figure.legend(loc="outside upper center", ncols=3 if out.any() else 2)
    alt = (
        f"feature distance against predictive p-value of {distance.size} rows over {simulated_distance.size} "
        f"simulations; {int((distance > limit).sum())} rows are further than {limit:.3g}, and "
        f"{int((pvalue < small).sum())} have a p-value below {small:g}"
    )
    return encode(figure, alt, bitmap=True)


def _height(pvalue: Any) -> Any:
    """Place of a p-value: the normal deviate with that chance of a larger one."""
    return -ndtri(np.clip(pvalue, _MIN_P, 1 - _MIN_P))
