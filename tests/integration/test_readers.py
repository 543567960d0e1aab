"""A run's table opens in the readers of the field with equal values, in the order of its rows, with its units."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from result_tables import rows, schema, write_parts

from digs_survey.parameters import PARAMETERS

N_ROWS = 1000


@pytest.fixture(scope="module", params=["string", "int64"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    of = schema(getattr(pa, request.param)())
    folder = write_parts(tmp_path_factory.mktemp(request.param) / "percentiles.parquet", N_ROWS, 128, of)
    return folder, rows(0, N_ROWS, of)


def _same(found: pd.DataFrame, expected: pa.Table) -> None:
    assert list(found.columns) == expected.column_names
    assert len(found) == N_ROWS
    for field in expected.schema:
        values = np.array(expected[field.name].to_pylist())
        column = np.array(found[field.name].tolist())
        if pa.types.is_floating(field.type):
            assert np.array_equal(column, values, equal_nan=True), field.name
        else:
            assert column.tolist() == values.tolist(), field.name


def test_pyarrow_with_units(parts: tuple[Path, pa.Table]) -> None:
    folder, expected = parts
    dataset = ds.dataset(folder)
    _same(dataset.to_table().to_pandas(), expected)
    assert dataset.schema.equals(expected.schema, check_metadata=True)
    assert dataset.schema.field("logmass_p50").metadata[b"unit"].decode() == PARAMETERS["logmass"].unit
    assert dataset.schema.field("ra").metadata == {
        b"unit": b"deg",
        b"description": b"right ascension of the fibre, J2000",
    }
    assert json.loads(dataset.schema.metadata[b"quality_bits"])["BAD_REDSHIFT"]["bit"] == 32
    assert dataset.count_rows(filter=ds.field("zwarning") < 100) == sum(
        n < 100 for n in expected["zwarning"].to_pylist()
    )


def test_pandas(parts: tuple[Path, pa.Table]) -> None:
    folder, expected = parts
    _same(pd.read_parquet(folder), expected)
    assert list(pd.read_parquet(folder, columns=["redshift", "quality"]).columns) == ["redshift", "quality"]


def test_polars(parts: tuple[Path, pa.Table]) -> None:
    folder, expected = parts
    _same(pl.read_parquet(folder).to_arrow().to_pandas(), expected)
    _same(pl.scan_parquet(folder).collect().to_arrow().to_pandas(), expected)
    few = pl.scan_parquet(folder).filter(pl.col("zwarning") < 100).select("galaxy_id").collect()
    assert few["galaxy_id"].to_list() == expected["galaxy_id"].to_pylist()[: len(few)]


def test_duckdb(parts: tuple[Path, pa.Table]) -> None:
    folder, expected = parts
    with duckdb.connect() as connection:
        _same(connection.sql(f"select * from '{folder}/*.parquet'").df(), expected)
        counted = connection.sql(f"select count(*), min(zwarning) from '{folder}/*.parquet'").fetchall()
    assert counted == [(N_ROWS, expected["zwarning"][0].as_py())]
