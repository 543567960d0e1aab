"""Figures of one audited galaxy: its spectrum with the best fits, and the corner of NPE over emcee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Transform, blended_transform_factory
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from digs_survey.report.figures.style import (
    BAND,
    INK,
    MCMC,
    NARROW,
    NPE,
    TRUTH,
    WEIGHTED,
    WIDE,
    Picture,
    canvas,
    encode,
    finite_span,
    label,
    legend_above,
    zero_line,
)

__all__ = ["BandPoints", "Spectrum", "corner", "history", "mass_levels", "spectrum"]

_Chain = tuple[NDArray, str, str, NDArray | None]
"""Draws (draw, parameter), colour, line style (solid is filled), and weights (draw,)."""
_CORNER = 6.0
_BINS = 36


@dataclass(frozen=True)
class BandPoints:
    """Photometry beside the spectrum, all (band,); flux and wavelengths in the unit and the frame of the spectrum."""

    wavelength: NDArray
    """Pivot wavelengths."""
    width: NDArray
    flux: NDArray
    sigma: NDArray
    good: NDArray
    best_npe: NDArray
    best_mcmc: NDArray


@dataclass(frozen=True)
class Spectrum:
    """What the spectrum figure shows of one galaxy, all (wavelength,); flux in erg/s/cm2/Angstrom."""

    wavelength: NDArray
    flux: NDArray
    sigma: NDArray
    good: NDArray
    best_npe: NDArray
    best_mcmc: NDArray
    axis: str
    """Label of the wavelength axis: frame and medium."""
    bands: BandPoints | None = None


def spectrum(galaxy: Spectrum, converged: bool, alt: str) -> Picture:
    """Observed spectrum with its error band, best fits of NPE and emcee, and residuals in percent."""
    return _spectrum(galaxy, converged, alt, WIDE, 4.0).with_narrow(_spectrum(galaxy, converged, alt, NARROW, 4.4))


def _spectrum(galaxy: Spectrum, converged: bool, alt: str, width: float, height: float) -> Picture:
    wave = galaxy.wavelength
    hide = np.where(galaxy.good, 1.0, np.nan)
    observed, sigma = galaxy.flux * hide, galaxy.sigma * hide
    bands = galaxy.bands if galaxy.bands is not None and galaxy.bands.good.any() else None
    seen = observed if bands is None else np.append(observed, bands.flux[bands.good])
    peak = np.nanmax(np.abs(seen)) if np.isfinite(seen).any() else 1.0
    power = int(np.floor(np.log10(peak))) if peak > 0 else 0
    scale = 10.0**power
    figure = canvas(width, height)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    low, high = (observed - sigma) / scale, (observed + sigma) / scale
    top.fill_between(wave, low, high, step="mid", color=BAND, lw=0, label=r"observed, $\pm 1\sigma$")
    top.step(wave, observed / scale, where="mid", color=INK, lw=0.8)
    emcee = "best fit, emcee" if converged else "best fit, emcee (NOT converged)"
    for best, colour, dashes, text in (
        (galaxy.best_npe, NPE, "-", "best fit, NPE"),
        (galaxy.best_mcmc, MCMC, "--", emcee),
    ):
        if not np.isfinite(best).any():
            continue
        top.plot(wave, best / scale, color=colour, ls=dashes, lw=1.3, label=text)
        bottom.plot(wave, 100 * (observed - best) / best, color=colour, ls=dashes, lw=1.1)
    noise = 100 * sigma / galaxy.best_npe
    bottom.fill_between(wave, -noise, noise, step="mid", color=BAND, lw=0, zorder=0)
    zero_line(bottom)
    if bands is not None:
        noise = np.append(noise, _bands(top, bottom, bands, scale))
    power_text = rf"$10^{{{power}}}\,$" if power else ""
    top.set(ylabel=rf"$f_\lambda$ [{power_text}erg s$^{{-1}}$ cm$^{{-2}}$ $\mathrm{{\AA}}^{{-1}}$]")
    legend_above(top, (3 if width > 5 else 2) + (bands is not None))
    reach = finite_span(3 * noise, quantile=0.1, margin=0.0)[1]
    bottom.set(xlabel=galaxy.axis, ylabel="residual [%]", ylim=(-reach, reach), xlim=_range(wave, bands))
    bottom.xaxis.set_major_locator(MaxNLocator(10 if width > 5 else 5))
    figure.align_ylabels()
    return encode(figure, alt)


def _bands(top: Axes, bottom: Axes, bands: BandPoints, scale: float) -> NDArray:
    """Draw photometry as points, its wavelengths as bars and the models' as rings; return its noise in percent."""
    good = bands.good
    wave, flux, sigma, reach = bands.wavelength[good], bands.flux[good], bands.sigma[good], 0.5 * bands.width[good]
    style: dict[str, Any] = {"fmt": "o", "ms": 4, "lw": 1.0}
    top.errorbar(wave, flux / scale, sigma / scale, reach, color=INK, label="photometry", zorder=4, **style)
    for best, colour in ((bands.best_npe[good], NPE), (bands.best_mcmc[good], MCMC)):
        if np.isfinite(best).any():
            top.plot(wave, best / scale, "o", ms=8, mfc="none", mec=colour, zorder=5)
            bottom.errorbar(wave, 100 * (flux - best) / best, 100 * sigma / best, reach, color=colour, **style)
    return np.asarray(100 * sigma / np.abs(bands.best_npe[good]))


