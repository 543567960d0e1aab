"""VOTable 1.4 with rows in its binary form (BINARY2), streamed."""

from __future__ import annotations

import base64
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from digs_survey.results.export.records import ROWS, WIDER, StoredAs, TextExtent, logical, pack, text_extents
from digs_survey.results.export.source import Column, StoredTable
from digs_survey.results.export.units import as_vounit, described

__all__ = ["write_votable"]

_NUMBERS = {
    "u1": "unsignedByte",
    "i2": "short",
    "i4": "int",
    "i8": "long",
    "f4": "float",
    "f8": "double",
}
"""Data types by what is stored."""
_LINE_BYTES = 57
"""Bytes that make one line of base64."""


def write_votable(source: StoredTable, target: Path) -> None:
    """Write the table with UCDs, units and descriptions.

    A unit that VOUnits cannot spell, such as ``dex(solMass)``, stands at the end of the description in brackets.
    """
    texts = text_extents(source)
    head, end, tail = _envelope(source, texts).partition("</TABLE>")
    layout = {column.name: _stored_as(column, texts) for column in source.columns}
    with target.open("wb") as out:
        out.write(f'{head.rstrip()}\n<DATA>\n<BINARY2>\n<STREAM encoding="base64">\n'.encode())
        rest = b""
        for batch in source.batches(ROWS):
            rows = rest + _rows(batch, layout)
            whole = len(rows) // _LINE_BYTES * _LINE_BYTES
            out.write(base64.encodebytes(rows[:whole]))
            rest = rows[whole:]
        out.write(base64.encodebytes(rest))
        out.write(f"</STREAM>\n</BINARY2>\n</DATA>\n{end}{tail}".encode())


def _envelope(source: StoredTable, texts: dict[str, TextExtent]) -> str:
    """Return the document of a table without rows."""
    from astropy.io.votable.tree import Field, Resource, TableElement, VOTableFile

    document = VOTableFile(version="1.4")
    resource = Resource()
    table = TableElement(document, name="percentiles", nrows=source.n_rows)
    for column in source.columns:
        unit = as_vounit(column.unit) if column.unit else None
        field = Field(document, name=column.name, unit=unit, ucd=column.ucd, **_datatype(column, texts))
        field.description = described(column.description, column.unit, unit) or None
        table.fields.append(field)
    resource.tables.append(table)
    document.resources.append(resource)
    written = io.BytesIO()
    document.to_xml(written)
    return written.getvalue().decode()


def _datatype(column: Column, texts: dict[str, TextExtent]) -> dict[str, str]:
    if column.is_text:
        extent = texts[column.name]
        return {"datatype": "char" if extent.ascii else "unicodeChar", "arraysize": str(max(1, extent.width))}
    if pa.types.is_boolean(column.type):
        return {"datatype": "boolean"}
    return {"datatype": _NUMBERS[_number(column)]}


def _number(column: Column) -> str:
    name = np.dtype(column.dtype).str[1:]
    return WIDER.get(name, name)


def _stored_as(column: Column, texts: dict[str, TextExtent]) -> StoredAs:
    if column.is_text:
        extent = texts[column.name]
        size = max(1, extent.width) * (1 if extent.ascii else 2)
        return StoredAs(f"S{size}", partial(_text, size=size, encoding="ascii" if extent.ascii else "utf-16-be"))
    if pa.types.is_boolean(column.type):
        return StoredAs("u1", partial(logical, null=b"?"))
    number = _number(column)
    return StoredAs(f">{number}", partial(_numbers, kind=pa.from_numpy_dtype(np.dtype(number))))


def _text(values: pa.ChunkedArray, size: int, encoding: str) -> NDArray[np.bytes_]:
    return np.array([text.encode(encoding) for text in values.fill_null("").to_pylist()], dtype=f"S{size}")


def _numbers(values: pa.ChunkedArray, kind: pa.DataType) -> NDArray[Any]:
    return values.fill_null(float("nan") if pa.types.is_floating(kind) else 0).cast(kind).to_numpy()


def _rows(batch: pa.Table, layout: dict[str, StoredAs]) -> bytes:
    """Return the rows, each after a bit for every column that is null in it."""
    null = np.column_stack([column.is_null().to_numpy() for column in batch.columns])
    records = pack(batch, layout)
    values = records.view(np.uint8).reshape(len(records), -1)
    return np.concatenate([np.packbits(null, axis=1), values], axis=1).tobytes()
