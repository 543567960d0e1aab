"""The run manifest: what ran, with what, from what; and whether a stage's results may be used again."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from digs_survey import formats
from digs_survey.catalog import Catalog
from digs_survey.config import default_of
from digs_survey.errors import RunDirectoryError
from digs_survey.estimator.artefact import check_hash, identify, recorded_folder
from digs_survey.identity import RunIdentity
from digs_survey.logs.command_line import safe_command
from digs_survey.run.stages import stage_named
from digs_survey.store.locations import check_reachable, is_file, location
from digs_survey.store.storage import read_json, write_json
from digs_survey.versions import git_commit

__all__ = ["RunManifest", "StageRecord"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _core_s() -> float:
    """CPU time of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@dataclass
class StageRecord:
    """What a running stage reports about itself; ``core_s`` of remote workers is set by the stage."""

    rows: int = 0
    core_s: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class RunManifest:
    """``manifest.json`` of a run directory.

    Parameters
    ----------
    run_dir : Path
        The file is read if it is there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "manifest.json"
        self.data: dict[str, Any] = {"format": formats.MANIFEST, "created": _now(), "inputs": {}, "stages": {}}
        if is_file(self.path):
            self.data = read_json(self.path)
            if self.data.get("format") != formats.MANIFEST:
                raise RunDirectoryError(
                    f"{self.path}: format {self.data.get('format')!r}, this version reads {formats.MANIFEST}; "
                    "use a new --run-dir"
                )

    @classmethod
    def of_run(cls, run_dir: Path) -> RunManifest:
        """Read the manifest of a run that has begun.

        Raises
        ------
        RunDirectoryError
            If the folder has none, or one of another format.
        """
        check_reachable(run_dir)
        if not is_file(run_dir / "manifest.json"):
            raise RunDirectoryError(
                f"{run_dir}: no manifest.json there; expected a run directory, which 'digs-survey run' or "
                "'digs-survey map' makes"
            )
        return cls(run_dir)

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Records of the stages by name."""
        return self.data["stages"]

    def update(self, **entries: Any) -> None:
        """Set entries of the manifest and write it."""
        self.data.update(entries)
        self.save()

    def save(self) -> None:
        """Write the manifest atomically."""
        write_json(self.path, self.data)

    def reusable(self, stage: str, key: Mapping[str, Any]) -> bool:
        """Tell whether a stage is done with this key; a stage made with another key is an error.

        Parameters
        ----------
        stage : str
        key : mapping
            All that decides the stage's result: configuration, inputs, version; nested mappings are compared
            field by field.

        Raises
        ------
        RunDirectoryError
            Naming every field that differs, its old and its new value, and what to do.
        """
        record = self.stages.get(stage)
        if record is None:
            return False
        differences = list(_differences(record["key"], key))
        if differences:
            lines = "\n".join(f"  - {line}" for line in differences)
            raise RunDirectoryError(
                f"stage {stage!r} in {self.path.parent} was made with other settings or inputs:\n{lines}\n"
                f"Use a new --run-dir, or make it and what follows from it again with --redo {stage}."
            )
        return bool(record["status"] == "done")

    def knows(self, catalog: Catalog, name: str = "catalog") -> bool:
        """Tell whether a catalog is the one that the run recorded, unchanged since; it need not be read again then."""
        entry = self.data["inputs"].get(name, {})
        same = entry.get("path") == str(catalog.path.resolve())
        return same and entry.get("state") == catalog.state()

    def check_formats(self, stage: str) -> None:
        """Refuse what a stage wrote in formats that this version does not read.

        Raises
        ------
        RunDirectoryError
            With the formats that were found and those that are expected.
        """
        found = self.stages[stage]["key"].get("formats", {})
        expected = formats.numbers(*stage_named(stage).formats)
        if found != expected:
            raise RunDirectoryError(
                f"{self.path.parent}: expected the {stage} stage to have written the formats {expected}, found "
                f"{found}; make it again (--redo {stage})"
            )

    def identity(self) -> RunIdentity:
        """Return what the map recorded: its seed, its posterior, and the catalog that it was applied to.

        Raises
        ------
        RunDirectoryError
            If nothing is mapped, or the catalog or the posterior is not there any more, or is another one now.
        """
        run_dir, inputs = self.path.parent, self.data["inputs"]
        if "posterior" not in inputs or "map" not in self.stages:
            raise RunDirectoryError(f"{run_dir} has no results; run 'digs-survey map' first")
        entry = inputs["catalog"]
        catalog = Catalog.open(location(entry["path"]))
        if not self.knows(catalog) and catalog.fingerprint() != entry["fingerprint"]:
            raise RunDirectoryError(
                f"{catalog.path} has changed since {run_dir} was made; put it back, or map it again (--redo map)"
            )
        folder = recorded_folder(run_dir, self.data)
        identity = identify(folder, seed=self.stages["map"]["key"]["seed"], catalog=entry["fingerprint"])
        check_hash(folder, identity.posterior_hash, inputs["posterior"]["hash"])
        return identity

    def forget(self, stage: str) -> None:
        """Drop the record of a stage."""
        self.stages.pop(stage, None)
        self.save()

    @contextmanager
    def run(self, stage: str, key: Mapping[str, Any], total: int) -> Iterator[StageRecord]:
        """Record a stage of ``total`` units: running, then done or failed, with wall time and core-seconds.

        Times of earlier, interrupted attempts at the same stage are added up. Core-seconds are those of this
        process and its children unless the stage sets ``core_s`` itself (to its total, attempts included).
        """
        before = self.stages.get(stage, {})
        wall_before, core_before = before.get("wall_s", 0.0), before.get("core_s", 0.0)
        entry = {"status": "running", "started": before.get("started", _now()), "key": dict(key), "total": total}
        if before.get("status") in ("damaged", "running") and "finished" in before:
            # A repair gives the same results again: what was made from them stays valid.
            entry["finished"] = before["finished"]
        self.stages[stage] = entry | {"wall_s": wall_before, "core_s": core_before}
        self.save()
        record = StageRecord()
        wall, core = time.perf_counter(), _core_s()
        status = "failed"
        try:
            yield record
            status = "done"
        finally:
            spent = core_before + _core_s() - core
            self.stages[stage] = entry | {
                "status": status,
                "finished": entry["finished"] if status == "done" and "finished" in entry else _now(),
                "wall_s": round(wall_before + time.perf_counter() - wall, 3),
                "core_s": round(spent if record.core_s is None else record.core_s, 3),
                "rows": record.rows,
                **record.extra,
            }
            self.save()

    def describe_run(self, **entries: Any) -> None:
        """Record the command, commit and the like of the present run."""
        self.update(command=safe_command(), git_commit=git_commit(), **entries)


_ABSENT = object()
"""A field that a key does not have."""


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
    elif old != new:
        yield from _changed(old, new, name) or [f"{name}: was {_told(old, name)}, now {_told(new, name)}"]


def _changed(old: Any, new: Any, name: str) -> list[str]:
    """Name the fields that a section, which one of two keys does not have, has otherwise than by default."""
    section = new if old is _ABSENT else old
    if not isinstance(section, Mapping) or _ABSENT not in (old, new):
        return []
    fields = {key: value for key, value in section.items() if value != default_of(f"{name}.{key}")}
    lacking = dict.fromkeys(fields, _ABSENT)
    return list(_differences(lacking, fields, name) if old is _ABSENT else _differences(fields, lacking, name))


def _told(value: Any, name: str) -> str:
    if value is not _ABSENT:
        return _short(value)
    # Keys leave out what a later version added and nobody changed.
    default = default_of(name)
    return "not recorded" if default is None else f"{_short(default)} (the default)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:67]}..."
