"""The schema of catalog.zarr: round trips, every violation named, bad rows flagged and nothing else."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from digs_survey.catalog import Catalog, validate_catalog, write_catalog
from digs_survey.errors import CatalogError
from digs_survey.quality import QualityFlag
from digs_survey.spectra import WavelengthGrid

GRID = WavelengthGrid(np.arange(4000.0, 4400.0, 50.0))
UNIT = "1e-17 erg / (s cm2 Angstrom)"


def catalog_arguments(rows: int = 6, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "grid": GRID,
        "flux": rng.uniform(1, 2, (rows, len(GRID))).astype(np.float32),
        "ivar": rng.uniform(50, 90, (rows, len(GRID))).astype(np.float32),
        "mask": np.zeros((rows, len(GRID)), dtype=np.uint8),
        "redshift": rng.uniform(0.01, 0.2, rows),
        "galaxy_id": np.array([f"g-{i:03d}é" for i in range(rows)]),
        "flux_unit": UNIT,
        "columns": {
            "ra": (rng.uniform(0, 360, rows), {"units": "deg", "description": "right ascension"}),
            "class": (np.array(["GALAXY"] * rows), {}),
        },
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "catalog.zarr"
    write_catalog(target, **catalog_arguments(), rows_per_shard=4)
    return target


def test_round_trip_in_physical_units(path: Path) -> None:
    given = catalog_arguments()
    catalog = Catalog.open(path)
    rows = catalog.rows(2, 5)
    assert catalog.grid == GRID
    np.testing.assert_allclose(rows.flux, given["flux"][2:5].astype(float) * 1e-17, rtol=1e-12)
    np.testing.assert_allclose(rows.ivar, given["ivar"][2:5].astype(float) * 1e34, rtol=1e-12)
    assert rows.flux.dtype == rows.ivar.dtype == np.float64
    assert rows.galaxy_id.tolist() == given["galaxy_id"][2:5].tolist()
    assert rows.good.all()
    assert not rows.quality.any()
    columns = catalog.columns(0, 6)
    assert list(columns) == ["class", "ra"]
    np.testing.assert_array_equal(columns["ra"], given["columns"]["ra"][0])
    assert catalog.column_attrs("ra")["units"] == "deg"


def test_xarray_reads_it_without_warnings_and_writes_one_that_opens(path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xr.open_zarr(path, consolidated=False).load()
    assert data["flux"].dims == ("galaxy", "wavelength")
    assert data["galaxy_id"].values.tolist()[1] == "g-001é"
    for variable in data.variables.values():
        variable.encoding.clear()
    data.to_zarr(tmp_path / "v2.zarr", zarr_format=2, consolidated=False)
    assert validate_catalog(tmp_path / "v2.zarr").ok
    old, new = Catalog.open(path).rows(0, 6), Catalog.open(tmp_path / "v2.zarr").rows(0, 6)
    np.testing.assert_array_equal(old.flux, new.flux)
    np.testing.assert_array_equal(old.galaxy_id, new.galaxy_id)


def test_every_violation_is_listed_at_once(path: Path) -> None:
    group = zarr.open_group(str(path), mode="r+")
    group["wavelength"][:] = np.r_[GRID.wavelength[:3], 4000.0, np.nan, GRID.wavelength[5:]]
    group["wavelength"].attrs.put({"medium": "water", "units": "Angstrom"})
    group["flux"].attrs.put({"units": "Jy"})
    group.create_array("ivar", shape=(6, 3), dtype="int32", dimension_names=("galaxy", "x"), overwrite=True)
    dims = ("galaxy", "wavelength")
    group.create_array("mask", shape=(6, 8), dtype="float32", dimension_names=dims, overwrite=True)
    group.create_array("quality", shape=(6,), dtype="int64", dimension_names=("galaxy",))
    group.create_array("dec", shape=(5,), dtype="float64", dimension_names=("galaxy",))
    del group["galaxy_id"]
    errors = validate_catalog(path).errors
    for expected in (
        "galaxy_id: missing",
        "ivar: expected dims (galaxy, wavelength), found (galaxy, x)",
        "ivar: expected dtype floating point, found int32",
        "ivar: expected 8 along wavelength, as wavelength has, found 3",
        "mask: expected dtype integer",
        "dec: expected 6 along galaxy, as flux has, found 5",
        "quality: expected a name that the results do not use",
        "wavelength: expected attribute frame",
        "wavelength: expected attribute medium = 'vacuum' or 'air', found 'water'",
        "wavelength: expected finite, positive values, found nan at element 4",
        "wavelength: expected increasing values, found 4000 after 4100 at element 3",
        "flux: expected units convertible to erg / (Angstrom s cm2), found 'Jy'",
    ):
        assert any(line.startswith(expected) for line in errors), f"{expected!r} not in {errors}"
    assert len(errors) == 12
    with pytest.raises(CatalogError) as caught:
        Catalog.open(path)
    assert list(caught.value.violations) == errors


@pytest.mark.parametrize(
    ("variable", "attrs", "expected"),
    [
        ("flux", {}, "flux: expected attribute units"),
        ("flux", {"units": "nonsense"}, "found 'nonsense'"),
        ("ivar", {"units": "erg / (s cm2 Angstrom)"}, "ivar: expected units"),
        ("ivar", {"units": "cm4 Angstrom2 s2 / erg2"}, "ivar: expected units"),
        ("wavelength", {"units": "nm", "frame": "rest", "medium": "air"}, "expected units Angstrom"),
        ("flux", {"units": "erg/cm2/s/A"}, "found 'erg/cm2/s/A'; A is the ampere, write Angstrom or AA"),
        ("flux", {"units": "-1e-17 erg / (s cm2 Angstrom)"}, "expected units with a positive scale"),
        ("wavelength", {"units": "A", "frame": "rest", "medium": "air"}, "A is the ampere"),
        ("flux", {"units": UNIT, "scale_factor": "0.1x"}, "scale_factor: expected a finite number, found '0.1x'"),
    ],
)
def test_wrong_attributes(path: Path, variable: str, attrs: dict, expected: str) -> None:
    zarr.open_group(str(path), mode="r+")[variable].attrs.put(attrs)
    errors = validate_catalog(path).errors
    assert len(errors) == 1
    assert expected in errors[0]


def test_not_a_catalog(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.fits").write_bytes(b"SIMPLE")
    for name, expected in (("none", "no such file"), ("empty", "a Zarr group"), ("file.fits", "ingest")):
        with pytest.raises(CatalogError, match=expected):
            Catalog.open(tmp_path / name)
        assert not validate_catalog(tmp_path / name).ok


def test_no_rows_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="found no rows"):
        write_catalog(tmp_path / "c.zarr", **catalog_arguments(rows=0))
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_get_bits_and_are_no_error(path: Path) -> None:
    group = zarr.open_group(str(path), mode="r+")
    group["flux"][1, 3] = np.nan
    group["flux"][2, 3] = np.inf
    group["mask"][2, 3] = 4  # masked: no problem
    group["ivar"][3, :2] = [0.0, -1.0]
    group["mask"][4] = 1
    group["redshift"][:2] = [np.nan, 30.0]
    group["galaxy_id"][5] = group["galaxy_id"][0]
    report = validate_catalog(path)
    assert report.ok
    assert {flag: rows.tolist() for flag, rows in report.row_problems.items()} == {
        QualityFlag.NONFINITE_FLUX: [1],
        QualityFlag.BAD_IVAR: [3],
        QualityFlag.FEW_GOOD_ELEMENTS: [4],
        QualityFlag.BAD_REDSHIFT: [0, 1],
        QualityFlag.DUPLICATE_ID: [0, 5],
    }
    assert "BAD_REDSHIFT: 2 of 6 rows: 0, 1" in report.row_lines()
    part = Catalog.open(path).rows(4, 6)
    assert part.quality.tolist() == [QualityFlag.FEW_GOOD_ELEMENTS, QualityFlag.DUPLICATE_ID]


def test_rows_in_a_damaged_shard_are_told_and_have_no_posterior(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = path / "ivar" / "c" / "1" / "0"
    shard.write_bytes(shard.read_bytes()[:-20])
    found = validate_catalog(path)
    assert found.ok
    assert found.row_problems[QualityFlag.UNREADABLE].tolist() == [4, 5]
    assert "ivar: rows 4 to 5" in caplog.text
    rows, whole = Catalog.open(path).rows(0, 6), catalog_arguments()
    assert not rows.good[4:].any()
    np.testing.assert_array_equal(rows.redshift, whole["redshift"])
    np.testing.assert_allclose(rows.ivar[:4] / 1e34, whole["ivar"][:4], rtol=1e-6)


def test_a_flipped_bit_is_found(path: Path) -> None:
    shard = path / "flux" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    assert validate_catalog(path).row_problems[QualityFlag.UNREADABLE].tolist() == [0, 1, 2, 3]


def test_damaged_identifiers_are_an_error(path: Path) -> None:
    shard = path / "galaxy_id" / "c" / "1"
    shard.write_bytes(shard.read_bytes()[:-20])
    errors = validate_catalog(path).errors
    assert len(errors) == 1
    assert errors[0].startswith("galaxy_id: rows 0 to 5")


def test_fingerprint_follows_contents_and_not_the_layout(path: Path, tmp_path: Path) -> None:
    given = catalog_arguments()
    other = tmp_path / "other.zarr"
    write_catalog(other, **given, rows_per_shard=2)
    original = Catalog.open(path).fingerprint()
    assert Catalog.open(other).fingerprint() == original
    given["flux"][5, 7] = np.nextafter(given["flux"][5, 7], 9)
    write_catalog(other, **given)
    assert Catalog.open(other).fingerprint() != original
    zarr.open_group(str(path), mode="r+")["ra"].attrs["units"] = "rad"
    assert Catalog.open(path).fingerprint() != original


def test_integer_identifiers_stay_integers(tmp_path: Path) -> None:
    ids = np.array([39627000000000001, 39627000000000002, 39627000000000001], dtype=np.int64)
    write_catalog(tmp_path / "c.zarr", **{**catalog_arguments(rows=3), "galaxy_id": ids})
    rows = Catalog.open(tmp_path / "c.zarr").rows(0, 3)
    assert rows.galaxy_id.dtype == np.int64
    assert rows.galaxy_id.tolist() == ids.tolist()
    assert (rows.quality != 0).tolist() == [True, False, True]


def test_values_out_of_float32_range_are_refused(tmp_path: Path) -> None:
    given = catalog_arguments()
    given.update(ivar=given["ivar"] * np.float64(1e40), flux_unit="erg / (s cm2 Angstrom)")
    with pytest.raises(CatalogError, match="float32"):
        write_catalog(tmp_path / "c.zarr", **given)


@pytest.mark.parametrize("change", [np.log10, np.log, lambda wave: wave / 1e4])
def test_logarithms_and_microns_are_not_taken_for_angstrom(path: Path, change) -> None:
    zarr.open_group(str(path))["wavelength"][:] = change(GRID.wavelength)
    (error,) = validate_catalog(path).errors
    assert "expected Angstrom, found values from" in error
    assert "10**values" in error


def test_ivar_that_overflowed_is_named_with_its_remedy(path: Path) -> None:
    zarr.open_group(str(path))["ivar"][1:4] = np.float32(np.inf)
    lines = validate_catalog(path).row_lines()
    assert lines[0].startswith("BAD_IVAR: 3 of 6 rows")
    assert lines[-1].startswith("ivar: infinite in unmasked elements of 3 rows: float32 holds nothing above 3.4e38")
