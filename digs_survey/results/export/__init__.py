"""The result table in the formats of the field: FITS, ECSV, VOTable, CSV, Parquet.

Units and descriptions are read from the metadata of the table's columns (keys ``unit`` and ``description``) and
kept in TUNITn and TCOMMn of FITS, and in the headers of ECSV and VOTable; FITS and VOTable have UCDs besides.
CSV has no place for them. Rows are streamed: memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from digs_survey.errors import DigsError
from digs_survey.results.export.binary import write_fits
from digs_survey.results.export.source import StoredTable
from digs_survey.results.export.tabular import write_csv, write_ecsv, write_parquet
from digs_survey.results.export.votable import write_votable
from digs_survey.store.locations import exists, location
from digs_survey.store.storage import new_file

__all__ = ["ENDINGS", "FORMATS", "StoredTable", "check_free", "chosen_format", "export_table"]

FORMATS: dict[str, Callable[[StoredTable, Path], None]] = {
    "fits": write_fits,
    "ecsv": write_ecsv,
    "votable": write_votable,
    "csv": write_csv,
    "parquet": write_parquet,
}
"""Name of each format and what writes it."""
ENDINGS = {
    ".fits": "fits",
    ".ecsv": "ecsv",
    ".vot": "votable",
    ".xml": "votable",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""Endings of files, and the format that each one means."""


def chosen_format(out: Path, table_format: str | None = None) -> str:
    """Return the format that is asked for, or else that of a file's ending; a DigsError if neither says one."""
    chosen = table_format or ENDINGS.get(out.suffix)
    if chosen is None:
        raise DigsError(f"{out.name}: expected an ending of {', '.join(ENDINGS)}, or table_format")
    return chosen


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder, and a file that is there and may not be replaced, as the place of a table."""
    if out.is_dir():
        raise DigsError(f"export: {out} is a folder; expected a file")
    if exists(out) and not overwrite:
        raise DigsError(f"export: {out} exists already; name another file or ask to overwrite it")


def export_table(
    percentiles_parquet: Path | str,
    out: Path | str,
    format: str,
    *,
    overwrite: bool = False,
    rows: int | None = None,
) -> Path:
    """Write the result table in another format; the file appears complete or not at all.

    Parameters
    ----------
    percentiles_parquet : path-like
        ``percentiles.parquet`` of a run directory: a folder of parts, or one Parquet file.
    out : path-like
        The file to write.
    format : str
        One of :data:`FORMATS`.
    overwrite : bool
        Whether a file that is already there may be replaced.
    rows : int, optional
        Rows that the table must have, as the run's manifest counts them.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    DigsError
        No such table, a part of it that is missing, damaged or unlike the others, an unknown format, a file in
        the way, or a column that the format cannot hold.
    """
    target = location(out)
    if format not in FORMATS:
        raise DigsError(f"export: expected a format out of {', '.join(FORMATS)}, found {format!r}")
    source = StoredTable(location(percentiles_parquet), rows)
    check_free(target, overwrite)
    with new_file(target) as building:
        FORMATS[format](source, building)
    return target
