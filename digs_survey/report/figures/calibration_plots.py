"""Figures of the calibration on independent simulations: recovery, ranks, rank CDF, coverage, TARP and bins.

Ranks follow Talts et al. 2018, arXiv:1804.06788: the number of posterior draws, out of L, that lie below
the truth is uniform on 0..L if the posterior is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, kstwo

from digs_survey.report.figures.style import (
    BAND,
    INK,
    MCMC,
    NPE,
    Picture,
    encode,
    finite_span,
    label,
    panel,
    zero_line,
)

__all__ = ["binomial_band", "conditional", "coverage", "edges", "rank_cdf", "rank_histogram", "recovery", "tarp"]

_SHOWN = 1_000
"""Simulations that are drawn as points; numbers and running medians are of all."""


def binomial_band(trials: int, probability: ArrayLike, mass: float = 0.95) -> tuple[NDArray, NDArray]:
    """Central interval of the share of successes in ``trials`` of the given probability."""
    tail = 0.5 * (1 - mass)
    probability = np.asarray(probability, dtype=float)
    return binom.ppf(tail, trials, probability) / trials, binom.ppf(1 - tail, trials, probability) / trials


def recovery(name: str, truth: NDArray, low: NDArray, median: NDArray, high: NDArray) -> Picture:
    """True against recovered values (simulation,), median with 16 to 84 %, and pull below.

    pull is (median - truth) divided by half of the 16 to 84 % width; its running median and 16 to 84 % range,
    in bins of the truth, are drawn over it.
    """
    keep = np.isfinite(truth) & np.isfinite(low) & np.isfinite(median) & np.isfinite(high)
    truth, low, median, high = truth[keep], low[keep], median[keep], high[keep]
    pull = (median - truth) / np.maximum(0.5 * (high - low), np.finfo(float).tiny)
    figure = panel(4.3)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    span = finite_span(truth, low, high, margin=0.03)
    shown = slice(0, _SHOWN)
    top.errorbar(
        truth[shown],
        median[shown],
        yerr=np.maximum([median - low, high - median], 0)[:, shown],
        fmt="o",
        ms=2,
        mew=0,
        lw=0.5,
        color=NPE,
        ecolor=NPE,
        alpha=0.35,
    )
    top.plot(span, span, color=INK, lw=0.9, ls="--")
    top.set(xlim=span, ylim=span, ylabel=f"recovered {label(name)}")
    bottom.plot(truth[shown], pull[shown], "o", ms=2, mew=0, color=NPE, alpha=0.3)
    zero_line(bottom)
    for side in (-1, 1):
        bottom.axhline(side, color=INK, lw=0.6, ls=":")
    _running(bottom, truth, pull)
    bottom.set(xlabel=f"true {label(name)}", ylabel="pull", ylim=(-4.2, 4.2))
    for axes in (top, bottom):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    _align(top, bottom)
    alt = (
        f"{name}: recovered against true values of {truth.size} simulations; "
        f"pull has mean {pull.mean() if pull.size else np.nan:.2f} and standard deviation "
        f"{pull.std() if pull.size else np.nan:.2f}"
    )
    return encode(figure, alt, bitmap=True)


def _align(*rows: Axes) -> None:
    for axes in rows:
        axes.yaxis.set_label_coords(-0.19, 0.5)


def _running(axes: Axes, truth: NDArray, pull: NDArray, bins: int = 10) -> None:
    if truth.size < 10 * bins:
        return
    groups = np.array_split(np.argsort(truth), bins)
    centre = [np.median(truth[g]) for g in groups]
    low, middle, high = np.array([np.quantile(pull[g], [0.16, 0.5, 0.84]) for g in groups]).T
    axes.plot(centre, middle, color=MCMC, lw=1.5)
    axes.plot(centre, low, color=MCMC, lw=0.9)
    axes.plot(centre, high, color=MCMC, lw=0.9)


def rank_histogram(name: str, rank: NDArray, draws: int) -> Picture:
    """Histogram of ranks (simulation,) in 0..draws, each bin over its expectation, with the 95 % band."""
    bins = int(np.clip(rank.size // 40, 5, 20))
    edges = np.round(np.linspace(0, draws + 1, bins + 1))
    probability = np.diff(edges) / (draws + 1)
    height = np.histogram(rank, edges - 0.5)[0] / rank.size / probability
    low, high = (side / probability for side in binomial_band(rank.size, probability))
    figure = panel(2.35)
    axes = figure.subplots()
    unit = edges / (draws + 1)
    axes.stairs(high, unit, baseline=low, fill=True, color=BAND, lw=0)
    axes.axhline(1, color=INK, lw=0.7, ls="--")
    axes.stairs(height, unit, color=NPE, lw=1.6, baseline=None)
    outside = int(((height < low) | (height > high)).sum())
    top = max(1.6, 1.1 * float(max(height.max(), high.max())))
    axes.set(xlim=(0, 1), ylim=(0, top), xlabel=_rank_label(name, draws), ylabel="simulations / expected")
    return encode(figure, f"{name}: rank histogram, {outside} of {bins} bins outside the 95 % band of the uniform")


def _rank_label(name: str, draws: int) -> str:
    return f"rank of the true {label(name, unit=False)} / {draws}"


def rank_cdf(name: str, rank: NDArray, draws: int, ks_pvalue: float | None = None) -> Picture:
    """Empirical CDF of the ranks less that of the uniform, with pointwise and simultaneous 95 % bands."""
    unit = np.linspace(0, 1, 201)
    ordered = np.sort((rank + 0.5) / (draws + 1))
    difference = np.searchsorted(ordered, unit, side="right") / rank.size - unit
    low, high = binomial_band(rank.size, unit)
    figure = panel(2.35)
    axes = figure.subplots()
    axes.fill_between(unit, low - unit, high - unit, color=BAND, lw=0)
    zero_line(axes)
    limit = float(kstwo.ppf(0.95, rank.size))
    for side in (-limit, limit):
        axes.axhline(side, color=INK, lw=0.8, ls="--")
    axes.plot(unit, difference, color=NPE, lw=1.6)
    top = 1.6 * max(limit, float(np.abs(difference).max()))
    axes.set(xlim=(0, 1), ylim=(-top, top), xlabel=_rank_label(name, draws), ylabel="CDF $-$ uniform")
    largest = float(np.abs(difference).max())
    alt = (
        f"{name}: rank CDF less the uniform, at most {largest:.3f} from it; "
        f"95 % of right posteriors stay within {limit:.3f}"
    )
    if ks_pvalue is not None:
        axes.text(0.97, 0.95, f"KS $p$ = {ks_pvalue:.2g}", transform=axes.transAxes, ha="right", va="top", fontsize=9)
    return encode(figure, alt)


def coverage(name: str, level: NDArray, covered: NDArray, simulations: int) -> Picture:
    """Share of simulations (level,) whose truth lies in the central interval, and its excess over the nominal level."""
    fine = np.linspace(0, 1, 201)
    low, high = binomial_band(simulations, fine)
    picture, worst = _against_nominal(label(name, unit=False), level, covered, fine, low, high)
    alt = f"{name}: coverage against nominal level, at most {worst:.1f} percentage points from it"
    return encode(picture, alt)


def tarp(level: NDArray, covered: NDArray, band: float) -> Picture:
    """Expected coverage (level,) of the joint posterior by TARP, as :func:`coverage`, with its simultaneous band."""
    fine = np.linspace(0, 1, 201)
    low, high = np.clip(fine - band, 0, 1), np.clip(fine + band, 0, 1)
    picture, worst = _against_nominal("all together (TARP)", level, covered, fine, low, high)
    alt = (
        f"all parameters together: expected coverage of TARP against nominal level, at most {worst:.1f} percentage "
        f"points from it; 95 % of right posteriors stay within {100 * band:.1f}"
    )
    return encode(picture, alt)


def conditional(name: str, along: str, bins: Sequence[Mapping[str, float]]) -> Picture:
    """Factor on the width, and shift, with errors, in bins of a function of the data.

    Parameters
    ----------
    name : str
        The parameter.
    along : str
        What the bins are of, as the axis says it.
    bins : sequence of mapping
        As :func:`~digs_survey.audit.calibration.conditional.bin_summary` gives them.
    """
    figure = panel(3.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    low, high = (np.array([entry[side] for entry in bins]) for side in ("low", "high"))
    centre, reach = 0.5 * (low + high), 0.5 * (high - low)
    worst = {}
    for axes, key, right in ((top, "width_factor", 1.0), (bottom, "shift_sigma", 0.0)):
        value, error = (np.array([entry[key + part] for entry in bins]) for part in ("", "_error"))
        axes.axhline(right, color=INK, lw=0.7, ls="--")
        axes.errorbar(centre, value, xerr=reach, yerr=2 * error, fmt="o", ms=4, color=NPE, lw=1.2)
        span = 1.2 * max(float(np.abs(value - right).max() + 2 * error.max()), 0.1)
        axes.set(ylim=(right - span, right + span))
        worst[key] = value[np.argmax(np.abs(value - right))]
    top.set(ylabel="width / exact")
    bottom.set(xlabel=along, ylabel=r"shift [$\sigma$]")
    bottom.xaxis.set_major_locator(MaxNLocator(5))
    _align(top, bottom)
    alt = (
        f"{name} in {len(bins)} bins: its width over the exact one is {worst['width_factor']:.2f} and its shift "
        f"{worst['shift_sigma']:.2f} sigma where they are farthest off"
    )
    return encode(figure, alt)


def edges(
    name: str,
    strips: Sequence[Mapping[str, float]],
    bins: Sequence[Mapping[str, float]],
    cdf: Callable[[float], ArrayLike],
) -> Picture:
    """Bias and coverage of the 68 % interval by where in the prior the truth lies, and by where the median does.

    Parameters
    ----------
    name : str
        The parameter.
    strips : sequence of mapping
        As :func:`~digs_survey.audit.calibration.conditional.strip_summary` gives them.
    bins : sequence of mapping
        By the posterior's median, as :func:`~digs_survey.audit.calibration.conditional.bin_summary` gives them; may
        be empty.
    cdf : callable
        Cumulative distribution of the parameter's prior.
    """
    figure = panel(3.9)
    top, bottom = figure.subplots(2, 1, sharex=True)
    known = [strip for strip in strips if strip["bias"] is not None]
    centre = np.array([0.5 * (strip["low"] + strip["high"]) for strip in known])
    middle = np.array([float(np.asarray(cdf(0.5 * (entry["low"] + entry["high"])))) for entry in bins])
    for axes, right, key, tested in ((top, 0.0, "bias", "shift_sigma"), (bottom, 0.68, "coverage", "coverage")):
        axes.axhline(right, color=INK, lw=0.7, ls="--")
        exact = [(at, strip[f"{key}_if_exact"]) for at, strip in zip(centre, known, strict=True)]
        axes.plot(
            [at for at, _ in exact], [np.nan if value is None else value for _, value in exact], color=INK, lw=1.2
        )
        _points(axes, centre, known, key, color=NPE, fmt="o")
        _points(axes, middle, bins, tested, color=MCMC, fmt="D", mfc="white")
    top.set(xlim=(0, 1), ylabel=r"(median $-$ truth) / $\sigma$")
    bottom.set(xlabel=f"place in the prior of {label(name, unit=False)}", ylabel="truths in 68 %")
    _align(top, bottom)
    ends = [f"{known[k]['bias']:+.2f}" for k in (0, -1)] if known else ["unknown"] * 2
    alt = (
        f"{name}: bias by where the truth lies in the prior, {ends[0]} in the lowest strip and {ends[1]} in the "
        f"highest; by where the median lies it is {_farthest(bins, 'shift_sigma')} at most"
    )
    return encode(figure, alt)


def _points(axes: Axes, at: NDArray, entries: Sequence[Mapping[str, float]], key: str, **style: str) -> None:
    value, error = (np.array([entry[key + part] for entry in entries]) for part in ("", "_error"))
    axes.errorbar(at, value, yerr=2 * error, ms=4, lw=1.2, **style)  # type: ignore[arg-type]


def _farthest(bins: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{max((entry[key] for entry in bins), key=abs):+.2f}" if bins else "not known"


def _against_nominal(
    title: str, level: NDArray, covered: NDArray, at: NDArray, low: NDArray, high: NDArray
) -> tuple[Figure, float]:
    """Draw coverage (level,) and its excess over a band given at other levels; also return the largest excess in %."""
    figure = panel(4.3)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    excess = covered - level
    top.fill_between(100 * at, 100 * low, 100 * high, color=BAND, lw=0)
    top.plot([0, 100], [0, 100], color=INK, lw=0.9, ls="--")
    top.plot(100 * level, 100 * covered, color=NPE, lw=1.6)
    top.text(0.05, 0.93, title, transform=top.transAxes, va="top", fontsize=12)
    top.text(0.95, 0.07, "overconfident", transform=top.transAxes, ha="right", fontsize=9, style="italic")
    top.set(ylim=(0, 100), ylabel="truths inside [%]")
    bottom.fill_between(100 * at, 100 * (low - at), 100 * (high - at), color=BAND, lw=0)
    zero_line(bottom)
    bottom.plot(100 * level, 100 * excess, color=NPE, lw=1.6)
    reach = 130 * max(np.abs(high - at).max(), np.nanmax(np.abs(excess), initial=0))
    bottom.set(xlim=(0, 100), ylim=(-reach, reach), xlabel="nominal level [%]", ylabel="excess [%]")
    _align(top, bottom)
    return figure, 100 * float(np.nanmax(np.abs(excess), initial=0))
