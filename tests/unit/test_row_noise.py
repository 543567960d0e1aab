"""Row noise: what is drawn is what is stated, the likelihood is that of the draws, and rows know only themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr
from row_noise import ELEMENTS, GRID, QUIET, draw, numbers, row_noise, runs_of, spectra
from scipy import stats
from scipy.special import ndtri

from digs_survey.config import NoiseConfig
from digs_survey.estimator.training.fresh_noise import noisy_rows
from digs_survey.noise.emission_lines import on_emission_lines
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import clean_spectra, elements_of, join_clean, split_observed
from digs_survey.noise.row_noise import RowNoise, smooth_flux, with_floor
from digs_survey.spectra import WavelengthGrid


@pytest.mark.parametrize("order", [0, 6])
def test_tensors_get_what_arrays_get(order):
    noise = row_noise(calibration_order=order)
    flux, redshift = spectra(30)
    clean = join_clean(flux, redshift)
    uniform, normal = numbers(noise, 30)
    expected = noise.observe_with(clean, uniform, normal)
    found = noise.observe_with(*(torch.as_tensor(a) for a in (clean, uniform, normal)))
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy() == 0, expected == 0)
    for part in (slice(ELEMENTS), slice(ELEMENTS, -1), slice(-1, None)):
        scale = np.abs(expected[:, part]).max(axis=1, keepdims=True)
        np.testing.assert_allclose(found.numpy()[:, part] / scale, expected[:, part] / scale, atol=1e-6)


def test_observing_takes_normals_from_the_last_random_numbers():
    noise = row_noise()
    flux, redshift = spectra(5)
    clean = join_clean(flux, redshift)
    uniform = np.random.default_rng(0).uniform(1e-9, 1, (5, noise.columns(ELEMENTS + 1)))
    observed, good, errors = noise.observe(clean, uniform)
    split = noise.conditions + ELEMENTS
    expected = noise.observe_with(clean, uniform[:, :split], ndtri(uniform[:, split:]))
    np.testing.assert_array_equal(observed, expected)
    np.testing.assert_array_equal(noise.from_uniform(clean, uniform), expected)
    _, inverse, told = split_observed(observed)
    np.testing.assert_array_equal(good, inverse > 0)
    np.testing.assert_allclose((errors[0] * inverse)[good], 1)
    np.testing.assert_array_equal(noise.redshift_of(observed), redshift)
    np.testing.assert_array_equal(noise.spectrum_of(observed), observed[:, : elements_of(observed)])
    np.testing.assert_array_equal(told, redshift)
    assert (observed[:, :ELEMENTS][~good] == 0).all()


def test_a_row_does_not_depend_on_its_neighbours_to_the_byte():
    noise = row_noise()
    flux, redshift = spectra(40)
    clean = join_clean(flux, redshift)
    uniform, normal = numbers(noise, 40)
    observed = noise.observe_with(clean, uniform, normal)
    again = noise.redraw(flux, observed, normal, None)
    for rows in (slice(0, 1), slice(7, 8), slice(3, 20)):
        alone = noise.observe_with(clean[rows], uniform[rows], normal[rows])
        assert alone.tobytes() == observed[rows].tobytes()
        assert noise.redraw(flux[rows], observed[rows], normal[rows], None).tobytes() == again[rows].tobytes()


def test_fresh_noise_of_a_batch_is_the_same_however_it_is_divided():
    noise = row_noise()
    flux, redshift = spectra(600)
    clean = torch.as_tensor(join_clean(flux, redshift), dtype=torch.float32)
    whole = noisy_rows(clean, noise, 5, "epoch/0")
    assert whole.dtype == torch.float32
    assert whole.shape == (600, 2 * ELEMENTS + 1)
    parts = [noisy_rows(clean[a:b], noise, 5, "epoch/0", a) for a, b in ((0, 1), (1, 300), (300, 600))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(noisy_rows(clean, noise, 5, "epoch/1"), whole)
    assert torch.isfinite(whole).all()
    residuals = noise.residuals(whole.double().numpy(), flux)
    assert np.nanstd(residuals) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [2.0**-30, 4.0, 2.0**40])
def test_a_brighter_galaxy_has_noise_that_is_brighter_just_as_much(factor):
    noise = row_noise()
    flux, redshift = spectra(50)
    uniform, normal = numbers(noise, 50)
    faint = split_observed(noise.observe_with(join_clean(flux, redshift), uniform, normal))
    bright = split_observed(noise.observe_with(join_clean(factor * flux, redshift), uniform, normal))
    np.testing.assert_array_equal(bright[0], factor * faint[0])
    np.testing.assert_array_equal(factor * bright[1], faint[1])


# -- the conditions are those that are configured ------------------------------------------------------------


def test_the_signal_to_noise_ratio_is_log_uniform_between_its_ends():
    settings = {"snr": (3.0, 50.0), "floor": (1e-9, 1e-9), "error_slope": 0.5}
    noise = row_noise(settings)
    flux, redshift = spectra(1500)
    _, inverse, _ = split_observed(draw(noise, flux, redshift))
    good = inverse > 0
    level = np.log(np.where(good, flux * inverse, 1.0)).sum(axis=1) / good.sum(axis=1)
    ends = np.log(settings["snr"])
    assert (level > ends[0] - 1e-6).all()
    assert (level < ends[1] + 1e-6).all()
    assert stats.kstest(level, "uniform", (ends[0], ends[1] - ends[0])).pvalue > 1e-3


def test_spectra_begin_and_end_at_the_observed_wavelengths_that_are_configured():
    blue, red = (4200.0, 4600.0), (7000.0, 7800.0)
    noise = row_noise(QUIET | {"blue_end_angstrom": blue, "red_end_angstrom": red})
    flux, redshift = spectra(1000)
    redshift = redshift / 3
    good = split_observed(draw(noise, flux, redshift))[1] > 0
    observed = GRID.wavelength * (1 + redshift[:, None])
    assert not good[(observed < blue[0]) | (observed > red[1])].any()
    assert good[(observed >= blue[1]) & (observed <= red[0])].all()
    begin = np.where(good, observed, np.inf).min(axis=1)
    end = np.where(good, observed, 0).max(axis=1)
    # To half an element of 20 Angstrom at rest.
    for middle, (low, high) in ((begin - 12, blue), (end + 12, red)):
        assert stats.kstest(middle, "uniform", (low, high - low)).statistic < 0.08


def test_gaps_are_as_many_and_as_wide_as_configured():
    flux, redshift = spectra(4000)
    widest = 0.1 * ELEMENTS
    one = split_observed(draw(row_noise(QUIET | {"gaps": 1, "gap_share": 0.1}), flux, redshift))[1] == 0
    lengths = [runs_of(row) for row in one]
    assert max(len(run) for run in lengths) == 1
    assert max(run.max() for run in lengths if len(run)) == pytest.approx(widest, abs=1)
    # Half of the rows have a gap; a few gaps fall between elements or beyond an end.
    assert one.any(axis=1).mean() == pytest.approx(0.49, abs=0.03)
    # All places are as likely, those at the ends among them.
    ends, middle = one[:, [0, 1, 2, -3, -2, -1]].mean(axis=0), one[:, 50:-50].mean()
    np.testing.assert_allclose(ends / middle, 1, atol=0.35)
    three = split_observed(draw(row_noise(QUIET | {"gaps": 3, "gap_share": 0.02}), flux, redshift))[1] == 0
    count = np.array([len(runs_of(row)) for row in three])
    assert count.max() == 3
    assert (count == 0).mean() == pytest.approx(0.25, abs=0.08)
    assert not (split_observed(draw(row_noise(QUIET), flux, redshift))[1] == 0).any()


def test_single_elements_are_masked_up_to_the_configured_share():
    flux, redshift = spectra(2000)
    bad = split_observed(draw(row_noise(QUIET | {"bad_elements": 0.2}), flux, redshift))[1] == 0
    share = bad.mean(axis=1)
    assert share.mean() == pytest.approx(0.1, abs=0.005)
    assert 0.2 < share.max() < 0.2 + 6 * np.sqrt(0.2 * 0.8 / ELEMENTS)
    assert share.min() < 0.01
    # All elements are as likely.
    assert bad.mean(axis=0).std() == pytest.approx(np.sqrt(0.1 * 0.9 / 2000), rel=0.25)


@pytest.mark.parametrize("medium", ["vacuum", "air"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_configured_share_of_rows_lacks_all_elements_of_emission_lines_and_the_others_none(share, medium):
    grid = WavelengthGrid(GRID.wavelength, medium=medium)
    noise = row_noise(QUIET | {"masked_lines": share}).on(grid)
    lines = on_emission_lines(grid)
    np.testing.assert_array_equal(noise.lines, lines)
    assert 0.05 < lines.mean() < 0.3
    flux, redshift = spectra(2000)
    observed, inverse, _ = split_observed(draw(noise, flux, redshift))
    lacks = inverse == 0
    assert not lacks[:, ~lines].any()
    np.testing.assert_array_equal(lacks[:, lines].any(axis=1), lacks[:, lines].all(axis=1))
    assert (observed[lacks] == 0).all()
    assert lacks.any(axis=1).mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 2000))


def test_lines_are_masked_on_top_of_gaps_and_leave_the_other_elements_as_they_are():
    flux, redshift = spectra(400)
    every, none = (
        row_noise({"snr": (10.0, 10.0), "floor": (1e-9, 1e-9), "masked_lines": share}) for share in (1.0, 0.0)
    )
    lines = on_emission_lines(GRID)
    uniform, normal = numbers(every, 400)
    masked, whole = (split_observed(n.observe_with(join_clean(flux, redshift), uniform, normal)) for n in (every, none))
    np.testing.assert_array_equal(masked[1] > 0, (whole[1] > 0) & ~lines)
    # The signal-to-noise ratio is that of the elements that are left.
    rows = masked[1] > 0
    level = np.log(np.where(rows, flux * masked[1], 1.0)).sum(axis=1) / rows.sum(axis=1)
    np.testing.assert_allclose(level, np.log(10), atol=1e-6)
    # But for it, and for the noise, which goes with it, nothing else changed.
    ratio = np.where(rows, masked[1] / np.where(rows, whole[1], 1.0), np.nan)
    np.testing.assert_allclose(np.nanmax(ratio, axis=1) / np.nanmin(ratio, axis=1), 1, rtol=1e-9)


def test_errors_follow_a_cubic_of_the_configured_size():
    flux, redshift = spectra(2000)
    noise = row_noise(
        QUIET | {"error_slope": 0.4, "blue_end_angstrom": (2000.0, 2001.0), "red_end_angstrom": (2e4, 2e4)}
    )
    _, inverse, _ = split_observed(draw(noise, flux, redshift))
    place = 2 * (GRID.wavelength * (1 + redshift[:, None]) - 2000) / 18_000 - 1
    terms = np.stack([np.polynomial.Chebyshev.basis(p)(place) for p in range(4)], axis=-1)
    fitted = np.array([np.linalg.lstsq(t, -np.log(i), rcond=None)[0] for t, i in zip(terms, inverse, strict=True)])
    np.testing.assert_allclose((terms @ fitted[..., None])[..., 0], -np.log(inverse), atol=1e-7)
    np.testing.assert_allclose(fitted[:, 1:].mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose(np.cov(fitted[:, 1:].T), 0.16 * np.eye(3), atol=0.02)


def test_sky_lines_widen_errors_beyond_their_wavelength_alone():
    flux, redshift = spectra(300)
    noise = row_noise(QUIET | {"sky_errors": 4.0, "sky_angstrom": 6000.0})
    _, inverse, _ = split_observed(draw(noise, flux, redshift))
    red = GRID.wavelength * (1 + redshift[:, None]) > 6000
    error = inverse.max(axis=1, keepdims=True) / inverse
    np.testing.assert_allclose(error[~red], np.broadcast_to(error.min(axis=1, keepdims=True), error.shape)[~red])
    assert 3.8 < error[red].max() < 4.0 + 1e-9
    assert (error[red] > 1.05).mean() > 0.3


def test_the_floor_is_a_share_of_the_flux_in_the_noise_and_in_the_errors():
    rows = 2000
    flux, redshift = np.full((rows, ELEMENTS), 3e-6), np.full(rows, 0.1)
    noise = row_noise(QUIET | {"snr": (1e6, 1e6), "floor": (0.01, 0.09)}, calibration_width=0.0)
    observed, inverse, _ = split_observed(draw(noise, flux, redshift))
    floor = 1 / (flux * inverse).mean(axis=1)
    logs = np.log([0.01, 0.09])
    assert stats.kstest(np.log(floor), "uniform", (logs[0], logs[1] - logs[0])).pvalue > 1e-3
    np.testing.assert_allclose((observed / flux).std(axis=1) / floor, 1, atol=0.25)
    assert ((observed / flux).std(axis=1) / floor).mean() == pytest.approx(1, abs=0.01)


def test_the_floor_follows_the_observed_flux_as_it_does_for_a_catalogs_row():
    flux, redshift = np.full((20, ELEMENTS), 3e-6), np.full(20, 0.1)
    noise = row_noise(QUIET | {"snr": (2.0, 2.0), "floor": (0.3, 0.3)})
    observed, inverse, _ = split_observed(draw(noise, flux, redshift))
    np.testing.assert_allclose(inverse, with_floor(observed, 2 / flux, 0.3), rtol=1e-9)
    assert np.abs(inverse / with_floor(flux, 2 / flux, 0.3) - 1).max() > 0.01


def test_each_condition_has_its_own_random_number_and_elements_have_others():
    noise = row_noise({"bad_elements": 0.0, "sky_errors": 1.0, "gaps": 2})
    assert noise.conditions == 11 + 2 * 2
    flux, redshift = spectra(60)
    clean = join_clean(flux, redshift)
    uniform, normal = numbers(noise, 60)
    expected = noise.observe_with(clean, uniform, normal)
    without = {7, 8}
    """Columns of the sky's errors and of the share of bad elements, which are off."""
    for column in range(uniform.shape[1]):
        changed = uniform.copy()
        changed[:, column] = 1 - changed[:, column]
        differs = (noise.observe_with(clean, changed, normal) != expected).any()
        assert differs == (column < noise.conditions and column not in without), column
    assert noise.columns(ELEMENTS + 1) == noise.conditions + 2 * ELEMENTS + 6


