"""The command line: parse, call the pipeline, print.

Progress and messages go to stderr, paths of results to stdout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from digs_survey.cli import file_commands as cli_files
from digs_survey.cli.options import (
    CatalogArgument,
    ConfigOption,
    DashboardsOption,
    DaskOption,
    OptionalCatalog,
    ParamFileOption,
    QuietOption,
    RayOption,
    RedoOption,
    RunDir,
    RunDirDefault,
    SetOption,
    print_results,
    survey_at,
)
from digs_survey.errors import DigsError
from digs_survey.store.locations import exists, explain, location, store_errors
from digs_survey.store.targets import can_write, explain_write
from digs_survey.versions import __version__

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done (or nothing to do) - 1 unexpected error - 2 wrong usage - 3 configuration - 4 catalog - "
    "5 something outside is missing or cannot be written (FSPS data, a cluster, disk) - "
    "6 the run directory holds other results - 7 a stage failed and can be resumed - 130 interrupted."
)

app = typer.Typer(
    name="digs-survey",
    help="Calibrated posteriors of the stellar populations of whole spectroscopic surveys.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"digs-survey {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Calibrated posteriors of the stellar populations of whole spectroscopic surveys."""


@app.command(epilog=EPILOG)
def run(
    catalog: CatalogArgument,
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
    param_file: ParamFileOption = None,
    overrides: SetOption = None,
    dask: DaskOption = None,
    ray: RayOption = None,
    redo: RedoOption = None,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Simulate and train here, even where a posterior that ships with digs-survey would do."
        ),
    ] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Do everything, from simulations to the report. Run again to resume; a finished run does nothing."""
    with survey_at(
        run_dir,
        config,
        overrides,
        quiet,
        dask,
        ray,
        redo and redo.value,
        catalog,
        simulates=True,
        dashboards=dashboards,
        param_file=param_file,
    ) as survey:
        if not survey.run(catalog, retrain):
            survey.progress.say(f"nothing to do: {run_dir} is complete for this catalog and configuration")
    print_results(run_dir, "results.parquet", "report.html")


@app.command()
def simulate(
    catalog: OptionalCatalog = None,
    run_dir: RunDir = RunDirDefault,
    count: Annotated[
        int | None,
        typer.Option("--n", "--simulations", min=1, help="How many: the same as --set simulate.simulations=N."),
    ] = None,
    config: ConfigOption = None,
    param_file: ParamFileOption = None,
    overrides: SetOption = None,
    dask: DaskOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute noiseless spectra of prior draws on Dask."""
    stage = "simulate" if redo else None
    overrides = [*(overrides or []), *([] if count is None else [f"simulate.simulations={count}"])]
    with survey_at(
        run_dir,
        config,
        overrides,
        quiet,
        dask,
        redo=stage,
        catalog=catalog,
        simulates=True,
        dashboards=dashboards,
        param_file=param_file,
    ) as survey:
        survey.simulate(catalog)
    print_results(run_dir, "simulations.zarr")


@app.command()
def augment(
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
    overrides: SetOption = None,
    dask: DaskOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write noisy training pairs to disk on Dask: what training reads where train.pairs is "disk"."""
    stage = "augment" if redo else None
    with survey_at(run_dir, config, overrides, quiet, dask, redo=stage, dashboards=dashboards) as survey:
        survey.augment()
    print_results(run_dir, "pairs.zarr")


@app.command()
def train(
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
    overrides: SetOption = None,
    ray: RayOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the neural posterior estimator and freeze it."""
    with survey_at(
        run_dir, config, overrides, quiet, ray=ray, redo="train" if redo else None, dashboards=dashboards
    ) as survey:
        survey.train()
    print_results(run_dir, "model")


@app.command("map")
def map_(
    catalog: CatalogArgument,
    run_dir: RunDir = RunDirDefault,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Folder of a frozen posterior; default: the run directory's.", parser=location),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    ray: RayOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Apply the frozen posterior to every row of a catalog on Ray."""
    stage = "map" if redo else None
    with survey_at(
        run_dir, config, overrides, quiet, ray=ray, redo=stage, catalog=catalog, model=model, dashboards=dashboards
    ) as survey:
        survey.map(catalog, model)
    print_results(run_dir, "posterior.zarr", "percentiles.parquet")


@app.command()
def audit(
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
    param_file: ParamFileOption = None,
    overrides: SetOption = None,
    dask: DaskOption = None,
    ray: RayOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check the posterior: calibration on independent simulations, emcee on a sampled subset, cost."""
    with survey_at(
        run_dir,
        config,
        overrides,
        quiet,
        dask,
        ray,
        "audit" if redo else None,
        dashboards=dashboards,
        param_file=param_file,
    ) as survey:
        survey.audit()
    print_results(run_dir, "audit.zarr", "audit.json")


@app.command()
def escalate(
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
    overrides: SetOption = None,
    ray: RayOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give every row its agreement, and rows where it is low a better posterior within escalate.core_hours."""
    with survey_at(
        run_dir, config, overrides, quiet, ray=ray, redo="escalate" if redo else None, dashboards=dashboards
    ) as survey:
        survey.escalate()
    print_results(run_dir, "results.parquet", "escalate.json")


@app.command()
def report(
    run_dir: RunDir = RunDirDefault,
    figures: Annotated[
        bool, typer.Option("--figures", help="Write each figure to figures/ too: PDF, PNG, and its data as CSV.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the page and its figures, of a run that is archived.", parser=location),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Write report.html, one self-contained page."""
    if out is not None or (exists(run_dir) and not can_write(run_dir)):
        from digs_survey.run.opened_run import open_run

        page = open_run(run_dir).report(out, figures=figures)
        print_results(page.parent, page.name, *(["figures"] if figures else []))
        return
    with survey_at(run_dir, None, None, quiet) as survey:
        survey.report(figures=figures)
    print_results(run_dir, "report.html", *(["figures"] if figures else []))


app.add_typer(cli_files.app)


def main() -> None:
    """Entry point: errors that a user can act on are printed without a traceback."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        app()
    except DigsError as error:
        print(f"digs-survey: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except store_errors() as error:
        explained = explain(error) or explain_write(error)
        if explained is None:
            raise
        print(f"digs-survey: {explained}", file=sys.stderr)
        sys.exit(explained.exit_code)
    except KeyboardInterrupt:
        print("digs-survey: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
