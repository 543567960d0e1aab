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
from astropy.io import fits, votable
from astropy.table import Table
from result_tables import write_columns

from digs_survey.errors import DigsError
from digs_survey.results.export import export_table

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
UNSPELLED = {("votable", "dex(solMass)"), ("fits", "dex(solMass)"), ("fits", "nanobogus")}
"""Units that stand in the description, since the format's readers know none such."""
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
    out = export_table(source, tmp_path / "table", format)
    with warnings.catch_warnings():
        if format == "fits":
            warnings.simplefilter("error")
        table = Table.read(out, format=READERS[format])
    for name, metadata in METADATA.items():
        expected, description = metadata.get("unit", ""), metadata["description"]
        if (format, expected) in UNSPELLED:
            # readers that check units know no logarithms
            expected, description = "", f"{description} [{expected}]"
        found = str(table[name].unit or "")
        assert found == expected or u.Unit(found) == u.Unit(expected)
        assert table[name].description == description
    assert table["zwarning"].unit is None


def test_fits_header_says_units_and_descriptions(source: Path, tmp_path: Path) -> None:
    header = fits.getheader(export_table(source, tmp_path / "table.fits", "fits"), "PERCENTILES")
    for i, name in enumerate(VALUES, start=1):
        assert header[f"TTYPE{i}"] == name
        unit, text = METADATA.get(name, {}).get("unit"), METADATA.get(name, {}).get("description", "")
        if ("fits", unit) in UNSPELLED:
            unit, text = None, f"{text} [{unit}]"
        assert header.get(f"TUNIT{i}") == unit
        assert header.get(f"TCOMM{i}", "") == text.replace("Å", "?")


NULLS = {
    "i1": pa.array([-128, None, 127], pa.int8()),
    "u1": pa.array([0, None, 254], pa.uint8()),
    "u2": pa.array([0, None, 2**16 - 1], pa.uint16()),
    "u4": pa.array([0, None, 2**32 - 1], pa.uint32()),
    "u8": pa.array([0, None, 2**63 - 1], pa.uint64()),
    "i2": pa.array([-(2**15), None, 3], pa.int16()),
    "i4": pa.array([-(2**31) + 1, None, 2**31 - 1], pa.int32()),
    "i8": pa.array([-(2**63) + 1, None, 2**62 + 1], pa.int64()),
    "f2": pa.array(np.array([0.5, 0, 4], np.float16), mask=np.array([False, True, False])),
    "f4": pa.array([0.1, None, -np.inf], pa.float32()),
    "f8": pa.array([1 / 3, None, 1e300]),
    "s": pa.array(["a b", None, "<&>\"',"]),
    "category": pa.array(["A", None, "A"]).dictionary_encode(),
}


@pytest.mark.parametrize("format", list(READERS))
def test_every_type_comes_back_with_its_nulls(tmp_path: Path, format: str) -> None:
    source = write_columns(tmp_path / "p.parquet", NULLS)
    table = Table.read(export_table(source, tmp_path / "t", format), format=READERS[format])
    for name, array in NULLS.items():
        if format != "votable" or name not in ("s", "category"):
            # astropy reads a null string of the binary form as an empty one
            assert np.ma.getmaskarray(table[name]).tolist() == [False, True, False], name
        values = [table[name][i] for i in (0, 2)]
        expected = [value for value in array.to_pylist() if value is not None]
        if pa.types.is_floating(array.type):
            assert np.array(values, dtype=array.type.to_pandas_dtype()).tolist() == expected, name
        else:
            assert [str(value) for value in values] == [str(value) for value in expected], name


@pytest.mark.parametrize("format", ["fits", "ecsv"])
def test_unsigned_integers_without_nulls_keep_their_type(tmp_path: Path, format: str) -> None:
    columns = {f"u{n}": pa.array([0, 1, 2 ** (8 * n) - 1], getattr(pa, f"uint{8 * n}")()) for n in (1, 2, 4, 8)}
    out = export_table(write_columns(tmp_path / "p.parquet", columns), tmp_path / "t", format)
    table = Table.read(out, format=READERS[format])
    for name, array in columns.items():
        assert table[name].dtype == array.type.to_pandas_dtype()
        assert table[name].tolist() == array.to_pylist()


