"""ECSV, CSV and Parquet, streamed: the formats that Arrow writes."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from pyarrow.csv import CSVWriter, WriteOptions

from digs_survey.results.export.source import StoredTable
from digs_survey.results.export.units import as_astropy

__all__ = ["write_csv", "write_ecsv", "write_parquet"]

_ROWS = 16_384
_ROW_GROUP = 65_536
"""Rows of a row group: many enough for readers that take whole groups, few enough for memory."""


def write_ecsv(source: StoredTable, target: Path) -> None:
    """Write the table after a header by astropy, with units, descriptions and types."""
    from astropy.table import Column, Table

    empty = Table(
        [
            Column(
                np.empty(0, dtype=column.dtype),
                name=column.name,
                unit=as_astropy(column.unit),
                description=column.description or None,
            )
            for column in source.columns
        ]
    )
    header = io.StringIO()
    # with a comma an empty field is a null; with a space it would be no field
    empty.write(header, format="ascii.ecsv", delimiter=",")
    _write_rows(source, target, header.getvalue())


def write_csv(source: StoredTable, target: Path) -> None:
    """Write the table after a line with the columns' names."""
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(column.name for column in source.columns)
    _write_rows(source, target, header.getvalue())


def _write_rows(source: StoredTable, target: Path, header: str) -> None:
    switches = [column.name for column in source.columns if pa.types.is_boolean(column.type)]
    schema = pa.schema([(c.name, pa.string() if c.name in switches else c.type) for c in source.columns])
    options = WriteOptions(include_header=False)
    with target.open("wb") as out:
        out.write(header.encode())
        with CSVWriter(out, schema, write_options=options) as writer:
            for batch in source.batches(_ROWS):
                writer.write_table(_spelled(batch, switches))


def _spelled(batch: pa.Table, switches: list[str]) -> pa.Table:
    """Spell booleans as ECSV and Python do."""
    import pyarrow.compute as pc

    for name in switches:
        words = pc.if_else(batch[name], "True", "False")
        batch = batch.set_column(batch.schema.get_field_index(name), name, words)
    return batch


def write_parquet(source: StoredTable, target: Path) -> None:
    """Write the table as one file, with the metadata of the schema; one file is copied."""
    if source.parts == [source.path]:
        shutil.copyfile(source.path, target)
        return
    with parquet.ParquetWriter(target, source.schema, compression="zstd") as writer:
        for table in source.tables(_ROW_GROUP):
            writer.write_table(table, row_group_size=table.num_rows)
