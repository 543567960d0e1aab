"""Commands that ask a finished run what it says under another prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from digs_survey.store.locations import check_reachable, location

__all__ = ["prior_app"]

prior_app = typer.Typer()

RunArgument = Annotated[Path, typer.Argument(help="The run directory.", show_default=False, parser=location)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


@prior_app.command()
def reprior(
    run_dir: RunArgument,
    prior: Annotated[
        Path,
        typer.Option(
            "--prior", help="TOML file with the new priors, in the section model.parameters.", parser=location
        ),
    ],
    min_ess: Annotated[
        float, typer.Option("--min-ess", min=1.0, help="Effective draws below which a row has no percentiles.")
    ] = 50.0,
    out: Annotated[
        Path, typer.Option("--output", help="File to write; its ending chooses the format.", parser=location)
    ] = Path("reprior.parquet"),
    overwrite: OverwriteOption = False,
) -> None:
    """Write the table of a finished run under another prior, by weighing the draws that its map kept."""
    from digs_survey.run.opened_run import open_run

    run = open_run(run_dir)
    check_reachable(out)
    counts = run.reprior(prior, out, min_ess=min_ess, overwrite=overwrite)
    typer.echo(str(counts), err=True)
    print(out)


@prior_app.command()
def population(
    run_dir: RunArgument,
    parameter: Annotated[str, typer.Option("--parameter", help="Such as logzsol.", show_default=False)],
    bins: Annotated[
        str, typer.Option("--bins", help="Number of bins between the ends of the run's prior, or edges: -2,-1,0.2.")
    ] = "10",
    out: Annotated[
        Path,
        typer.Option("--output", help="To write, .csv, .json or .parquet; a .png lies beside it.", parser=location),
    ] = Path("population.csv"),
    overwrite: OverwriteOption = False,
) -> None:
    """Find the survey's own distribution of a parameter, freed of each row's errors and of the prior."""
    from digs_survey.run.opened_run import open_run

    run = open_run(run_dir)
    check_reachable(out)
    found = run.population(parameter, out, bins=bins, overwrite=overwrite)
    typer.echo(str(found), err=True)
    print(out)
    print(out.with_suffix(".png"))
