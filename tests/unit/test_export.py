"""Every export format gives the same values back, with units and descriptions where the format has them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from digs_survey.errors import DigsError
from digs_survey.export import FORMATS, export_table

VALUES = {
    "galaxy_id": ["0266-51630-0168", "b", "a long identifier"],
    "ra": [145.1, 0.25, 359.999999999],
    "psf_flux": [1.0, 2.0, 3.0],
    "zwarning": [0, 4, 2**40],
    "good": [True, False, True],
    "logmass_p2_5": np.array([10.1, np.nan, 9.25], dtype=np.float32),
    "tage_p50": np.array([1.5, np.nan, 0.25], dtype=np.float32),
    "quality": [0, 32, 1],
}
METADATA = {
    "ra": {"unit": "deg", "description": "right ascension"},
    "logmass_p2_5": {"unit": "dex(solMass)", "description": "2.5 % quantile of total stellar mass formed"},
    "psf_flux": {"unit": "nanobogus", "description": "a unit of the survey's own"},
    "tage_p50": {"unit": "Gyr", "description": "median age"},
    "quality": {"description": "bits (5500 Å)"},
}
READERS = {"fits": "fits", "ecsv": "ascii.ecsv", "votable": "votable", "csv": "ascii.csv"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    arrays = {name: pa.array(value) for name, value in VALUES.items()}
    fields = [pa.field(name, array.type, metadata=METADATA.get(name)) for name, array in arrays.items()]
    path = tmp_path / "percentiles.parquet"
    pq.write_table(pa.table(list(arrays.values()), schema=pa.schema(fields)), path)
    return path


@pytest.mark.parametrize("format", list(READERS))
def test_values_come_back(source: Path, tmp_path: Path, format: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = export_table(source, tmp_path / "out" / "table", format)
    table = Table.read(out, format=READERS[format])
    assert table.colnames == list(VALUES)
    assert [str(value) for value in table["galaxy_id"]] == VALUES["galaxy_id"]
    for name in ("ra", "logmass_p2_5", "tage_p50"):
        values = np.ma.filled(np.ma.asarray(table[name], dtype=float), np.nan)
        np.testing.assert_allclose(values, VALUES[name], rtol=1e-7, atol=0)
    for name in ("zwarning", "quality"):
        assert table[name].tolist() == VALUES[name]
    assert [str(value) == "True" for value in table["good"]] == VALUES["good"]
    assert [path.name for path in out.parent.iterdir()] == ["table"]


@pytest.mark.parametrize("format", ["fits", "ecsv", "votable"])
def test_units_and_descriptions_come_back(source: Path, tmp_path: Path, format: str) -> None:
    table = Table.read(export_table(source, tmp_path / "table", format), format=READERS[format])
    for name, metadata in METADATA.items():
        expected = metadata.get("unit", "")
        found = str(table[name].unit or "")
        assert found == expected or u.Unit(found) == u.Unit(expected)
        assert table[name].description == metadata["description"]
    assert table["zwarning"].unit is None


def test_fits_header_says_units_and_descriptions(source: Path, tmp_path: Path) -> None:
    header = fits.getheader(export_table(source, tmp_path / "table.fits", "fits"), "PERCENTILES")
    for i, name in enumerate(VALUES, start=1):
        assert header[f"TTYPE{i}"] == name
        assert header.get(f"TUNIT{i}") == METADATA.get(name, {}).get("unit")
        assert header.get(f"TCOMM{i}", "") == METADATA.get(name, {}).get("description", "").replace("Å", "?")


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    pq.write_table(pa.table({"n": pa.array([1, None, 3]), "s": pa.array(["x", None, "z"])}), source)
    table = Table.read(export_table(source, tmp_path / "t", "ecsv"), format="ascii.ecsv")
    assert table["n"].mask.tolist() == table["s"].mask.tolist() == [False, True, False]


def test_an_existing_file_is_kept_unless_told(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    out.write_text("mine")
    with pytest.raises(DigsError, match="exists already"):
        export_table(source, out, "csv")
    assert out.read_text() == "mine"
    export_table(source, out, "csv", overwrite=True)
    assert out.read_text().startswith("galaxy_id,ra,")


def test_parquet_is_the_same_bytes(source: Path, tmp_path: Path) -> None:
    assert export_table(source, tmp_path / "copy.parquet", "parquet").read_bytes() == source.read_bytes()


def test_a_failed_export_leaves_nothing(source: Path, tmp_path: Path) -> None:
    greek = tmp_path / "greek.parquet"
    pq.write_table(pa.table({"name": ["α Cen"]}), greek)
    lists = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"flux": [[1.0, 2.0]]}), lists)
    (tmp_path / "text.parquet").write_text("nothing")
    before = sorted(os.listdir(tmp_path))
    for path, format, expected in (
        (greek, "fits", "'name' has letters"),
        (lists, "ecsv", "'flux'"),
        (tmp_path / "text.parquet", "csv", "expected a Parquet table"),
        (tmp_path / "none.parquet", "csv", "no such table"),
        (source, "xlsx", ", ".join(FORMATS)),
    ):
        with pytest.raises(DigsError, match=expected):
            export_table(path, tmp_path / "out", format)
    assert sorted(os.listdir(tmp_path)) == before
