"""The tiny survey and its finished run, which the integration tests of a session share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from survey import make_survey, run

from digs_survey.config import SurveyConfig, load_config

if TYPE_CHECKING:
    from conftest import BuildOnce


@pytest.fixture(scope="session")
def survey(build_once: BuildOnce) -> tuple[Path, Path, SurveyConfig]:
    """Catalog, TOML and configuration of the tiny survey; not to be changed."""
    folder = build_once("survey", make_survey)
    return folder / "catalog.zarr", folder / "survey.toml", load_config(folder / "survey.toml")


@dataclass(frozen=True)
class FinishedRun:
    """``digs-survey run`` of the tiny survey: its directory, not to be changed, and what it printed."""

    run_dir: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def finished_run(build_once: BuildOnce, survey: tuple[Path, Path, SurveyConfig]) -> FinishedRun:
    """The tiny survey from simulations to report, audited, in a process of its own. Copy it to change it."""

    def build(folder: Path) -> None:
        finished = run("run", survey[0], "-c", survey[1], "-o", folder / "run")
        assert finished.returncode == 0, finished.stderr
        (folder / "stdout").write_text(finished.stdout)
        (folder / "stderr").write_text(finished.stderr)

    folder = build_once("finished-run", build)
    return FinishedRun(folder / "run", (folder / "stdout").read_text(), (folder / "stderr").read_text())
