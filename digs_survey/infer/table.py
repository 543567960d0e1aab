"""``percentiles.parquet``: one row for each row of the catalog, in its order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey import __version__
from digs_survey.catalog import Catalog
from digs_survey.errors import StageError
from digs_survey.infer.template import IMPORTANCE
from digs_survey.parameters import PARAMETERS
from digs_survey.quality import DESCRIPTIONS, NO_POSTERIOR, QualityFlag
from digs_survey.storage import new_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["column_name", "write_table"]

_ROWS_AT_ONCE = 65_536
_MAY_BE_NAN = NO_POSTERIOR | QualityFlag.OUTSIDE_SIMULATIONS


_WEIGHTED = "_weighted"


def column_name(parameter: str, quantile: float, weighted: bool = False) -> str:
    """Name of a percentile's column: ``tage_p50``, ``tage_p2_5``, ``tage_p50_weighted``."""
    return f"{parameter}_p{100 * quantile:.6g}".replace(".", "_") + _WEIGHTED * weighted


def write_table(posterior_zarr: Path, catalog: Catalog, out: Path) -> None:
    """Join the percentiles with the survey's own columns in one Parquet file.

    Columns: galaxy_id, redshift, the survey's columns, one column for each parameter and quantile, those of the
    importance weights where there are any, n_good and quality. Fields carry ``unit`` and ``description`` as
    metadata; the schema carries ``digs_survey`` (version), ``model_hash``, ``catalog_fingerprint`` and
    ``quality_bits`` (JSON). The file appears at ``out`` complete or not at all, and memory is bounded whatever the
    catalog's size.

    Parameters
    ----------
    posterior_zarr : Path
        A finished ``posterior.zarr``.
    catalog : Catalog
        The catalog that it was made from.
    out : Path
        The Parquet file.

    Raises
    ------
    StageError
        If a row has no counterpart, or neither a result nor a quality bit that says why.
    """
    import pyarrow as pa
    from pyarrow import parquet

    group: Any = zarr.open_group(str(posterior_zarr), mode="r")
    if (found := group["quality"].shape[0]) != catalog.n_rows:
        raise StageError(
            f"{posterior_zarr}: expected {catalog.n_rows} rows, as {catalog.path} has, found {found}; "
            "run the map stage for this catalog"
        )
    with new_file(out) as building:
        writer = None
        for block in _blocks(group, catalog.n_rows):
            columns = _read(group, catalog, block)
            if writer is None:
                schema = _schema(group, catalog, columns)
                writer = parquet.ParquetWriter(building, schema, compression="zstd")
            writer.write_table(pa.Table.from_arrays([pa.array(v) for v in columns.values()], schema=schema))
        if writer is not None:
            writer.close()
        written = parquet.read_metadata(building).num_rows
        if written != catalog.n_rows:
            raise StageError(f"{out}: expected {catalog.n_rows} rows, found {written} after writing")


def _blocks(group: Any, n_rows: int) -> Iterator[slice]:
    shard = group["quality"].shards[0]
    rows = max(1, _ROWS_AT_ONCE // shard) * shard
    for start in range(0, n_rows, rows):
        yield slice(start, min(start + rows, n_rows))


def _read(group: Any, catalog: Catalog, block: slice) -> dict[str, NDArray[Any]]:
    data: dict[str, Any] = {name: group[name][block] for name in ("percentiles", "quality", "n_good")}
    galaxy_id = catalog.galaxy_id(block.start, block.stop)
    other = np.flatnonzero(np.asarray(group["galaxy_id"][block]) != galaxy_id)
    if other.size:
        row = block.start + int(other[0])
        raise StageError(
            f"row {row} of the posterior belongs to another galaxy than row {row} of {catalog.path} "
            f"({galaxy_id[other[0]]!r}); run the map stage for this catalog"
        )
    missing = np.isnan(data["percentiles"]).any(axis=(1, 2))
    silent = np.flatnonzero(missing & ((data["quality"] & _MAY_BE_NAN) == 0))
    if silent.size:
        raise StageError(
            f"row {block.start + silent[0]} ({galaxy_id[silent[0]]!r}) has neither percentiles nor a "
            f"bit that says why ({silent.size} such rows in this block); run the map stage to its end"
        )
    columns = {
        "galaxy_id": galaxy_id,
        "redshift": catalog.redshift(block.start, block.stop),
        **catalog.columns(block.start, block.stop),
        **_percentile_columns(group, data["percentiles"]),
        **_importance_columns(group, block),
        "n_good": data["n_good"],
        "quality": data["quality"],
    }
    # Arrow knows the machine's own byte order only.
    return {name: value.astype(value.dtype.newbyteorder("="), copy=False) for name, value in columns.items()}


def _percentile_columns(group: Any, percentiles: NDArray[Any], weighted: bool = False) -> dict[str, NDArray[Any]]:
    return {
        column_name(name, q, weighted): np.ascontiguousarray(percentiles[:, i, j])
        for i, name in enumerate(group["parameter"][:].tolist())
        for j, q in enumerate(group["quantile"][:].tolist())
    }


def _importance_columns(group: Any, block: slice) -> dict[str, NDArray[Any]]:
    if "percentiles_weighted" not in group:
        return {}
    weighted = _percentile_columns(group, group["percentiles_weighted"][block], weighted=True)
    return weighted | {name: group[name][block] for name in IMPORTANCE}


def _schema(group: Any, catalog: Catalog, columns: dict[str, NDArray[Any]]) -> pa.Schema:
    import pyarrow as pa

    fields = []
    for name, values in columns.items():
        unit, description = _meaning(name, catalog, group)
        kind = pa.string() if values.dtype.kind == "U" else pa.from_numpy_dtype(values.dtype)
        fields.append(pa.field(name, kind, metadata={"unit": unit, "description": description}))
    recipe = group.attrs["recipe"]
    bits = {str(flag.name): {"bit": flag.value, "meaning": text} for flag, text in DESCRIPTIONS.items()}
    return pa.schema(
        fields,
        metadata={
            "digs_survey": __version__,
            "model_hash": recipe["model"],
            "catalog_fingerprint": recipe["catalog"],
            "quality_bits": json.dumps(bits),
        },
    )


def _meaning(name: str, catalog: Catalog, group: Any) -> tuple[str, str]:
    """Return a column's unit and its description."""
    if name == "n_good":
        return "", "wavelength elements that were used"
    if name in IMPORTANCE and name in group:
        return "", f"{IMPORTANCE[name]} ({group[name].attrs['draws']} draws)"
    if name == "quality":
        return "", "quality bits, 0 if nothing was found wrong; see quality_bits in the schema's metadata"
    parameter, _, percentile = name.removesuffix(_WEIGHTED).rpartition("_p")
    if parameter in PARAMETERS and name not in catalog.survey_columns:
        p = PARAMETERS[parameter]
        draws = "the posterior's draws with importance weights" if name.endswith(_WEIGHTED) else "the posterior"
        return p.unit, f"{p.description}: {percentile.replace('_', '.')} % quantile of {draws}"
    attrs = catalog.column_attrs(name)
    text = attrs.get("description", attrs.get("long_name", ""))
    return str(attrs.get("units", attrs.get("unit", ""))), str(text)
