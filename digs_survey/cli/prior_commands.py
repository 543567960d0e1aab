"""Commands that ask a finished run what it says under another prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from digs_survey.store.locations import check_reachable, location

__all__ = ["prior_app"]

prior_app = typer.Typer()


@prior_app.command()
def reprior(
    run_dir: Annotated[Path, typer.Argument(help="The run directory.", show_default=False, parser=location)],
    prior: Annotated[
        Path, typer.Option("--prior", help="TOML file with the new priors, in [model.parameters].", parser=location)
    ],
    min_ess: Annotated[
        float, typer.Option("--min-ess", min=1.0, help="Effective draws below which a row has no percentiles.")
    ] = 50.0,
    out: Annotated[
        Path, typer.Option("--output", help="File to write; its ending chooses the format.", parser=location)
    ] = Path("reprior.parquet"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Write the table of a finished run under another prior, by weighing the draws that its map kept."""
    from digs_survey.run.opened_run import open_run

    run = open_run(run_dir)
    check_reachable(out)
    counts = run.reprior(prior, out, min_ess=min_ess, overwrite=overwrite)
    typer.echo(str(counts), err=True)
    print(out)
