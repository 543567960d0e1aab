"""A run directory at work: what may be used again, what is recorded of each stage, and what the run is a run of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from digs_survey import formats
from digs_survey.catalog import Catalog
from digs_survey.cluster.dashboards import with_dashboards
from digs_survey.config import MapConfig, SurveyConfig
from digs_survey.errors import RunDirectoryError
from digs_survey.identity import RunIdentity
from digs_survey.logs.log import stage_log
from digs_survey.logs.progress import ProgressReporter
from digs_survey.run.manifest import RunManifest
from digs_survey.run.stages import followers, stage_named
from digs_survey.sps.param_file import ParamFile
from digs_survey.store.locations import exists
from digs_survey.store.storage import remove, write_text
from digs_survey.versions import __version__, versions

__all__ = ["RunDirectory", "StageRun"]


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
    param_file : ParamFile or None
        A parameter file that the user asked to run.
    """

    run_dir: Path
    config: SurveyConfig
    manifest: RunManifest
    progress: ProgressReporter
    dask_address: str | None = None
    ray_address: str | None = None
    dashboards: bool = False
    param_file: ParamFile | None = None

    def redo(self, stage: str) -> None:
        """Delete what a stage and those after it made."""
        unused = [] if "pairs" in self._recorded_key("train") else [("train", "augment")]
        if self.manifest.data["inputs"].get("posterior", {"path": "model"})["path"] != "model":
            # The table was made with a posterior from elsewhere.
            unused.append(("map", "train"))
        for follower in followers(stage, unused):
            self.manifest.forget(follower.name)
            for output in (*follower.outputs, *follower.ledgers):
                remove(self.run_dir / output)

    def mapped_identity(self) -> RunIdentity:
        """Return the identity that the map recorded, and take its model, prior and noise for the configuration's.

        Raises
        ------
        ConfigError
            If the configuration sets another model, prior or noise.
        RunDirectoryError
            If nothing is mapped, or with another seed or other map settings, or the catalog or the posterior is not
            there any more, or is another one now.
        """
        self._needs("map")
        self.take_mapped_floor()
        # What follows from the table must be of the table's own settings.
        settings = self._settings("map")["map"]
        del settings["workers"]
        self.manifest.reusable("map", {**self._recorded_key("map"), "seed": self.config.seed, "map": settings})
        identity = self.manifest.identity()
        self.config = identity.adopt(self.config)
        return identity

    def take_mapped_floor(self) -> None:
        """Take the error floor that the map has fitted, where the configuration asks for one to be fitted.

        One that was given for the map is not taken: it was not fitted.
        """
        if self.config.map.error_floor != "fit" or "map" not in self.manifest.stages:
            return
        recorded = self._recorded_key("map").get("map", {}).get("error_floor", MapConfig().error_floor)
        if self.manifest.data["inputs"].get("error_floor", {}).get("floor") == recorded:
            self._set_error_floor(recorded)

    def _set_error_floor(self, floor: float) -> None:
        self.config = self.config.model_copy(update={"map": self.config.map.model_copy(update={"error_floor": floor})})

    def _settings(self, *sections: str) -> dict[str, Any]:
        """Return sections of the configuration as plain values, for a stage's key."""
        return self.config.model_dump(mode="json", include=set(sections))

    def _formats(self, stage: str) -> dict[str, int]:
        return formats.numbers(*stage_named(stage).formats)

    def _recorded_key(self, stage: str) -> Mapping[str, Any]:
        """Return the key that a stage was begun with; empty where it was not."""
        return self.manifest.stages.get(stage, {}).get("key", {})

    def _after(self, stage: str) -> dict[str, Any]:
        record = self.manifest.stages[stage]
        return {stage: record["key"], "finished": record["finished"]}

    @contextmanager
    def _stage(self, name: str, key: Mapping[str, Any], total: int) -> Iterator[StageRun]:
        stage = stage_named(name)
        if self.manifest.reusable(name, key) and exists(self.run_dir / stage.outputs[0]):
            self.progress.say(f"{name}: done already", kind="stage_kept", stage=name)
            yield StageRun(None, lambda count: None)
            return
        write_text(self.run_dir / "config.toml", tomli_w.dumps(self.config.model_dump(mode="json", exclude_none=True)))
        if self.param_file is not None:
            write_text(self.run_dir / self.param_file.name, self.param_file.text)
        self.manifest.describe_run(
            digs_survey=__version__,
            seed=self.config.seed,
            config_hash=self.config.hash(),
            versions=versions(),
        )
        with (
            stage_log(name, total, stage.unit, lambda: self.manifest.stages[name]),
            self.manifest.run(name, key, total) as record,
            self.progress.task(name, total, stage.unit) as advance,
            with_dashboards(self.dashboards, lambda line: self.progress.say(line, kind="dashboard")),
        ):
            yield StageRun(record, advance)

    def _is_done(self, stage: str) -> bool:
        return self.manifest.stages.get(stage, {}).get("status") == "done"

    def _needs(self, stage: str) -> Path:
        """Return the first output of a stage that must be finished."""
        path = self.run_dir / stage_named(stage).outputs[0]
        if not (self._is_done(stage) and exists(path)):
            raise RunDirectoryError(
                f"{self.run_dir} has no finished {stage} stage; "
                f"run 'digs-survey {stage} --run-dir {self.run_dir}' first"
            )
        self.manifest.check_formats(stage)
        return path

    def _catalog_entry(self, catalog: Catalog, name: str) -> dict[str, Any]:
        """Describe a catalog for the manifest; one that the run knows, unchanged, need not be read again."""
        known: dict[str, Any] = self.manifest.data["inputs"].get(name, {})
        if self.manifest.knows(catalog, name):
            return known
        return {
            "path": str(catalog.path.resolve()),
            "rows": catalog.n_rows,
            # Found first: what changes while the catalog is read is not taken for what was read.
            "state": catalog.state(),
            "fingerprint": catalog.fingerprint(),
        }

    def _record(self, **inputs: Any) -> None:
        """Record inputs of a stage whose key has been accepted."""
        self.manifest.update(inputs={**self.manifest.data["inputs"], **inputs})


@dataclass
class StageRun:
    """A stage that is running, or (false) one that was done already."""

    record: Any
    advance: Callable[[int], None]

    def __bool__(self) -> bool:
        return self.record is not None