def test_missing_booleans(tmp_path: Path) -> None:
    source = write_columns(
        tmp_path / "p.parquet", {"b": pa.array([True, None, False]), "n": pa.array([1, 2, 3], pa.uint8())}
    )
    for format in ("ecsv", "votable"):
        column = Table.read(export_table(source, tmp_path / format, format), format=READERS[format])["b"]
        assert (column.mask.tolist(), column.tolist()) == ([False, True, False], [True, None, False])
    with fits.open(export_table(source, tmp_path / "fits", "fits")) as hdus:
        assert bytes(hdus[1].data.view(np.uint8)) == b"T\1\0\2F\3"


def test_letters_beyond_ascii(tmp_path: Path) -> None:
    names = ["α Cen", "", "𝛼 & <b>", "two\nlines"]
    source = write_columns(tmp_path / "p.parquet", {"name": pa.array(names), "n": pa.array([1, 2, 3, 4])})
    for format in ("ecsv", "votable", "csv"):
        column = Table.read(export_table(source, tmp_path / format, format), format=READERS[format])["name"]
        assert np.ma.filled(column, "").tolist() == names


def test_no_rows(tmp_path: Path) -> None:
    source = write_columns(tmp_path / "p.parquet", {"id": pa.array([], pa.string()), "z": pa.array([], pa.float32())})
    for format, reader in READERS.items():
        table = Table.read(export_table(source, tmp_path / format, format), format=reader)
        assert (table.colnames, len(table)) == (["id", "z"], 0)


def test_what_a_format_cannot_hold_is_named(tmp_path: Path) -> None:
    full = write_columns(tmp_path / "full.parquet", {"flag": pa.array([0, None, 255], pa.uint8())})
    large = write_columns(tmp_path / "large.parquet", {"id": pa.array([2**64 - 1], pa.uint64())})
    with pytest.raises(DigsError, match="'flag' has nulls, and values from 0 to 255"):
        export_table(full, tmp_path / "out", "fits")
    with pytest.raises(DigsError, match="'id': .*18446744073709551615"):
        export_table(large, tmp_path / "out", "votable")
    assert not (tmp_path / "out").exists()


def test_fits_keeps_to_the_standard(source: Path, tmp_path: Path) -> None:
    with fits.open(export_table(source, tmp_path / "t", "fits")) as hdus:
        hdus.verify("exception")
        assert hdus[1].name == "PERCENTILES"
        assert [column.format for column in hdus[1].columns] == ["17A", "D", "D", "K", "L", "E", "E", "K"]
        assert hdus[1].header["TUCD6"] == "phys.mass;stat.percentile"
        assert "TUCD3" not in hdus[1].header
    assert (tmp_path / "t").stat().st_size % 2880 == 0


def test_votable_keeps_to_the_standard(source: Path, tmp_path: Path) -> None:
    document = votable.parse(export_table(source, tmp_path / "t", "votable"), verify="exception")
    assert document.version == "1.4"
    table = document.get_first_table()
    assert table.nrows == len(table.array) == 3
    ucds = {field.name: field.ucd for field in table.fields}
    assert (ucds["galaxy_id"], ucds["ra"]) == ("meta.id;meta.main", "pos.eq.ra")
    assert (ucds["tage_p50"], ucds["psf_flux"]) == ("time.age;stat.median", None)
    assert next(field for field in table.fields if field.name == "psf_flux").unit.to_string("vounit") == "'nanobogus'"


def test_a_ucd_of_the_field_comes_first(tmp_path: Path) -> None:
    field = pa.field("quality", pa.int64(), metadata={"ucd": "meta.code"})
    pq.write_table(pa.table([[1]], schema=pa.schema([field])), tmp_path / "p.parquet")
    assert fits.getheader(export_table(tmp_path / "p.parquet", tmp_path / "t", "fits"), 1)["TUCD1"] == "meta.code"


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
        (source, "xlsx", "fits, ecsv, votable"),
    ):
        with pytest.raises(DigsError, match=expected):
            export_table(path, tmp_path / "out", format)
    assert sorted(os.listdir(tmp_path)) == before
