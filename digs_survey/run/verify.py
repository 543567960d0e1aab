"""Whether what a run wrote is still what it wrote: every finished shard against the checksum in its marker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from digs_survey.errors import RunDirectoryError
from digs_survey.infer.shard_worker import stored_digest
from digs_survey.results.table import part_name
from digs_survey.run.manifest import RunManifest
from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import exists, is_file
from digs_survey.store.storage import checksum, read_bytes, rows_of_shard

__all__ = ["Damage", "verify_run"]


@dataclass(frozen=True)
class Damage:
    """A shard that is not what was written.

    Attributes
    ----------
    stage : str
    shard : int
    rows : slice
    path : Path
        The dataset or table.
    why : str
    """

    stage: str
    shard: int
    rows: slice
    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: shard {self.shard} (rows {self.rows.start} to {self.rows.stop - 1}): {self.why}"


def verify_run(run_dir: Path, advance: Callable[[int], None] = lambda rows: None) -> list[Damage]:
    """Read every finished shard of the simulations and results again, and take the markers of damaged ones away.

    The stages that have damaged shards count as interrupted from then on: the next run makes these shards again, and
    nothing else of the stage.

    Parameters
    ----------
    run_dir : Path
    advance : callable
        Called with the number of rows of each shard that was read.

    Returns
    -------
    list of Damage

    Raises
    ------
    RunDirectoryError
        If there is nothing that was finished.
    """
    manifest = RunManifest(run_dir)
    found: list[Damage] = []
    stages = [name for name in ("simulate", "map", "escalate") if exists(run_dir / "ledger" / name)]
    if not stages:
        raise RunDirectoryError(f"{run_dir}: no ledger of a stage there; expected a run directory with results")
    for stage in stages:
        ledger = Ledger(run_dir / "ledger" / stage)
        look = _damaged_parts if stage == "escalate" else _damaged
        damaged = list(look(run_dir, stage, ledger, advance))
        for damage in damaged:
            ledger.forget(damage.shard)
        if damaged and stage in manifest.stages:
            manifest.stages[stage]["status"] = "damaged"
            manifest.save()
        found += damaged
    return found


def _damaged(run_dir: Path, stage: str, ledger: Ledger, advance: Callable[[int], None]) -> Iterator[Damage]:
    path = run_dir / ("simulations.zarr" if stage == "simulate" else "posterior.zarr")
    table = run_dir / "percentiles.parquet"
    group: Any = zarr.open_group(str(path), mode="r", use_consolidated=False)
    size = group["flux" if stage == "simulate" else "quality"]
    names = tuple(name for name, array in group.arrays() if array.shape[:1] == size.shape[:1] and array.shards)

    def stored(rows: slice) -> str:
        if stage == "simulate":
            return checksum(group["theta"][rows], group["flux"][rows])
        return stored_digest(path, rows, names)

    for shard, record in sorted(ledger.records().items()):
        rows = rows_of_shard(shard, size.shape[0], size.shards[0])
        advance(rows.stop - rows.start)
        try:
            found = stored(rows)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            yield Damage(stage, shard, rows, path, f"it cannot be decoded ({error})")
            continue
        if found != record["checksum"]:
            yield Damage(stage, shard, rows, path, "its values are not those that were written")
        elif stage == "map" and (why := _wrong_part(table / part_name(shard), record["table"])):
            yield Damage(stage, shard, rows, table / part_name(shard), why)


def _damaged_parts(run_dir: Path, stage: str, ledger: Ledger, advance: Callable[[int], None]) -> Iterator[Damage]:
    for shard, record in sorted(ledger.records().items()):
        part = run_dir / "results.parquet" / part_name(shard)
        advance(record["rows"])
        if why := _wrong_part(part, record["checksum"]):
            yield Damage(stage, shard, slice(record["first"], record["first"] + record["rows"]), part, why)


def _wrong_part(part: Path, expected: str) -> str:
    """Say what is wrong with a part of a table; nothing if nothing is."""
    if not is_file(part):
        return "the file is not there"
    if checksum(np.frombuffer(read_bytes(part), dtype=np.uint8)) != expected:
        return "the file is not the one that was written"
    return ""
