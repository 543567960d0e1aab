"""Presets of surveys: what they ask for can be made, and what they describe is what their instruments observe."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.config import SurveyConfig, load_config, presets
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed
from digs_survey.noise.row_noise import RowNoise
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.coverage import check_source

SURVEYS = {
    "desi": 1_601,
    "nirspec-prism": 217,
    "pfs": 1_201,
    "prospector-alpha": 680,
    "roman-grism": 951,
    "survey": 680,
}
"""Presets with noise of kind "row", and their numbers of elements."""
LYMAN_ALPHA = 1215.67


def of(name: str, *overrides: str) -> tuple[SurveyConfig, WavelengthGrid]:
    config = load_config(name, overrides)
    return config, WavelengthGrid.from_config(config.grid)


def test_these_are_all_presets_of_rows():
    assert {name for name in presets() if load_config(name).noise.by_row} == set(SURVEYS)


@pytest.mark.parametrize("name", SURVEYS)
def test_the_populations_cover_the_grid_which_holds_what_is_observed(name):
    config, grid = of(name)
    check_source(config.model, config.make_prior(), grid)
    assert len(grid) == SURVEYS[name]
    observing = config.noise.observing
    low, high = observing.redshift
    bluest, reddest = observing.blue_end_angstrom[0] / (1 + high), observing.red_end_angstrom[1] / (1 + low)
    if name in ("prospector-alpha", "survey"):  # They leave out the ends that few of their rows have.
        assert bluest < grid.edges[0] < grid.edges[-1] < reddest
    else:  # The model has nothing of Lyman alpha and what lies beyond.
        assert grid.edges[0] == pytest.approx(max(bluest, 1287.5), abs=10)
        assert grid.edges[-1] == pytest.approx(reddest, abs=30)
    assert grid.edges[0] > LYMAN_ALPHA


@pytest.mark.parametrize("name", SURVEYS)
def test_arms_lie_in_the_observed_range_and_leave_no_hole(name):
    observing = load_config(name).noise.observing
    arms = observing.arms
    if not arms:
        assert observing.missing_arm == 0
        return
    assert (arms[0][0], arms[-1][1]) == (observing.blue_end_angstrom[0], observing.red_end_angstrom[1])
    assert all(left[1] > right[0] for left, right in zip(arms, arms[1:], strict=False))


def test_the_table_of_the_prism_covers_all_that_is_observed():
    config = load_config("nirspec-prism")
    table, power = config.model.line_spread_angstrom, config.model.line_spread_resolving_power
    observing = config.noise.observing
    assert table[0] < observing.blue_end_angstrom[0]
    assert observing.red_end_angstrom[1] < table[-1]
    assert observing.redshift[0] < config.model.zred < observing.redshift[1]
    # arXiv:2202.03305: 30 to 330 from 0.6 to 5.3 micrometre.
    inside = np.array(power)[(np.array(table) >= 6000) & (np.array(table) <= 53000)]
    assert inside.min() == pytest.approx(30, abs=1)
    assert np.interp(53_000, table, power) == pytest.approx(330, abs=10)
    # A row at either end of the range is resolved as the table says to a fifth.
    rest = np.linspace(config.grid.start_angstrom, config.grid.stop_angstrom, 400)
    for redshift in observing.redshift:
        at = rest * (1 + redshift)
        at, there = at[(at > 6000) & (at < 53000)], rest[(at > 6000) & (at < 53000)]
        ratio = np.interp(at, table, power) / np.interp(there * (1 + config.model.zred), table, power)
        assert np.abs(ratio - 1).max() < 0.2


@pytest.mark.parametrize("name", SURVEYS)
def test_rows_are_simulated(name):
    """In few, wide elements from end to end: all of them take up to a minute where the line spread is free."""
    full = load_config(name).grid
    config, grid = of(name, f"grid.step_angstrom={(full.stop_angstrom - full.start_angstrom) / 30}")
    prior = config.make_prior()
    noise = NoiseModel.from_config(config.noise)
    assert isinstance(noise, RowNoise)
    noise = noise.on(grid)
    _, clean = simulated_spectra(BatchedModel.from_config(config.model, prior, grid), prior, noise, 7, "test", 0, 6)
    observed = noise.draw(clean, np.random.default_rng(1))
    flux, inverse, redshift = split_observed(observed)
    low, high = config.noise.observing.redshift
    assert ((redshift >= low) & (redshift <= high)).all()
    assert np.isfinite(flux).all()
    assert (inverse > 0).any(axis=1).all()
