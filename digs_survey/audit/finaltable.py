"""``results.parquet``: the table of the map with trust and tier, and better percentiles where there are any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.infer.table import column_name
from digs_survey.quality import QualityFlag
from digs_survey.storage import read_bytes
from digs_survey.ucd import ucd

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TIERS", "Better", "final_part"]

TIERS = ("neural posterior", "importance weights", "emcee")
"""Whose percentiles a row has, by its ``tier``."""
_MEANINGS = {
    "trust": "chance that emcee would agree with the row's neural posterior; NaN where nothing is known",
    "tier": "whose percentiles: " + ", ".join(f"{number} {name}" for number, name in enumerate(TIERS)),
}


@dataclass(frozen=True)
class Better:
    """Percentiles that take the place of a row's own.

    Attributes
    ----------
    tier : int
        Of :data:`TIERS`.
    percentiles : ndarray, shape (parameter, quantile)
    derived : ndarray, shape (quantity, quantile)
    """

    tier: int
    percentiles: NDArray[np.floating]
    derived: NDArray[np.floating]


def final_part(
    source: Path,
    start: int,
    trust: NDArray[np.floating],
    better: Mapping[int, Better],
    low: NDArray[np.bool_],
    quantities: tuple[Sequence[str], Sequence[str]],
    quantiles: Sequence[float],
    about: Mapping[str, Any],
) -> bytes:
    """Return a part of ``results.parquet``.

    Parameters
    ----------
    source : Path
        The part of ``percentiles.parquet``.
    start : int
        Its first row.
    trust : ndarray, shape (row,)
        Of its rows.
    better : mapping of int to Better
        By row of the catalog.
    low : ndarray of bool, shape (row,)
        Which of its rows have the bit LOW_TRUST.
    quantities : (sequence of str, sequence of str)
        Parameters and derived quantities.
    quantiles : sequence of float
    about : mapping
        What goes to the schema's metadata as ``trust``.
    """
    import pyarrow as pa
    from pyarrow import parquet

    table: pa.Table = parquet.read_table(pa.BufferReader(read_bytes(source)))
    rows = range(start, start + table.num_rows)
    here = {row - start: better[row] for row in rows if row in better}
    tier = np.zeros(table.num_rows, dtype=np.uint8)
    tier[list(here)] = [one.tier for one in here.values()]
    for kind, names in enumerate(quantities):
        for k, name in enumerate(names):
            for q, quantile in enumerate(quantiles):
                if here:
                    table = _put(
                        table,
                        column_name(name, quantile),
                        {i: float((one.derived if kind else one.percentiles)[k, q]) for i, one in here.items()},
                    )
    if low.any():
        quality, bit = table["quality"].to_numpy(), int(QualityFlag.LOW_TRUST)
        table = _put(table, "quality", {int(i): int(quality[i]) | bit for i in np.flatnonzero(low)})
    for name, values in (("trust", trust.astype(np.float32)), ("tier", tier)):
        meaning = {"unit": "", "description": _MEANINGS[name], "ucd": str(ucd(name))}
        table = table.append_column(pa.field(name, pa.from_numpy_dtype(values.dtype), metadata=meaning), [values])
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), "trust": json.dumps(dict(about))})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _put(table: pa.Table, name: str, values: Mapping[int, float]) -> pa.Table:
    """Put values into some rows of a column."""
    import pyarrow as pa

    place = table.schema.get_field_index(name)
    column = table[name].to_numpy().copy()
    for row, value in values.items():
        column[row] = value
    return table.set_column(place, table.schema.field(place), pa.array(column))
