"""SDSS spectra become rows: flux, inverse variance, lines and classes, on real files and on those of other releases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import survey_files as make
from astropy.io import fits

from digs_survey.catalog import Catalog, validate_catalog
from digs_survey.catalog.readers.grid_choice import GridChoice
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.catalog.readers.sdss import BRIGHTSKY, SdssReader
from digs_survey.errors import CatalogError
from digs_survey.spectra import rebin_spectrum

FILES = sorted((Path(__file__).resolve().parents[2] / "catalogs" / "sdss").glob("spec-*.fits"))


def taken(files: list[Path], out: Path, **choice: object) -> Catalog:
    ingest(files, out, SdssReader(files), GridChoice(**choice), source="SDSS spectra")
    return Catalog.open(out)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return taken(FILES, tmp_path_factory.mktemp("sdss") / "sdss.zarr", frame="rest")


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
    assert columns["source_file"].tolist() == [str(path) for path in FILES]


def test_grid_spans_what_any_row_has(catalog: Catalog) -> None:
    reach = []
    for edges, _, _, bad, z in map(observed, FILES):
        good = np.flatnonzero(~bad)
        reach.append((edges[good[0]] / (1 + z), edges[good[-1] + 1] / (1 + z)))
    low, high = min(r[0] for r in reach), max(r[1] for r in reach)
    first, last = catalog.grid.edges[[0, -1]]
    assert first % 50 == last % 50 == 0
    assert 0 <= low - first < 50
    assert 0 <= last - high < 50
    good = catalog.rows(0, 10).good
    for row, (begin, end) in enumerate(reach):
        beyond = (catalog.grid.edges[1:] < begin) | (catalog.grid.edges[:-1] > end)
        assert not good[row, beyond].any()
        assert good[row, ~beyond].mean() > 0.97


def test_flux_is_conserved_from_the_observed_frame(catalog: Catalog) -> None:
    rows = catalog.rows(0, 10)
    compared = 0
    for row, path in enumerate(FILES):
        edges, flux, _, bad, z = observed(path)
        elements = catalog.grid.edges * (1 + z)
        received = np.interp(elements, edges, np.r_[0, np.cumsum(flux * np.diff(edges))])
        touched = np.interp(elements, edges, np.r_[0, np.cumsum(bad * np.diff(edges))])
        inside = (elements[:-1] > edges[0]) & (elements[1:] < edges[-1])
        clean = (np.diff(touched) == 0) & inside
        ours = rows.flux[row] * np.diff(catalog.grid.edges) / 1e-17
        np.testing.assert_allclose(ours[clean], np.diff(received)[clean], rtol=1e-3)
        compared += clean.sum()
    assert compared > 500


def test_inverse_variance_is_that_of_the_mean_of_the_good_pixels(catalog: Catalog) -> None:
    rows = catalog.rows(0, 10)
    for row in (1, 9):
        edges, _, variance, bad, z = observed(FILES[row])
        edges = edges / (1 + z)
        for element in (20, 50, 90):
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


def test_native_elements_are_the_pixels(tmp_path: Path) -> None:
    ours = taken(FILES[:3], tmp_path / "native.zarr")
    rows = ours.rows(0, 3)
    for row, path in enumerate(FILES[:3]):
        _, flux, variance, bad, _ = observed(path)
        np.testing.assert_allclose(rows.flux[row][rows.good[row]] * 1e17, flux[~bad], rtol=1e-6)
        np.testing.assert_allclose(rows.ivar[row][rows.good[row]] * 1e-34, 1 / variance[~bad], rtol=1e-6)


def test_the_observed_frame_is_that_of_the_files(tmp_path: Path) -> None:
    ours = taken(FILES[:3], tmp_path / "sdss.zarr", step_angstrom=10.0)
    assert ours.grid.frame == "observed"
    rows = ours.rows(0, 3)
    for row, path in enumerate(FILES[:3]):
        edges, flux, variance, bad, _ = observed(path)
        expected = rebin_spectrum(edges, flux, np.where(bad, 0.0, 1 / np.where(bad, 1.0, variance)), ours.grid.edges)
        good = (expected[2] == 0) & rows.good[row]
        np.testing.assert_allclose(rows.flux[row][good], 1e-17 * expected[0][good], rtol=1e-3)
        assert (rows.good[row] == (expected[2] == 0)).mean() > 0.995


def test_a_narrower_range_is_made_where_it_is_asked_for(tmp_path: Path) -> None:
    ends = {"start_angstrom": 4000.0, "stop_angstrom": 8000.0}
    ours = taken(FILES[:2], tmp_path / "a.zarr", frame="rest", step_angstrom=20.0, **ends)
    assert ours.grid.wavelength[[0, -1]].tolist() == [4000.0, 8000.0]


def test_pixels_under_bright_sky_are_masked(tmp_path: Path) -> None:
    path = make.spec(tmp_path / "spec-sky.fits")
    with fits.open(path, mode="update") as hdus:
        hdus[1].data["and_mask"][50:60] = BRIGHTSKY
    assert np.flatnonzero(~taken([path], tmp_path / "a.zarr").rows(0, 1).good[0]).tolist() == list(range(50, 60))


def test_plates_give_their_galaxies(tmp_path: Path) -> None:
    files, reader = make.plate(tmp_path)
    report = ingest(files, tmp_path / "plate.zarr", reader, source="SDSS spectra")
    assert report.rows == 1
    assert sorted(item.reason for item in report.left_out) == ["sky fibre (OBJTYPE SKY)", "star (CLASS STAR)"]
    found = Catalog.open(tmp_path / "plate.zarr")
    assert found.galaxy_id(0, 1)[0] == "0266-51630-0001"
    assert found.column("line_spread", 0, 1)[0] == pytest.approx(69.03)


def test_names_of_sdss_v_are_read(tmp_path: Path) -> None:
    changes = {"PLATE": None, "FIBERID": None, "FIELD": 15002, "CATALOGID": 27021598108289694}
    found = taken([make.spec(tmp_path / "spec-v.fits", **changes)], tmp_path / "v.zarr")
    assert found.galaxy_id(0, 1)[0] == "015002-51630-27021598108289694"


@pytest.mark.parametrize(("other", "expected"), [("GALAXY", 0.3), ("", make.REDSHIFT)])
def test_the_fit_without_quasars_is_taken_where_there_is_one(tmp_path: Path, other: str, expected: float) -> None:
    path = make.spec(tmp_path / "spec-q.fits", CLASS="QSO", Z_NOQSO=0.3, CLASS_NOQSO=other)
    for z_noqso, redshift, kind in ((False, make.REDSHIFT, "QSO"), (True, expected, other or "QSO")):
        ingest([path], tmp_path / "q.zarr", SdssReader(z_noqso=z_noqso), source="SDSS spectra")
        found = Catalog.open(tmp_path / "q.zarr")
        assert (found.redshift(0, 1)[0], found.column("class", 0, 1)[0]) == (redshift, kind)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Z": 0.0}, "no positive redshift"),
        ({"Z": np.nan}, "no positive redshift"),
        ({"Z": None}, "expected the columns Z"),
        ({"PLATE": None}, "no PLATE"),
        ({"CLASS": "STAR"}, "star"),
    ],
)
def test_a_spectrum_that_cannot_be_used_says_why(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    with pytest.raises(CatalogError, match="at least one spectrum") as caught:
        taken([make.spec(tmp_path / "spec-bad.fits", **change)], tmp_path / "a.zarr")
    assert reason in str(caught.value)
    assert "spec-bad.fits (1)" in str(caught.value)


@pytest.mark.parametrize(
    ("hdu", "key", "value", "reason"),
    [
        (0, "BUNIT", "1E-17 erg/cm^2/s/Hz", "BUNIT"),
        (0, "VACUUM", False, "VACUUM"),
        (1, "loglam", make.LOGLAM[::-1], "LOGLAM"),
        (1, "loglam", np.append(make.LOGLAM[:-1], np.nan), "LOGLAM"),
        (1, "flux", np.nan, "no usable pixel"),
        (1, "ivar", 0.0, "no usable pixel"),
        (1, "and_mask", BRIGHTSKY, "no usable pixel"),
    ],
)
def test_an_unexpected_file_says_why(tmp_path: Path, hdu: int, key: str, value: object, reason: str) -> None:
    path = make.spec(tmp_path / "spec-bad.fits")
    with fits.open(path, mode="update") as hdus:
        if hdu:
            hdus[hdu].data[key][:] = value
        else:
            hdus[0].header[key] = value
    with pytest.raises(CatalogError) as caught:
        taken([path], tmp_path / "a.zarr")
    assert reason in str(caught.value)