def _range(wave: NDArray, bands: BandPoints | None) -> tuple[float, float]:
    """Ends of the wavelength axis: those of the spectrum, and of photometry where there is any."""
    low, high = float(wave[0]), float(wave[-1])
    if bands is not None:
        reach, middle = 0.5 * bands.width[bands.good], bands.wavelength[bands.good]
        low, high = min(low, float((middle - reach).min())), max(high, float((middle + reach).max()))
    return low, high


def history(
    lookback_gyr: NDArray, npe: NDArray, mcmc: NDArray | None, truth: NDArray | None, converged: bool, alt: str
) -> Picture:
    """Median and 16 to 84 % of the star formation rate at lookback times, of NPE and emcee.

    Parameters
    ----------
    lookback_gyr : ndarray, shape (time,)
        Increasing.
    npe, mcmc : ndarray, shape (draw, time)
        Rates in Msun/yr.
    truth : ndarray, shape (time,), optional
    converged : bool
        Whether emcee did.
    alt : str
    """
    parts = lookback_gyr, npe, mcmc, truth, converged, alt
    return _history(*parts, WIDE, 2.9).with_narrow(_history(*parts, NARROW, 3.0))


def _history(
    lookback_gyr: NDArray,
    npe: NDArray,
    mcmc: NDArray | None,
    truth: NDArray | None,
    converged: bool,
    alt: str,
    width: float,
    height: float,
) -> Picture:
    figure = canvas(width, height)
    axes = figure.subplots()
    low, median, high = np.quantile(npe, [0.16, 0.5, 0.84], axis=0)
    axes.fill_between(lookback_gyr, low, high, color=NPE, alpha=0.25, lw=0, label="NPE, 16 to 84 %")
    axes.plot(lookback_gyr, median, color=NPE, label="NPE, median")
    shown = [low, median, high]
    if mcmc is not None:
        below, middle, above = np.quantile(mcmc, [0.16, 0.5, 0.84], axis=0)
        name = "emcee" if converged else "emcee (NOT converged)"
        axes.plot(lookback_gyr, middle, color=MCMC, ls="--", label=f"{name}, median and 16 to 84 %")
        for edge in (below, above):
            axes.plot(lookback_gyr, edge, color=MCMC, ls="--", lw=0.7)
        shown += [below, middle, above]
    if truth is not None:
        axes.plot(lookback_gyr, truth, color=TRUTH, ls=":", label="truth")
        shown.append(truth)
    # Of a galaxy that began late, rates fall to 0, which a log scale has no place for.
    rates = np.concatenate(shown)
    rates = rates[rates > 0] if (rates > 0).any() else np.ones(1)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(lookback_gyr[0], lookback_gyr[-1]),
        ylim=(0.5 * max(rates.min(), 1e-4 * rates.max()), 2 * rates.max()),
        xlabel="lookback time before the galaxy is seen [Gyr]",
        ylabel=r"SFR [$M_\odot$ yr$^{-1}$]",
    )
    legend_above(axes, 4 if width > 5 else 1)
    return encode(figure, alt)


def mass_levels(density: NDArray, masses: Sequence[float]) -> NDArray:
    """Densities at which contours enclose the given masses, increasing and distinct, for a binned density."""
    ordered = np.sort(density, axis=None)[::-1]
    total = np.cumsum(ordered)
    found = np.sort([ordered[min(np.searchsorted(total, m * total[-1]), ordered.size - 1)] for m in masses])
    return found + np.arange(found.size) * (np.spacing(found.max()) if np.ptp(found) == 0 else 0.0)


def corner(
    names: Sequence[str],
    npe: NDArray,
    mcmc: NDArray | None,
    bounds: NDArray,
    truth: NDArray,
    alt: str,
    weights: NDArray | None = None,
) -> Picture:
    """Marginals and pairs of NPE draws (draw, parameter) and, if there are any, emcee's and weighted draws over them.

    Parameters
    ----------
    names : sequence of str
        Parameters, in the order of the columns.
    npe, mcmc : ndarray, shape (draw, parameter)
    bounds : ndarray, shape (parameter, 2)
        Bounds of the prior, which no axis exceeds.
    truth : ndarray, shape (parameter,)
        NaN where unknown.
    alt : str
    weights : ndarray, shape (draw,), optional
        Importance weights of the NPE draws.
    """
    wide = _corner(names, npe, mcmc, bounds, truth, alt, weights, compact=False)
    return wide.with_narrow(_corner(names, npe, mcmc, bounds, truth, alt, weights, compact=True))


