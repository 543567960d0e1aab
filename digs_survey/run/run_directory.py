"""A run directory at work: what its stages leave there, what may be used again, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from digs_survey import __version__
from digs_survey.catalog import Catalog
from digs_survey.cluster.dashboards import with_dashboards
from digs_survey.config import SurveyConfig
from digs_survey.errors import RunDirectoryError
from digs_survey.logs.log import stage_log
from digs_survey.logs.progress import ProgressReporter
from digs_survey.run.manifest import RunManifest
from digs_survey.run.status import STAGES
from digs_survey.store.locations import exists
from digs_survey.store.storage import remove, write_text
from digs_survey.versions import versions

__all__ = ["OUTPUTS", "StageRun", "RunDirectory"]

OUTPUTS: dict[str, tuple[str, ...]] = {
    "simulate": ("simulations.zarr", "ledger/simulate"),
    "augment": ("pairs.zarr", "ledger/augment"),
    "train": ("model", "checkpoint"),
    "map": ("posterior.zarr", "percentiles.parquet", "ledger/map"),
    "audit": ("calibration.zarr", "audit.zarr", "audit.json", "audit-jobs", "ledger/calibration"),
    "escalate": ("results.parquet", "escalate.json", "escalate-jobs", "ledger/escalate"),
    "report": ("report.html", "figures"),
}
"""What each stage leaves in the run directory."""


@dataclass
class RunDirectory:
    """A run directory with its configuration, and the clusters that its stages use.

    Attributes
    ----------
    run_dir : Path
    config : SurveyConfig
    manifest : RunManifest
    progress : ProgressReporter
    dask_address, ray_address : str or None
        Clusters; None runs on this machine's cores.
    dashboards : bool
        Clusters that start on this machine have dashboards.
    """

    run_dir: Path
    config: SurveyConfig
    manifest: RunManifest
    progress: ProgressReporter
    dask_address: str | None = None
    ray_address: str | None = None
    dashboards: bool = False

    def redo(self, stage: str) -> None:
        """Delete what a stage and those after it made."""
        on_pairs = "pairs" in self.manifest.stages.get("train", {}).get("key", {})
        following = STAGES[1:] if on_pairs else ()
        names = ("augment", *following) if stage == "augment" else STAGES[STAGES.index(stage) :]
        for name in (*names, *(["augment"] if stage == "simulate" else [])):
            self.manifest.forget(name)
            for output in OUTPUTS[name]:
                remove(self.run_dir / output)

    def _key(self, *sections: str) -> dict[str, Any]:
        data = self.config.model_dump(mode="json", include=set(sections))
        if "prior" in sections:
            data["prior"] = {p.name: [p.low, p.high] for p in self.config.make_prior().parameters}
        return {"digs_survey": __version__, "seed": self.config.seed, **data}

    def _after(self, stage: str) -> dict[str, Any]:
        record = self.manifest.stages[stage]
        return {stage: record["key"], "finished": record["finished"]}

    @contextmanager
    def _stage(self, name: str, key: Mapping[str, Any], total: int, unit: str) -> Iterator[StageRun]:
        if self.manifest.reusable(name, key) and all(exists(self.run_dir / out) for out in OUTPUTS[name][:1]):
            self.progress.say(f"{name}: done already", kind="stage_kept", stage=name)
            yield StageRun(None, lambda count: None)
            return
        write_text(self.run_dir / "config.toml", tomli_w.dumps(self.config.model_dump(mode="json", exclude_none=True)))
        self.manifest.describe_run(
            digs_survey=__version__,
            seed=self.config.seed,
            config_hash=self.config.hash(),
            versions=versions(),
        )
        with (
            stage_log(name, total, unit, lambda: self.manifest.stages[name]),
            self.manifest.run(name, key, total) as record,
            self.progress.task(name, total, unit) as advance,
            with_dashboards(self.dashboards, lambda line: self.progress.say(line, kind="dashboard")),
        ):
            yield StageRun(record, advance)

    def _is_done(self, stage: str) -> bool:
        return self.manifest.stages.get(stage, {}).get("status") == "done"

    def _needs(self, stage: str, output: str) -> Path:
        path = self.run_dir / output
        if not (self._is_done(stage) and exists(path)):
            raise RunDirectoryError(
                f"{self.run_dir} has no finished {stage} stage; "
                f"run 'digs-survey {stage} --run-dir {self.run_dir}' first"
            )
        return path

    def _record_catalog(self, catalog: Catalog) -> str:
        if not self.manifest.knows(catalog):
            entry = {
                "path": str(catalog.path.resolve()),
                "rows": catalog.n_rows,
                # Found first: what changes while the catalog is read is not taken for what was read.
                "state": catalog.state(),
                "fingerprint": catalog.fingerprint(),
            }
            self.manifest.update(inputs={**self.manifest.data["inputs"], "catalog": entry})
        return str(self.manifest.data["inputs"]["catalog"]["fingerprint"])


@dataclass
class StageRun:
    """A stage that is running, or (false) one that was done already."""

    record: Any
    advance: Callable[[int], None]

    def __bool__(self) -> bool:
        return self.record is not None
