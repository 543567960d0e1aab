"""Commands that make and check catalogs, and that look at what a run has made."""

from __future__ import annotations

import json
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from digs_survey.cli.ingest_commands import ingest_app
from digs_survey.cli.options import (
    CatalogArgument,
    DaskOption,
    QuietOption,
    RayOption,
    RunDir,
    RunDirDefault,
    SetOption,
    survey_at,
)
from digs_survey.cli.prior_commands import prior_app
from digs_survey.errors import MissingDependencyError, StageError
from digs_survey.logs.progress import ProgressReporter
from digs_survey.store.locations import check_reachable, exists, location
from digs_survey.store.targets import can_write, check_target

__all__ = ["app"]

app = typer.Typer()
app.add_typer(ingest_app, name="ingest")
app.add_typer(prior_app)


class TableFormat(StrEnum):
    """Formats that export writes."""

    fits = "fits"
    ecsv = "ecsv"
    votable = "votable"
    csv = "csv"
    parquet = "parquet"


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
    from digs_survey.simulate.mock_catalog import fake_catalog

    check_reachable(out)
    if exists(out) and not overwrite:
        raise typer.BadParameter(f"{out} exists; choose another name or give --overwrite")
    check_target("catalog", out)
    settings = load_config(config, overrides or [])
    with ProgressReporter(quiet=quiet).task("fake-catalog", rows, "galaxies") as advance:
        fake_catalog(out, settings, rows, bad=bad, advance=advance)
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
    from digs_survey.results.export import ENDINGS
    from digs_survey.run.opened_run import open_run

    run = open_run(run_dir)
    check_reachable(out)
    if table_format is None and out.suffix not in ENDINGS:
        raise typer.BadParameter(f"{out.name}: expected an ending of {', '.join(ENDINGS)}, or --format")
    run.export(out, table_format and table_format.value, overwrite=overwrite)
    print(out)


@app.command()
def status(
    run_dir: RunDir = RunDirDefault,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON document.")] = False,
) -> None:
    """Say how far each stage of a run is, from its files alone: done, running, failed, pace and time left."""
    from dataclasses import asdict
    from datetime import timedelta

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from digs_survey.run.opened_run import open_run

    stages = open_run(run_dir).status()
    if as_json:
        print(json.dumps([asdict(stage) for stage in stages], indent=1))
        return
    table = Table(title=str(run_dir), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("stage", "status", "done", "running", "failed", "rows/s", "left", "wall s", "core s"):
        table.add_column(name, justify="left" if name in ("stage", "status") else "right")
    for stage in stages:
        done = f"{stage.rows:,}" if stage.rows else "-"
        if stage.total and stage.rows and stage.status != "done":
            done += f"/{stage.total:,}"
        shards = [f"{len(found)}" if found else "-" for found in (stage.running, stage.failed)]
        pace = "-" if stage.rows_per_s is None else f"{stage.rows_per_s:,.4g}"
        left = "-" if stage.left_s is None else str(timedelta(seconds=round(stage.left_s)))
        times = [f"{t:,.0f}" if t is not None else "-" for t in (stage.wall_s, stage.core_s)]
        table.add_row(stage.stage, stage.status, done, *shards, pace, left, *times)
    console = Console()
    console.print(table)
    for stage in stages:
        for note in stage.failed:
            console.print(
                f"{stage.stage}: shard {note['shard']} failed on {note['host']}: {note['error']}", markup=False
            )


@app.command()
def verify(run_dir: RunDir = RunDirDefault, quiet: QuietOption = False) -> None:
    """Check every finished shard against its checksum; damaged ones are named, and made again by the next run.

    A run that cannot be written, such as an archived one, is checked too.
    """
    from digs_survey.run.verify import finished_rows, verify_run

    check_reachable(run_dir)
    archived = exists(run_dir) and not can_write(run_dir)
    total = finished_rows(run_dir)
    with ExitStack() as stack:
        if archived:
            progress = ProgressReporter(quiet=quiet)
        else:
            progress = stack.enter_context(survey_at(run_dir, None, None, quiet)).progress
        damaged = verify_run(run_dir, stack.enter_context(progress.task("verify", total, "rows")), mark=not archived)
    for damage in damaged:
        print(damage)
    if damaged and archived:
        raise StageError(
            f"{run_dir}: {len(damaged)} damaged shard(s); they are not marked, since the run cannot be written: mend a "
            "copy of it with 'digs-survey verify' and the command that made them"
        )
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
    from digs_survey.run.opened_run import open_run

    found = open_run(run_dir).replay(galaxy_id)
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

    from digs_survey.cli.doctor import run_checks

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
