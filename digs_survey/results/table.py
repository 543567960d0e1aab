"""``percentiles.parquet``: one row for each row of the catalog, in its order, one part for each shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey import formats
from digs_survey.errors import StageError
from digs_survey.prior import Prior
from digs_survey.quality import DESCRIPTIONS, NO_POSTERIOR, QualityFlag
from digs_survey.results.columns import COLUMNS, Column, When, find_column, percentile, ucd

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ResultTable", "field_of", "part_name"]

_MAY_BE_NAN = NO_POSTERIOR | QualityFlag.OUTSIDE_SIMULATIONS


def part_name(shard: int) -> str:
    """Name of the file with a shard's rows; in their order, names are in that of the rows."""
    return f"part-{shard:08d}.parquet"


def field_of(column: Column) -> pa.Field:
    """Return the field of a column, with ``unit``, ``description`` and (where there is one) ``ucd`` as metadata."""
    import pyarrow as pa

    metadata = {"unit": column.unit, "description": column.description}
    if column.ucd is not None:
        metadata["ucd"] = column.ucd
    kind = pa.string() if column.dtype == "str" else pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.field(column.name, kind, metadata=metadata)


def _arrow(value: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    if isinstance(value, np.ma.MaskedArray):
        return pa.array(value.data, mask=np.ma.getmaskarray(value))
    return pa.array(value)


@dataclass(frozen=True)
class ResultTable:
    """The table of a survey's results, made part by part.

    Its columns are those of :data:`~digs_survey.results.columns.COLUMNS` that the settings bring, in their order, with
    the survey's own after ``redshift``. Fields carry ``unit``, ``description`` and (where the IVOA has words for it)
    ``ucd`` as metadata; the schema carries ``format``, ``model_hash``, ``catalog_fingerprint`` and
    ``quality_bits`` (JSON).

    Attributes
    ----------
    attributes : mapping of str to mapping
        Of the catalog's columns by their names, with ``units`` and ``description`` where the survey gives them.
    prior : Prior
    quantiles : sequence of float
    derived : sequence of str
        ``tage`` and those of :data:`~digs_survey.parameters.DERIVED`.
    model_hash, fingerprint : str
        Of the posterior and of the catalog.
    importance_draws : int or None
        Draws that were weighed, where any were.
    levels : mapping of str to sequence of float, or None
        For each parameter, the levels of its draws that stand for ``quantiles``, where they were recalibrated; in the
        schema's metadata as ``recalibration`` (JSON).
    """

    attributes: Mapping[str, Mapping[str, Any]]
    prior: Prior
    quantiles: Sequence[float]
    derived: Sequence[str]
    model_hash: str
    fingerprint: str
    importance_draws: int | None = None
    levels: Mapping[str, Sequence[float]] | None = None

    def part(self, start: int, catalog: Mapping[str, NDArray[Any]], results: Mapping[str, NDArray[Any]]) -> bytes:
        """Return the Parquet file of some rows.

        Parameters
        ----------
        start : int
            First of them in the catalog.
        catalog : mapping of str to ndarray, shape (row,)
            ``galaxy_id``, ``redshift`` and then the survey's own columns; masked values become nulls.
        results : mapping of str to ndarray, shape (row, ...)
            By their names in ``posterior.zarr``.

        Raises
        ------
        StageError
            If a row has neither a result nor a quality bit that says why.
        """
        import pyarrow as pa
        from pyarrow import parquet

        missing = np.isnan(results["percentiles"]).any(axis=(1, 2))
        silent = np.flatnonzero(missing & ((results["quality"] & _MAY_BE_NAN) == 0))
        if silent.size:
            raise StageError(
                f"row {start + silent[0]} ({catalog['galaxy_id'][silent[0]]!r}) has neither percentiles nor a "
                f"bit that says why ({silent.size} such rows of its shard); report it"
            )
        # Arrow knows the machine's own byte order only.
        given = {name: value.astype(value.dtype.newbyteorder("="), copy=False) for name, value in catalog.items()}
        columns = [(self._of_catalog(name, value.dtype), value) for name, value in given.items()]
        columns += [*self._percentiles(results), *self._of_rows(results)]
        schema = pa.schema([field_of(column) for column, _ in columns], metadata=self._metadata())
        table = pa.Table.from_arrays([_arrow(value) for _, value in columns], schema=schema)
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd")
        return sink.getvalue().to_pybytes()

    def _of_catalog(self, name: str, dtype: np.dtype[Any]) -> Column:
        """Describe a column as the catalog does, and else as the registry does."""
        known, attrs = find_column(name), self.attributes[name]
        unit = attrs.get("units", attrs.get("unit", known.unit if known else ""))
        text = attrs.get("description", attrs.get("long_name", known.description if known else ""))
        return Column(name, "str" if dtype.kind == "U" else dtype.name, str(unit), ucd(name), str(text))

    def _percentiles(self, results: Mapping[str, NDArray[Any]]) -> Iterator[tuple[Column, NDArray[Any]]]:
        for array, quantities, weighted in (
            ("percentiles", self.prior.names, False),
            ("derived", self.derived, False),
            ("percentiles_weighted", self.prior.names, True),
        ):
            parameters = {} if array == "derived" else {p.name: p for p in self.prior.parameters}
            for i, quantity in enumerate(quantities if array in results else ()):
                known = parameters.get(quantity)
                corrected = not weighted and quantity in (self.levels or {})
                for j, quantile in enumerate(self.quantiles):
                    column = percentile(quantity, quantile, weighted=weighted, recalibrated=corrected, known=known)
                    yield column, np.ascontiguousarray(results[array][:, i, j])

    def _of_rows(self, results: Mapping[str, NDArray[Any]]) -> Iterator[tuple[Column, NDArray[Any]]]:
        """Yield what has one value a row."""
        for column in COLUMNS:
            if column.name in results and column.name != "galaxy_id":
                if column.when is When.WEIGHTED:
                    text = f"{column.description} ({self.importance_draws} draws)"
                    yield replace(column, description=text), results[column.name]
                else:
                    yield column, results[column.name]

    def _metadata(self) -> dict[str, str]:
        bits = {str(flag.name): {"bit": flag.value, "meaning": text} for flag, text in DESCRIPTIONS.items()}
        return {
            "format": str(formats.RESULTS),
            "model_hash": self.model_hash,
            "catalog_fingerprint": self.fingerprint,
            "quality_bits": json.dumps(bits),
            **({} if self.levels is None else {"recalibration": json.dumps(dict(self.levels))}),
        }
