"""Errors, gaps and redshift of simulations from the rows of a catalog."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from row_noise import ELEMENTS, GRID, draw, numbers, row_noise, spectra

import digs_survey as ds
from digs_survey.catalog import Catalog
from digs_survey.config import MapConfig, NoiseConfig
from digs_survey.errors import ConfigError
from digs_survey.estimator.training.fresh_noise import noisy_rows
from digs_survey.noise.donor_rows import catalog_donors, noise_of_rows
from digs_survey.noise.donors import Donors, donor_shape
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import join_clean, split_observed
from digs_survey.noise.row_noise import RowNoise
from digs_survey.simulate.prior_draws import draw_redshift
from digs_survey.simulate.simulation_set import FLUX_UNIT
from digs_survey.spectra import WavelengthGrid

OBSERVING = {"donors": "catalog", "donor_snr_factor": (1.0, 1.0), "floor": (1e-9, 1e-9), "masked_lines": 0.0}


def donor_rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux and inverse errors (n, wavelength) of rows whose S/N and gaps go with their redshift (n,)."""
    rng = np.random.default_rng(seed)
    flux, redshift = spectra(count, seed)
    inverse = (5 + 50 * redshift[:, None]) / flux * rng.uniform(0.5, 1.5, flux.shape)
    inverse[GRID.wavelength * (1 + redshift[:, None]) > 9000] = 0.0
    return flux, inverse, redshift


def with_donors(count: int = 300, **observing: object) -> RowNoise:
    flux, inverse, redshift = donor_rows(count)
    return row_noise({**OBSERVING, **observing}).with_donors(Donors.of(donor_shape(flux, inverse)[0], redshift))


def mean_snr(flux: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    return (flux * inverse).sum(axis=1) / (inverse > 0).sum(axis=1)


def write_rows(path, count: int, redshift: np.ndarray | None = None) -> Catalog:
    """Write a catalog in the observed frame with an S/N of 20 in each element of 20 Angstrom."""
    grid = WavelengthGrid(np.arange(3600.0, 9000.0, 10.0), "observed")
    flux = np.full((count, len(grid)), 3.0)
    ds.write_catalog(
        path,
        grid=grid,
        flux=flux,
        ivar=np.full_like(flux, (20 / 3.0 / np.sqrt(2)) ** 2),
        mask=np.zeros(flux.shape, dtype=np.uint8),
        redshift=np.linspace(0.05, 0.4, count) if redshift is None else redshift,
        galaxy_id=np.arange(count),
        flux_unit=f"1e-17 {FLUX_UNIT}",
    )
    return Catalog.open(path)


def test_a_simulation_has_the_signal_to_noise_and_the_gaps_of_a_donor_near_in_redshift():
    noise = with_donors()
    flux, _ = spectra(200, 5)
    redshift = draw_redshift(noise.redshifts, 1, "simulate", 0, 200)
    rows = draw(noise, flux, redshift)
    inverse = split_observed(rows)[1]
    donors = noise.donors
    snr = mean_snr(flux, inverse)
    for n in range(200):
        near = np.abs(np.log1p(donors.table[:, -1]) - np.log1p(redshift[n])) < 0.0101
        which = np.flatnonzero(near & np.isclose(donors.snr, snr[n], rtol=1e-6))
        assert which.size == 1
        np.testing.assert_array_equal(inverse[n] > 0, donors.table[which[0], :-1] > 0)
        shape = inverse[n] / donors.table[which[0], :-1].clip(1e-9)
        np.testing.assert_allclose(shape[inverse[n] > 0], shape[0], rtol=1e-9)
    white = noise.residuals(rows, flux)
    assert abs(np.nanstd(white) - 1) < 0.02


def test_twice_the_flux_has_twice_the_errors_to_the_last_digit():
    noise = with_donors()
    flux, redshift = spectra(50, 6)
    one, two = (split_observed(draw(noise, k * flux, redshift)) for k in (1, 2))
    np.testing.assert_array_equal(2 * one[0], two[0])
    np.testing.assert_array_equal(one[1], 2 * two[1])


def test_a_row_has_the_same_noise_whatever_rows_come_with_it():
    noise = with_donors()
    flux, redshift = spectra(40, 7)
    uniform, normal = numbers(noise, 40)
    whole = noise.observe_with(join_clean(flux, redshift), uniform, normal)
    part = noise.observe_with(join_clean(flux, redshift)[7:9], uniform[7:9], normal[7:9])
    np.testing.assert_array_equal(whole[7:9], part)


def test_training_draws_what_the_simulator_draws():
    noise = with_donors(masked_lines=0.5)
    flux, redshift = spectra(30, 8)
    uniform, normal = numbers(noise, 30)
    clean = join_clean(flux, redshift)
    ours = noise.observe_with(clean, uniform, normal)
    theirs = noise.observe_with(*(torch.from_numpy(part) for part in (clean, uniform, normal)))
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-12)
    fresh = noisy_rows(torch.from_numpy(clean.astype(np.float32)), noise, 1, "batch").numpy()
    assert fresh.shape == (30, 2 * ELEMENTS + 1)
    assert not np.array_equal(fresh, noisy_rows(torch.from_numpy(clean.astype(np.float32)), noise, 1, "next").numpy())


