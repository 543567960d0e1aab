"""The report's figures: what is drawn is what the numbers say."""

from __future__ import annotations

import re
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import norm
from synthetic_run import LEVELS

from digs_survey.report.figures import calibration_plots as calibration
from digs_survey.report.figures import galaxy_plots as galaxy
from digs_survey.report.figures import style


def test_the_corner_draws_weighted_draws_over_the_others():
    draws = np.random.default_rng(0).normal(size=(4000, 2))
    bounds, truth = np.array([[-9.0, 9.0]] * 2), np.full(2, np.nan)
    weights = (draws[:, 0] > 0) / (draws[:, 0] > 0).sum()
    picture = galaxy.corner(["tage", "dust2"], draws, draws + 1, bounds, truth, "corner", weights)
    npe, emcee, weighted = picture.figure.axes[0].lines[:3]
    assert [line.get_linestyle() for line in (npe, emcee, weighted)] == ["-", "--", "-."]
    x, height = weighted.get_data()
    assert height[x < -1].max() == 0
    np.testing.assert_allclose(height[x > 0.5], 2 * npe.get_ydata()[x > 0.5], rtol=0.1, atol=0.02)
    assert len(galaxy.corner(["tage", "dust2"], draws, None, bounds, truth, "corner").figure.axes[0].lines) == 1


def test_contours_hold_the_mass_that_they_claim():
    x, y = np.meshgrid(np.linspace(-5, 5, 201), np.linspace(-5, 5, 201))
    density = np.exp(-0.5 * (x**2 + y**2))
    outer, inner = galaxy.mass_levels(density, [0.95, 0.68])
    # A 2-D Gaussian holds a mass m inside the radius at which it has fallen to 1 - m of its peak.
    assert outer == pytest.approx(0.05, rel=0.05)
    assert inner == pytest.approx(0.32, rel=0.02)


@pytest.mark.parametrize(
    ("width", "shift", "passes"), [(1, 0, True), (0.8, 0, False), (1.25, 0, False), (1, 0.3, False)]
)
def test_calibration_figures_tell_a_right_posterior_from_a_wrong_one(width, shift, passes):
    rng = np.random.default_rng(3)
    count, draws = 2000, 999
    z = (rng.normal(size=count) - shift) / width
    rank = np.floor(norm.cdf(z) * (draws + 1)).astype(int)
    covered = (np.abs(z)[:, None] < norm.ppf(0.5 + LEVELS / 2)).mean(axis=0)
    with style.style():
        bins = calibration.rank_histogram("tage", rank, draws).alt
        cdf = calibration.rank_cdf("tage", rank, draws).alt
        curve = calibration.coverage("tage", LEVELS, covered, count).alt
        joint = calibration.tarp(LEVELS, covered, 0.03).alt
    assert re.search(r"at most ([\d.]+) .* within 3\.0$", joint)[1] == re.search(r"at most ([\d.]+)", curve)[1]
    outside = int(re.search(r"(\d+) of 20 bins outside", bins)[1])
    largest, limit = map(float, re.search(r"at most ([\d.]+) .* within ([\d.]+)", cdf).groups())
    worst = float(re.search(r"at most ([\d.]+) percentage", curve)[1])
    assert (outside <= 3) is passes
    assert (largest < limit) is passes
    if shift == 0:
        assert (worst < 3) is passes


def test_the_slimmed_svg_keeps_positions():
    with style.style():
        figure = style.canvas(2, 1)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 200), ylim=(0, 100))
        axes.plot([10, 100, 150.123], [20, 50.057, 90])[0].set_gid("mine")
        figure.set_layout_engine("none")
        svg = unquote(style.encode(figure, "a line").src.split(",", 1)[1])
    path = ElementTree.fromstring(svg).find(".//*[@id='mine']/{*}path").get("d")
    found = np.array([float(v) for v in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2)
    expected = [[0.72 * x, 72 - 0.72 * y] for x, y in [(10, 20), (100, 50.057), (150.123, 90)]]
    np.testing.assert_allclose(found, expected, atol=0.011)


def test_the_history_draws_bands_and_truth():
    times, rng = np.geomspace(0.01, 10, 50), np.random.default_rng(1)
    npe, mcmc = rng.lognormal(0, 0.3, (200, 50)), rng.lognormal(1, 0.2, (200, 50))
    axes = galaxy.history(times, npe, mcmc, np.ones(50), False, "history").figure.axes[0]
    labels = [line.get_label() for line in axes.lines]
    assert labels[0] == "NPE, median"
    assert labels[1].startswith("emcee (NOT converged)")
    assert labels[-1] == "truth"
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.median(mcmc, axis=0))
    # Rates that are all 0 before a galaxy began have no place on the axis, but break nothing.
    npe[:, 25:] = 0.0
    low, high = galaxy.history(times, npe, None, None, True, "history").figure.axes[0].get_ylim()
    assert 0 < low < np.median(npe[:, 0]) < high
