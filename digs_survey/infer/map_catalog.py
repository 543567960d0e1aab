"""Percentiles of every row of a catalog, computed by Ray actors one whole shard of the output at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from digs_survey import __version__
from digs_survey.catalog import Catalog
from digs_survey.cluster import metrics
from digs_survey.cluster.actors import run_on_actors
from digs_survey.cluster.ray_session import ray_session
from digs_survey.config import SurveyConfig
from digs_survey.estimator.artefact import check_grid, load_artefact
from digs_survey.importance.spectrum_likelihood import check_model
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.shard_worker import ShardWorker, Task
from digs_survey.parameters import Prior
from digs_survey.results.dataset import lay_out, reconcile
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import remove, shard_count

__all__ = ["derived_quantities", "map_catalog"]


def map_catalog(
    catalog_path: Path,
    model_folder: Path,
    out_path: Path,
    config: SurveyConfig,
    *,
    ledger: Ledger,
    address: str | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    fingerprint: str | None = None,
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
    catalog_path, model_folder : Path
        The catalog and the frozen posterior; with a cluster, paths that its workers see too.
    out_path : Path
        The dataset. Kept if the same model, catalog, settings and version of the package made it, replaced
        (and the ledger cleared) otherwise.
    config : SurveyConfig
        Its map and infer sections and its model are used.
    ledger : Ledger
        Shards in it are done already; workers mark the others.
    address : str, optional
        A running Ray cluster; without it, this machine's cores are used.
    advance : callable
        Called with the number of rows that were done before, and then of each shard that finishes.
    fingerprint : str, optional
        The catalog's, where it is known already: finding it reads the whole catalog.
    levels : mapping of str to sequence of float, optional
        From a recalibration: for each parameter, the levels of its draws that are given for ``map.quantiles``.

    Raises
    ------
    CatalogError
        The catalog breaks its schema, or the posterior was not trained for its grid.
    ConfigError
        Rows are to be weighed with another model than the posterior's, or draws of rows are to be kept by a column
        that the catalog has not.
    MissingDependencyError
        No Ray cluster answers at ``address``, or no space is left.
    StageError
        Shards failed (the others are done), with the first one's own error as its cause; or the rows do not add up.
    """
    catalog = Catalog.open(catalog_path.absolute())
    model = model_folder.absolute()
    # The card alone: what draws is in the workers, and torch need not be here.
    _, card = load_artefact(model)
    check_grid(card, catalog.grid)
    prior = Prior.from_dict(card["parameters"])
    settings = config.map
    recipe = {
        "digs_survey": __version__,
        "model": card["hash"],
        "catalog": fingerprint or catalog.fingerprint(),
        "rows": catalog.n_rows,
        "zred": config.model.zred,
        "map": settings.model_dump(mode="json", exclude={"workers"}),
    }
    if levels is not None:
        recipe["levels"] = {name: list(levels[name]) for name in prior.names}
    if settings.samples_column:
        catalog.require_column(settings.samples_column, "map.samples_column")
    importance_draws = None
    if config.importance.rows == "all" or settings.derived:
        check_model(card, config.model)
    if config.importance.rows == "all":
        importance_draws = recipe["importance_draws"] = config.importance.draws
    out, ledger = out_path.absolute(), Ledger(ledger.folder.absolute())
    table = out.with_name("percentiles.parquet")
    kept = lay_out(
        out,
        recipe,
        ledger,
        rows=catalog.n_rows,
        prior=prior,
        config=settings,
        id_dtype=catalog.galaxy_id(0, 1).dtype,
        importance_draws=importance_draws,
    )
    if not kept:
        remove(table)
    advance(ledger.totals()[0])
    per_shard = settings.shard_size(catalog.n_rows)
    pending = ledger.pending(shard_count(catalog.n_rows, per_shard))
    if pending:
        with ray_session(address) as cores:
            task = Task(
                catalog.path,
                model,
                out,
                table,
                ledger.folder,
                config,
                catalog.n_rows,
                recipe,
                catalog.duplicate_rows,
                derived_quantities(card, config) if address else _derived_elsewhere(card, config),
            )
            workers = min(settings.workers or cores, len(pending))
            pool = run_on_actors(ShardWorker, task, pending, workers, failed=task.failed, told=metrics.shard_failed)
            with closing(pool) as finished:
                for _, rows in finished:
                    advance(rows)
    reconcile(out, table, ledger, rows=catalog.n_rows, rows_per_shard=per_shard)


def derived_quantities(card: Mapping[str, Any], config: SurveyConfig) -> DerivedQuantities | None:
    """Make what derives ``map.derived`` from draws of a posterior with this card; None if nothing is wanted.

    Raises
    ------
    ConfigError
        The configured model is not the posterior's.
    MissingDependencyError
        The data of the model's populations are missing.
    """
    from digs_survey.sps.batched import BatchedModel

    if not config.map.derived:
        return None
    check_model(card, config.model)
    prior, grid = Prior.from_dict(card["parameters"]), WavelengthGrid.from_dict(card["grid"])
    model = BatchedModel.from_config(config.model, prior, grid)
    return DerivedQuantities.of_model(config.map.derived, config.model.sfh, model)


def _derived_elsewhere(card: Mapping[str, Any], config: SurveyConfig) -> DerivedQuantities | None:
    """Let another process on this machine do it: what tabulates the model takes 250 MB, and the table takes one."""
    import ray
    from ray.exceptions import RayTaskError

    if not config.map.derived:
        return None
    try:
        return ray.get(ray.remote(num_cpus=1)(derived_quantities).remote(card, config))
    except RayTaskError as error:
        raise error.cause from None
