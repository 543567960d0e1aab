"""Rows whose errors, gaps or redshift no simulation had get a bit, and others do not."""

from __future__ import annotations

import numpy as np
import pytest
from row_noise import ELEMENTS, GRID, draw, row_noise, spectra
from test_donors import with_donors

from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MapConfig, NoiseConfig
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import observed_rows
from digs_survey.noise.row_noise import RowNoise
from digs_survey.noise.trained_conditions import outside_conditions
from digs_survey.simulate.prior_draws import draw_redshift


def rows_like(noise: RowNoise, count: int = 400, seed: int = 3) -> PreparedRows:
    """Rows as simulations of this noise are."""
    redshift = draw_redshift(noise.redshifts, seed, "simulate", 0, count)
    return prepared(draw(noise, spectra(count, seed)[0], redshift, seed), 0.0)


def prepared(observed: np.ndarray, floor: float) -> PreparedRows:
    settings = MapConfig(error_floor=floor, min_good_fraction=0.1)
    return observed_rows(*split_observed(observed), np.zeros(len(observed), dtype=np.int64), settings)


def row(snr: float, redshift: float = 0.2, floor: float = 0.02, first: int = 30, last: int = 270) -> PreparedRows:
    """One row whose elements all have one S/N, where it has data, and a floor."""
    inverse = np.zeros(ELEMENTS)
    inverse[first:last] = snr
    return prepared(np.concatenate([np.where(inverse > 0, 1.0, 0.0), inverse, [redshift]])[None], floor)


@pytest.mark.parametrize(
    "noise", [row_noise(), row_noise({"snr": (20.0, 20.0)}), with_donors(donor_snr_factor=(0.5, 2))]
)
def test_rows_like_the_simulations_do_not_get_it(noise):
    assert outside_conditions(noise, rows_like(noise)).mean() < 0.01


@pytest.mark.parametrize(("snr", "outside"), [(8, True), (18, False), (20, False), (40, True), (200, True)])
def test_the_signal_to_noise_ratio_that_was_trained_for(snr, outside):
    noise = row_noise({"snr": (20.0, 20.0), "floor": (0.005, 0.05), "red_end_angstrom": (8000.0, 10500.0)})
    assert outside_conditions(noise, row(snr)).tolist() == [outside]
    # With an error floor that hides how good the row is, it is like the simulations again.
    assert outside_conditions(noise, row(max(snr, 20), floor=0.05)).tolist() == [False]


@pytest.mark.parametrize(
    ("redshift", "outside"), [(0.099, True), (0.1, False), (0.3, False), (0.301, True), (2.0, True)]
)
def test_the_redshifts_that_were_trained_for(redshift, outside):
    noise = row_noise(
        {"redshift": (0.1, 0.3), "blue_end_angstrom": (1000.0, 4000.0), "red_end_angstrom": (4500.0, 3e4)}
    )
    assert outside_conditions(noise, row(20, redshift)).tolist() == [outside]


def test_the_share_of_elements_that_simulations_have():
    narrow = {"blue_end_angstrom": (3600.0, 3700.0), "red_end_angstrom": (9000.0, 9100.0), "bad_elements": 0.0}
    noise = row_noise({**narrow, "gaps": 1, "gap_share": 0.1, "masked_lines": 0.0})
    # At redshift 0.2 simulations have elements 4 to 229 of 300, less a gap of 30.
    assert outside_conditions(noise, row(20, 0.2, 0.0, 4, 229)).tolist() == [False]
    assert outside_conditions(noise, row(20, 0.2, 0.0, 45, 229)).tolist() == [False]
    assert outside_conditions(noise, row(20, 0.2, 0.0, 100, 229)).tolist() == [True]
    assert outside_conditions(noise, row(20, 0.2, 0.0, 0, 270)).tolist() == [True]
    arms = {"arms": ((3000.0, 5600.0), (5600.0, 9500.0)), "missing_arm": 0.1}
    more = row_noise({**narrow, "gaps": 1, "gap_share": 0.1, "masked_lines": 0.0, **arms})
    assert outside_conditions(more, row(20, 0.2, 0.0, 100, 229)).tolist() == [False]


def test_conditions_of_donors_are_theirs():
    noise = with_donors()
    seen = noise.donors
    for snr, outside in ((seen.snr.max() * 1.1, False), (seen.snr.max() * 1.6, True), (seen.snr.min() * 0.6, True)):
        # At redshift 0.2 donors end at 9000 Angstrom, or element 224.
        assert outside_conditions(noise, row(snr, 0.2, 0.0, 0, 225)).tolist() == [outside]
    assert outside_conditions(noise, row(15, 0.2, 0.0, 0, 300)).tolist() == [True]
    assert outside_conditions(noise, row(15, 0.2, 0.0, 60, 225)).tolist() == [True]


def older(noise: NoiseModel, factor: float, errors: np.ndarray | None = None, count: int = 50) -> PreparedRows:
    """Rows whose errors are ``factor`` times those that the noise was trained for."""
    flux = spectra(count, 2)[0]
    good = np.ones(flux.shape, dtype=bool)
    good[:, :9] = False
    sigma = factor * noise.sigma(flux, errors)
    return PreparedRows(flux, np.where(good, sigma**-2.0, 0.0), good, np.zeros(count, dtype=np.int64))


@pytest.mark.parametrize(
    ("factor", "outside"), [(0.1, True), (0.5, True), (0.8, False), (1, False), (1.25, False), (2, True)]
)
@pytest.mark.parametrize("space", ["flux", "log10"])
def test_the_errors_of_a_row_against_noise_that_is_a_fraction_of_the_flux(factor, outside, space):
    noise = NoiseModel.from_config(NoiseConfig(fraction=0.05, space=space))
    assert outside_conditions(noise, older(noise, factor)).all() == outside
    assert outside_conditions(noise, older(noise, factor)).any() == outside


@pytest.mark.parametrize(("factor", "outside"), [(0.4, True), (1.0, False), (2.5, True)])
def test_the_errors_of_a_row_against_those_of_a_catalog(factor, outside):
    table = np.random.default_rng(1).uniform(0.04, 0.06, (1, 200, ELEMENTS))
    for config in (NoiseConfig(kind="catalog", fraction=0.0), NoiseConfig(kind="catalog", fraction=0.01)):
        noise = NoiseModel.from_config(config, table)
        rows = older(noise, factor, table[:, :50])
        assert outside_conditions(noise, rows).tolist() == [outside] * 50
    constant = NoiseModel.from_config(NoiseConfig(kind="constant", sigma_flam=1e-6, fraction=0.0))
    assert outside_conditions(constant, older(constant, factor)).tolist() == [outside] * 50


def test_a_row_without_data_says_nothing():
    noise = NoiseModel.from_config(NoiseConfig())
    nothing = np.zeros((2, len(GRID)))
    rows = PreparedRows(np.ones_like(nothing), nothing, nothing > 0, np.zeros(2, dtype=np.int64))
    assert not outside_conditions(noise, rows).any()
