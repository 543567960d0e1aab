"""Catalogs are read as xarray shows them: missing and packed values, times, booleans, text, and no stale metadata."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
import zarr
from pyarrow import parquet
from test_catalog import GRID, UNIT, catalog_arguments

from digs_survey.catalog import Catalog, validate_catalog, write_catalog
from digs_survey.catalog.decoding import StoredArray, numbers
from digs_survey.errors import CatalogError
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.results.table import ResultTable

ROWS = 6
DAYS = np.array(["2024-01-05", "1999-12-31", "NaT", "2024-02-29", "2000-01-01", "2015-06-30"], "M8[ns]")
MOMENTS = DAYS + np.array([0, 3_723_004_005, 0, 86_399_999_999, 1, 500], "m8[us]")

ENCODED: dict[str, tuple[Any, dict[str, Any]]] = {
    "fill_float": (np.array([1.5, np.nan, -3, 4, np.nan, 6]), {"_FillValue": 9999.0}),
    "fill_float32": (np.array([1.5, np.nan, -3, 4, np.nan, 6], "f4"), {"_FillValue": np.float32(-99.9)}),
    "missing_float": (np.array([1.5, np.nan, -3, 4, np.nan, 6]), {"missing_value": -1e30}),
    "fill_int": (np.array([1.0, np.nan, 3, 4, 5, 6]), {"dtype": "int32", "_FillValue": -1}),
    "fill_nan": (np.array([1.0, np.nan, 3, 4, 5, 6]), {"_FillValue": np.nan}),
    "packed": (np.array([1.5, np.nan, 3.25, 4, 5, 6]), {"dtype": "i2", "scale_factor": 0.25, "_FillValue": -999}),
    "offset": (np.arange(6.0) + 100, {"dtype": "i4", "scale_factor": 0.5, "add_offset": 100.0}),
    "packed_float": (np.arange(6.0), {"dtype": "f4", "scale_factor": 2.0}),
    "unsigned": (np.array([0.0, 200, np.nan, 3, 4, 5]), {"dtype": "i1", "_Unsigned": "true", "_FillValue": -1}),
    "switch": (np.array([True, False, True, True, False, False]), {}),
    "plain": (np.array([9007199254740993, 2, 3, 4, 5, 6]), {}),
}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ENCODED)
def test_values_are_those_of_xarray(tmp_path: Path, name: str, zarr_format: int) -> None:
    values, encoding = ENCODED[name]
    xr.Dataset({name: ("galaxy", values)}).to_zarr(
        tmp_path / "a.zarr", encoding={name: encoding}, zarr_format=zarr_format, consolidated=False
    )
    array = StoredArray(name, zarr.open_group(str(tmp_path / "a.zarr"), mode="r", use_consolidated=False)[name])
    shown = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)[name].values
    assert array.problems == []
    assert array.dtype == np.ma.getdata(array[:]).dtype
    np.testing.assert_array_equal(numbers(array[0:ROWS]), shown.astype(float))
    np.testing.assert_array_equal(numbers(array[2:4]), values[2:4].astype(float))
    assert not any("fill" in key.lower() or key in ("scale_factor", "missing_value") for key in array.attrs)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("values", "encoding", "unit"),
    [
        (DAYS, {"units": "days since 1990-01-01", "dtype": "float64"}, "us"),
        (MOMENTS, {"units": "microseconds since 2000-01-01", "dtype": "int64"}, "us"),
        (MOMENTS, {"units": "days since 2000-01-01", "dtype": "float64"}, "us"),
        (DAYS, {"units": "hours since 2000-01-01", "dtype": "int32", "_FillValue": -(2**31)}, "s"),
        (DAYS[:2], {"units": "days since 1990-01-01 00:00:00"}, "s"),
    ],
)
def test_times_are_iso_8601(tmp_path: Path, values: Any, encoding: dict, unit: str, zarr_format: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xr.Dataset({"t": ("galaxy", values)}).to_zarr(
            tmp_path / "a.zarr", encoding={"t": encoding}, zarr_format=zarr_format, consolidated=False
        )
    array = StoredArray("t", zarr.open_group(str(tmp_path / "a.zarr"), mode="r", use_consolidated=False)["t"])
    found = array[:]
    missing = np.isnat(values)
    np.testing.assert_array_equal(np.ma.getmaskarray(found), missing)
    # The precision is that of the column, not of the rows that are read at once.
    assert len({len(text) for text in found.compressed()}) == 1
    moments = np.ma.getdata(found)[~missing].astype(f"M8[{unit}]")
    assert np.abs(moments - values[~missing]).max() <= np.timedelta64(1, "us")
    assert "units" not in array.attrs


def test_identifiers_above_2_to_53_keep_their_digits(tmp_path: Path) -> None:
    large = 9007199254740993
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    array = group.create_array("target", shape=(3,), dtype="i8", dimension_names=("galaxy",))
    array[:] = [large, -1, 7]
    array.attrs["missing_value"] = -1
    assert StoredArray("target", array)[:].tolist() == [large, None, 7]


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"scale_factor": "big"}, "scale_factor: expected a finite number, found 'big'"),
        ({"_FillValue": "none"}, "_FillValue: expected a number, found 'none'"),
        ({"units": "days since 2000-01-01", "calendar": "noleap"}, "calendar: expected standard"),
        ({"_Encoding": "klingon"}, "_Encoding: expected one that Python knows"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(tmp_path: Path, attrs: dict, expected: str) -> None:
    path = tmp_path / "catalog.zarr"
    write_catalog(path, **catalog_arguments())
    zarr.open_group(str(path))["ra"].attrs.update(attrs)
    (error,) = validate_catalog(path).errors
    assert error.startswith("ra: attribute")
    assert expected in error


@pytest.fixture
def given() -> xr.Dataset:
    """A catalog as xarray holds it, with missing values in every variable that may have some."""
    some = catalog_arguments(ROWS)
    flux, ivar, mask = some["flux"].copy(), some["ivar"].copy(), np.zeros(some["flux"].shape)
    flux[1, 2], ivar[2, 3], mask[3, 4] = np.nan, np.nan, np.nan
    redshift = some["redshift"].copy()
    redshift[4] = np.nan
    d = ("galaxy", "wavelength")
    return xr.Dataset(
        {
            "flux": (d, flux, {"units": UNIT}),
            "ivar": (d, ivar),
            "mask": (d, mask),
            "redshift": ("galaxy", redshift),
            "galaxy_id": ("galaxy", np.arange(ROWS)),
            "mass": ("galaxy", np.array([10.0, np.nan, 11, np.nan, 9.5, 10.2]), {"units": "dex(solMass)"}),
            "n_obs": ("galaxy", np.array([1.0, np.nan, 3, 4, 5, 6])),
            "when": ("galaxy", DAYS),
            "wavelength": ("wavelength", GRID.wavelength, {"units": "Angstrom", "frame": "rest", "medium": "vacuum"}),
        }
    )


FILLS = {
    "flux": {"_FillValue": 9999.0},
    "ivar": {"dtype": "i4", "scale_factor": 0.001, "_FillValue": -1},
    "mask": {"dtype": "u1", "_FillValue": 255},
    "redshift": {"_FillValue": -99.0},
    "mass": {"_FillValue": -99.0},
    "n_obs": {"dtype": "i4", "_FillValue": -1},
    "when": {"units": "days since 1990-01-01", "dtype": "i4", "_FillValue": -1},
}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_catalog_means_what_xarray_shows(tmp_path: Path, given: xr.Dataset, zarr_format: int) -> None:
    given.to_zarr(tmp_path / "c.zarr", encoding=FILLS, zarr_format=zarr_format, consolidated=True)
    report = validate_catalog(tmp_path / "c.zarr")
    assert report.ok, report.errors
    found = {flag: rows.tolist() for flag, rows in report.row_problems.items()}
    assert found == {QualityFlag.NONFINITE_FLUX: [1], QualityFlag.BAD_IVAR: [2], QualityFlag.BAD_REDSHIFT: [4]}
    catalog = Catalog.open(tmp_path / "c.zarr")
    rows = catalog.rows(0, ROWS)
    np.testing.assert_allclose(rows.flux, given.flux.values * 1e-17, rtol=1e-6)
    np.testing.assert_allclose(rows.ivar, given.ivar.values * 1e34, rtol=1e-4)
    np.testing.assert_array_equal(rows.good, given["mask"].values == 0)
    np.testing.assert_array_equal(rows.redshift, given.redshift.values)
    np.testing.assert_array_equal(catalog.column("n_obs", 0, ROWS), given.n_obs.values)
    assert set(catalog.column_attrs("mass")) == {"units"}
    columns = catalog.columns(0, ROWS)
    assert columns["n_obs"].tolist() == [1, None, 3, 4, 5, 6]
    np.testing.assert_array_equal(columns["mass"], given.mass.values)


def test_missing_values_are_nulls_in_the_table(tmp_path: Path, given: xr.Dataset) -> None:
    given.to_zarr(tmp_path / "c.zarr", encoding=FILLS)
    catalog = Catalog.open(tmp_path / "c.zarr")
    columns = {"galaxy_id": catalog.galaxy_id(0, ROWS), "redshift": catalog.redshift(0, ROWS)}
    columns |= catalog.columns(0, ROWS)
    prior = Prior()
    table = ResultTable({name: catalog.column_attrs(name) for name in columns}, prior, (0.5,), (), "", "")
    results = {"percentiles": np.zeros((ROWS, prior.ndim, 1)), "quality": np.zeros(ROWS, dtype=np.int64)}
    made = parquet.read_table(pa.BufferReader(table.part(0, columns, results)))
    assert made["n_obs"].to_pylist() == [1, None, 3, 4, 5, 6]
    assert made["when"].to_pylist()[:3] == ["2024-01-05T00:00:00", "1999-12-31T00:00:00", None]
    np.testing.assert_array_equal(made["mass"].to_numpy(), given.mass.values)
    assert made.schema.field("n_obs").type == pa.int32()


def test_how_values_are_encoded_does_not_change_the_fingerprint(tmp_path: Path, given: xr.Dataset) -> None:
    plain = given.drop_vars(["when", "n_obs"])
    plain["mask"] = plain["mask"].fillna(1).astype("u1")
    fills = {name: {"_FillValue": 9999.0} for name in ("flux", "redshift", "mass")}
    plain.to_zarr(tmp_path / "nan.zarr")
    plain.to_zarr(tmp_path / "fill.zarr", encoding=fills)
    one, other = (Catalog.open(tmp_path / f"{name}.zarr").fingerprint() for name in ("nan", "fill"))
    assert one == other


def test_zero_of_zarr_2_is_a_value(tmp_path: Path) -> None:
    """Zarr 2 gives each array a fill value of 0, with no word of its user; xarray takes all zeros for missing."""
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    array = group.create_array("mask", shape=(3,), dtype="i4", fill_value=0)
    array[:] = [0, 1, 0]
    assert np.asarray(StoredArray("mask", array)[:]).tolist() == [0, 1, 0]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stale_consolidated_metadata_are_not_read(tmp_path: Path, given: xr.Dataset, zarr_format: int) -> None:
    given["flux"].attrs["units"] = "furlong"
    given["mask"] = given["mask"].fillna(1).astype("u1")
    path = tmp_path / "c.zarr"
    given.to_zarr(path, zarr_format=zarr_format, consolidated=True)
    group = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    group["flux"].attrs["units"] = UNIT
    names = {"dimension_names": ("galaxy",)} if zarr_format == 3 else {}
    added = group.create_array("ra", shape=(ROWS,), dtype="f8", **names)
    added[:] = 100.0
    if zarr_format == 2:
        added.attrs["_ARRAY_DIMENSIONS"] = ["galaxy"]
    assert zarr.open_group(str(path), mode="r")["flux"].attrs["units"] == "furlong"
    catalog = Catalog.open(path)
    assert catalog.rows(0, 1).flux.max() < 1e-15
    assert catalog.column("ra", 0, ROWS).tolist() == [100.0] * ROWS


def test_a_missing_identifier_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    write_catalog(path, **(catalog_arguments() | {"galaxy_id": np.array([5, 6, -1, 8, 9, 10])}))
    zarr.open_group(str(path))["galaxy_id"].attrs["missing_value"] = -1
    with pytest.raises(CatalogError, match="identifier in every row of .*, found row 2 marked as missing"):
        Catalog.open(path).galaxy_id(0, ROWS)
    assert not validate_catalog(path).ok
