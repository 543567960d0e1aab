"""Percentiles of every row of a catalog, computed by Ray actors one whole shard of the output at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from digs_survey import formats
from digs_survey.catalog import Catalog
from digs_survey.cluster import metrics
from digs_survey.cluster.actors import run_on_actors
from digs_survey.cluster.ray_session import ray_session
from digs_survey.config import SurveyConfig
from digs_survey.estimator.artefact import check_grid
from digs_survey.identity import RunIdentity
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.shard_worker import ShardWorker, Task
from digs_survey.parameters import SPEC_NORM
from digs_survey.results.dataset import lay_out, reconcile
from digs_survey.results.table import part_name
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import remove, shard_count

__all__ = ["derived_quantities", "map_catalog"]


def map_catalog(
    identity: RunIdentity,
    catalog_path: Path,
    out_path: Path,
    config: SurveyConfig,
    *,
    ledger: Ledger,
    address: str | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    levels: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write ``posterior.zarr`` and ``percentiles.parquet`` beside it; go on where an earlier call stopped.

    Both have every row of the catalog in its order. The dataset has ``percentiles`` (galaxy, parameter, quantile)
    float32, ``quality`` (galaxy,) int64, ``n_good`` (galaxy,) int32, and the coordinates ``galaxy_id``, ``parameter``
    and ``quantile``; with ``map.derived``, ``derived`` (galaxy, quantity, quantile); with ``map.samples``,
    ``samples`` (galaxy, parameter, sample). :mod:`~digs_survey.results.columns` lists all arrays, and all columns of
    the table, which is a folder of Parquet files, one for each shard. The dataset opens with
    ``xarray.open_zarr(path, consolidated=False)``. No value depends on the number of workers, on the
    size of shards or on a row's place.

    Parameters
    ----------
    identity : RunIdentity
        Of the frozen posterior and the catalog. With a cluster, its workers see the posterior's folder too.
    catalog_path : Path
        With a cluster, a path that its workers see too.
    out_path : Path
        The dataset. Kept if the same posterior, catalog and settings made it. If only the catalog differs, shards whose
        rows are as they were keep their results; otherwise it is replaced, and the ledger cleared.
    config : SurveyConfig
        Its map and importance sections are used. Its model, prior and noise must be the posterior's.
    ledger : Ledger
        Shards in it are done already; workers mark the others.
    address : str, optional
        A running Ray cluster; without it, this machine's cores are used.
    advance : callable
        Called with the number of rows that were done before, and then of each shard that finishes.
    levels : mapping of str to sequence of float, optional
        From a recalibration: for each parameter, the levels of its draws that are given for ``map.quantiles``.

    Raises
    ------
    CatalogError
        The catalog breaks its schema, or the posterior was not trained for its grid.
    ConfigError
        The configuration sets another model, prior or noise than the posterior's, or draws of rows are to be kept by
        a column that the catalog has not.
    MissingDependencyError
        No Ray cluster answers at ``address``, or no space is left.
    StageError
        Shards failed (the others are done), with the first one's own error as its cause; or the rows do not add up.
    """
    config = identity.adopt(config)
    catalog = Catalog.open(catalog_path.absolute())
    check_grid(identity.grid, catalog.grid, identity.noise)
    if config.map.samples_column:
        catalog.require_column(config.map.samples_column, "map.samples_column")
    task = _task(identity, catalog, out_path.absolute(), config, ledger.folder.absolute(), levels)
    ledger = Ledger(task.ledger)
    kept = lay_out(
        task.out,
        task.recipe,
        ledger,
        rows=catalog.n_rows,
        prior=identity.prior,
        config=config.map,
        id_dtype=catalog.galaxy_id(0, 1).dtype,
        importance_draws=task.recipe.get("importance_draws"),
    )
    per_shard = config.map.shard_size(catalog.n_rows)
    shards = shard_count(catalog.n_rows, per_shard)
    if not kept:
        remove(task.table)
    parts = {part_name(shard) for shard in range(shards)}
    for part in task.table.glob("part-*.parquet"):
        if part.name not in parts:
            remove(part)
    advance(ledger.totals()[0])
    pending = ledger.pending(shards)
    if pending:
        _map_shards(task, pending, address, advance)
    reconcile(task.out, task.table, ledger, rows=catalog.n_rows, rows_per_shard=per_shard)
    ledger.before.clear()


def _task(
    identity: RunIdentity,
    catalog: Catalog,
    out: Path,
    config: SurveyConfig,
    ledger: Path,
    levels: Mapping[str, Sequence[float]] | None,
) -> Task:
    """Collect what the workers need, and all that decides the dataset's bytes."""
    recipe: dict[str, Any] = {
        "format": formats.POSTERIOR,
        **identity.key("catalog", "posterior"),
        "rows": catalog.n_rows,
        "map": config.map.model_dump(mode="json", exclude={"workers"}),
    }
    if levels is not None:
        recipe["levels"] = {name: list(levels[name]) for name in identity.prior.names}
    if config.importance.rows == "all":
        recipe["importance_draws"] = config.importance.draws
    return Task(
        identity=identity,
        catalog=catalog.path,
        out=out,
        table=out.with_name("percentiles.parquet"),
        ledger=ledger,
        config=config,
        n_rows=catalog.n_rows,
        recipe=recipe,
        duplicates=catalog.duplicate_rows,
    )


def _map_shards(task: Task, pending: Sequence[int], address: str | None, advance: Callable[[int], None]) -> None:
    """Map shards on Ray, and report the rows of each that finishes."""
    with ray_session(address) as cores:
        derive = derived_quantities if address else _derived_elsewhere
        task = replace(task, derive=derive(task.identity, task.config.map.quantities))
        workers = min(task.config.map.workers or cores, len(pending))
        pool = run_on_actors(ShardWorker, task, pending, workers, failed=task.failed, on_error=metrics.shard_failed)
        with closing(pool) as finished:
            for _, rows in finished:
                advance(rows)


def derived_quantities(identity: RunIdentity, names: Sequence[str]) -> DerivedQuantities | None:
    """Make what derives quantities from draws of a posterior; None if no quantity is named.

    Raises
    ------
    MissingDependencyError
        The data of the model's populations are missing.
    """
    from digs_survey.sps.batched import BatchedModel

    if not names:
        return None
    # Nothing derived depends on the line spread, and a model without it is made sooner.
    prior = identity.prior.without("sigma_smooth").without(SPEC_NORM)
    model = BatchedModel.from_config(identity.model, prior, identity.grid)
    return DerivedQuantities.of_model(names, identity.model.sfh, model, identity.prior)


def _derived_elsewhere(identity: RunIdentity, names: Sequence[str]) -> DerivedQuantities | None:
    """Let another process on this machine do it: what tabulates the model takes 250 MB, and the table takes one."""
    import ray
    from ray.exceptions import RayTaskError

    if not names:
        return None
    try:
        return ray.get(ray.remote(num_cpus=1)(derived_quantities).remote(identity, names))
    except RayTaskError as error:
        raise error.cause from None
