"""Catalog rows in any frame and medium become observations on the posterior's grid, and bad rows get their bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from astropy.cosmology import WMAP9

from digs_survey.catalog import CatalogRows
from digs_survey.catalog.prepare import PreparedRows, prepare
from digs_survey.config import MapConfig, NoiseConfig
from digs_survey.noise.emission_lines import on_emission_lines
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import observed_rows, prepare_for
from digs_survey.noise.row_noise import RowNoise, with_floor
from digs_survey.quality import QualityFlag
from digs_survey.spectra import WavelengthGrid, air_to_vacuum, vacuum_to_air

ZRED = 1e-5
TRAINED = WavelengthGrid(np.arange(3905.0, 6100.0, 10.0))
ELEMENTS = len(TRAINED)
PIXELS = WavelengthGrid(np.arange(3800.0, 9200.0, 1.2), frame="observed")
NOISE = NoiseModel.from_config(NoiseConfig(kind="row"))
assert isinstance(NOISE, RowNoise)
SIGMA = 2e-18


def rest_flux(wavelength: np.ndarray) -> np.ndarray:
    """A spectrum with a line that is narrower than an element is wide twice over."""
    line = np.exp(-0.5 * ((wavelength - 5007) / 12) ** 2)
    return 1e-16 * (1 + 0.3 * np.sin(wavelength / 250) + 2 * line)


def element_means() -> np.ndarray:
    """The same spectrum on the posterior's grid."""
    return rest_flux(TRAINED.wavelength[:, None] + np.arange(-4.95, 5, 0.1)).mean(axis=1)


def catalog_rows(flux: np.ndarray, redshift: object, sigma: object = SIGMA) -> CatalogRows:
    rows = len(flux)
    return CatalogRows(
        flux=flux,
        ivar=np.broadcast_to(np.asarray(sigma, dtype=float) ** -2.0, flux.shape).copy(),
        good=np.ones(flux.shape, dtype=bool),
        redshift=np.array(redshift, dtype=float),
        galaxy_id=np.arange(rows),
        quality=np.zeros(rows, dtype=np.int64),
        maggies=np.zeros((rows, 0)),
        maggies_ivar=np.zeros((rows, 0)),
    )


def observed_frame(redshift: list[float], grid: WavelengthGrid = PIXELS) -> CatalogRows:
    stretch = 1 + np.array(redshift)[:, None]
    wavelength = air_to_vacuum(grid.wavelength) if grid.medium == "air" else grid.wavelength
    return catalog_rows(rest_flux(wavelength / stretch) / stretch, redshift)


def at_rest(rows: int = 5) -> CatalogRows:
    return catalog_rows(np.tile(element_means(), (rows, 1)), np.linspace(0.05, 0.25, rows))


def run(rows: CatalogRows, grid: WavelengthGrid = TRAINED, trained: WavelengthGrid = TRAINED, **how) -> PreparedRows:
    settings = MapConfig(**{"error_floor": 0.0, "min_good_fraction": 0.5, "mask_lines": False} | how)
    return prepare_for(NOISE.on(trained), trained, ZRED, settings, rows, grid)


def test_a_galaxy_in_the_observed_frame_is_what_it_is_at_rest_on_the_grid():
    redshift = [0.03, 0.11, 0.28]
    pixels = run(observed_frame(redshift), PIXELS)
    step, stretch = 1.2, 1 + np.array(redshift)[:, None]
    # The mean of the pixels of an element, in flux that is per wavelength at rest.
    sigma = SIGMA * stretch / np.sqrt(10 * stretch / step)
    rest = run(catalog_rows(np.tile(element_means(), (3, 1)), redshift, sigma))
    flux, inverse, shown = split_observed(pixels.flux)
    expected, expected_inverse, _ = split_observed(rest.flux)
    np.testing.assert_array_equal(shown, redshift)
    np.testing.assert_array_equal(pixels.good, rest.good)
    assert pixels.good.all()
    assert not pixels.quality.any()
    np.testing.assert_allclose(flux, expected, rtol=2e-3)
    # Elements that cut through pixels have somewhat smaller errors.
    np.testing.assert_allclose(inverse / expected_inverse, 1, atol=0.1)
    np.testing.assert_allclose(pixels.ivar, inverse**2)
    moved = run(observed_frame([0.031, 0.111, 0.281]), PIXELS)
    wrong = run(catalog_rows(observed_frame(redshift).flux, moved.flux[:, -1]), PIXELS)
    assert (np.abs(split_observed(wrong.flux)[0] / split_observed(moved.flux)[0] - 1).max(axis=1) > 0.1).all()