def test_a_random_number_of_zero_gives_finite_noise(monkeypatch):
    noise = row_noise()
    flux, redshift = spectra(5)
    zero = torch.full((256, noise.conditions + ELEMENTS), 0.5)
    zero[:, : noise.conditions] = 0
    monkeypatch.setattr(torch, "rand", lambda shape, **_: zero)
    clean = torch.as_tensor(join_clean(flux, redshift), dtype=torch.float32)
    observed = noisy_rows(clean, noise, 5, "epoch/0")
    assert torch.isfinite(observed).all()
    assert (split_observed(observed)[1] > 0).any(dim=1).all()


def test_noise_without_a_grid_draws_nothing():
    noise = NoiseModel.from_config(NoiseConfig(kind="row"))
    flux, redshift = spectra(2)
    with pytest.raises(ValueError, match=r"needs the elements of a grid; use RowNoise\.on"):
        noise.draw(join_clean(flux, redshift), np.random.default_rng(0))
    assert isinstance(noise, RowNoise)
    with pytest.raises(ValueError, match=r"needs the elements of a grid; use RowNoise\.on"):
        _ = noise.lines


def test_the_share_of_negative_flux_is_that_of_the_signal_to_noise_ratio():
    flux, redshift = np.full((300, ELEMENTS), 1e-6), np.full(300, 0.1)
    noise = row_noise(QUIET | {"snr": (1.0, 1.0)}, calibration_width=0.0)
    observed, inverse, _ = split_observed(noise.draw(join_clean(flux, redshift), np.random.default_rng(0)))
    assert (observed[inverse > 0] <= 0).mean() == pytest.approx(stats.norm.cdf(-1), abs=0.01)