def _corner(
    names: Sequence[str],
    npe: NDArray,
    mcmc: NDArray | None,
    bounds: NDArray,
    truth: NDArray,
    alt: str,
    weights: NDArray | None,
    *,
    compact: bool,
) -> Picture:
    size = NARROW if compact else _CORNER
    count = len(names)
    chains: list[_Chain] = [(npe, NPE, "-", None)]
    if mcmc is not None:
        chains.append((mcmc, MCMC, "--", None))
    if weights is not None:
        chains.append((npe, WEIGHTED, "-.", weights))
    spans = [_span([chain[0][:, k] for chain in chains], bounds[k], truth[k]) for k in range(count)]
    # Fixed margins: measuring the labels of all panels for a layout takes ten times as long as drawing them.
    figure = Figure(figsize=(size, size))
    left, bottom = (0.17, 0.16) if compact else (0.115, 0.115)
    figure.subplots_adjust(left=left, right=0.99, bottom=bottom, top=0.99, wspace=0.06, hspace=0.06)
    grid = figure.subplots(count, count, squeeze=False)
    for row in range(count):
        for column in range(count):
            axes = grid[row, column]
            if column > row:
                axes.set_axis_off()
                continue
            for chain in chains:
                if row == column:
                    _marginal(axes, row, spans[row], chain)
                else:
                    _pair(axes, column, row, [spans[column], spans[row]], chain)
            _finish(axes, row, column, names, spans, truth, compact)
    return encode(figure, alt)


def _span(columns: list[NDArray], bound: NDArray, truth: float) -> tuple[float, float]:
    low = min(np.quantile(c, 0.002) for c in columns)
    high = max(np.quantile(c, 0.998) for c in columns)
    if np.isfinite(truth):
        low, high = min(low, truth), max(high, truth)
    low, high = finite_span([low, high], margin=0.06)
    return max(low, float(bound[0])), min(high, float(bound[1]))


def _marginal(axes: Axes, column: int, span: tuple[float, float], chain: _Chain) -> None:
    draws, colour, line, weights = chain
    height, edges = np.histogram(draws[:, column], _BINS, span, density=True, weights=weights)
    height = gaussian_filter(height, 1.0, mode="reflect")
    centre = 0.5 * (edges[1:] + edges[:-1])
    if line == "-":
        axes.fill_between(centre, height, color=colour, alpha=0.30, lw=0)
    axes.plot(centre, height, color=colour, lw=1.2, ls=line)


def _pair(axes: Axes, across: int, up: int, spans: list[tuple[float, float]], chain: _Chain) -> None:
    draws, colour, line, weights = chain
    density, x, y = np.histogram2d(draws[:, across], draws[:, up], _BINS, spans, weights=weights)
    if not density.any():
        return
    density = gaussian_filter(density, 1.5, mode="reflect").T
    x, y = 0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1])
    outer, inner = mass_levels(density, [0.95, 0.68])
    if line == "-":
        axes.contourf(x, y, density, [outer, inner, np.inf], colors=[to_rgba(colour, 0.22), to_rgba(colour, 0.48)])
    axes.contour(x, y, density, [outer, inner], colors=[colour], linewidths=1.0, linestyles=line)


def _finish(
    axes: Axes,
    row: int,
    column: int,
    names: Sequence[str],
    spans: list[tuple[float, float]],
    truth: NDArray,
    compact: bool,
) -> None:
    axes.set_xlim(spans[column])
    if np.isfinite(truth[column]):
        axes.axvline(truth[column], color=TRUTH, lw=0.8, ls=":")
    if row == column:
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(spans[row])
        if np.isfinite(truth[row]):
            axes.axhline(truth[row], color=TRUTH, lw=0.8, ls=":")
    ticks = 2 if compact else 3
    size = 7 if compact else 8.5
    axes.set_xticks(_inner_ticks(spans[column], ticks))
    axes.set_yticks(_inner_ticks(spans[row], ticks) if row != column else [])
    axes.tick_params(
        labelsize=size,
        length=2.5,
        top=False,
        right=False,
        labelbottom=row == len(names) - 1,
        labelleft=column == 0 and row > 0,
    )
    axes.tick_params(axis="x", labelrotation=45)
    text = 8.5 if compact else 10.5
    if row == len(names) - 1:
        axes.set_xlabel(label(names[column], unit=not compact), fontsize=text)
        axes.xaxis.set_label_coords(0.5, 0.01, blended_transform_factory(axes.transAxes, _whole(axes)))
        axes.xaxis.label.set_verticalalignment("bottom")
    if column == 0 and row > 0:
        axes.set_ylabel(label(names[row], unit=not compact), fontsize=text)
        axes.yaxis.set_label_coords(0.01, 0.5, blended_transform_factory(_whole(axes), axes.transAxes))
        axes.yaxis.label.set_verticalalignment("top")


def _whole(axes: Axes) -> Transform:
    return axes.get_figure(root=True).transFigure  # type: ignore[union-attr]


def _inner_ticks(span: tuple[float, float], most: int) -> NDArray:
    """Round values away from the ends of a panel, where labels would meet those of its neighbours."""
    low, high = span
    margin = 0.12 * (high - low)
    ticks = np.asarray(MaxNLocator(most + 1).tick_values(low + margin, high - margin))
    return ticks[(ticks >= low + margin) & (ticks <= high - margin)]
