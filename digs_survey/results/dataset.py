"""The layout of ``posterior.zarr``, and the count of its rows at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.config import MapConfig
from digs_survey.errors import StageError
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.results.columns import ARRAYS, COLUMNS, Column, When, quantity_of
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import keep_rows, open_or_create
from digs_survey.store.storage import ArraySpec, shard_count

__all__ = ["lay_out", "reconcile"]

_OF_CATALOG = frozenset({"catalog", "rows"})
"""Fields of the recipe that a catalog decides which has grown or was corrected."""
_CHUNK_ROWS = 4096
"""Rows that are compressed together: whoever wants one row reads so many."""


def lay_out(
    path: Path,
    recipe: Mapping[str, Any],
    ledger: Ledger,
    *,
    rows: int,
    prior: Prior,
    config: MapConfig,
    id_dtype: np.dtype[Any],
    importance_draws: int | None = None,
) -> bool:
    """Keep the dataset at ``path`` if the same recipe made it; otherwise replace it and clear the ledger.

    Where the recipes differ in their catalog only, the dataset is given its rows, and the markers of what was made from
    the earlier one are set aside (:meth:`~digs_survey.store.ledger.Ledger.set_aside`).

    Parameters
    ----------
    path : Path
    recipe : mapping
        Everything that decides the dataset's bytes.
    ledger : Ledger
    rows : int
        Rows of the catalog.
    prior : Prior
        Names and units of the parameters.
    config : MapConfig
    id_dtype : numpy.dtype
        Of the catalog's ``galaxy_id``.
    importance_draws : int, optional
        Draws of each row that are weighed, where any are.

    Returns
    -------
    bool
        Whether the dataset was kept.
    """
    labels = _labels(prior, config)
    sizes = {"galaxy": rows, "sample": config.samples, **{dim: values.size for dim, values in labels.items()}}
    wanted = _present(config, importance_draws)
    shard = config.shard_size(rows)
    arrays = {
        column.name: _spec(column, sizes, shard, id_dtype, _attributes(column, prior, config, importance_draws))
        for column in (*ARRAYS, *COLUMNS)
        if column.in_dataset and column.when in wanted
    }
    if keep_rows(path, recipe, ledger, arrays, _OF_CATALOG):
        return True
    return open_or_create(path, recipe, ledger, arrays, {name: labels[name] for name in labels if name in arrays})


def _labels(prior: Prior, config: MapConfig) -> dict[str, NDArray[Any]]:
    """Names and levels along the dimensions that are not the galaxies'."""
    return {
        "parameter": np.array(prior.names),
        "quantile": np.array(config.quantiles),
        "quantity": np.array(config.quantities, dtype=str),
    }


def _present(config: MapConfig, importance_draws: int | None) -> set[When]:
    """What these settings bring into the dataset."""
    asked = {
        When.ALWAYS: True,
        When.DERIVED: bool(config.quantities),
        When.SAMPLES: bool(config.samples),
        When.PREDICTIVE: bool(config.predictive_draws),
        When.WEIGHTED: importance_draws is not None,
    }
    return {when for when, wanted in asked.items() if wanted}


def _spec(
    column: Column, sizes: Mapping[str, int], shard: int, id_dtype: np.dtype[Any], attrs: Mapping[str, Any]
) -> ArraySpec:
    """Lay out one array; what has no rows of galaxies is not sharded."""
    dtype = column.dtype
    if dtype == "catalog":
        dtype = "str" if id_dtype.kind == "U" else id_dtype.name
    shape = tuple(sizes[dim] for dim in column.dims)
    if column.dims[0] != "galaxy":
        return ArraySpec(column.dims, shape, dtype, attrs=attrs)
    # A task's rows are those of a shard only if a shard is whole chunks.
    chunk = _CHUNK_ROWS if shard % _CHUNK_ROWS == 0 else shard
    fill_value = float("nan") if dtype.startswith("float") else None
    return ArraySpec(column.dims, shape, dtype, shard, chunk, attrs=attrs, fill_value=fill_value)


def _attributes(column: Column, prior: Prior, config: MapConfig, importance_draws: int | None) -> dict[str, Any]:
    """Return what an array says of itself."""
    attrs: dict[str, Any] = {"description": column.description}
    if column.name == "galaxy_id" or column.dims[0] != "galaxy":
        return attrs
    attrs["coordinates"] = "galaxy_id"
    if "parameter" in column.dims:
        attrs["parameter_units"] = {p.name: p.unit for p in prior.parameters}
    if "quantity" in column.dims:
        attrs["quantity_units"] = {name: quantity_of(name).unit for name in config.quantities}
    if column.name == "quality":
        attrs["flag_masks"] = [flag.value for flag in QualityFlag]
        attrs["flag_meanings"] = " ".join(str(flag.name) for flag in QualityFlag)
    if column in COLUMNS and column.when is When.PREDICTIVE:
        attrs["draws"] = config.predictive_draws
    if column in COLUMNS and column.when is When.WEIGHTED:
        attrs["draws"] = importance_draws
    return attrs


def reconcile(path: Path, table: Path, ledger: Ledger, *, rows: int, rows_per_shard: int) -> None:
    """Check that the rows that came out are those that went in.

    Raises
    ------
    StageError
        With the numbers, if the finished shards, their rows, the dataset and the table's parts do not agree.
    """
    records = ledger.records()
    shards = shard_count(rows, rows_per_shard)
    marked = sum(record["rows"] for record in records.values())
    quality: Any = zarr.open_group(str(path), mode="r")["quality"]
    parts = len(list(table.glob("part-*.parquet")))
    if set(records) != set(range(shards)) or parts != shards or not marked == quality.shape[0] == rows:
        raise StageError(
            f"map: expected the catalog's {rows} rows in {shards} shards, found {marked} rows in "
            f"{len(records)} finished shards, {quality.shape[0]} rows in {path} and {parts} parts in {table}; "
            f"delete {ledger.folder} and run the command again"
        )
