"""Whether what a run wrote is still what it wrote: every finished shard against the checksum in its marker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr

from digs_survey.audit.mcmc.fit_galaxies import fit_file
from digs_survey.audit.mcmc.galaxy_fit import GalaxyFit
from digs_survey.errors import RunDirectoryError
from digs_survey.infer.shard_worker import stored_digest
from digs_survey.refine.reweigh import WeightedRows, weights_file
from digs_survey.results.table import part_name
from digs_survey.run.manifest import RunManifest
from digs_survey.run.stages import STAGES, Shards
from digs_survey.store.ledger import Ledger
from digs_survey.store.locations import exists, is_file
from digs_survey.store.storage import checksum, read_bytes, remove, rows_of_shard

__all__ = ["Damage", "finished_rows", "verify_run"]


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


def verify_run(run_dir: Path, advance: Callable[[int], None] = lambda rows: None, *, mark: bool = True) -> list[Damage]:
    """Read every finished shard of every stage again, and take the markers of damaged ones away.

    The stages that have damaged shards count as interrupted from then on: the next run makes these shards again, and
    nothing else of the stage.

    Parameters
    ----------
    run_dir : Path
    advance : callable
        Called with the number of rows of each shard that was read.
    mark : bool
        Without it nothing is written: an archived run is only looked at.

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
    present = [stage for stage in STAGES if any(exists(run_dir / ledger) for ledger in stage.ledgers)]
    if not present:
        raise RunDirectoryError(f"{run_dir}: no ledger of a stage there; expected a run directory with results")
    for stage in present:
        damaged: list[Damage] = []
        for shards in stage.shards:
            ledger = Ledger(run_dir / shards.ledger)
            here = list(_CHECKS[shards.kind](run_dir, stage.name, shards, ledger, advance))
            damaged += here
            if not mark:
                continue
            for damage in here:
                ledger.forget(damage.shard)
            for name in shards.decides if here else ():
                remove(run_dir / name)
        if mark and damaged and stage.name in manifest.stages:
            manifest.stages[stage.name]["status"] = "damaged"
            manifest.save()
        found += damaged
    return found


def finished_rows(run_dir: Path) -> int:
    """Return the rows of all finished shards of a run, of every stage: what :func:`verify_run` reads."""
    return sum(Ledger(run_dir / ledger).totals()[0] for stage in STAGES for ledger in stage.ledgers)


def _damaged_shards(
    run_dir: Path, stage: str, shards: Shards, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Damage]:
    path, records = run_dir / shards.output, ledger.records()
    if not records:
        return
    try:
        group: Any = zarr.open_group(str(path), mode="r", use_consolidated=False)
    except FileNotFoundError:
        start = 0
        for shard, record in sorted(records.items()):
            rows = slice(start, start + record["rows"])
            start = rows.stop
            advance(record["rows"])
            yield Damage(stage, shard, rows, path, "the dataset is not there")
        return
    arrays = {name: array for name, array in group.arrays() if array.shards}
    size = next(iter(arrays.values()))
    names = tuple(name for name, array in arrays.items() if array.shape[:1] == size.shape[:1])

    def stored(rows: slice) -> str:
        if shards.arrays:
            return checksum(*(group[name][rows] for name in shards.arrays if name in group))
        return stored_digest(path, rows, names)

    for shard, record in sorted(records.items()):
        rows = rows_of_shard(shard, size.shape[0], size.shards[0])
        advance(rows.stop - rows.start)
        try:
            found = stored(rows)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            yield Damage(stage, shard, rows, path, f"it cannot be decoded ({error})")
            continue
        if found != record["checksum"]:
            yield Damage(stage, shard, rows, path, "its values are not those that were written")
        elif shards.table:
            part = run_dir / shards.table / part_name(shard)
            if why := _wrong_part(part, record["table"]):
                yield Damage(stage, shard, rows, part, why)


def _damaged_parts(
    run_dir: Path, stage: str, shards: Shards, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Damage]:
    for shard, record in sorted(ledger.records().items()):
        part = run_dir / shards.output / part_name(shard)
        advance(record["rows"])
        if why := _wrong_part(part, record["checksum"]):
            yield Damage(stage, shard, slice(record["first"], record["first"] + record["rows"]), part, why)


def _damaged_files(
    run_dir: Path, stage: str, shards: Shards, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Damage]:
    """Check files of single galaxies, or of blocks of rows, which hold what they were made for."""
    load, file_of = (GalaxyFit.load, fit_file) if shards.kind == "fits" else (WeightedRows.load, weights_file)
    for number, record in sorted(ledger.records().items()):
        path = file_of(run_dir / shards.output, number)
        advance(record["rows"])
        try:
            why = "" if load(path).checksum() == record["checksum"] else "its values are not those that were written"
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            why = f"it cannot be read ({error})"
        if why:
            yield Damage(stage, number, slice(number, number + record["rows"]), path, why)


_CHECKS = {
    "dataset": _damaged_shards,
    "table": _damaged_parts,
    "fits": _damaged_files,
    "weights": _damaged_files,
}


def _wrong_part(part: Path, expected: str) -> str:
    """Say what is wrong with a part of a table; nothing if nothing is."""
    if not is_file(part):
        return "the file is not there"
    if checksum(np.frombuffer(read_bytes(part), dtype=np.uint8)) != expected:
        return "the file is not the one that was written"
    return ""
