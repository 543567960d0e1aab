"""SDSS spectra become rest-frame rows: flux, inverse variance, lines and refusals, on the real files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from digs_survey.catalog import Catalog, validate_catalog
from digs_survey.catalog.readers.sdss import BRIGHTSKY, ingest_sdss, read_sdss
from digs_survey.errors import CatalogError
from digs_survey.spectra import rebin_spectrum

FILES = sorted((Path(__file__).resolve().parents[2] / "catalogs" / "sdss").glob("spec-*.fits"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return ingest_sdss(FILES, tmp_path_factory.mktemp("sdss") / "sdss.zarr")


def observed(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Pixel edges in the observed frame, flux, variance, bad pixels and redshift, straight from a file."""
    with fits.open(path) as hdus:
        data, z = hdus[1].data, float(hdus[2].data["Z"][0])
        log_wave = np.asarray(data["loglam"], dtype=float)
        ivar = np.asarray(data["ivar"], dtype=float)
        bad = (ivar <= 0) | ((data["and_mask"] & BRIGHTSKY) != 0)
        edges = 10 ** np.append(log_wave - 0.5e-4, log_wave[-1] + 0.5e-4)
        return edges, np.asarray(data["flux"], dtype=float), 1 / np.where(bad, np.inf, ivar), bad, z


def test_catalog_is_valid_and_keeps_what_the_survey_gives(catalog: Catalog) -> None:
    assert len(FILES) == 10
    report = validate_catalog(catalog.path)
    assert report.ok
    assert report.row_problems == {}
    assert (catalog.grid.frame, catalog.grid.medium) == ("rest", "vacuum")
    rows, columns = catalog.rows(0, 10), catalog.columns(0, 10)
    assert rows.galaxy_id.tolist() == [path.stem.removeprefix("spec-") for path in FILES]
    assert rows.redshift[0] == pytest.approx(0.06740563)
    assert columns["subclass"][0] == "STARFORMING"
    assert columns["ra"][0] == pytest.approx(146.22225)
    assert columns["fiberid"].tolist() == [int(path.stem[-4:]) for path in FILES]


def test_grid_is_the_whole_range_that_all_rows_have(catalog: Catalog) -> None:
    reach = [(edges[0] / (1 + z), edges[-1] / (1 + z)) for edges, *_, z in map(observed, FILES)]
    low, high = max(r[0] for r in reach), min(r[1] for r in reach)
    first, last = catalog.grid.edges[[0, -1]]
    assert first % 50 == last % 50 == 0
    assert 0 <= first - low < 50
    assert 0 <= high - last < 50


def test_flux_is_conserved_from_the_observed_frame(catalog: Catalog) -> None:
    rows = catalog.rows(0, 10)
    compared = 0
    for row, path in enumerate(FILES):
        edges, flux, _, bad, z = observed(path)
        elements = catalog.grid.edges * (1 + z)
        received = np.interp(elements, edges, np.r_[0, np.cumsum(flux * np.diff(edges))])
        touched = np.interp(elements, edges, np.r_[0, np.cumsum(bad * np.diff(edges))])
        clean = np.diff(touched) == 0
        ours = rows.flux[row] * np.diff(catalog.grid.edges) / 1e-17
        np.testing.assert_allclose(ours[clean], np.diff(received)[clean], rtol=1e-3)
        compared += clean.sum()
    assert compared > 500


def test_inverse_variance_is_that_of_the_mean_of_the_good_pixels(catalog: Catalog) -> None:
    rows = catalog.rows(0, 10)
    for row in (1, 9):
        edges, _, variance, bad, z = observed(FILES[row])
        edges = edges / (1 + z)
        for element in (3, 40, 80):
            low, high = catalog.grid.edges[element : element + 2]
            overlap = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * ~bad
            expected = np.sum((overlap / overlap.sum()) ** 2 * variance) * (1 + z) ** 2 * 1e-34
            assert 1 / rows.ivar[row, element] == pytest.approx(expected, rel=1e-3)


def test_halpha_lands_in_its_element(catalog: Catalog) -> None:
    rows, wave = catalog.rows(0, 10), catalog.grid.wavelength
    for row in np.flatnonzero(catalog.columns(0, 10)["subclass"] == "STARFORMING"):
        red = np.flatnonzero((wave > 6300) & (wave < 6900))
        peak = red[np.argmax(rows.flux[row, red])]
        assert catalog.grid.edges[peak] < 6564.6 < catalog.grid.edges[peak + 1]


def test_a_wider_range_is_masked_where_a_row_has_no_pixels() -> None:
    given = read_sdss(FILES[:2], start_angstrom=3600.0, stop_angstrom=8600.0, step_angstrom=20.0)
    assert given["grid"].wavelength[[0, -1]].tolist() == [3600.0, 8600.0]
    assert (given["mask"][0][given["grid"].wavelength > 9190 / 1.0674 + 20] == 1).all()
    assert given["ivar"][given["mask"] == 1].max() == 0


def edited(path: Path, tmp_path: Path, hdu: int, column: str, value: object) -> Path:
    target = tmp_path / path.name
    shutil.copy(path, target)
    with fits.open(target, mode="update") as hdus:
        hdus[hdu].data[column][:] = value
    return target


def test_no_common_range_names_both_files(tmp_path: Path) -> None:
    far = edited(FILES[3], tmp_path, 2, "Z", 4.0)
    with pytest.raises(CatalogError, match="two elements") as caught:
        read_sdss([FILES[0], far])
    assert FILES[0].name in str(caught.value)
    assert far.name in str(caught.value)


@pytest.mark.parametrize("redshift", [0.0, -1e-4, np.nan])
def test_a_redshift_that_is_not_positive_is_refused(tmp_path: Path, redshift: float) -> None:
    with pytest.raises(CatalogError, match="Z: expected a positive redshift"):
        read_sdss([edited(FILES[3], tmp_path, 2, "Z", redshift)])


def test_all_bad_pixels_give_a_masked_row(tmp_path: Path) -> None:
    dead = edited(FILES[3], tmp_path, 1, "and_mask", BRIGHTSKY)
    given = read_sdss([FILES[0], dead])
    assert (given["mask"][1] == 1).all()
    assert (given["mask"][0] == 0).all()


def test_other_files_are_refused(tmp_path: Path) -> None:
    text, image, cut = tmp_path / "a.txt", tmp_path / "image.fits", tmp_path / FILES[0].name
    text.write_text("not FITS")
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(image)
    cut.write_bytes(FILES[0].read_bytes()[:50_000])
    for path, expected in (
        (text, "expected an SDSS spec file"),
        (image, "FLUX, LOGLAM, IVAR, AND_MASK in HDU 1"),
        (cut, str(cut)),
        (tmp_path / "none.fits", "no such file"),
    ):
        with pytest.raises(CatalogError) as caught:
            read_sdss([path])
        assert expected in str(caught.value)


def test_the_observed_frame_is_that_of_the_files(tmp_path: Path) -> None:
    taken = ingest_sdss(FILES[:3], tmp_path / "sdss.zarr", step_angstrom=10.0, frame="observed")
    assert taken.grid.frame == "observed"
    rows = taken.rows(0, 3)
    for row, path in enumerate(FILES[:3]):
        edges, flux, variance, bad, _ = observed(path)
        ours = rebin_spectrum(edges, flux, np.where(bad, 0.0, 1 / np.where(bad, 1.0, variance)), taken.grid.edges)
        good = ours[2] == 0
        np.testing.assert_allclose(rows.flux[row][good], 1e-17 * ours[0][good], rtol=1e-3)
        assert (rows.good[row] == good).all()
