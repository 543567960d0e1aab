"""``results.parquet``: the table of the map with agreement and tier, and better percentiles where there are any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.results.columns import COLUMNS, When, percentile_name
from digs_survey.results.table import field_of
from digs_survey.store.storage import read_arrays, read_bytes, write_arrays

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RefinedRow", "RefinedRows", "final_part"]


@dataclass(frozen=True)
class RefinedRow:
    """Percentiles that take the place of a row's own.

    Attributes
    ----------
    tier : int
        Of :data:`~digs_survey.results.columns.TIERS`.
    percentiles : ndarray, shape (parameter, quantile)
    derived : ndarray, shape (quantity, quantile)
    """

    tier: int
    percentiles: NDArray[np.floating]
    derived: NDArray[np.floating]


@dataclass(frozen=True)
class RefinedRows:
    """All rows that have better percentiles.

    Attributes
    ----------
    rows : ndarray of int64, shape (row,)
        Of the catalog, increasing.
    tier : ndarray of uint8, shape (row,)
    percentiles : ndarray of float64, shape (row, parameter, quantile)
    derived : ndarray of float64, shape (row, quantity, quantile)
    """

    rows: NDArray[np.int64]
    tier: NDArray[np.uint8]
    percentiles: NDArray[np.float64]
    derived: NDArray[np.float64]

    @classmethod
    def of(cls, better: Mapping[int, RefinedRow], parameters: int, quantities: int, quantiles: int) -> RefinedRows:
        """Put rows in their order; the sizes are those that arrays have where there are none."""
        rows = sorted(better)
        shapes = (len(rows), parameters, quantiles), (len(rows), quantities, quantiles)
        return cls(
            np.array(rows, dtype=np.int64),
            np.array([better[row].tier for row in rows], dtype=np.uint8),
            np.array([better[row].percentiles for row in rows], dtype=float).reshape(shapes[0]),
            np.array([better[row].derived for row in rows], dtype=float).reshape(shapes[1]),
        )

    def within(self, start: int, stop: int) -> RefinedRows:
        """Return those from ``start`` to ``stop`` (excluded), with rows that count from ``start``."""
        part = slice(*np.searchsorted(self.rows, (start, stop)))
        return RefinedRows(self.rows[part] - start, self.tier[part], self.percentiles[part], self.derived[part])

    def save(self, path: Path) -> None:
        """Write a file that is there in full or not at all."""
        write_arrays(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> RefinedRows:
        """Read what :meth:`save` wrote."""
        return cls(**read_arrays(path))


def final_part(
    source: Path,
    agreement: NDArray[np.floating],
    refined: RefinedRows,
    bits: NDArray[np.integer],
    quantities: tuple[Sequence[str], Sequence[str]],
    quantiles: Sequence[float],
    about: Mapping[str, Any],
) -> bytes:
    """Return a part of ``results.parquet``.

    Parameters
    ----------
    source : Path
        The part of ``percentiles.parquet``.
    agreement : ndarray, shape (row,)
        Of its rows.
    refined : RefinedRows
        Those of its rows, counted from its first.
    bits : ndarray of int, shape (row,)
        Quality bits that its rows get beside those that they have.
    quantities : (sequence of str, sequence of str)
        Parameters and derived quantities.
    quantiles : sequence of float
    about : mapping
        What goes to the schema's metadata as ``agreement``.
    """
    import pyarrow as pa
    from pyarrow import parquet

    table: pa.Table = parquet.read_table(pa.BufferReader(read_bytes(source)))
    if refined.rows.size:
        for names, values in zip(quantities, (refined.percentiles, refined.derived), strict=True):
            for k, name in enumerate(names):
                for q, quantile in enumerate(quantiles):
                    table = _put(table, percentile_name(name, quantile), refined.rows, values[:, k, q])
    if (some := np.flatnonzero(bits)).size:
        table = _put(table, "quality", some, table["quality"].to_numpy()[some] | bits[some])
    tier = np.zeros(table.num_rows, dtype=np.uint8)
    tier[refined.rows] = refined.tier
    added = {"agreement": agreement.astype(np.float32), "tier": tier}
    for column in COLUMNS:
        if column.when is When.FINAL:
            table = table.append_column(field_of(column), [added[column.name]])
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), "agreement": json.dumps(dict(about))})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _put(table: pa.Table, name: str, rows: NDArray[np.integer], values: NDArray[Any]) -> pa.Table:
    """Put values into some rows of a column."""
    import pyarrow as pa

    place = table.schema.get_field_index(name)
    column = table[name].to_numpy().copy()
    column[rows] = values
    return table.set_column(place, table.schema.field(place), pa.array(column))
