"""The report of a run: one self-contained page, with no script and nothing to fetch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digs_survey.store.storage import write_text

if TYPE_CHECKING:
    from digs_survey.report.figures.style import Picture

__all__ = ["write_report"]


def write_report(run_dir: Path, *, figures: bool = False, out: Path | None = None) -> Path:
    """Write ``report.html`` into a run directory, or elsewhere, and return its path.

    What the run has not made is named on the page as missing. The same files give the same bytes.

    Parameters
    ----------
    run_dir : Path
        A run directory with at least ``manifest.json`` and ``config.toml``.
    figures : bool
        Write every figure to ``figures/`` as well: PDF, PNG, and what is drawn as CSV.
    out : Path, optional
        Folder for page and figures; by default the run directory.

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
    from digs_survey.report.domain_section import inside_headline, inside_section
    from digs_survey.report.figures.figure_files import save_picture
    from digs_survey.report.figures.style import style
    from digs_survey.report.format import FILTERS
    from digs_survey.report.headline import coverage_limits, headlines
    from digs_survey.report.load import load_run
    from digs_survey.report.row_agreement import row_agreement_section, with_agreement
    from digs_survey.report.sensitivity_section import sensitivity_section

    folder = out or run_dir
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
        parts: dict[str, Any] = {
            "calibration": sections.calibration_section(run),
            "agreement": sections.agreement_section(run),
            "row_agreement": row_agreement_section(run),
            "inside": inside_section(run),
            "learning": sections.learning_section(run),
            "cost": sections.cost_section(run),
            "catalog": sections.catalog_section(run),
            "cards": galaxies.galaxy_cards(run),
        }
        *first, flagged = headlines(run)
        page = environment.get_template("report.html.j2").render(
            run=run,
            facts=sections.facts(run),
            headlines=[*first, with_agreement(flagged, parts["row_agreement"]), inside_headline(run)],
            limits=coverage_limits((run.audit.get("calibration") or {}).get("simulations") or 0),
            galaxies=galaxies.galaxy_rows(run),
            importance=sections.importance_section(run),
            sensitivity=sensitivity_section(run),
            **parts,
        )
        if figures:
            for name, picture in _pictures(parts, ""):
                save_picture(folder / "figures", name, picture)
    path = folder / "report.html"
    write_text(path, page)
    return path


def _pictures(part: Any, name: str) -> Iterator[tuple[str, Picture]]:
    """Find the pictures in what the page is made from, and name each after its place: ``calibration-ranks-1``."""
    from digs_survey.report.figures.style import Picture

    if isinstance(part, Picture):
        yield name, part
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _pictures(value, f"{name}-{key}".lstrip("-"))
    elif isinstance(part, list):
        for number, value in enumerate(part, 1):
            yield from _pictures(value, f"{name}-{number}")
    elif is_dataclass(part):
        for field in fields(part):
            yield from _pictures(getattr(part, field.name), f"{name}-{field.name}")