def test_a_redraw_has_the_errors_gaps_and_redshift_of_the_row():
    noise = row_noise(calibration_width=0.1)
    flux, redshift = spectra(400)
    rows = draw(noise, flux, redshift)
    other, _ = spectra(400, seed=9)
    other *= flux.mean(axis=1, keepdims=True) / other.mean(axis=1, keepdims=True)
    normal = np.random.default_rng(6).standard_normal((400, noise.normals(ELEMENTS)))
    again = noise.redraw(other, rows, normal, None)
    np.testing.assert_array_equal(again[:, ELEMENTS:], rows[:, ELEMENTS:])
    assert (again[:, :ELEMENTS][rows[:, ELEMENTS:-1] == 0] == 0).all()
    residuals = noise.residuals(again, other)
    assert stats.kstest(residuals[~np.isnan(residuals)], "norm").pvalue > 1e-3
    assert np.nanstd(noise.residuals(again, flux)) > 1.2


# -- emission lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_smoothed_flux_is_a_weighted_mean_of_the_elements_near(kind):
    rng = np.random.default_rng(0)
    flux, inverse = rng.normal(2, 0.3, (3, 200)), rng.uniform(0.5, 2, (3, 200))
    inverse[1, 40:60] = inverse[2, 80:] = 0.0
    flux[1, 40:60] = 1e6
    found = np.asarray(smooth_flux(kind(flux), kind(inverse)))
    for row in range(3):
        for element in (0, 10, 50, 90, 199):
            near = slice(max(element - 25, 0), element + 26)
            weight = inverse[row, near] ** 2
            expected = (weight * flux[row, near]).sum() / weight.sum() if weight.any() else 0.0
            assert found[row, element] == pytest.approx(expected, rel=1e-9)
    # 25 elements beyond the last that has data.
    assert (found[2, :105] > 0).all()
    assert (found[2, 105:] == 0).all()
    constant = np.asarray(smooth_flux(kind(np.full((3, 200), 7.0)), kind(inverse)))
    np.testing.assert_allclose(constant[:2], 7.0, rtol=1e-12)
    assert (np.asarray(smooth_flux(kind(-flux), kind(inverse))) == 0).all()
    assert (np.asarray(smooth_flux(kind(flux), kind(0 * inverse))) == 0).all()
    # What sums of large weights leave of small ones is rounding.
    inverse[:, 100:] *= 1e-6
    assert (np.asarray(smooth_flux(kind(flux), kind(inverse)))[:, 125:] == 0).all()


