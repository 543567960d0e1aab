"""Percentiles of every row of a catalog, computed by Ray actors one whole shard of the output at a time."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey import __version__
from digs_survey.catalog import Catalog
from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.infer.importance import Weigher
from digs_survey.infer.likelihood import SpectrumLikelihood, check_model
from digs_survey.infer.percentiles import infer_rows
from digs_survey.infer.prepare import prepare
from digs_survey.infer.template import importance_arrays, lay_out, reconcile
from digs_survey.raysession import ray_session
from digs_survey.simulate.template import recorded_recipe
from digs_survey.storage import Ledger, checksum, shard_count, shard_rows, write_shard

__all__ = ["map_catalog"]

_RETRIES = 3
"""Fresh workers that a shard is given to after a worker died on it."""
_PATIENCE_S = 60.0

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
) -> None:
    """Write ``posterior.zarr``, every row of the catalog in its order; go on where an earlier call stopped.

    The dataset has ``percentiles`` (galaxy, parameter, quantile) float32, ``quality`` (galaxy,) int64,
    ``n_good`` (galaxy,) int32, and the coordinates ``galaxy_id``, ``parameter`` and ``quantile``; with
    ``infer.importance = "all"``, also what :func:`~digs_survey.infer.template.importance_arrays` names. It opens
    with ``xarray.open_zarr(path, consolidated=False)``. Its bytes do not depend on the number of workers.

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

    Raises
    ------
    CatalogError
        The catalog breaks its schema, or the posterior was not trained for its grid.
    ConfigError
        Rows are to be weighed with another model than the posterior's.
    MissingDependencyError
        No Ray cluster answers at ``address``.
    StageError
        A shard failed, with the worker's own error as its cause; or the rows do not add up.
    """
    from digs_survey.estimator.posterior import FrozenPosterior

    catalog = Catalog.open(catalog_path.absolute())
    model = model_folder.absolute()
    posterior = FrozenPosterior.load(model)
    posterior.check_grid(catalog.grid)
    recipe = {
        "digs_survey": __version__,
        "model": posterior.hash,
        "catalog": catalog.fingerprint(),
        "rows": catalog.n_rows,
        "zred": config.model.zred,
        "map": config.map.model_dump(mode="json", exclude={"workers"}),
    }
    importance_draws = None
    if config.infer.importance == "all":
        check_model(posterior, config.model)
        importance_draws = recipe["importance_draws"] = config.infer.importance_draws
    out, ledger = out_path.absolute(), Ledger(ledger.folder.absolute())
    lay_out(
        out,
        recipe,
        ledger,
        rows=catalog.n_rows,
        prior=posterior.prior,
        config=config.map,
        id_dtype=catalog.galaxy_id(0, 1).dtype,
        importance_draws=importance_draws,
    )
    advance(ledger.totals()[0])
    pending = ledger.pending(shard_count(catalog.n_rows, config.map.rows_per_shard))
    if pending:
        task = _Task(catalog.path, model, out, ledger.folder, config, catalog.n_rows, recipe)
        with ray_session(address) as cores:
            workers = min(config.map.workers or cores, len(pending))
            with closing(_spread(task, pending, workers)) as finished:
                for rows in finished:
                    advance(rows)
    reconcile(out, ledger, rows=catalog.n_rows, rows_per_shard=config.map.rows_per_shard)


@dataclass(frozen=True)
class _Task:
    """What a worker needs besides the number of the shard."""

    catalog: Path
    model: Path
    out: Path
    ledger: Path
    config: SurveyConfig
    n_rows: int
    recipe: dict[str, Any]

    def rows(self, shard: int) -> slice:
        return shard_rows(shard, self.n_rows, self.config.map.rows_per_shard)

    def failed(self, shard: int | None, why: str) -> StageError:
        if shard is None:
            return StageError(f"map: a worker could not start: {why}")
        rows = self.rows(shard)
        return StageError(
            f"map: shard {shard} (rows {rows.start} to {rows.stop - 1}) of {self.out} failed: {why}; "
            "finished shards are kept, and the same command goes on from them"
        )


class _Worker:
    """A Ray actor that holds the catalog and the posterior, and turns numbers of shards into shards."""

    def __init__(self, task: _Task) -> None:
        import torch

        from digs_survey.estimator.posterior import FrozenPosterior

        # Ray gives an actor of one core one BLAS thread, but only if the environment does not ask for more.
        torch.set_num_threads(1)
        self.task = task
        self.catalog = Catalog.open(task.catalog)
        self.posterior = FrozenPosterior.load(task.model)
        self.weigher = None
        if task.config.infer.importance == "all":
            likelihood = SpectrumLikelihood.of_posterior(self.posterior)
            draws, quantiles = task.config.infer.importance_draws, task.config.map.quantiles
            self.weigher = Weigher(self.posterior, likelihood, draws, quantiles)
        self.counted_s = 0.0

    def ready(self) -> None:
        """Answer once the actor has started."""

    def write(self, shard: int) -> int:
        """Compute one shard, write it, read it back, then mark it done; return its number of rows."""
        task = self.task
        rows, settings = task.rows(shard), task.config.map
        block = self.catalog.rows(rows.start, rows.stop)
        frame = self.catalog.grid.frame
        keeps_negative = self.posterior.noise.keeps_negative
        zred = task.config.model.zred
        prepared = prepare(block, frame, zred, settings.min_good_fraction, keeps_negative=keeps_negative)
        result = infer_rows(self.posterior, prepared, settings, self.weigher)
        arrays: dict[str, NDArray[Any]] = {
            "percentiles": result.percentiles,
            "quality": result.quality,
            "n_good": result.n_good,
            "galaxy_id": block.galaxy_id,
        }
        if result.importance is not None:
            arrays |= importance_arrays(result.importance)
        if recorded_recipe(task.out) != task.recipe:
            raise StageError(f"{task.out} was replaced by another run while this one was writing to it")
        write_shard(task.out, shard, rows, arrays)
        group: Any = zarr.open_group(str(task.out), mode="r", use_consolidated=False)
        written = _digest(arrays)
        stored = _digest({name: group[name][rows] for name in arrays})
        if stored != written:
            raise StageError(f"read back other values than were written (SHA-256 {stored}, not {written})")
        # The first shard of a worker carries the cost of starting the process.
        used_s = time.process_time()
        Ledger(task.ledger).mark(
            shard,
            rows=len(result.quality),
            checksum=written,
            core_seconds=used_s - self.counted_s,
            attempt=uuid4().hex,
        )
        self.counted_s = used_s
        return len(result.quality)


def _digest(arrays: dict[str, Any]) -> str:
    return checksum(*(_fixed_width(value) for value in arrays.values()))


def _fixed_width(values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    return np.array(array.tolist(), dtype=str) if array.dtype.kind in "TOU" else array


def _spread(task: _Task, pending: list[int], workers: int) -> Generator[int, None, None]:
    """Keep every worker busy with one shard at a time; yield the rows of each shard that finishes.

    A worker is given its first shard when it has started, so that one for which the cluster has no room
    holds nothing up.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    actor: Any = ray.remote(num_cpus=1)(_Worker)
    queue, unfinished = deque(pending), len(pending)
    losses: Counter[int | None] = Counter()
    running: dict[Any, tuple[Any, int | None]] = {}

    def hire() -> None:
        worker = actor.remote(task)
        running[worker.ready.remote()] = worker, None

    for _ in range(workers):
        hire()
    try:
        while unfinished:
            finished, _ = ray.wait(list(running), timeout=_PATIENCE_S)
            if not finished:
                if all(shard is None for _, shard in running.values()):
                    log.warning("map: no worker started for %g s; is a core free?", _PATIENCE_S)
                continue
            worker, shard = running.pop(finished[0])
            try:
                rows = ray.get(finished[0])
            except RayTaskError as error:
                raise task.failed(shard, f"{type(error.cause).__name__}: {error.cause}") from error
            except RayError as error:
                if getattr(error, "actor_init_failed", False):
                    raise task.failed(None, str(error)) from error
                ray.kill(worker)
                losses[shard] += 1
                if losses[shard] > _RETRIES * (workers if shard is None else 1):
                    why = f"{losses[shard]} workers died, the last one with {type(error).__name__}: {error}"
                    raise task.failed(shard, why) from error
                if shard is not None:
                    queue.appendleft(shard)
                hire()
                continue
            if shard is not None:
                unfinished -= 1
                yield rows
            if queue:
                shard = queue.popleft()
                running[worker.write.remote(shard)] = worker, shard
    finally:
        for worker, _ in running.values():
            ray.kill(worker)
