"""The command line: parse, call the pipeline, print.

Progress and messages go to stderr, paths of results to stdout.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from digs_survey import __version__
from digs_survey.errors import DigsError, MissingDependencyError, StageError
from digs_survey.locations import check_reachable, explain, location, store_errors
from digs_survey.progress import ProgressReporter
from digs_survey.retry import is_full

if TYPE_CHECKING:
    from digs_survey.pipeline import Survey

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done (or nothing to do) - 1 unexpected error - 2 wrong usage - 3 configuration - 4 catalog - "
    "5 something outside is missing (FSPS data, a cluster, disk) - 6 the run directory holds other results - "
    "7 a stage failed and can be resumed - 130 interrupted."
)

app = typer.Typer(
    name="digs-survey",
    help="Calibrated posteriors of the stellar populations of whole spectroscopic surveys.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ingest_app = typer.Typer(help="Turn a survey's files into a catalog.", no_args_is_help=True)
app.add_typer(ingest_app, name="ingest")

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
        help="TOML file or preset (digs2022, quick, sdss, faint); default: the run directory's own.",
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
    str | None, typer.Option("--ray-address", envvar="RAY_ADDRESS", help="Ray cluster, host:port or auto.")
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


class Stage(StrEnum):
    """Stages that --redo takes."""

    simulate = "simulate"
    train = "train"
    map = "map"
    audit = "audit"
    report = "report"


class TableFormat(StrEnum):
    """Formats that export writes."""

    fits = "fits"
    ecsv = "ecsv"
    votable = "votable"
    csv = "csv"
    parquet = "parquet"


RedoOption = Annotated[
    Stage | None,
    typer.Option("--redo", help="Delete this stage's results and all that follow, and make them again."),
]


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


@contextmanager
def _survey(
    run_dir: Path,
    config: str | None,
    overrides: list[str] | None,
    quiet: bool,
    dask: str | None = None,
    ray: str | None = None,
    redo: Stage | None = None,
    catalog: Path | None = None,
    simulates: bool = False,
    dashboards: bool = False,
) -> Iterator[Survey]:
    from digs_survey.pipeline import open_survey

    with open_survey(
        run_dir,
        config,
        overrides or [],
        ProgressReporter(quiet=quiet),
        dask_address=dask,
        ray_address=ray,
        dashboards=dashboards,
        redo=None if redo is None else redo.value,
        catalog=catalog,
        simulates=simulates,
    ) as survey:
        yield survey


def _results(run_dir: Path, *names: str) -> None:
    for name in names:
        print(run_dir / name)


@app.command(epilog=EPILOG)
def run(
    catalog: CatalogArgument,
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
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
    """Do everything: simulate, train, map, audit, report. Run again to resume; a finished run does nothing."""
    with _survey(
        run_dir, config, overrides, quiet, dask, ray, redo, catalog, simulates=True, dashboards=dashboards
    ) as survey:
        if not survey.run(catalog, retrain):
            survey.progress.say(f"nothing to do: {run_dir} is complete for this catalog and configuration")
    _results(run_dir, "percentiles.parquet", "report.html")


@app.command()
def simulate(
    catalog: OptionalCatalog = None,
    run_dir: RunDir = RunDirDefault,
    count: Annotated[
        int | None,
        typer.Option("--n", "--simulations", min=1, help="How many: the same as --set simulate.simulations=N."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    dask: DaskOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute noiseless spectra of prior draws on Dask."""
    stage = Stage.simulate if redo else None
    overrides = [*(overrides or []), *([] if count is None else [f"simulate.simulations={count}"])]
    with _survey(
        run_dir, config, overrides, quiet, dask, redo=stage, catalog=catalog, simulates=True, dashboards=dashboards
    ) as survey:
        survey.simulate(catalog)
    _results(run_dir, "simulations.zarr")


