"""DESI coadds: arms are joined by inverse variance, masks kept, and the right redshift of several is taken."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import survey_files as make
from astropy.io import fits

from digs_survey.catalog import Catalog
from digs_survey.catalog.readers.desi import DesiReader
from digs_survey.catalog.readers.ingesting import ingest
from digs_survey.errors import CatalogError


def taken(files: list[Path], out: Path, redshifts: Path | None = None) -> Catalog:
    ingest(files, out, DesiReader(files, redshifts), source="DESI coadds")
    return Catalog.open(out)


def test_arms_are_joined_by_inverse_variance(tmp_path: Path) -> None:
    files, _ = make.desi(tmp_path)
    with fits.open(files[0], mode="update") as hdus:
        hdus["B_FLUX"].data[:], hdus["R_FLUX"].data[:] = 1.0, 4.0
        hdus["B_IVAR"].data[:], hdus["R_IVAR"].data[:] = 2.0, 1.0
        hdus["B_MASK"].data[0, 10:13] = 1
        hdus["R_IVAR"].data[0, 3] = 0.0
        hdus["R_FLUX"].data[0, 4] = np.nan
    rows = taken(files, tmp_path / "a.zarr").rows(0, 1)
    flux, ivar = rows.flux[0] * 1e17, rows.ivar[0] * 1e-34
    # R begins at element 80 of B, which has 120.
    np.testing.assert_allclose(flux[[0, 79, 80, 83, 84, 85, 119, 120]], [1, 1, 2, 1, 1, 2, 2, 4], rtol=1e-6)
    np.testing.assert_allclose(ivar[[0, 79, 80, 83, 84, 85, 119, 120]], [2, 2, 3, 2, 2, 3, 3, 1], rtol=1e-6)
    assert np.flatnonzero(~rows.good[0]).tolist() == [10, 11, 12]


def test_columns_of_the_fibre_map_and_of_redrock_are_carried(tmp_path: Path) -> None:
    files, _ = make.desi(tmp_path)
    catalog = taken(files, tmp_path / "a.zarr")
    found = {name: values[0] for name, values in catalog.columns(0, 1).items()}
    assert (found["ra"], found["flux_r"], found["zwarn"], found["spectype"]) == (10.0, 3.0, 0, "GALAXY")
    assert (found["deltachi2"], found["survey"], found["source_row"]) == (99.0, "main", 0)
    for band in ("g", "r", "z", "w1", "w2"):
        assert catalog.column_attrs(f"flux_{band}")["units"] == "nanomaggy"
        assert catalog.column_attrs(f"flux_ivar_{band}")["units"] == "nanomaggy^-2"
        assert found[f"flux_ivar_{band}"] == 3.0
    assert catalog.galaxy_id(0, 1).dtype == np.int64


def test_the_entry_of_the_coadds_own_survey_is_taken_from_a_catalog(tmp_path: Path) -> None:
    coadd = make.coadd(tmp_path / "coadd-x.fits", targetid=[1, 2])
    columns = [
        fits.Column("TARGETID", "K", array=[2, 1, 1, 2, 2]),
        fits.Column("SURVEY", "4A", array=["main", "sv1", "main", "main", "sv1"]),
        fits.Column("Z", "D", array=[0.2, 0.9, 0.1, 0.3, 0.8]),
    ]
    given = tmp_path / "zcatalog.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="ZCATALOG")]).writeto(given)
    report = ingest([coadd], tmp_path / "a.zarr", DesiReader([coadd], given), source="DESI coadds")
    assert Catalog.open(tmp_path / "a.zarr").redshift(0, 1).tolist() == [0.1]
    assert [item.reason for item in report.left_out] == ["no redshift of this TARGETID, or several"]


def exposures(folder: Path, status: list[int], **changes: object) -> Path:
    """Write three exposures: two of target 5, before and after one of target 9."""
    path = make.coadd(folder / "spectra-main-dark-1.fits", rows=3, targetid=[5, 9, 5], fiberstatus=status, **changes)
    make.redrock(folder / "redrock-main-dark-1.fits", [5, 9], [0.2, 0.3])
    with fits.open(path, mode="update") as hdus:
        for arm in "BRZ":
            hdus[f"{arm}_FLUX"].data[:] = np.array([1.0, 5.0, 4.0])[:, None]
            hdus[f"{arm}_IVAR"].data[:] = np.array([2.0, 3.0, 1.0])[:, None]
        hdus["B_MASK"].data[0, 10] = 1
        hdus["B_MASK"].data[:, 20] = 1
        hdus["B_IVAR"].data[2, 30] = 0.0
    return path


def test_exposures_of_a_target_are_joined_by_inverse_variance(tmp_path: Path) -> None:
    catalog = taken([exposures(tmp_path, [0, 0, 0], sigma=0.7)], tmp_path / "a.zarr")
    rows, columns = catalog.rows(0, 2), catalog.columns(0, 2)
    assert (rows.galaxy_id.tolist(), rows.redshift.tolist()) == ([5, 9], [0.2, 0.3])
    flux, ivar = rows.flux * 1e17, rows.ivar * 1e-34
    np.testing.assert_allclose(flux[0, [0, 10, 30, 100]], [2.0, 4.0, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(ivar[0, [0, 10, 30, 100]], [3.0, 1.0, 2.0, 6.0], rtol=1e-6)
    np.testing.assert_allclose(flux[1, [0, 10]], 5.0, rtol=1e-6)
    assert np.flatnonzero(~rows.good[0]).tolist() == np.flatnonzero(~rows.good[1]).tolist() == [20]
    assert columns["coadd_numexp"].tolist() == [2, 1]
    assert columns["source_row"].tolist() == [0, 1]
    np.testing.assert_allclose(columns["line_spread_r"], 0.7, rtol=1e-3)


def test_exposures_that_the_pipeline_would_not_coadd_are_not_used(tmp_path: Path) -> None:
    bad, red = 1 << 16, 1 << 23
    catalog = taken([exposures(tmp_path, [8 | 1, red | 8, bad | 8])], tmp_path / "a.zarr")
    rows, columns = catalog.rows(0, 2), catalog.columns(0, 2)
    np.testing.assert_allclose(rows.flux[0, [0, 30]] * 1e17, 1.0, rtol=1e-6)
    wave = catalog.grid.wavelength
    only_red = (wave > make.ARMS["B"][-1] + 0.1) & (wave < make.ARMS["Z"][0] - 0.1)
    assert only_red.any()
    assert not rows.good[1, only_red].any()
    assert rows.good[0, only_red].all()
    assert columns["coadd_fiberstatus"].tolist() == [9, red | 8]
    assert columns["coadd_numexp"].tolist() == [1, 1]


def test_a_target_without_a_usable_exposure_says_why(tmp_path: Path) -> None:
    path = exposures(tmp_path, [1 << 9, 0, 1 << 16])
    report = ingest([path], tmp_path / "a.zarr", DesiReader([path]), source="DESI spectra")
    assert [(item.rows, item.reason.partition(":")[0]) for item in report.left_out] == [(1, "no usable pixel")]


def test_exposures_whose_coadd_is_given_are_passed_over(tmp_path: Path) -> None:
    path = exposures(tmp_path, [0, 0, 0])
    coadd = make.coadd(tmp_path / "coadd-main-dark-1.fits", targetid=[5, 9])
    report = ingest([path, coadd], tmp_path / "a.zarr", DesiReader([path, coadd]), source="DESI spectra", strict=True)
    assert (report.rows, [item.fault for item in report.left_out]) == (2, [False])


def test_many_exposures_come_in_blocks_of_whole_targets(tmp_path: Path) -> None:
    ids = np.repeat(np.arange(300), 3)
    np.random.default_rng(1).shuffle(ids)
    path = make.coadd(tmp_path / "spectra-x.fits", rows=900, targetid=ids, fiberstatus=np.zeros(900))
    make.redrock(tmp_path / "redrock-x.fits", np.arange(300), np.linspace(0.1, 0.4, 300))
    catalog = taken([path], tmp_path / "a.zarr")
    rows = catalog.rows(0, 300)
    assert sorted(rows.galaxy_id.tolist()) == list(range(300))
    assert rows.galaxy_id.tolist() == list(dict.fromkeys(ids.tolist()))
    np.testing.assert_allclose(rows.redshift, np.linspace(0.1, 0.4, 300)[rows.galaxy_id])
    np.testing.assert_allclose(rows.ivar[:, 0] * 1e-34, 3 / make.ERROR**2, rtol=1e-5)


def test_the_line_spread_of_real_files_is_that_of_the_instrument(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "real" / "desi"
    name = "4-80613-thru20210324.fits"
    if not (folder / f"coadd-{name}").exists():
        pytest.skip(f"no real files in {folder}")
    found = taken([folder / f"coadd-{name}"], tmp_path / "a.zarr").columns(0, 1)
    with fits.open(folder / f"coadd-{name}") as hdus:
        for arm in "BRZ":
            shares, away = hdus[f"{arm}_RESOLUTION"].data[0].astype(float), np.arange(-5, 6)[:, None]
            moment = np.sum(shares * away**2, axis=0) / shares.sum(axis=0)
            assert found[f"line_spread_{arm.lower()}"][0] == pytest.approx(0.8 * np.median(moment) ** 0.5, rel=0.03)


def test_the_line_spread_is_that_of_scaled_double_and_packed_matrices_too(tmp_path: Path) -> None:
    path = make.coadd(tmp_path / "coadd-a.fits", sigma=0.6)
    make.redrock(tmp_path / "redrock-a.fits", [100, 101], [0.1, 0.2])
    with fits.open(path, mode="update") as hdus:
        double = hdus["R_RESOLUTION"].data.astype(float)
        double[1] = 0.0
        hdus["R_RESOLUTION"].data = double
        hdus["Z_RESOLUTION"].scale("int16", bscale=1e-4, bzero=0.0)
    whole = path.read_bytes()
    for data in (whole, gzip.compress(whole)):
        path.write_bytes(data)
        found = taken([path], tmp_path / "a.zarr").columns(0, 2)
        np.testing.assert_allclose(found["line_spread_b"], 0.6, rtol=1e-3)
        np.testing.assert_allclose(found["line_spread_r"], [0.6, np.nan], rtol=1e-3)
        np.testing.assert_allclose(found["line_spread_z"], 0.6, rtol=1e-3)


def test_the_unit_of_the_inverse_variance_is_read(tmp_path: Path) -> None:
    files, _ = make.desi(tmp_path)
    right = taken(files, tmp_path / "a.zarr").rows(0, 1).ivar
    with fits.open(files[0], mode="update") as hdus:
        for arm in "BRZ":
            hdus[f"{arm}_IVAR"].header["BUNIT"] = "10**+32 (s2 cm4 Angstrom2) / erg2"
    np.testing.assert_allclose(taken(files, tmp_path / "b.zarr").rows(0, 1).ivar, 0.01 * right, rtol=1e-6)
    with fits.open(files[0], mode="update") as hdus:
        hdus["R_IVAR"].header["BUNIT"] = "electron"
    with pytest.raises(CatalogError, match="R_IVAR: BUNIT: expected a unit that converts"):
        taken(files, tmp_path / "c.zarr")


def test_the_primary_entry_counts_where_a_catalog_has_several(tmp_path: Path) -> None:
    coadd = make.coadd(tmp_path / "coadd-x.fits", targetid=[1, 2])
    columns = [
        fits.Column("TARGETID", "K", array=[1, 1, 2]),
        fits.Column("Z", "D", array=[0.2, 0.9, 0.1]),
        fits.Column("ZCAT_PRIMARY", "L", array=[False, True, True]),
    ]
    given = tmp_path / "zcatalog.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="ZCATALOG")]).writeto(given)
    assert taken([coadd], tmp_path / "a.zarr", given).redshift(0, 2).tolist() == [0.9, 0.1]
