"""What the commands share: their options, and how a run directory is opened for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from digs_survey.errors import RunDirectoryError
from digs_survey.run.stages import STAGES
from digs_survey.store.locations import check_reachable, exists, location

if TYPE_CHECKING:
    from digs_survey.run.survey import Survey

__all__ = [
    "CatalogArgument",
    "ConfigOption",
    "DaskOption",
    "DashboardsOption",
    "OptionalCatalog",
    "ParamFileOption",
    "QuietOption",
    "RayOption",
    "RedoOption",
    "RunDir",
    "RunDirDefault",
    "SetOption",
    "print_results",
    "survey_at",
]

CatalogArgument = Annotated[
    Path, typer.Argument(help="The catalog, a Zarr group.", show_default=False, parser=location)
]
OptionalCatalog = Annotated[
    Path | None,
    typer.Argument(help="Catalog whose grid (and noise) to simulate for.", show_default=False, parser=location),
]
RunDir = Annotated[Path, typer.Option("--run-dir", "-o", help="Where everything of this run is kept.", parser=location)]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file or preset (survey, digs2022, desi ...: catalogs/README.md); default: the run directory's own.",
    ),
]
ParamFileOption = Annotated[
    Path | None,
    typer.Option(
        "--param-file",
        help="Prospector parameter file (build_model, build_sps), whose code is run: its model takes the place of the "
        "configuration's. docs/models.md.",
        parser=location,
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one value: section.key=value; repeatable.")
]
DaskOption = Annotated[
    str | None,
    typer.Option("--dask-scheduler-address", envvar="DASK_SCHEDULER_ADDRESS", help="Dask scheduler, tcp://host:8786."),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        envvar="RAY_ADDRESS",
        help="Ray cluster: ray://host:10001; on one of its nodes also host:6379 or auto.",
    ),
]
DashboardsOption = Annotated[
    bool,
    typer.Option(
        "--dashboards",
        envvar="DIGS_SURVEY_DASHBOARDS",
        help="Dask and Ray that start on this machine have dashboards and metrics to watch, on 127.0.0.1.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
RunDirDefault = Path("runs/survey")


_Stage = StrEnum("_Stage", {stage.name: stage.name for stage in STAGES})  # type: ignore[misc]
"""Stages that --redo takes."""


RedoOption = Annotated[
    _Stage | None,
    typer.Option("--redo", help="Delete this stage's results and all that follow, and make them again."),
]


@contextmanager
def survey_at(
    run_dir: Path,
    config: str | None,
    overrides: list[str] | None,
    quiet: bool,
    dask: str | None = None,
    ray: str | None = None,
    redo: str | None = None,
    catalog: Path | None = None,
    model: Path | None = None,
    simulates: bool = False,
    dashboards: bool = False,
    param_file: Path | None = None,
) -> Iterator[Survey]:
    """Open a run directory with what the options say; a command that begins no run needs one that has begun."""
    from digs_survey.run.survey import Survey

    check_reachable(run_dir)
    if catalog is None and not simulates and not exists(run_dir):
        raise RunDirectoryError(f"{run_dir} is not there; run 'digs-survey run' or 'digs-survey simulate' first")
    with Survey.open(
        run_dir,
        config,
        overrides or [],
        quiet=quiet,
        dask_address=dask,
        ray_address=ray,
        dashboards=dashboards,
        redo=redo,
        catalog=catalog,
        model=model,
        simulates=simulates,
        param_file=param_file,
    ) as survey:
        yield survey


def print_results(run_dir: Path, *names: str) -> None:
    """Print the paths of results, for the next program."""
    for name in names:
        print(run_dir / name)