@app.command()
def augment(
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write noisy training pairs to disk (training draws fresh noise and does not need them)."""
    with _survey(run_dir, config, overrides, quiet) as survey:
        survey.augment()
    _results(run_dir, "pairs.zarr")


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
    with _survey(
        run_dir, config, overrides, quiet, ray=ray, redo=Stage.train if redo else None, dashboards=dashboards
    ) as survey:
        survey.train()
    _results(run_dir, "model")


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
    stage = Stage.map if redo else None
    with _survey(
        run_dir, config, overrides, quiet, ray=ray, redo=stage, catalog=catalog, dashboards=dashboards
    ) as survey:
        survey.map(catalog, model)
    _results(run_dir, "posterior.zarr", "percentiles.parquet")


@app.command()
def audit(
    run_dir: RunDir = RunDirDefault,
    config: ConfigOption = None,
    overrides: SetOption = None,
    dask: DaskOption = None,
    ray: RayOption = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make it again, and delete what follows from it.")] = False,
    dashboards: DashboardsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check the posterior: calibration on independent simulations, emcee on a sampled subset, cost."""
    with _survey(
        run_dir, config, overrides, quiet, dask, ray, Stage.audit if redo else None, dashboards=dashboards
    ) as survey:
        survey.audit()
    _results(run_dir, "audit.zarr", "audit.json")


@app.command()
def report(run_dir: RunDir = RunDirDefault, quiet: QuietOption = False) -> None:
    """Write report.html, one self-contained page."""
    with _survey(run_dir, None, None, quiet) as survey:
        survey.report()
    _results(run_dir, "report.html")


@app.command()
def validate(catalog: CatalogArgument) -> None:
    """Check a catalog against the schema; list every violation, and every row that will carry a quality bit."""
    from digs_survey.catalog import validate_catalog

    found = validate_catalog(catalog)
    found.raise_for_errors()
    for line in found.row_lines():
        print(line)
    for name in found.not_carried:
        print(f"{name}: not one value per galaxy; it will not travel to the result tables")
    print(f"{catalog}: keeps to the schema, {found.n_rows} rows")


@app.command("fake-catalog")
def fake_catalog_command(
    out: Annotated[Path, typer.Argument(help="The catalog to write, OUT.zarr.", show_default=False, parser=location)],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Galaxies.")] = 10_000,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="TOML file or preset: model, prior, grid, noise, seed.")
    ] = None,
    overrides: SetOption = None,
    bad: Annotated[
        float, typer.Option("--bad", min=0.0, max=1.0, help="Share of rows with a fault, such as NaN flux.")
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the catalog if it is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Simulated galaxies of any number, streamed, with their truth beside them: to test and to time."""
    from digs_survey.config import load_config
    from digs_survey.infer.fake import fake_catalog

    check_reachable(out)
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; choose another name or give --overwrite")
    settings = load_config(config, overrides or [])
    with ProgressReporter(quiet=quiet).task("fake-catalog", rows, "galaxies") as advance:
        fake_catalog(out, settings, rows, bad=bad, advance=advance)
    print(out)


@ingest_app.command("sdss")
def ingest_sdss_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="spec-PLATE-MJD-FIBER.fits ..., then the catalog to write.", show_default=False, parser=location
        ),
    ],
    step_angstrom: Annotated[float, typer.Option(help="Width of the elements, rest frame.")] = 50.0,
    start_angstrom: Annotated[
        float | None, typer.Option(help="First element; default: the range common to all files.")
    ] = None,
    stop_angstrom: Annotated[float | None, typer.Option(help="Last element.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the catalog if it is there.")] = False,
) -> None:
    """SDSS spec files to a rest-frame catalog: vacuum, flux conserved, ivar and masks carried."""
    from digs_survey.readers.sdss import ingest_sdss

    if len(files) < 2:
        raise typer.BadParameter("expected at least one SPEC.fits and then OUT.zarr")
    *spectra, out = files
    if out.suffix in {".fits", ".gz"}:
        raise typer.BadParameter(f"the last argument is the catalog to write, found {out}; expected OUT.zarr")
    check_reachable(out)
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; choose another name or give --overwrite")
    ingest_sdss(spectra, out, step_angstrom=step_angstrom, start_angstrom=start_angstrom, stop_angstrom=stop_angstrom)
    print(out)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="File to write.", show_default=False, parser=location)],
    run_dir: RunDir = RunDirDefault,
    table_format: Annotated[
        TableFormat | None, typer.Option("--format", "-f", help="Default: by the ending of the file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Write the percentile table as FITS, ECSV, VOTable, CSV or Parquet, with units and descriptions."""
    from digs_survey.errors import RunDirectoryError
    from digs_survey.export import export_table
    from digs_survey.manifest import RunManifest

    check_reachable(run_dir)
    check_reachable(out)
    source = run_dir / "percentiles.parquet"
    if not source.exists():
        raise RunDirectoryError(f"{run_dir} has no percentiles.parquet; run 'digs-survey map' first")
    made = RunManifest(run_dir).stages.get("map", {})
    if made.get("status", "done") != "done":
        raise RunDirectoryError(f"{run_dir}: the map stage is {made['status']}, not done; run 'digs-survey map' first")
    endings = {
        ".fits": "fits",
        ".ecsv": "ecsv",
        ".vot": "votable",
        ".xml": "votable",
        ".csv": "csv",
        ".parquet": "parquet",
    }
    chosen = table_format.value if table_format else endings.get(out.suffix)
    if chosen is None:
        raise typer.BadParameter(f"{out.name}: expected an ending of {', '.join(endings)}, or --format")
    export_table(source, out, chosen, overwrite=overwrite, rows=made.get("rows"))
    print(out)


@app.command()
def status(
    run_dir: RunDir = RunDirDefault,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON document.")] = False,
) -> None:
    """Say how far each stage of a run is, from its files alone: done, running, failed, pace and time left."""
    from dataclasses import asdict
    from datetime import timedelta

    from rich.console import Console
    from rich.table import Table

    from digs_survey.status import run_status

    stages = run_status(run_dir)
    if as_json:
        print(json.dumps([asdict(stage) for stage in stages], indent=1))
        return
    table = Table(title=str(run_dir))
    for name in ("stage", "status", "rows", "of", "running", "failed", "rows/s", "left", "wall [s]", "core [s]"):
        table.add_column(name, justify="left" if name in ("stage", "status") else "right")
    for stage in stages:
        left = None if stage.left_s is None else str(timedelta(seconds=round(stage.left_s)))
        counts = [stage.rows, stage.total, len(stage.running) or None, len(stage.failed) or None]
        numbers = [f"{n:,}" if n else "-" for n in counts]
        pace = "-" if stage.rows_per_s is None else f"{stage.rows_per_s:,.4g}"
        times = [f"{t:,.1f}" if t is not None else "-" for t in (stage.wall_s, stage.core_s)]
        table.add_row(stage.stage, stage.status, *numbers, pace, left or "-", *times)
    console = Console()
    console.print(table)
    for stage in stages:
        for note in stage.failed:
            console.print(
                f"{stage.stage}: shard {note['shard']} failed on {note['host']}: {note['error']}", markup=False
            )


@app.command()
def verify(run_dir: RunDir = RunDirDefault, quiet: QuietOption = False) -> None:
    """Check every finished shard against its checksum; damaged ones are named, and made again by the next run."""
    from digs_survey.ledger import Ledger
    from digs_survey.verify import verify_run

    total = sum(Ledger(run_dir / "ledger" / stage).totals()[0] for stage in ("simulate", "map"))
    with _survey(run_dir, None, None, quiet) as survey, survey.progress.task("verify", total, "rows") as advance:
        damaged = verify_run(run_dir, advance)
    for damage in damaged:
        print(damage)
    if damaged:
        raise StageError(
            f"{run_dir}: {len(damaged)} damaged shard(s); the command that made them makes them again, and only them"
        )
    print(f"{run_dir}: every finished shard is what was written")


@app.command()
def replay(
    galaxy_id: Annotated[str, typer.Argument(help="Identifier in the catalog.", show_default=False)],
    run_dir: RunDir = RunDirDefault,
) -> None:
    """Compute one galaxy's row again, bit for bit, and print where everything in it came from (JSON)."""
    from digs_survey.config import load_config
    from digs_survey.errors import RunDirectoryError
    from digs_survey.replay import replay as replay_rows

    if not (run_dir / "config.toml").is_file():
        raise RunDirectoryError(f"{run_dir}: no config.toml there; expected a run directory of digs-survey")
    found = replay_rows(run_dir, load_config(run_dir / "config.toml"), galaxy_id)
    for row in found:
        print(json.dumps(row.to_dict(), indent=1))
    changed = sorted({name for row in found for name in row.differing})
    if changed:
        raise StageError(
            f"galaxy_id {galaxy_id}: {', '.join(changed)} came out otherwise than in {run_dir}; compare versions with "
            "versions_now, and check the results with 'digs-survey verify'"
        )


@app.command()
def doctor(run_dir: RunDir = RunDirDefault, dask: DaskOption = None, ray: RayOption = None) -> None:
    """Check what is installed and works here, and say what to do about each failure."""
    from rich.console import Console

    from digs_survey.doctor import run_checks

    console = Console(highlight=False)
    failed = 0
    for check in run_checks(run_dir, dask, ray):
        colour = {"ok": "green", "optional": "yellow", "fail": "red"}[check.status]
        console.print(f"[{colour}]{check.status:>8}[/]  {check.name}: ", end="")
        console.print(check.detail, markup=False, soft_wrap=True)
        if check.remedy:
            console.print(f"{'':10}do: {check.remedy}", markup=False, soft_wrap=True)
        failed += check.status == "fail"
    if failed:
        raise MissingDependencyError(f"{failed} check(s) failed; see above")


def main() -> None:
    """Entry point: errors that a user can act on are printed without a traceback."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        app()
    except DigsError as error:
        print(f"digs-survey: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except store_errors() as error:
        explained = explain(error)
        if explained is not None:
            print(f"digs-survey: {explained}", file=sys.stderr)
            sys.exit(explained.exit_code)
        if not is_full(error):
            raise
        remedy = "free some space, and the same command goes on from what is finished"
        print(f"digs-survey: {error}; {remedy}", file=sys.stderr)
        sys.exit(MissingDependencyError.exit_code)
    except KeyboardInterrupt:
        print("digs-survey: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
