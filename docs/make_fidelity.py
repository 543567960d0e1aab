"""Make the figures of docs/fidelity.md and print the numbers that it quotes.

Run from the root of the checkout: ``python docs/make_fidelity.py`` (three minutes). What the simulations are compared
with is in ``tests/references.py`` and ``tests/bagpipes_reference.py``, which the tests share.
"""

from __future__ import annotations

import base64
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from digs_survey.config import GridConfig, ModelConfig
from digs_survey.prior import Prior
from digs_survey.report.figures.style import BAND, INK, MCMC, NPE, WIDE, canvas, encode, style, zero_line
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bc03 import read_bc03
from digs_survey.sps.grid import calzetti_curve
from digs_survey.sps.prospector import ProspectorSimulator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import bagpipes_reference as bagpipes  # noqa: E402
import references  # noqa: E402

OUT = Path(__file__).with_name("figures")
OURS, THEIRS, THIRD, FOURTH = NPE, MCMC, "#009E73", "#CC79A7"
"""Okabe and Ito's blue, vermillion, green and purple."""
ANGSTROM = r"$\mathrm{\AA}$"
GALAXIES = {
    "young, 50 Myr": (10.0, 0.0, 0.3, 0.05, 0.0),
    "middle, 1.6 Gyr": (10.0, 0.0, 0.3, 1.6, -0.3),
    "old, 10 Gyr": (10.0, 0.0, 0.1, 10.0, 0.0),
    "dusty, 0.5 Gyr": (10.0, 0.0, 2.0, 0.5, 0.0),
    "metal-poor, 3 Gyr": (10.0, np.log10(0.02), 0.3, 3.0, 0.0),
    "metal-rich, 3 Gyr": (10.0, np.log10(2.5), 0.3, 3.0, 0.0),
}


def main() -> None:
    """Write all figures."""
    OUT.mkdir(exist_ok=True)
    with style():
        for draw in (galaxies, residuals, gas, ages, rebinning):
            print(f"\n{draw.__name__}")
            picture = encode(draw(), str(draw.__doc__), bitmap=True)
            (OUT / f"{draw.__name__}.png").write_bytes(base64.b64decode(picture.src.partition(",")[2]))


