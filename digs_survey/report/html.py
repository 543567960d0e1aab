"""The report of a run: one self-contained page, with no script and nothing to fetch."""

from __future__ import annotations

from pathlib import Path

from digs_survey.storage import write_text

__all__ = ["write_report"]


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    What the run has not made is named on the page as missing. The same files give the same bytes.

    Parameters
    ----------
    run_dir : Path
        A run directory with at least ``manifest.json`` and ``config.toml``.

    Returns
    -------
    Path
        The page: HTML with its style and figures inside.

    Raises
    ------
    RunDirectoryError
        If the folder is not a run directory.
    """
    # Figures, tables and templates take a second to import; the command line should not wait for them.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from digs_survey.report import galaxies, sections
    from digs_survey.report.figures.style import style
    from digs_survey.report.format import FILTERS
    from digs_survey.report.headline import coverage_limits, headlines
    from digs_survey.report.load import load_run

    run = load_run(run_dir)
    environment = Environment(
        loader=PackageLoader("digs_survey.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    with style():
        page = environment.get_template("report.html.j2").render(
            run=run,
            facts=sections.facts(run),
            headlines=headlines(run),
            limits=coverage_limits((run.audit.get("calibration") or {}).get("simulations") or 0),
            galaxies=galaxies.galaxy_rows(run),
            cards=galaxies.galaxy_cards(run),
            calibration=sections.calibration_section(run),
            agreement=sections.agreement_section(run),
            importance=sections.importance_section(run),
            learning=sections.learning_section(run),
            cost=sections.cost_section(run),
            catalog=sections.catalog_section(run),
        )
    path = run_dir / "report.html"
    write_text(path, page)
    return path
