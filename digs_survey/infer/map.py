"""Percentiles of every row of a catalog, computed by Ray actors one whole shard of the output at a time."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digs_survey import __version__, metrics
from digs_survey.catalog import Catalog
from digs_survey.config import SurveyConfig
from digs_survey.errors import DigsError, MissingDependencyError, StageError
from digs_survey.estimator.artefact import check_grid, load_artefact
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.likelihood import check_model
from digs_survey.infer.template import lay_out, reconcile
from digs_survey.infer.worker import ShardWorker, Task
from digs_survey.ledger import Ledger
from digs_survey.parameters import Prior
from digs_survey.raysession import ray_session
from digs_survey.retry import is_full
from digs_survey.spectra import WavelengthGrid
from digs_survey.storage import remove, shard_count

__all__ = ["derived_quantities", "map_catalog"]

_RETRIES = 3
"""Fresh workers that a shard is given to after a worker died on it."""
_MOST_FAILURES = 3
"""Shards that may fail before the map gives up: many that fail have one cause."""
_PATIENCE_S = 60.0
_STALLED_S, _STALLED_TIMES = 900.0, 30.0
"""A shard is taken from a worker that has had it for so long, and so many times longer than any shard has taken."""

log = logging.getLogger(__name__)


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
    ``samples`` (galaxy, parameter, sample); with ``infer.importance = "all"``, also what
    :func:`~digs_survey.infer.template.importance_arrays` names. It opens with
    ``xarray.open_zarr(path, consolidated=False)``. The table is a folder of Parquet files, one for each shard, whose
    columns :class:`~digs_survey.infer.table.ResultTable` names. No value depends on the number of workers, on the
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
    if config.infer.importance == "all" or settings.derived:
        check_model(card, config.model)
    if config.infer.importance == "all":
        importance_draws = recipe["importance_draws"] = config.infer.importance_draws
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
    per_shard = settings.shard_rows(catalog.n_rows)
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
            with closing(_spread(task, pending, workers)) as finished:
                for rows in finished:
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


@dataclass
class _Running:
    """What a worker is at: a shard, or (None) its start."""

    worker: Any
    shard: int | None
    since: float


def _spread(task: Task, pending: list[int], workers: int) -> Generator[int, None, None]:
    """Keep every worker busy with one shard at a time; yield the rows of each shard that finishes.

    A worker is given its first shard when it has started, so that one for which the cluster has no room
    holds nothing up. A shard that fails leaves the others alone, until too many do.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    actor: Any = ray.remote(num_cpus=1)(ShardWorker)
    # The same for all workers, and as long as the catalog has duplicates.
    shared = ray.put(task)
    queue, unfinished = deque(pending), len(pending)
    losses: Counter[int | None] = Counter()
    failures: list[tuple[StageError, BaseException]] = []
    running: dict[Any, _Running] = {}
    longest = 0.0

    def hire() -> None:
        worker = actor.remote(shared)
        running[worker.ready.remote()] = _Running(worker, None, time.monotonic())

    def lose(lost: _Running, why: str, error: BaseException | None) -> None:
        """Replace a worker, and give its shard to the next one unless that happened too often."""
        ray.kill(lost.worker)
        losses[lost.shard] += 1
        if losses[lost.shard] > _RETRIES * (workers if lost.shard is None else 1):
            why = f"{losses[lost.shard]} workers died, the last one with {why}"
            raise task.failed(lost.shard, why) from error
        if lost.shard is not None:
            queue.appendleft(lost.shard)
        hire()

    for _ in range(workers):
        hire()
    try:
        while unfinished:
            finished, _ = ray.wait(list(running), timeout=_PATIENCE_S)
            now = time.monotonic()
            if not finished:
                if all(work.shard is None for work in running.values()):
                    log.warning("map: no worker started for %g s; is a core free?", _PATIENCE_S)
                limit = max(_STALLED_S, _STALLED_TIMES * longest)
                for reference, work in list(running.items()):
                    if work.shard is not None and now - work.since > limit:
                        log.warning("map: shard %d is given to another worker after %.0f s", work.shard, limit)
                        lose(running.pop(reference), f"no answer for {limit:.0f} s", None)
                continue
            work = running.pop(finished[0])
            try:
                rows = ray.get(finished[0])
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, BaseException) else error
                failure = task.failed(work.shard, _told(cause))
                if is_full(cause):
                    raise MissingDependencyError(f"{failure}; free some space first") from cause
                metrics.shard_failed(error)
                failures.append((failure, cause))
                unfinished -= 1
                if work.shard is None or len(failures) == min(_MOST_FAILURES, len(pending)):
                    break
                log.warning("%s", failure)
            except RayError as error:
                if getattr(error, "actor_init_failed", False):
                    raise task.failed(None, str(error)) from error
                metrics.shard_failed(error)
                lose(work, f"{type(error).__name__}: {error}", error)
                continue
            else:
                if work.shard is not None:
                    unfinished -= 1
                    longest = max(longest, now - work.since)
                    yield rows
            if queue:
                shard = queue.popleft()
                running[work.worker.write.remote(shard)] = _Running(work.worker, shard, time.monotonic())
    finally:
        for work in running.values():
            ray.kill(work.worker)
    if failures:
        first, cause = failures[0]
        if len(failures) == 1:
            raise first from cause
        raise StageError(
            "\n".join(["map: several shards failed:", *(f"  - {error}" for error, _ in failures)])
        ) from cause


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, DigsError) else f"{type(error).__name__}: {error}"