def test_the_factor_on_the_signal_to_noise_and_masked_lines_are_drawn():
    noise = with_donors(donor_snr_factor=(0.5, 2.0), masked_lines=1.0)
    flux, _ = spectra(400, 9)
    redshift = draw_redshift(noise.redshifts, 1, "simulate", 0, 400)
    inverse = split_observed(draw(noise, flux, redshift))[1]
    assert not (inverse[:, noise.lines] > 0).any()
    same = split_observed(draw(with_donors(masked_lines=1.0), flux, redshift))[1]
    ratio = mean_snr(flux, inverse) / mean_snr(flux, same)
    assert 0.5 < ratio.min() < 0.53
    assert 1.9 < ratio.max() < 2.0
    np.testing.assert_allclose(np.mean(np.log(ratio)), 0, atol=4 * np.log(4) / np.sqrt(12 * 400))


def test_redshifts_follow_the_donors_and_have_one_near():
    z = np.concatenate([np.full(50, 0.1), np.full(150, 0.5)])
    donors = Donors.of(np.ones((200, 3)), z)
    drawn = draw_redshift(donors.redshifts, 1, "simulate", 0, 4000)
    low = drawn < 0.3
    assert abs(low.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_allclose(np.where(low, 0.1, 0.5), drawn, atol=0.005 * 1.51)
    given = donors.near(drawn, np.random.default_rng(1).random(4000))
    assert (donors.table[given, -1] < 0.3).tolist() == low.tolist()
    assert len(np.unique(drawn)) > 1000
    nearest = donors.near(np.array([0.01, 0.28, 0.29, 3.0]), np.zeros(4))
    np.testing.assert_allclose(donors.table[nearest, -1], [0.1, 0.1, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(draw_redshift(donors.redshifts, 1, "simulate", 7, 9), drawn[7:9])


def test_the_noise_of_a_frozen_posterior_is_that_of_the_training():
    noise = with_donors()
    kept = noise.table.astype(np.float32)
    again = NoiseModel.from_config(NoiseConfig(kind="row", observing=OBSERVING), kept).on(GRID)
    assert again.to_dict() == noise.to_dict()
    assert again.redshift_key == noise.redshift_key
    flux, redshift = spectra(10)
    np.testing.assert_array_equal(draw(again, flux, redshift), draw(noise, flux, redshift))
    other = with_donors(299)
    assert other.redshift_key != noise.redshift_key
    with pytest.raises(ValueError, match="has no donors"):
        draw(row_noise(OBSERVING), flux, redshift)


def test_donors_of_a_catalog_in_the_observed_frame(tmp_path):
    catalog = write_rows(tmp_path / "rows.zarr", 150)
    what = row_noise(OBSERVING), GRID, 1e-5, catalog
    donors = catalog_donors(*what, seed=1, min_good_fraction=0.1)
    assert len(donors.table) == 150
    z = donors.table[:, -1]
    np.testing.assert_allclose(z, np.linspace(0.05, 0.4, 150), rtol=1e-6)
    # An element of 20 Angstrom at rest has 2 (1 + z) pixels, some of them in part.
    ratio = donors.snr / (20 * np.sqrt(1 + z))
    assert 1 < ratio.min() < ratio.max() < 1.12
    for row in (0, 149):
        good = donors.table[row, :-1] > 0
        observed = GRID.wavelength * (1 + z[row])
        assert not good[(observed < 3580) | (observed > 9020)].any()
        assert good[(observed > 3640) & (observed < 8970)].all()
    some = catalog_donors(*what, seed=1, min_good_fraction=0.1, most=120)
    assert len(some.table) == 120
    assert set(some.table[:, -1]) < set(z)
    assert set(catalog_donors(*what, seed=3, min_good_fraction=0.1, most=120).table[:, -1]) != set(some.table[:, -1])


def test_too_few_donors_are_refused_with_what_was_wrong(tmp_path):
    redshift = np.linspace(0.05, 0.4, 120)
    redshift[:20], redshift[20:60] = np.nan, 0.9
    catalog = write_rows(tmp_path / "rows.zarr", 120, redshift)
    what = row_noise(OBSERVING), GRID, 1e-5, catalog
    with pytest.raises(ConfigError) as error:
        catalog_donors(*what, seed=1, min_good_fraction=0.1)
    words = str(error.value)
    assert "donors = 'catalog': expected at least 100 rows" in words
    assert "found 60 among 120 (20 have no posterior, 40 a redshift outside of 0.001 to 0.6, 0 a flux below" in words
    assert "describe the survey by noise.observing with donors = 'none'" in words


def test_rows_that_are_mapped_give_their_conditions_with_the_maps_floor(tmp_path):
    catalog = write_rows(tmp_path / "rows.zarr", 12)
    trained = row_noise({"redshift": (0.1, 0.3)})
    settings = MapConfig(error_floor=0.05, mask_lines=True, min_good_fraction=0.1)
    noise = noise_of_rows(trained, GRID, 1e-5, catalog, settings, seed=1)
    assert 0.1 <= noise.redshifts.low < noise.redshifts.high <= 0.3
    flux = np.full((100, ELEMENTS), 1e-6)
    inverse = split_observed(draw(noise, flux, draw_redshift(noise.redshifts, 1, "calibration", 0, 100)))[1]
    assert not (inverse[:, noise.lines] > 0).any()
    expected = 1 / np.sqrt(1 / (20**2 * 1.2) + 0.05**2)
    np.testing.assert_allclose(mean_snr(flux, inverse).mean(), expected, rtol=0.05)
    far = write_rows(tmp_path / "far.zarr", 12, np.full(12, 0.5))
    with pytest.raises(ConfigError, match="map.recalibrate: expected at least 1 rows .* set map.recalibrate = 0"):
        noise_of_rows(trained, GRID, 1e-5, far, settings, seed=1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_arm_is_missing_as_a_whole_where_no_other_covers_it(share):
    quiet = {"blue_end_angstrom": (1000.0, 1001.0), "red_end_angstrom": (2e4, 2.1e4), "gaps": 0, "bad_elements": 0.0}
    arms = ((3600.0, 5800.0), (5600.0, 7600.0), (7500.0, 9800.0))
    noise = row_noise({**quiet, "masked_lines": 0.0, "arms": arms, "missing_arm": share})
    flux, redshift = spectra(600, 10)
    good = split_observed(draw(noise, flux, redshift))[1] > 0
    observed = GRID.wavelength * (1 + redshift[:, None])
    alone = [(observed >= 3600) & (observed < 5600), (observed > 5800) & (observed < 7500), (observed > 7600)]
    alone[2] &= observed <= 9800
    lacks = [~(good & part).any(axis=1) & part.any(axis=1) for part in alone]
    lacking = np.sum(lacks, axis=0)
    assert lacking.max() <= 1
    assert abs((lacking == 1).mean() - share) <= 4 * np.sqrt(share * (1 - share) / 600) + 0.02
    whole = lacking == 0
    np.testing.assert_array_equal(good[whole].all(axis=1), np.ones(whole.sum(), dtype=bool))
    if share == 1.0:
        assert [row.mean() > 0.2 for row in lacks] == [True, True, True]
