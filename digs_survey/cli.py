"""The command line: parse, call the pipeline, print.

Progress and messages go to stderr, paths of results to stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from digs_survey import __version__
from digs_survey.errors import DigsError, MissingDependencyError
from digs_survey.locations import check_reachable, exists, explain, is_file, location, store_errors
from digs_survey.progress import ProgressReporter

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
) -> Iterator[Survey]:
    from digs_survey.pipeline import open_survey

    with open_survey(
        run_dir,
        config,
        overrides or [],
        ProgressReporter(quiet=quiet),
        dask_address=dask,
        ray_address=ray,
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
    quiet: QuietOption = False,
) -> None:
    """Do everything: simulate, train, map, audit, report. Run again to resume; a finished run does nothing."""
    with _survey(run_dir, config, overrides, quiet, dask, ray, redo, catalog, simulates=True) as survey:
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
    quiet: QuietOption = False,
) -> None:
    """Compute noiseless spectra of prior draws on Dask."""
    stage = Stage.simulate if redo else None
    overrides = [*(overrides or []), *([] if count is None else [f"simulate.simulations={count}"])]
    with _survey(run_dir, config, overrides, quiet, dask, redo=stage, catalog=catalog, simulates=True) as survey:
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
    quiet: QuietOption = False,
) -> None:
    """Train the neural posterior estimator and freeze it."""
    with _survey(run_dir, config, overrides, quiet, ray=ray, redo=Stage.train if redo else None) as survey:
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
    quiet: QuietOption = False,
) -> None:
    """Apply the frozen posterior to every row of a catalog on Ray."""
    stage = Stage.map if redo else None
    with _survey(run_dir, config, overrides, quiet, ray=ray, redo=stage, catalog=catalog) as survey:
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
    quiet: QuietOption = False,
) -> None:
    """Check the posterior: calibration on independent simulations, emcee on a sampled subset, cost."""
    with _survey(run_dir, config, overrides, quiet, dask, ray, Stage.audit if redo else None) as survey:
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
    if exists(out) and not overwrite:
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
    if exists(out) and not overwrite:
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

    check_reachable(run_dir)
    check_reachable(out)
    source = run_dir / "percentiles.parquet"
    if not is_file(source):
        raise RunDirectoryError(f"{run_dir} has no percentiles.parquet; run 'digs-survey map' first")
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
    export_table(source, out, chosen, overwrite=overwrite)
    print(out)


@app.command()
def status(run_dir: RunDir = RunDirDefault) -> None:
    """Say how far each stage of a run is, from its files alone."""
    from rich.console import Console
    from rich.table import Table

    from digs_survey.pipeline import stage_progress

    table = Table(title=str(run_dir))
    for name in ("stage", "status", "rows", "wall [s]", "core [s]"):
        table.add_column(name, justify="left" if name in ("stage", "status") else "right")
    for row in stage_progress(run_dir):
        numbers = [f"{row[k]:,.1f}" if row[k] is not None else "-" for k in ("wall_s", "core_s")]
        table.add_row(row["stage"], row["status"], f"{row['rows']:,}" if row["rows"] else "-", *numbers)
    Console().print(table)


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
        if explained is None:
            raise
        print(f"digs-survey: {explained}", file=sys.stderr)
        sys.exit(explained.exit_code)
    except KeyboardInterrupt:
        print("digs-survey: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
