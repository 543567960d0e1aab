"""How far a run is, from its files alone: they tell it also when nobody works at it any more."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digs_survey.run.manifest import RunManifest
from digs_survey.run.stages import STAGES, Stage
from digs_survey.store.ledger import Ledger

__all__ = ["StageStatus", "run_status"]

_QUIET_S = 600.0
"""Without a finished shard or a live claim for so long, nobody is at work."""


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is.

    Attributes
    ----------
    stage : str
    status : str
        not started, running, interrupted, failed, damaged or done.
    rows, total : int or None
        Rows (epochs, galaxies) that are done, and those that there are.
    running, failed : list of dict
        Shards that are under way, and those whose last attempt failed, as
        :class:`~digs_survey.store.ledger.Pace` has them.
    rows_per_s, left_s : float or None
        Present pace, and the time that is left at it, while the stage is not done.
    wall_s, core_s : float or None
        What the stage took, all attempts together.
    """

    stage: str
    status: str
    rows: int | None
    total: int | None
    running: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    rows_per_s: float | None
    left_s: float | None
    wall_s: float | None
    core_s: float | None


def run_status(run_dir: Path) -> list[StageStatus]:
    """Say for each stage of a run directory how far it is, from its manifest and ledgers.

    Raises
    ------
    RunDirectoryError
        If it is none.
    """
    recorded = RunManifest.of_run(run_dir).stages
    return [
        _status(run_dir, stage, recorded.get(stage.name))
        for stage in STAGES
        if stage.name in recorded or not stage.optional
    ]


def _status(run_dir: Path, stage: Stage, record: dict[str, Any] | None) -> StageStatus:
    name = stage.name
    if record is None:
        return StageStatus(name, "not started", None, None, [], [], None, None, None, None)
    status, total, rows = record["status"], record.get("total"), record.get("rows")
    if not stage.shards or status == "done":
        times = record.get("wall_s"), record.get("core_s")
        return StageStatus(name, status, rows or None, total, [], [], None, None, *times)
    ledger = Ledger(run_dir / stage.ledgers[0])
    pace = ledger.pace()
    quiet = not pace.running and (pace.last is None or time.time() - pace.last > _QUIET_S)
    left = None
    if pace.rows_per_s and total:
        left = (total - pace.rows) / pace.rows_per_s
    return StageStatus(
        name,
        "interrupted" if status == "running" and quiet and pace.done else status,
        pace.rows or None,
        total,
        pace.running,
        pace.failed,
        pace.rows_per_s,
        left,
        record.get("wall_s"),
        record.get("core_s") or ledger.totals()[1] or None,
    )
