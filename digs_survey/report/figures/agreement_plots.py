"""NPE against emcee over all audited galaxies, and what the posterior predicts against wavelength."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

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
    label,
    legend_above,
    zero_line,
)

__all__ = ["residuals", "shifts", "widths"]

_WIDTH = 4.4


def shifts(names: Sequence[str], shift: NDArray, converged: NDArray, tolerance: float) -> Picture:
    """Shift of the medians (galaxy, parameter) in sigma of emcee, one row a parameter."""
    span = max(1.0, 1.1 * float(np.nanmax(np.abs(shift), initial=0.0)))
    figure, axes = _rows(names, shift, converged)
    axes.axvspan(-tolerance, tolerance, color=BAND, lw=0, zorder=0)
    axes.axvline(0, color=INK, lw=0.7)
    axes.set(xlim=(-span, span), xlabel=r"(median NPE $-$ median emcee) / $\sigma_{\rm emcee}$")
    return encode(figure, _summary("shift between the medians of NPE and emcee in sigma", names, shift, converged))


def widths(names: Sequence[str], ratio: NDArray, converged: NDArray) -> Picture:
    """Ratio of the widths (galaxy, parameter), NPE over emcee, on a logarithmic axis."""
    finite = ratio[np.isfinite(ratio) & (ratio > 0)]
    reach = max(1.6, 1.15 * float(np.exp(np.abs(np.log(finite)).max()))) if finite.size else 2.0
    figure, axes = _rows(names, ratio, converged)
    axes.set_xscale("log")
    axes.axvspan(1 / 1.2, 1.2, color=BAND, lw=0, zorder=0)
    axes.axvline(1, color=INK, lw=0.7)
    axes.set(xlim=(1 / reach, reach), xlabel=r"$\sigma_{\rm NPE}\,/\,\sigma_{\rm emcee}$")
    ticks = [t for t in (0.1, 0.2, 0.5, 0.7, 1, 1.4, 2, 5, 10) if 1 / reach <= t <= reach]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return encode(figure, _summary("ratio of the widths of NPE and emcee", names, ratio, converged))


def _rows(names: Sequence[str], values: NDArray, converged: NDArray) -> tuple[Figure, Axes]:
    figure = canvas(_WIDTH, 0.75 + 0.5 * len(names))
    axes = figure.subplots()
    galaxies = len(values)
    offset = np.linspace(-0.3, 0.3, galaxies) if galaxies > 1 else np.zeros(1)
    for k in range(len(names)):
        for chosen, marker, colour in ((converged, "o", NPE), (~converged, "x", MCMC)):
            place = k + offset[chosen]
            axes.scatter(values[chosen, k], place, s=26, linewidths=1.4, zorder=3, marker=marker, color=colour)
    axes.set_yticks(range(len(names)), [label(name, unit=False) for name in names])
    axes.tick_params(axis="y", length=0, labelsize=10.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for k in range(1, len(names)):
        axes.axhline(k - 0.5, color=BAND, lw=0.6, zorder=0)
    return figure, axes


def _summary(what: str, names: Sequence[str], values: NDArray, converged: NDArray) -> str:
    if not converged.any():
        return f"{what}; none of the {len(values)} chains converged"
    middle = np.median(values[converged], axis=0)
    inside = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, middle, strict=True))
    return f"{what}; medians over the {int(converged.sum())} converged of {len(values)} galaxies: {inside}"


def residuals(wavelength: NDArray, percent: NDArray, noise: NDArray, axis: str) -> Picture:
    """Observed less predicted flux in percent (galaxy, wavelength), NaN where masked, over the median noise."""
    galaxies = len(percent)
    with np.errstate(all="ignore"):
        middle = _nanmedian(percent)
        worst = float(np.nanmax(np.abs(middle))) if np.isfinite(middle).any() else np.nan
    alt = f"posterior predictive residuals of {galaxies} galaxies; their median is at most {worst:.1f} % from zero"
    wide, narrow = canvas(WIDE, 2.9), canvas(NARROW, 2.9)
    for figure in (wide, narrow):
        _draw_residuals(figure, wavelength, percent, middle, _nanmedian(noise))
        figure.axes[0].set_xlabel(axis)
    return encode(wide, alt).with_narrow(encode(narrow, alt))


def _draw_residuals(figure: Figure, wavelength: NDArray, percent: NDArray, middle: NDArray, band: NDArray) -> None:
    axes = figure.subplots()
    many, alpha = len(percent) > 30, max(0.08, min(0.6, 4 / len(percent)))
    axes.fill_between(wavelength, -band, band, step="mid", color=BAND, lw=0, label=r"noise, $\pm 1\sigma$")
    for line in percent:
        axes.plot(wavelength, line, color=NPE, lw=0.6, alpha=alpha, rasterized=many)
    zero_line(axes)
    axes.plot(wavelength, middle, color=MCMC, lw=1.6, label="median over galaxies")
    reach = 1.15 * finite_span(np.abs(percent), 2 * band, quantile=0.002, margin=0)[1]
    axes.set(xlim=(wavelength[0], wavelength[-1]), ylim=(-reach, reach), ylabel="observed $-$ predicted [%]")
    axes.xaxis.set_major_locator(MaxNLocator(10 if figure.get_figwidth() > 5 else 5))
    legend_above(axes, 2)


def _nanmedian(values: NDArray) -> NDArray:
    out = np.full(values.shape[1], np.nan)
    seen = np.isfinite(values).any(axis=0)
    out[seen] = np.nanmedian(values[:, seen], axis=0)
    return out