def test_the_floor_is_added_in_quadrature():
    flux, inverse = np.full((2, 100), 5.0), np.full((2, 100), 1 / 0.3)
    inverse[1, 20:30] = 0.0
    found = with_floor(flux, inverse, 0.08)
    expected = 1 / np.hypot(0.3, 0.08 * 5.0)
    np.testing.assert_allclose(found[inverse > 0], expected, rtol=1e-12)
    assert (found[inverse == 0] == 0).all()
    each = with_floor(flux, inverse, np.array([[0.0], [0.08]]))
    np.testing.assert_array_equal(each[0], inverse[0])
    np.testing.assert_array_equal(each[1], found[1])


# -- datasets ------------------------------------------------------------------------------------------------


def test_a_dataset_with_redshifts_is_read_as_flux_and_redshift(tmp_path):
    group = zarr.open_group(tmp_path / "simulations.zarr", mode="w")
    flux = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    group.create_array("flux", data=flux, chunks=(2, 3))
    np.testing.assert_array_equal(clean_spectra(group)[1:3], flux[1:3])
    group.create_array("redshift", data=np.linspace(0.1, 0.4, 4))
    clean = clean_spectra(group)
    assert (clean.shape, clean.chunks) == ((4, 4), (2, 3))
    assert clean[1:3].dtype == np.float32
    np.testing.assert_allclose(clean[1:3], np.c_[flux[1:3], [0.2, 0.3]], rtol=1e-7)
