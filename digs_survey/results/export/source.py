"""The result table as it is read for exports: batch by batch, in the order of its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from digs_survey.errors import DigsError
from digs_survey.results.columns import ucd
from digs_survey.store.locations import is_remote
from digs_survey.store.storage import read_bytes

__all__ = ["Column", "StoredTable"]

_PART = re.compile(r"part-(\d{8})\.parquet")
_BUFFER_BYTES = 2**20
_REMEDY = "make the table again (`digs-survey run` with --redo map)"


@dataclass(frozen=True)
class Column:
    """One column and what is known of it.

    Attributes
    ----------
    name : str
    type : pyarrow.DataType
        Boolean, an integer, float32, float64 or string.
    unit : str
        "" if the column has none.
    description : str
        "" if there is none.
    ucd : str or None
        From the field's metadata, or else by :func:`~digs_survey.results.columns.ucd`.
    """

    name: str
    type: pa.DataType
    unit: str
    description: str
    ucd: str | None

    @property
    def is_text(self) -> bool:
        """Whether the values are strings."""
        return self.type == pa.string()

    @property
    def is_integer(self) -> bool:
        """Whether the values are integers."""
        return bool(pa.types.is_integer(self.type))

    @property
    def dtype(self) -> Any:
        """NumPy's type of the values; ``str`` for strings."""
        return str if self.is_text else self.type.to_pandas_dtype()


class StoredTable:
    """A table of results: one Parquet file, or a folder of ``part-00000000.parquet``, ``part-00000001.parquet``, ...

    Only the files' footers are read here, and only names, schema and number of rows are kept.

    Parameters
    ----------
    path : Path
    rows : int, optional
        Rows that the table must have.

    Attributes
    ----------
    parts : list of Path
        The files, in the order of their rows.
    schema : pyarrow.Schema
        With the metadata of the table and of its fields.
    n_rows : int

    Raises
    ------
    DigsError
        Naming the file: none there, a missing or unreadable part, or one whose schema is not that of the first.
    """

    def __init__(self, path: Path, rows: int | None = None) -> None:
        self.path = path
        self.parts = _find_parts(path)
        self.n_rows = 0
        for i, part in enumerate(self.parts):
            with _open_part(part) as file:
                schema = file.schema_arrow
                self.n_rows += file.metadata.num_rows
            if i == 0:
                self.schema = schema
            elif not schema.equals(self.schema, check_metadata=True):
                odd = _difference(self.schema, schema)
                raise DigsError(f"export: {part}: expected the schema of {self.parts[0].name}, but {odd}; {_REMEDY}")
        if rows is not None and rows != self.n_rows:
            raise DigsError(
                f"export: {path}: expected the {rows} rows that the manifest counts, found {self.n_rows} in "
                f"{len(self.parts)} file(s), the last of them {self.parts[-1].name}; {_REMEDY}"
            )

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns; a DigsError if one has neither numbers nor strings."""
        return tuple(_column(field) for field in self.schema)

    def tables(self, rows: int) -> Iterator[pa.Table]:
        """Read the table as it is stored, in pieces of ``rows`` to twice as many rows; the last one may be shorter."""
        yield from self._pieces(rows, None)

    def batches(self, rows: int, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read the table in pieces as :meth:`tables` does, with the types that :attr:`columns` have.

        Parameters
        ----------
        rows : int
        names : sequence of str, optional
            The columns to read; all if not given.
        """
        kinds = {column.name: column.type for column in self.columns}
        schema = pa.schema([(name, kinds[name]) for name in (kinds if names is None else names)])
        for piece in self._pieces(rows, names):
            yield piece.select(schema.names).cast(schema)

    def _pieces(self, rows: int, names: Sequence[str] | None) -> Iterator[pa.Table]:
        waiting: list[pa.RecordBatch] = []
        count = total = 0
        for part in self.parts:
            for batch in _read_part(part, rows, names):
                waiting.append(batch)
                count, total = count + batch.num_rows, total + batch.num_rows
                if count >= rows:
                    yield pa.Table.from_batches(waiting)
                    waiting, count = [], 0
        if waiting:
            yield pa.Table.from_batches(waiting)
        if total != self.n_rows:
            raise DigsError(
                f"export: {self.path}: expected {self.n_rows} rows, found {total}; has it changed? Try again"
            )


def _find_parts(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DigsError(f"export: {path}: no such table; `digs-survey map` or `run` makes it")
    found = {int(name[1]): item for item in path.iterdir() if (name := _PART.fullmatch(item.name))}
    if not found:
        raise DigsError(f"export: {path}: expected files part-00000000.parquet and so on, found none; {_REMEDY}")
    gap = next((number for number in range(len(found)) if number not in found), None)
    if gap is not None:
        raise DigsError(
            f"export: {path / f'part-{gap:08d}.parquet'} is missing, while {found[max(found)].name} is there; {_REMEDY}"
        )
    return [found[number] for number in sorted(found)]


def _open_part(part: Path) -> parquet.ParquetFile:
    try:
        if is_remote(part):
            return parquet.ParquetFile(pa.BufferReader(read_bytes(part)))
        # buffered, since a row group as a whole may be as large as the table
        return parquet.ParquetFile(part, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(part, error) from error


def _read_part(part: Path, rows: int, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with _open_part(part) as file:
        try:
            yield from file.iter_batches(batch_size=rows, columns=None if names is None else list(names))
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(part, error) from error


def _unreadable(part: Path, error: Exception) -> DigsError:
    said = " ".join(str(error).split())
    return DigsError(f"export: {part}: expected a Parquet table, but it cannot be read ({said}); {_REMEDY}")


def _difference(expected: pa.Schema, found: pa.Schema) -> str:
    if expected.names != found.names:
        odd = sorted(set(expected.names) ^ set(found.names))
        return f"its columns differ in {', '.join(odd)}" if odd else "its columns have another order"
    for one, other in zip(expected, found, strict=True):
        if not one.equals(other, check_metadata=True):
            return f"column {one.name!r} is {other.type} with {other.metadata}, not {one.type} with {one.metadata}"
    keys = sorted({*(expected.metadata or {}), *(found.metadata or {})})
    odd = [k.decode() for k in keys if (expected.metadata or {}).get(k) != (found.metadata or {}).get(k)]
    return f"the metadata of the table differ in {', '.join(odd)}"


def _column(field: pa.Field) -> Column:
    metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return Column(
        field.name,
        _plain(field),
        metadata.get("unit", ""),
        metadata.get("description", ""),
        metadata.get("ucd") or ucd(field.name),
    )


def _plain(field: pa.Field) -> pa.DataType:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return kind
    raise DigsError(f"export: column {field.name!r}: expected numbers or strings, found {field.type}; use parquet")