def galaxies() -> Figure:
    """Six galaxies by bagpipes and by the source bc03, in elements of 10 Angstrom."""
    grid = WavelengthGrid(np.arange(3060.0, 9911.0, 10.0), medium="air")
    theta = np.array(list(GALAXIES.values()))
    theirs = _quietly(theta, grid)
    simulator = references.as_tabulated(ProspectorSimulator(ModelConfig(), bagpipes.PRIOR, grid))
    ours = bagpipes.luminosities(simulator, theta)
    with bagpipes.replayed(simulator, theirs.weights):
        same_ages = bagpipes.luminosities(simulator, theta)
    figure = canvas(WIDE, 6.4)
    axes = figure.subplots(4, 3, sharex=True, height_ratios=[2.2, 1, 2.2, 1])
    for i, name in enumerate(GALAXIES):
        top, below = axes[2 * (i // 3) : 2 * (i // 3) + 2, i % 3]
        scale = ours[i][np.abs(grid.wavelength - 5500).argmin()]
        top.plot(grid.wavelength, ours[i] / scale, color=OURS, lw=1.4, label="bc03 through Prospector")
        top.plot(grid.wavelength, theirs.flux[i] / scale, color=THEIRS, lw=0.8, ls=(0, (4, 2)), label="bagpipes")
        top.set(yscale="log", ylim=(0.12, 20))
        top.text(0.97, 0.9, name, transform=top.transAxes, ha="right", va="top")
        zero_line(below)
        below.plot(grid.wavelength, bagpipes.percent(ours[i], theirs.flux[i]), color=INK, lw=0.8, label="as it ships")
        residual = bagpipes.percent(same_ages[i], theirs.flux[i])
        below.plot(grid.wavelength, residual, color=THIRD, lw=0.8, label="with bagpipes' ages")
        below.set(ylim=(-5.5, 5.5), xlim=(3000, 9970))
        _say(name, bagpipes.percent(ours[i], theirs.flux[i]))
    for row, text in enumerate((r"$f_\lambda\,/\,f_{5500}$", "residual [%]") * 2):
        axes[row, 0].set_ylabel(text)
    for ax in axes[3]:
        ax.set_xlabel(f"wavelength in air [{ANGSTROM}]")
    axes[0, 0].legend(loc="lower left", handlelength=1.8, borderaxespad=0.2)
    axes[1, 2].legend(loc="lower left", ncols=2, handlelength=1.2, columnspacing=1, borderaxespad=0.2)
    figure.align_ylabels(axes[:, 0])
    return figure


def residuals() -> Figure:
    """200 galaxies all over the prior: where, and how much, bagpipes and quadrature differ from the source bc03."""
    theta, between = bagpipes.galaxies(), bagpipes.galaxies(at_nodes=False)
    simulator, stars = bagpipes.simulator(), bagpipes.simulator(nebular=False)
    theirs = _quietly(theta, bagpipes.AIR)
    shipped = bagpipes.percent(bagpipes.luminosities(simulator, theta), theirs.flux)
    with bagpipes.replayed(simulator, theirs.weights):
        same_ages = bagpipes.percent(bagpipes.luminosities(simulator, theta), theirs.flux)
    off_nodes = bagpipes.percent(bagpipes.luminosities(simulator, between), _quietly(between, bagpipes.AIR).flux)
    fine = _quietly(theta, bagpipes.AIR, nebular=False, **bagpipes.fine_ages())
    fine_ages = bagpipes.percent(bagpipes.luminosities(stars, theta), fine.flux)
    quadrature = _against_quadrature(between[:40])
    figure = canvas(WIDE, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    wave = bagpipes.AIR.wavelength
    zero_line(left)
    for values, colour, name in ((shipped, BAND, "as it ships"), (same_ages, THIRD, "with bagpipes' ages")):
        low, middle, high = np.percentile(values, [5, 50, 95], axis=0)
        left.fill_between(
            wave, low, high, color=colour, alpha=1 if colour == BAND else 0.45, lw=0, label=f"{name}: 90 %"
        )
        left.plot(wave, middle, color=INK if colour == BAND else "#00664A", lw=1, label="median")
    left.set(
        ylim=(-2.6, 2.8), xlim=(3000, 9970), xlabel=f"wavelength in air [{ANGSTROM}]", ylabel="bc03 / bagpipes − 1 [%]"
    )
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    on_samples = _quietly(theta, bagpipes.AIR, nebular=False, **bagpipes.fine_ages(shift=0.0))
    _say(
        "bagpipes, fine ages, bins cut at its own samples",
        bagpipes.percent(bagpipes.luminosities(stars, theta), on_samples.flux),
    )
    for values, colour, name, line in (
        (off_nodes, FOURTH, "bagpipes, between metallicities", (0, (1, 1))),
        (shipped, INK, "bagpipes, as it ships", "-"),
        (same_ages, THIRD, "bagpipes, its ages", (0, (4, 1.5))),
        (fine_ages, THEIRS, "bagpipes, fine ages, stars", (0, (6, 1, 1, 1))),
        (quadrature, OURS, "quadrature, between metallicities", "-"),
    ):
        _say(name, values)
        size = np.sort(np.abs(values).ravel())
        right.plot(size, np.arange(1, size.size + 1) / size.size, color=colour, ls=line, label=name)
    right.set(
        xscale="log", xlim=(5e-4, 80), ylim=(0, 1.01), xlabel="|residual| [%]", ylabel="share of all elements below"
    )
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, handlelength=2.2, columnspacing=1.2)
    return figure


def _against_quadrature(theta: NDArray) -> NDArray:
    """Residuals in percent of theta (n, 5), less the known rounding of the attenuation's coefficients."""
    grid = WavelengthGrid.from_config(GridConfig())
    simulator = references.as_tabulated(ProspectorSimulator(ModelConfig(), bagpipes.PRIOR, grid))
    offset = calzetti_curve(grid.wavelength) - references.calzetti_2000(grid.wavelength)
    ours = bagpipes.luminosities(simulator, theta) * np.exp(theta[:, [2]] * offset)
    theirs = np.array([references.composed_galaxy(row, grid) for row in theta])
    print(f"  flux over the grid against quadrature: {np.abs(ours.sum(1) / theirs.sum(1) - 1).max():.1e} at most")
    return bagpipes.percent(ours, theirs)


def gas() -> Figure:
    """Balmer decrement before dust, and H-beta for each ionising photon, in the grids of Cloudy."""
    grid = read_bc03(np.geomspace(4000, 7000, 1024), max_age_gyr=0.1, richest_gas=np.inf)
    decrement = references.of_line(grid, references.HALPHA) / references.of_line(grid, references.HBETA)
    log_age = grid.log_age[: grid.nebular.shape[1]]
    figure = canvas(WIDE, 3.3)
    left, right = figure.subplots(1, 2, sharex=True)
    left.axhline(2.86, color=INK, lw=0.7)
    right.axhline(1, color=INK, lw=0.7)
    styles = [
        (THIRD, "-", "o"),
        (OURS, "-", "s"),
        (OURS, "--", "^"),
        (INK, "-", "D"),
        (THEIRS, "-", "v"),
        (FOURTH, "-", "P"),
    ]
    for node, (colour, line, marker) in zip(range(1, 7), styles, strict=True):
        name = rf"{references.METALLICITIES[node]:g} $Z_\odot$"
        ages_at, balance = references.photon_balance(grid, node)
        ratio = np.interp(ages_at, log_age, decrement[node])
        for ax, values in ((left, ratio), (right, balance)):
            ax.plot(ages_at, values, color=colour, ls=line, marker=marker, ms=4, label=name)
        print(f"  {name}: decrement {ratio.min():.2f} to {ratio.max():.2f}, ", end="")
        print(f"H-beta over case B {balance.min():.2f} to {balance.max():.2f}")
    faint = read_bc03(np.geomspace(4000, 7000, 1024), gas_logu=-3.0, max_age_gyr=0.1, richest_gas=np.inf)
    print(f"  2.5 Zsun, log U = -3: H-beta over case B {np.round(references.photon_balance(faint, 5)[1], 2)}")
    left.set(xlabel="log age [yr]", ylabel=r"H$\alpha$ / H$\beta$ before dust", ylim=(2.6, 4.6), xlim=(5.97, 7.03))
    left.text(6.99, 2.875, "case B, 10$^4$ K", ha="right", va="bottom", fontsize=9)
    right.set(
        xlabel="log age [yr]", ylabel=r"H$\beta$ / (4.76 $\times$ 10$^{-13}$ erg $\times$ photons)", ylim=(0, 1.25)
    )
    right.legend(loc="center right", ncols=2, bbox_to_anchor=(1, 0.55))
    return figure


def ages() -> Figure:
    """Break and Balmer absorption of simple populations against age, with published tracks."""
    grid = read_bc03(np.geomspace(3700, 4400, 4096), nebular=False)
    shown = grid.log_age >= 6.5
    figure = canvas(WIDE, 3.4)
    left, right = figure.subplots(1, 2, sharex=True)
    published = {-0.7: "s", 0.0: "D"}
    for logzsol, colour, line in (
        (-1.7, THIRD, "-"),
        (-0.7, OURS, "--"),
        (0.0, INK, "-"),
        (0.4, THEIRS, (0, (6, 1, 1, 1))),
    ):
        node = int(np.abs(grid.log_z - logzsol).argmin())
        index = np.array(
            [
                [measure(grid.wavelength, flux.astype(float)) for measure in (references.dn4000, references.hdelta_a)]
                for flux in grid.spectra[node, shown]
            ]
        )
        name = rf"{references.METALLICITIES[node]:g} $Z_\odot$"
        for ax, values in zip((left, right), index.T, strict=True):
            ax.plot(grid.log_age[shown], values, color=colour, ls=line, label=name)
        if logzsol in published:
            table = references.PUBLISHED_DN4000[logzsol]
            left.plot(
                list(table),
                list(table.values()),
                published[logzsol],
                ms=5,
                mfc="none",
                color=colour,
                label=f"BC03 table, {name}",
            )
        at = [np.interp(age, grid.log_age[shown], index[:, 0]) for age in (7, 8, 9, 10)]
        peak = int(index[:, 1].argmax())
        print(f"  {name}: Dn4000 at 10, 100 Myr, 1, 10 Gyr {np.round(at, 2)}, ", end="")
        print(f"Hdelta_A at most {index[peak, 1]:.1f} at log age {grid.log_age[shown][peak]:.2f}")
    left.set(xlabel="log age [yr]", ylabel=r"D$_{\rm n}$(4000)", xlim=(6.5, 10.15), ylim=(0.85, 2.6))
    left.legend(loc="upper left")
    zero_line(right)
    right.set(xlabel="log age [yr]", ylabel=rf"H$\delta_{{\rm A}}$ [{ANGSTROM}]", ylim=(-7.5, 12))
    return figure


def rebinning() -> Figure:
    """Means over elements against samples at their centres, as the paper's code takes them."""
    prior = Prior({"dust2": (0.0, 2.0)})
    row = np.array([10.0, -0.7, 0.1, 0.03, 0.0])
    fine_grid, coarse = WavelengthGrid(np.arange(3635.5, 5085.0, 1.0)), WavelengthGrid(np.arange(3660.0, 5061.0, 50.0))
    spectra = {
        name: ProspectorSimulator(ModelConfig(resampling=how), prior, grid).spectrum(row)
        for name, how, grid in (("fine", "mean", fine_grid), ("mean", "mean", coarse), ("point", "point", coarse))
    }
    unit = spectra["mean"][-1]
    figure = canvas(WIDE, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    left.plot(fine_grid.wavelength, spectra["fine"] / unit, color=BAND, lw=1.2, label=f"elements of 1 {ANGSTROM}")
    left.stairs(spectra["mean"] / unit, coarse.edges, color=OURS, lw=1.4, label=f"mean over 50 {ANGSTROM}")
    left.plot(coarse.wavelength, spectra["point"] / unit, "o", color=THEIRS, ms=4.5, label="point sampling")
    left.set(xlim=(3635, 5085), yscale="log", xlabel=f"wavelength [{ANGSTROM}]", ylabel="flux density [arbitrary]")
    left.legend(loc="upper left")
    offsets = np.linspace(-25, 25, 101)
    for how, colour, name in (("mean", OURS, f"mean over 50 {ANGSTROM}"), ("point", THEIRS, "point sampling")):
        kept = [references.share_of_a_line(how, offset) for offset in offsets]
        right.plot(offsets, kept, color=colour, label=name)
        print(f"  {how}: share of a line's flux {min(kept):.5f} to {max(kept):.5f}")
    right.set(
        xlim=(-25, 25), ylim=(-0.1, 3.9), xlabel=f"nearest centre − line [{ANGSTROM}]", ylabel=r"flux of H$\beta$ kept"
    )
    right.legend(loc="upper right")
    return figure


def _quietly(theta: NDArray, grid: WavelengthGrid, **settings: object) -> bagpipes.Galaxies:
    """Galaxies of bagpipes without what it prints when it is imported."""
    with contextlib.redirect_stdout(io.StringIO()):
        return bagpipes.bagpipes_galaxies(theta, grid, **settings)


def _say(name: str, residual: NDArray) -> None:
    size = np.abs(residual)
    print(
        f"  {name}: median {np.median(residual):+.3f} %, |residual| median {np.median(size):.3f} %, "
        f"95 % {np.quantile(size, 0.95):.2f} %, 99 % {np.quantile(size, 0.99):.2f} %, largest {size.max():.2f} %"
    )


if __name__ == "__main__":
    main()