def test_elements_beyond_the_ends_of_a_spectrum_have_no_data():
    ready = run(observed_frame([0.001, 0.6]), PIXELS)
    low, high = (PIXELS.edges[[0, -1]] / (1 + np.array([[0.001], [0.6]]))).T
    edges = TRAINED.edges
    inside = (edges[:-1] >= low[:, None]) & (edges[1:] <= high[:, None])
    outside = (edges[1:] <= low[:, None]) | (edges[:-1] >= high[:, None])
    assert ready.good[inside].all()
    assert not ready.good[outside].any()
    assert outside.any()
    flux, inverse, _ = split_observed(ready.flux)
    assert (flux[~ready.good] == 0).all()
    np.testing.assert_array_equal(inverse > 0, ready.good)
    np.testing.assert_array_equal(ready.n_good, ready.good.sum(axis=1))


def test_a_rest_frame_catalog_on_another_grid_is_rebinned():
    fine = WavelengthGrid(np.arange(3900.0, 6110.0, 1.0))
    ready = run(catalog_rows(rest_flux(fine.wavelength)[None], [0.2]), fine)
    same = run(catalog_rows(element_means()[None], [0.2], SIGMA / np.sqrt(10)))
    np.testing.assert_allclose(split_observed(ready.flux)[0], split_observed(same.flux)[0], rtol=2e-3)
    np.testing.assert_allclose(split_observed(ready.flux)[1], split_observed(same.flux)[1], rtol=0.1)


def test_wavelengths_in_air_are_brought_to_vacuum_and_a_posterior_in_air_likewise():
    redshift = [0.05, 0.2]
    air = WavelengthGrid(vacuum_to_air(PIXELS.wavelength), "observed", "air")
    vacuum, ready = run(observed_frame(redshift), PIXELS), run(observed_frame(redshift, air), air)
    np.testing.assert_allclose(ready.spectrum, vacuum.spectrum, rtol=1e-6)
    mistaken = WavelengthGrid(air.wavelength, "observed")
    wrong = run(observed_frame(redshift, air), mistaken)
    assert np.abs(wrong.spectrum / vacuum.spectrum - 1).max() > 0.02
    trained_in_air = WavelengthGrid(vacuum_to_air(TRAINED.wavelength), medium="air")
    np.testing.assert_allclose(
        run(observed_frame(redshift), PIXELS, trained_in_air).spectrum, vacuum.spectrum, rtol=1e-6
    )


def test_amplitudes_are_those_at_the_distance_of_the_simulations():
    rows = at_rest()
    ready = run(rows)
    distance = WMAP9.luminosity_distance(np.append(rows.redshift, ZRED)).value
    factor = (distance[:-1] / distance[-1])[:, None] ** 2
    flux, inverse, redshift = split_observed(ready.flux)
    np.testing.assert_allclose(flux, rows.flux * factor, rtol=1e-12)
    np.testing.assert_allclose(inverse * factor, 1 / SIGMA, rtol=1e-12)
    np.testing.assert_array_equal(redshift, rows.redshift)
    np.testing.assert_array_equal(ready.spectrum, flux)


