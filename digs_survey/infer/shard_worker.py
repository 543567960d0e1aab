"""What one process of the map does: it holds the catalog and the posterior, and turns numbers of shards into shards."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.catalog import Catalog, CatalogRows
from digs_survey.cluster import metrics
from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.identity import RunIdentity
from digs_survey.importance.predictive_check import Checker
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import Weigher
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.rows import RowResult, infer_rows
from digs_survey.noise.observed_rows import prepare_for
from digs_survey.results.table import ResultTable, part_name
from digs_survey.store.ledger import Ledger
from digs_survey.store.retry import retry_io
from digs_survey.store.sharded import recorded_recipe
from digs_survey.store.storage import checksum, rows_of_shard, write_bytes, write_shard

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["RowInference", "ShardWorker", "Task", "digest", "stored_digest"]


@dataclass(frozen=True)
class Task:
    """What a worker needs besides the number of the shard.

    Attributes
    ----------
    identity : RunIdentity
        Names the frozen posterior and what it was trained for.
    catalog, out, table, ledger : Path
        The catalog, the dataset, the folder of the table's parts, the done-markers.
    config : SurveyConfig
    n_rows : int
        Rows of the catalog.
    recipe : dict
        Everything that decides the dataset's bytes.
    duplicates : ndarray of int64
        Rows of the catalog whose ``galaxy_id`` another row has as well.
    derive : DerivedQuantities or None
    """

    identity: RunIdentity
    catalog: Path
    out: Path
    table: Path
    ledger: Path
    config: SurveyConfig
    n_rows: int
    recipe: dict[str, Any]
    duplicates: NDArray[np.int64]
    derive: DerivedQuantities | None = None

    def rows(self, shard: int) -> slice:
        """Return the rows of a shard."""
        return rows_of_shard(shard, self.n_rows, self.config.map.shard_size(self.n_rows))

    def failed(self, shard: int | None, why: str) -> StageError:
        """Return the error for a shard that failed, or (None) for a worker that could not start."""
        if shard is None:
            return StageError(f"map: a worker could not start: {why}")
        rows = self.rows(shard)
        return StageError(
            f"map: shard {shard} (rows {rows.start} to {rows.stop - 1}) of {self.out} failed: {why}; "
            "finished shards are kept, and the same command goes on from them"
        )


class RowInference:
    """From rows of a catalog to their results, with everything that this takes held in memory.

    Parameters
    ----------
    posterior : FrozenPosterior
    catalog : Catalog
    config : SurveyConfig
        Its map and importance sections are used.
    derive : DerivedQuantities, optional
    levels : mapping of str to sequence of float, optional
        For each parameter, the levels of its draws that are given for ``config.map.quantiles``.
    """

    def __init__(
        self,
        posterior: FrozenPosterior,
        catalog: Catalog,
        config: SurveyConfig,
        derive: DerivedQuantities | None = None,
        levels: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.levels = None if levels is None else np.array([levels[name] for name in posterior.prior.names])
        self.posterior, self.catalog, self.config, self.derive = posterior, catalog, config, derive
        self.weigher = self.checker = None
        weighs, predictive = config.importance.rows == "all", config.map.predictive_draws
        if not (weighs or predictive):
            return
        likelihood = SpectrumLikelihood.of_posterior(posterior)
        if predictive:
            self.checker = Checker(posterior, likelihood, predictive)
        if weighs:
            self.weigher = Weigher(posterior, likelihood, config.importance.draws, config.map.quantiles)

    def __call__(self, rows: slice, block: CatalogRows) -> RowResult:
        """Infer some rows, of which ``block`` was read."""
        settings = self.config.map
        posterior = self.posterior
        prepared = prepare_for(
            posterior.noise, posterior.grid, posterior.model.zred, settings, block, self.catalog.grid
        )
        keep = None
        if settings.samples_column:
            # Where the survey has no value, nobody asks for samples.
            keep = np.nan_to_num(self.catalog.column(settings.samples_column, rows.start, rows.stop)) != 0
        return infer_rows(
            self.posterior, prepared, settings, self.weigher, self.derive, keep, self.checker, self.levels
        )


class ShardWorker:
    """A Ray actor that computes shards, one after the other."""

    def __init__(self, task: Task) -> None:
        import torch

        from digs_survey.estimator.posterior import FrozenPosterior

        # Ray gives an actor of one core one BLAS thread, but only if the environment does not ask for more.
        torch.set_num_threads(1)
        self.task = task
        self.ledger = Ledger(task.ledger)
        self.before = self.ledger.before.records()
        self.catalog = Catalog.open(task.catalog, task.identity.filters)
        self.catalog.duplicate_rows = task.duplicates
        posterior, levels = FrozenPosterior.of(task.identity), task.recipe.get("levels")
        self.infer = RowInference(posterior, self.catalog, task.config, task.derive, levels)
        columns = ("galaxy_id", "redshift", *self.catalog.survey_columns)
        self.table = ResultTable(
            {name: self.catalog.column_attrs(name) for name in columns},
            posterior.prior,
            task.config.map.quantiles,
            task.config.map.quantities,
            task.identity.posterior_hash,
            task.identity.catalog,
            task.recipe.get("importance_draws"),
            levels,
        )
        self.counted_s = 0.0

    def ready(self) -> None:
        """Answer once the actor has started."""

    def work(self, shard: int) -> int:
        """Compute one shard, write it, read it back, then mark it done; return its number of rows.

        A shard that is done already, by another attempt, is left as it is.
        """
        rows = self.task.rows(shard)
        if self.ledger.is_done(shard):
            return rows.stop - rows.start
        with self.ledger.attempt(shard) as token:
            phases = metrics.Phases()
            block = self.catalog.rows(rows.start, rows.stop)
            phases.end("read")
            given = {"galaxy_id": block.galaxy_id, "redshift": block.redshift}
            given |= self.catalog.columns(rows.start, rows.stop)
            source = self._digest_of_input(block, given)
            kept = self._kept(shard, rows, source)
            results = kept or self.infer(rows, block).arrays()
            phases.end("infer")
            part = self.table.part(rows.start, given, results)
            arrays = results | {"galaxy_id": block.galaxy_id}
            if recorded_recipe(self.task.out) != self.task.recipe:
                raise StageError(f"{self.task.out} was replaced by another run while this one was writing to it")
            if not self.ledger.is_done(shard):
                self._write(shard, rows, arrays, part)
            phases.end("write")
            # The first shard of a worker carries the cost of starting the process.
            used_s = time.process_time()
            self.ledger.mark(
                shard,
                rows=len(results["quality"]),
                checksum=digest(arrays),
                core_s=self.before[shard]["core_s"] if kept else used_s - self.counted_s,
                seconds=sum(phases.seconds.values()),
                phases=phases.seconds,
                table=checksum(np.frombuffer(part, dtype=np.uint8)),
                attempt=token,
                input=source,
                kept=bool(kept),
            )
            self.counted_s = used_s
        metrics.shard_done(phases.seconds, results["quality"])
        return len(results["quality"])

    def _digest_of_input(self, block: CatalogRows, given: Mapping[str, NDArray[Any]]) -> str:
        """SHA-256 of all of the catalog that decides a shard."""
        grid, attributes = self.catalog.grid, self.table.attributes
        about = [grid.frame, grid.medium, {name: attributes[name] for name in given}]
        told = np.frombuffer(json.dumps(about, sort_keys=True, default=str).encode(), dtype=np.uint8)
        values = [part for value in given.values() for part in (np.ma.filled(value), np.ma.getmaskarray(value))]
        return checksum(told, grid.wavelength, block.flux, block.ivar, block.good, block.quality, *values)

    def _kept(self, shard: int, rows: slice, source: str) -> dict[str, NDArray[Any]] | None:
        """Return the results of a shard that was made before from the same rows, if they are there as they were."""
        record = self.before.get(shard, {})
        if record.get("input") != source:
            return None
        group: Any = zarr.open_group(str(self.task.out), mode="r", use_consolidated=False)
        names = [name for name, array in group.arrays() if array.metadata.dimension_names[0] == "galaxy"]
        try:
            found = {name: np.asarray(retry_io(group[name].__getitem__, rows)) for name in names}
        except (ValueError, RuntimeError):
            return None
        return {n: v for n, v in found.items() if n != "galaxy_id"} if digest(found) == record["checksum"] else None

    def _write(self, shard: int, rows: slice, arrays: dict[str, NDArray[Any]], part: bytes) -> None:
        task = self.task
        retry_io(write_shard, task.out, shard, rows, arrays)
        retry_io(write_bytes, task.table / part_name(shard), part)
        written, stored = digest(arrays), retry_io(stored_digest, task.out, rows, tuple(arrays))
        if stored != written:
            raise StageError(f"read back other values than were written (SHA-256 {stored}, not {written})")


def digest(arrays: dict[str, Any]) -> str:
    """SHA-256 of a shard's arrays, in order of their names."""
    return checksum(*(_fixed_width(arrays[name]) for name in sorted(arrays)))


def stored_digest(path: Path, rows: slice, names: tuple[str, ...]) -> str:
    """SHA-256 of what a dataset holds of some rows; ValueError or RuntimeError if that cannot be decoded."""
    group: Any = zarr.open_group(str(path), mode="r", use_consolidated=False)
    return digest({name: group[name][rows] for name in names})


def _fixed_width(values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    return np.array(array.tolist(), dtype=str) if array.dtype.kind in "TOU" else array
