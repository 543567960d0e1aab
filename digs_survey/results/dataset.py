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
from digs_survey.importance.predictive_check import PredictiveCheck
from digs_survey.importance.weights import Importance
from digs_survey.infer.rows import RowResult
from digs_survey.parameters import DERIVED, Prior
from digs_survey.quality import QualityFlag
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import open_or_create
from digs_survey.store.storage import ArraySpec, shard_count

__all__ = [
    "IMPORTANCE",
    "PREDICTIVE",
    "importance_arrays",
    "lay_out",
    "predictive_arrays",
    "reconcile",
    "result_arrays",
]

_CHUNK_ROWS = 4096
"""Rows that are compressed together: whoever wants one row reads so many."""

IMPORTANCE = {
    "importance_ess": "effective sample size of the importance weights of the row's draws",
    "importance_pareto_k": "shape of the weights' tail; above 0.7 the weighted quantities are not to be trusted",
    "log_evidence": "natural log of the density of the good elements' flux (in erg/s/cm2/Angstrom) under the model",
    "log_evidence_error": "standard error of log_evidence",
}
"""Columns that importance weights give to each row, and what they mean."""
PREDICTIVE = {
    "feature_distance": "root mean square of the spectrum's features in units of the training simulations'",
    "predictive_reduced_chi2": "chi-square over the number of good elements, mean over spectra of the row's draws",
    "predictive_pvalue": "posterior predictive p-value of chi-square; near 0 where model and noise do not fit",
    "weight_scatter": "scatter of ln importance weights of the row's draws; 0 if its posterior is the exact one",
}
"""Columns that predictive spectra give to each row, and what they mean."""


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
    shard = config.shard_size(rows)
    # A task's rows are those of a shard only if a shard is whole chunks.
    chunk = _CHUNK_ROWS if shard % _CHUNK_ROWS == 0 else shard
    units = {p.name: p.unit for p in prior.parameters}

    def array(dims: tuple[str, ...], sizes: tuple[int, ...], dtype: str, description: str, **attrs: Any) -> ArraySpec:
        attrs = {"description": description, "coordinates": "galaxy_id", **attrs}
        fill_value = float("nan") if dtype.startswith("float") else None
        shape = (rows, *sizes)
        return ArraySpec(("galaxy", *dims), shape, dtype, shard, chunk, attrs=attrs, fill_value=fill_value)

    of_draws = (prior.ndim, len(config.quantiles))
    arrays = {
        "percentiles": array(
            ("parameter", "quantile"),
            of_draws,
            "float32",
            "quantiles of the posterior of each parameter; NaN for rows without one",
            parameter_units=units,
        ),
        "quality": array(
            (),
            (),
            "int64",
            "why a row is not to be trusted, as bits; 0 if nothing was found wrong",
            flag_masks=[flag.value for flag in QualityFlag],
            flag_meanings=" ".join(str(flag.name) for flag in QualityFlag),
        ),
        "n_good": array((), (), "int32", "wavelength elements that were used"),
        "galaxy_id": ArraySpec(
            ("galaxy",),
            (rows,),
            "str" if id_dtype.kind == "U" else id_dtype.name,
            shard,
            chunk,
            attrs={"description": "identifier in the survey"},
        ),
        "parameter": ArraySpec(("parameter",), (prior.ndim,), "str"),
        "quantile": ArraySpec(("quantile",), (len(config.quantiles),), "float64"),
    }
    values: dict[str, NDArray[Any]] = {"parameter": np.array(prior.names), "quantile": np.array(config.quantiles)}
    if config.derived:
        arrays["derived"] = array(
            ("quantity", "quantile"),
            (len(config.derived), len(config.quantiles)),
            "float32",
            "quantiles of what follows from the posterior's draws; NaN for rows without a posterior",
            quantity_units={name: DERIVED[name].unit for name in config.derived},
        )
        arrays["quantity"] = ArraySpec(("quantity",), (len(config.derived),), "str")
        values["quantity"] = np.array(config.derived)
    if config.samples:
        arrays["samples"] = array(
            ("parameter", "sample"),
            (prior.ndim, config.samples),
            "float32",
            "draws of the posterior, evenly thinned; NaN for rows of which none are kept",
            parameter_units=units,
        )
    if config.predictive_draws:
        for name, description in PREDICTIVE.items():
            dtype = "float64" if name.endswith("pvalue") else "float32"
            arrays[name] = array((), (), dtype, description, draws=config.predictive_draws)
    if importance_draws is not None:
        arrays["percentiles_weighted"] = array(
            ("parameter", "quantile"),
            of_draws,
            "float32",
            "quantiles of the draws with importance weights, tail smoothed",
            parameter_units=units,
        )
        for name, description in IMPORTANCE.items():
            dtype = "float64" if name.startswith("log_evidence") else "float32"
            arrays[name] = array((), (), dtype, description, draws=importance_draws)
    return open_or_create(path, recipe, ledger, arrays, values)


def result_arrays(result: RowResult) -> dict[str, NDArray[Any]]:
    """Return the arrays of the dataset that a result fills, by their names in it."""
    arrays: dict[str, NDArray[Any]] = {
        "percentiles": result.percentiles,
        "quality": result.quality,
        "n_good": result.n_good,
    }
    if result.derived is not None:
        arrays["derived"] = result.derived
    if result.samples is not None:
        arrays["samples"] = result.samples
    if result.check is not None:
        arrays |= predictive_arrays(result.check)
    if result.importance is not None:
        arrays |= importance_arrays(result.importance)
    return arrays


def predictive_arrays(check: PredictiveCheck) -> dict[str, NDArray[Any]]:
    """Return the arrays that a dataset laid out with ``map.predictive_draws`` holds besides, by their names in it."""
    return {
        "feature_distance": check.distance,
        "predictive_reduced_chi2": check.chi2,
        "predictive_pvalue": check.pvalue,
        "weight_scatter": check.scatter,
    }


def importance_arrays(importance: Importance) -> dict[str, NDArray[Any]]:
    """Return the arrays that a dataset laid out with ``importance_draws`` holds besides, by their names in it."""
    return {
        "percentiles_weighted": importance.percentiles,
        "importance_ess": importance.ess,
        "importance_pareto_k": importance.pareto_k,
        "log_evidence": importance.log_evidence,
        "log_evidence_error": importance.log_evidence_error,
    }


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