def test_the_error_floor_is_a_share_of_the_flux():
    rows = catalog_rows(np.full((2, ELEMENTS), 1e-16), [0.1, 0.2], SIGMA)
    for floor in (0.0, 0.05):
        flux, inverse, _ = split_observed(run(rows, error_floor=floor).flux)
        np.testing.assert_allclose(1 / (flux * inverse), np.hypot(0.02, floor), rtol=1e-9)


def test_masked_elements_and_their_values_are_left_out():
    rows, clean = at_rest(), run(at_rest(), error_floor=0.02)
    rows.good[1, 40:60] = False
    rows.flux[1, 40:60] = np.resize([1e-10, np.nan, -np.inf], 20)
    ready = run(rows, error_floor=0.02)
    assert not ready.quality.any()
    flux, inverse, _ = split_observed(ready.flux)
    assert (flux[1, 40:60] == 0).all()
    assert (inverse[1, 40:60] == 0).all()
    assert np.flatnonzero(~ready.good[1]).tolist() == list(range(40, 60))
    np.testing.assert_array_equal(np.delete(flux[1], range(40, 60)), np.delete(clean.spectrum[1], range(40, 60)))


@pytest.mark.parametrize("medium", ["vacuum", "air"])
@pytest.mark.parametrize("frame", ["rest", "observed"])
def test_elements_of_emission_lines_get_no_weight_in_any_frame_unless_asked_for(frame, medium):
    trained = WavelengthGrid(TRAINED.wavelength, medium=medium)
    lines = on_emission_lines(trained)
    assert 0.02 < lines.mean() < 0.2
    make, grid = (at_rest, trained) if frame == "rest" else FRAMES[frame]
    whole, masked = (run(make(), grid, trained, mask_lines=mask) for mask in (False, True))
    assert whole.good.all()
    np.testing.assert_array_equal(masked.good, np.broadcast_to(~lines, masked.good.shape))
    flux, inverse, redshift = split_observed(masked.flux)
    assert (inverse[:, lines] == 0).all()
    assert (masked.ivar[:, lines] == 0).all()
    expected, expected_inverse, _ = split_observed(whole.flux)
    np.testing.assert_array_equal(flux[:, ~lines], expected[:, ~lines])
    np.testing.assert_array_equal(inverse[:, ~lines], expected_inverse[:, ~lines])
    np.testing.assert_array_equal(redshift, whole.flux[:, -1])
    # A catalog lacks nothing for it.
    assert not masked.quality.any()
    assert MapConfig().mask_lines


def test_a_line_that_is_masked_does_not_raise_the_floor_of_its_neighbours():
    lines = on_emission_lines(TRAINED)
    rows, bright = at_rest(), at_rest()
    bright.flux[:, lines] *= 100
    for mask, same in ((True, True), (False, False)):
        inverse, other = (
            split_observed(run(r, error_floor=0.05, mask_lines=mask).flux)[1][:, ~lines] for r in (rows, bright)
        )
        assert (inverse == other).all() == same


def test_elements_of_masked_lines_do_not_count_as_good():
    rows, lines = at_rest(), on_emission_lines(TRAINED)
    least = (ELEMENTS - lines.sum()) / ELEMENTS
    rows.good[1, 0] = False
    assert not lines[0]
    assert run(rows, mask_lines=True, min_good_fraction=least - 1e-9).quality.tolist() == [0, FEW, 0, 0, 0]
    assert not run(rows, mask_lines=False, min_good_fraction=least - 1e-9).quality.any()


def test_the_rows_of_a_catalog_are_left_as_they_are():
    rows, kept = at_rest(), at_rest()
    run(rows, error_floor=0.02, mask_lines=True)
    np.testing.assert_array_equal(rows.ivar, kept.ivar)
    np.testing.assert_array_equal(rows.flux, kept.flux)


def test_a_floor_that_is_to_be_fitted_must_have_been():
    with pytest.raises(ValueError, match="map.error_floor: expected the number that was fitted"):
        run(at_rest(), error_floor="fit")


