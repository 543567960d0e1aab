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
from digs_survey.infer.importance import Importance
from digs_survey.parameters import Prior
from digs_survey.quality import QualityFlag
from digs_survey.simulate.template import open_or_create
from digs_survey.storage import ArraySpec, Ledger, shard_count

__all__ = ["IMPORTANCE", "importance_arrays", "lay_out", "reconcile"]

IMPORTANCE = {
    "importance_ess": "effective sample size of the importance weights of the row's draws",
    "importance_pareto_k": "shape of the weights' tail; above 0.7 the weighted quantities are not to be trusted",
    "log_evidence": "natural log of the density of the good elements' flux (in erg/s/cm2/Angstrom) under the model",
    "log_evidence_error": "standard error of log_evidence",
}
"""Columns that importance weights give to each row, and what they mean."""


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
    importance_draws : int, optional
        Draws of each row that are weighed, where any are.
    """
    n_parameters, n_quantiles = prior.ndim, len(config.quantiles)

    def per_row(dtype: str, description: str, fill_value: float | None = None, **attrs: Any) -> ArraySpec:
        attrs = {"description": description, **attrs}
        return ArraySpec(("galaxy",), (rows,), dtype, config.rows_per_shard, attrs=attrs, fill_value=fill_value)

    def quantiles(description: str) -> ArraySpec:
        return ArraySpec(
            ("galaxy", "parameter", "quantile"),
            (rows, n_parameters, n_quantiles),
            "float32",
            config.rows_per_shard,
            attrs={
                "description": description,
                "parameter_units": {p.name: p.unit for p in prior.parameters},
                "coordinates": "galaxy_id",
            },
            fill_value=float("nan"),
        )

    arrays = {
        "percentiles": quantiles("quantiles of the posterior of each parameter; NaN for rows without one"),
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
    if importance_draws is not None:
        arrays["percentiles_weighted"] = quantiles("quantiles of the draws with importance weights, tail smoothed")
        for name, description in IMPORTANCE.items():
            dtype = "float64" if name.startswith("log_evidence") else "float32"
            arrays[name] = per_row(dtype, description, float("nan"), draws=importance_draws, coordinates="galaxy_id")
    values = {"parameter": np.array(prior.names), "quantile": np.array(config.quantiles)}
    open_or_create(path, recipe, ledger, arrays, values)


def importance_arrays(importance: Importance) -> dict[str, NDArray[Any]]:
    """Return the arrays that a dataset laid out with ``importance_draws`` holds besides, by their names in it."""
    return {
        "percentiles_weighted": importance.percentiles,
        "importance_ess": importance.ess,
        "importance_pareto_k": importance.pareto_k,
        "log_evidence": importance.log_evidence,
        "log_evidence_error": importance.log_evidence_error,
    }


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
