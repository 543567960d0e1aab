"""DESI coadds: arms are joined by inverse variance, masks kept, and the right redshift of several is taken."""

from __future__ import annotations

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
    assert catalog.column_attrs("flux_r")["units"] == "nanomaggy"
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


def test_single_exposures_are_refused(tmp_path: Path) -> None:
    coadd = make.coadd(tmp_path / "spectra-x.fits")
    with fits.open(coadd) as hdus:
        table = fits.BinTableHDU.from_columns(
            [column for column in hdus["FIBERMAP"].columns if column.name != "COADD_FIBERSTATUS"], name="FIBERMAP"
        )
        fits.HDUList([hdus[0], table, *hdus[2:]]).writeto(tmp_path / "spectra-y.fits")
    with pytest.raises(CatalogError, match="single exposures"):
        taken([tmp_path / "spectra-y.fits"], tmp_path / "a.zarr")