@pytest.mark.parametrize("factor", [1e7, 1e14, 1e25, -1e14])
def test_an_element_that_is_absurdly_bright_takes_no_floor_from_those_far_from_it(factor):
    flux = at_rest().flux / 1e-16
    inverse, redshift, quality = np.full(flux.shape, 20.0), np.full(5, 0.1), np.zeros(5, dtype=np.int64)
    settings = MapConfig(error_floor=0.05)
    expected = split_observed(observed_rows(flux, inverse, redshift, quality, settings).flux)[1]
    flux[2, 60] *= factor
    found = observed_rows(flux, inverse, redshift, quality, settings)
    assert not found.quality.any()
    spoilt, others = split_observed(found.flux)[1], [0, 1, 3, 4]
    assert spoilt[others].tobytes() == expected[others].tobytes()
    far = np.abs(np.arange(ELEMENTS) - 60) > 25
    np.testing.assert_allclose(spoilt[2, far], expected[2, far], rtol=1e-8)
    # Its own flux is as it was.
    assert found.flux[2, 60] == flux[2, 60]


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_bright_elements_of_a_row_that_is_dark_elsewhere_have_their_floor(share):
    flux = np.where(np.arange(ELEMENTS) < share * ELEMENTS, 1e-5, 0.0)[None]
    inverse = np.full(flux.shape, 1e7)
    found = observed_rows(flux, inverse, np.full(1, 0.1), np.zeros(1, dtype=np.int64), MapConfig(error_floor=0.05))
    np.testing.assert_array_equal(split_observed(found.flux)[1], with_floor(flux, inverse, 0.05))


def spoil(name: str, value: float, where: object = slice(None)) -> Callable[[CatalogRows], None]:
    def change(rows: CatalogRows) -> None:
        array = getattr(rows, name)
        array[(2, where) if array.ndim == 2 else 2] = value

    return change


FEW, IVAR, FLUX = QualityFlag.FEW_GOOD_ELEMENTS, QualityFlag.BAD_IVAR, QualityFlag.NONFINITE_FLUX
BAD_ROWS = {
    "redshift NaN": (spoil("redshift", np.nan), QualityFlag.BAD_REDSHIFT),
    "redshift 0": (spoil("redshift", 0.0), QualityFlag.BAD_REDSHIFT),
    "redshift negative": (spoil("redshift", -0.1), QualityFlag.BAD_REDSHIFT),
    "redshift infinite": (spoil("redshift", np.inf), QualityFlag.BAD_REDSHIFT),
    "redshift too large": (spoil("redshift", 50.0), QualityFlag.BAD_REDSHIFT),
    "ivar 0": (spoil("ivar", 0.0), IVAR | FEW),
    "ivar NaN": (spoil("ivar", np.nan), IVAR | FEW),
    "ivar negative": (spoil("ivar", -1.0), IVAR | FEW),
    "ivar beyond numbers": (spoil("ivar", 1e300), IVAR | FEW),
    "flux NaN": (spoil("flux", np.nan), FLUX | FEW),
    "flux overflows": (spoil("flux", 1e305), FLUX | FEW),
    "all masked": (spoil("good", False), FEW),
}
FRAMES = {"rest": (at_rest, TRAINED), "observed": (lambda: observed_frame([0.05, 0.1, 0.15, 0.2, 0.25]), PIXELS)}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_gets_its_bits_and_finite_numbers_and_leaves_the_others_to_the_byte(name, frame):
    make, grid = FRAMES[frame]
    change, bits = BAD_ROWS[name]
    rows, clean = make(), run(make(), grid, error_floor=0.02)
    change(rows)
    ready = run(rows, grid, error_floor=0.02)
    assert not clean.quality.any()
    assert ready.quality.tolist() == [0, 0, int(bits), 0, 0]
    np.testing.assert_array_equal(ready.flux[2], 1.0)
    for array in (ready.flux, ready.ivar):
        assert np.isfinite(array).all()
    others = [0, 1, 3, 4]
    for part in ("flux", "ivar", "good", "quality"):
        assert getattr(ready, part)[others].tobytes() == getattr(clean, part)[others].tobytes()


