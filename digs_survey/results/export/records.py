"""Rows as big-endian records of fixed width, which FITS and the binary form of VOTable share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from digs_survey.errors import DigsError
from digs_survey.results.export.source import StoredTable

__all__ = [
    "ROWS",
    "WIDER",
    "IntegerExtent",
    "StoredAs",
    "TextExtent",
    "integer_extents",
    "logical",
    "pack",
    "text_extents",
]

ROWS = 8192
"""Rows that are written at once."""
WIDER = {"i1": "i2", "u2": "i4", "u4": "i8", "u8": "i8"}
"""Integers that a format may have no type for, and the next that holds them; the last one only up to half its range."""


@dataclass(frozen=True)
class StoredAs:
    """How a column is stored: the type in the record (``>f4``, ``S16``), and what turns Arrow's values into it."""

    format: str
    encode: Callable[[pa.ChunkedArray], NDArray[Any]]


@dataclass
class TextExtent:
    """What a column of strings holds: its greatest length in UTF-16 units, and whether all of it is ASCII."""

    width: int = 0
    ascii: bool = True


@dataclass
class IntegerExtent:
    """What a column of integers holds: how many nulls, and its lowest and highest value."""

    nulls: int = 0
    low: int = 0
    high: int = 0


def text_extents(source: StoredTable) -> dict[str, TextExtent]:
    """Measure the columns of strings, in a pass of its own over them, since a record's width must be known first."""
    extents = {column.name: TextExtent() for column in source.columns if column.is_text}
    if extents:
        for batch in source.batches(ROWS, list(extents)):
            for name, extent in extents.items():
                _add_text(extent, batch[name])
    return extents


def _add_text(extent: TextExtent, values: pa.ChunkedArray) -> None:
    if pc.all(pc.string_is_ascii(values), min_count=0).as_py():
        width = pc.max(pc.utf8_length(values)).as_py() or 0
    else:
        extent.ascii = False
        width = max(len(text.encode("utf-16-be")) // 2 for text in values.drop_null().to_pylist())
    extent.width = max(extent.width, width)


def integer_extents(source: StoredTable) -> dict[str, IntegerExtent]:
    """Measure the columns of integers, in a pass of its own over them: a null must be a value that none has."""
    extents = {column.name: IntegerExtent() for column in source.columns if column.is_integer}
    if extents:
        for batch in source.batches(ROWS, list(extents)):
            for name, extent in extents.items():
                found = pc.min_max(batch[name]).as_py()
                extent.nulls += batch[name].null_count
                if found["min"] is not None:
                    extent.low, extent.high = min(extent.low, found["min"]), max(extent.high, found["max"])
    return extents


def logical(values: pa.ChunkedArray, null: bytes) -> NDArray[np.uint8]:
    """Return booleans as the letters T and F, and ``null`` where there is none."""
    letters = pc.fill_null(pc.if_else(values, ord("T"), ord("F")), ord(null))
    return letters.to_numpy().astype(np.uint8)


def pack(batch: pa.Table, layout: Mapping[str, StoredAs]) -> NDArray[Any]:
    """Return the rows of a batch as a structured array without padding, shape (row,).

    Raises
    ------
    DigsError
        If an integer is too large for the type that it is to be stored as.
    """
    # fields go by number: names of columns may be anything
    records = np.zeros(batch.num_rows, dtype=[(f"f{i}", stored.format) for i, stored in enumerate(layout.values())])
    for i, (name, stored) in enumerate(layout.items()):
        try:
            records[f"f{i}"] = stored.encode(batch[name])
        except pa.ArrowInvalid as error:
            raise DigsError(f"export: column {name!r}: {error}, as {stored.format} has it; use ecsv or csv") from error
    return records
