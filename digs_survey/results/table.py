"""``percentiles.parquet``: one row for each row of the catalog, in its order, one part for each shard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey import __version__
from digs_survey.catalog import Catalog
from digs_survey.errors import StageError
from digs_survey.infer.rows import RowResult
from digs_survey.parameters import DERIVED, PARAMETERS, Prior
from digs_survey.quality import DESCRIPTIONS, NO_POSTERIOR, QualityFlag
from digs_survey.results.dataset import IMPORTANCE, PREDICTIVE, importance_arrays, predictive_arrays
from digs_survey.results.ucd import ucd

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ResultTable", "column_name", "part_name"]

_MAY_BE_NAN = NO_POSTERIOR | QualityFlag.OUTSIDE_SIMULATIONS
_WEIGHTED = "_weighted"


def column_name(quantity: str, quantile: float, weighted: bool = False) -> str:
    """Name of a percentile's column: ``tage_p50``, ``tage_p2_5``, ``tage_p50_weighted``."""
    return f"{quantity}_p{100 * quantile:.6g}".replace(".", "_") + _WEIGHTED * weighted


def part_name(shard: int) -> str:
    """Name of the file with a shard's rows; in their order, names are in that of the rows."""
    return f"part-{shard:08d}.parquet"


@dataclass(frozen=True)
class ResultTable:
    """The table of a survey's results, made part by part.

    Columns: galaxy_id, redshift, the survey's own, one for each quantile of each parameter and derived quantity, those
    of the importance weights and of predictive spectra where there are any, n_good and quality. Fields carry ``unit``,
    ``description`` and (where the IVOA has words for it) ``ucd`` as metadata; the schema carries ``digs_survey``
    (version), ``model_hash``, ``catalog_fingerprint`` and ``quality_bits`` (JSON).

    Attributes
    ----------
    catalog : Catalog
    prior : Prior
    quantiles : sequence of float
    derived : sequence of str
        Of :data:`~digs_survey.parameters.DERIVED`.
    model_hash, fingerprint : str
        Of the posterior and of the catalog.
    importance_draws : int or None
        Draws that were weighed, where any were.
    levels : mapping of str to sequence of float, or None
        For each parameter, the levels of its draws that stand for ``quantiles``, where they were recalibrated; in the
        schema's metadata as ``recalibration`` (JSON).
    """

    catalog: Catalog
    prior: Prior
    quantiles: Sequence[float]
    derived: Sequence[str]
    model_hash: str
    fingerprint: str
    importance_draws: int | None = None
    levels: Mapping[str, Sequence[float]] | None = None

    def part(self, rows: slice, galaxy_id: NDArray[Any], redshift: NDArray[np.float64], result: RowResult) -> bytes:
        """Return the Parquet file of some rows.

        Raises
        ------
        StageError
            If a row has neither a result nor a quality bit that says why.
        """
        import pyarrow as pa
        from pyarrow import parquet

        missing = np.isnan(result.percentiles).any(axis=(1, 2))
        silent = np.flatnonzero(missing & ((result.quality & _MAY_BE_NAN) == 0))
        if silent.size:
            raise StageError(
                f"row {rows.start + silent[0]} ({galaxy_id[silent[0]]!r}) has neither percentiles nor a "
                f"bit that says why ({silent.size} such rows of its shard); report it"
            )
        columns = {
            "galaxy_id": galaxy_id,
            "redshift": redshift,
            **self.catalog.columns(rows.start, rows.stop),
            **self._percentiles(self.prior.names, result.percentiles),
            **self._percentiles(self.derived, result.derived),
            **self._importance(result),
            **({} if result.check is None else predictive_arrays(result.check)),
            "n_good": result.n_good,
            "quality": result.quality,
        }
        # Arrow knows the machine's own byte order only.
        native = {name: value.astype(value.dtype.newbyteorder("="), copy=False) for name, value in columns.items()}
        schema = self._schema(native)
        table = pa.Table.from_arrays([pa.array(value) for value in native.values()], schema=schema)
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd")
        return sink.getvalue().to_pybytes()

    def _percentiles(
        self, names: Sequence[str], values: NDArray[Any] | None, weighted: bool = False
    ) -> dict[str, NDArray[Any]]:
        if values is None:
            return {}
        return {
            column_name(name, q, weighted): np.ascontiguousarray(values[:, i, j])
            for i, name in enumerate(names)
            for j, q in enumerate(self.quantiles)
        }

    def _importance(self, result: RowResult) -> dict[str, NDArray[Any]]:
        if result.importance is None:
            return {}
        arrays = importance_arrays(result.importance)
        weighted = self._percentiles(self.prior.names, arrays["percentiles_weighted"], weighted=True)
        return weighted | {name: arrays[name] for name in IMPORTANCE}

    def _schema(self, columns: dict[str, NDArray[Any]]) -> pa.Schema:
        import pyarrow as pa

        fields = []
        for name, values in columns.items():
            unit, description = self._meaning(name)
            kind = pa.string() if values.dtype.kind == "U" else pa.from_numpy_dtype(values.dtype)
            meaning = {"unit": unit, "description": description}
            if (words := ucd(name)) is not None:
                meaning["ucd"] = words
            fields.append(pa.field(name, kind, metadata=meaning))
        bits = {str(flag.name): {"bit": flag.value, "meaning": text} for flag, text in DESCRIPTIONS.items()}
        return pa.schema(
            fields,
            metadata={
                "digs_survey": __version__,
                "model_hash": self.model_hash,
                "catalog_fingerprint": self.fingerprint,
                "quality_bits": json.dumps(bits),
                **({} if self.levels is None else {"recalibration": json.dumps(dict(self.levels))}),
            },
        )

    def _meaning(self, name: str) -> tuple[str, str]:
        """Return a column's unit and its description."""
        if name == "n_good":
            return "", "wavelength elements that were used"
        if name == "quality":
            return "", "quality bits, 0 if nothing was found wrong; see quality_bits in the schema's metadata"
        if name in PREDICTIVE and name not in self.catalog.survey_columns:
            return "", PREDICTIVE[name]
        if name in IMPORTANCE and self.importance_draws is not None:
            return "", f"{IMPORTANCE[name]} ({self.importance_draws} draws)"
        quantity, _, percentile = name.removesuffix(_WEIGHTED).rpartition("_p")
        known = PARAMETERS.get(quantity) or DERIVED.get(quantity)
        if known and name not in self.catalog.survey_columns:
            draws = "the posterior's draws with importance weights" if name.endswith(_WEIGHTED) else "the posterior"
            if self.levels and quantity in self.levels and not name.endswith(_WEIGHTED):
                draws = "the recalibrated posterior"
            return known.unit, f"{known.description}: {percentile.replace('_', '.')} % quantile of {draws}"
        attrs = self.catalog.column_attrs(name)
        text = attrs.get("description", attrs.get("long_name", ""))
        return str(attrs.get("units", attrs.get("unit", ""))), str(text)