@pytest.mark.parametrize("mask_lines", [False, True])
@pytest.mark.parametrize("frame", FRAMES)
def test_a_row_alone_is_what_it_is_among_others_to_the_byte(frame, mask_lines):
    make, grid = FRAMES[frame]
    rows, together = make(), run(make(), grid, error_floor=0.02, mask_lines=mask_lines)
    for row in range(5):
        part = [row]
        alone = CatalogRows(*(getattr(rows, name)[part] for name in CatalogRows.__dataclass_fields__))
        found = run(alone, grid, error_floor=0.02, mask_lines=mask_lines)
        assert found.flux.tobytes() == together.flux[part].tobytes()


@pytest.mark.parametrize(
    ("name", "value", "bit"),
    [("flux", np.nan, FLUX), ("flux", 1e305, FLUX), ("ivar", 0.0, IVAR), ("ivar", 1e200, IVAR)],
)
def test_single_elements_that_cannot_be_used_are_gaps(name, value, bit):
    rows, clean = at_rest(), run(at_rest())
    spoil(name, value, 30)(rows)
    ready = run(rows)
    assert ready.quality.tolist() == [0, 0, bit, 0, 0]
    assert np.flatnonzero(~ready.good[2]).tolist() == [30]
    assert np.isfinite(ready.flux).all()
    changed = np.flatnonzero(ready.flux[2] != clean.flux[2]).tolist()
    assert changed == [30, ELEMENTS + 30]


def test_negative_flux_is_data():
    rows = at_rest()
    rows.flux[1, 5] = rows.flux[2] = -1e-17
    ready = run(rows, error_floor=0.02)
    assert not ready.quality.any()
    assert ready.good.all()
    assert ready.flux[1, 5] < 0


def test_a_row_that_is_wholly_off_the_grid_has_no_posterior():
    rows = observed_frame([0.05, 0.1])
    rows.redshift[1] = 5.0
    ready = run(rows, PIXELS)
    assert ready.quality.tolist() == [0, FEW]
    assert not ready.good[1].any()
    np.testing.assert_array_equal(ready.flux[1], 1.0)
    # So it is where any share is enough.
    assert run(rows, PIXELS, min_good_fraction=1e-9).quality.tolist() == [0, FEW]


def test_the_share_of_good_elements_is_the_limit():
    rows = at_rest()
    least = int(0.6 * ELEMENTS)
    rows.good[0, least:] = False
    rows.good[1, least - 1 :] = False
    ready = run(rows, min_good_fraction=least / ELEMENTS)
    assert ready.quality.tolist() == [0, FEW, 0, 0, 0]
    assert ready.n_good[:2].tolist() == [least, least - 1]


def test_bits_of_the_catalog_are_kept():
    rows = at_rest()
    rows.quality[3] = QualityFlag.DUPLICATE_ID
    rows.quality[4] = QualityFlag.UNREADABLE
    ready = run(rows)
    assert ready.quality.tolist() == [0, 0, 0, QualityFlag.DUPLICATE_ID, QualityFlag.UNREADABLE]
    assert (ready.flux[3] != 1).any()
    np.testing.assert_array_equal(ready.flux[4], 1.0)


def test_other_noise_is_shown_the_flux_alone():
    rows = at_rest()
    noise = NoiseModel.from_config(NoiseConfig(), flux_transform="log10")
    found = prepare_for(noise, TRAINED, ZRED, MapConfig(), rows, TRAINED)
    expected = prepare(rows, "rest", ZRED, 0.8)
    np.testing.assert_array_equal(found.flux, expected.flux)
    assert found.flux.shape == (5, ELEMENTS)
