"""The layout of ``posterior.zarr``, and the count of its rows at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from digs_survey.config import MapConfig
from digs_survey.errors import StageError
from digs_survey.parameters import Prior
from digs_survey.quality import QualityFlag
from digs_survey.simulate.template import open_or_create
from digs_survey.storage import ArraySpec, Ledger, shard_count

__all__ = ["lay_out", "reconcile"]


def lay_out(
    path: Path,
    recipe: Mapping[str, Any],
    ledger: Ledger,
    *,
    rows: int,
    prior: Prior,
    config: MapConfig,
    id_dtype: np.dtype[Any],
) -> None:
    """Keep the dataset at ``path`` if the same recipe made it; otherwise replace it and clear the ledger.

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
    """
    n_parameters, n_quantiles = prior.ndim, len(config.quantiles)

    def per_row(dtype: str, description: str, **attrs: Any) -> ArraySpec:
        return ArraySpec(
            ("galaxy",), (rows,), dtype, config.rows_per_shard, attrs={"description": description, **attrs}
        )

    arrays = {
        "percentiles": ArraySpec(
            ("galaxy", "parameter", "quantile"),
            (rows, n_parameters, n_quantiles),
            "float32",
            config.rows_per_shard,
            attrs={
                "description": "quantiles of the posterior of each parameter; NaN for rows without one",
                "parameter_units": {p.name: p.unit for p in prior.parameters},
                "coordinates": "galaxy_id",
            },
            fill_value=float("nan"),
        ),
        "quality": per_row(
            "int64",
            "why a row is not to be trusted, as bits; 0 if nothing was found wrong",
            flag_masks=[flag.value for flag in QualityFlag],
            flag_meanings=" ".join(str(flag.name) for flag in QualityFlag),
            coordinates="galaxy_id",
        ),
        "n_good": per_row("int32", "wavelength elements that were used", coordinates="galaxy_id"),
        "galaxy_id": per_row("str" if id_dtype.kind == "U" else id_dtype.name, "identifier in the survey"),
        "parameter": ArraySpec(("parameter",), (n_parameters,), "str"),
        "quantile": ArraySpec(("quantile",), (n_quantiles,), "float64"),
    }
    values = {"parameter": np.array(prior.names), "quantile": np.array(config.quantiles)}
    open_or_create(path, recipe, ledger, arrays, values)


def reconcile(path: Path, ledger: Ledger, *, rows: int, rows_per_shard: int) -> None:
    """Check that the rows that came out are those that went in.

    Raises
    ------
    StageError
        With the numbers, if the finished shards, their rows and the dataset do not agree.
    """
    records = ledger.records()
    shards = shard_count(rows, rows_per_shard)
    marked = sum(record["rows"] for record in records.values())
    quality: Any = zarr.open_group(str(path), mode="r")["quality"]
    if set(records) != set(range(shards)) or not marked == quality.shape[0] == rows:
        raise StageError(
            f"map: expected the catalog's {rows} rows in {shards} shards, found {marked} rows in "
            f"{len(records)} finished shards and {quality.shape[0]} rows in {path}; "
            f"delete {ledger.folder} and run the command again"
        )
