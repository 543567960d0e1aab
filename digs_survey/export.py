"""The result table in the formats of the field: FITS, ECSV, VOTable, CSV, Parquet.

Units and descriptions are read from the metadata of the Parquet file's columns (keys ``unit`` and
``description``) and kept in TUNITn and TCOMMn of FITS, and in the headers of ECSV and VOTable. CSV has no
place for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digs_survey.errors import DigsError
from digs_survey.locations import exists, is_file, location
from digs_survey.storage import new_file, read_bytes

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["FORMATS", "export_table"]


def export_table(percentiles_parquet: Path | str, out: Path | str, format: str, *, overwrite: bool = False) -> Path:
    """Write the result table in another format; the file appears complete or not at all.

    Parameters
    ----------
    percentiles_parquet : path-like
        ``percentiles.parquet`` of a run directory.
    out : path-like
        The file to write.
    format : str
        One of :data:`FORMATS`.
    overwrite : bool
        Whether a file that is already there may be replaced.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    DigsError
        No such table, an unknown format, a file in the way, or a column that the format cannot hold.
    """
    source, target = location(percentiles_parquet), location(out)
    if format not in FORMATS:
        raise DigsError(f"export: expected a format out of {', '.join(FORMATS)}, found {format!r}")
    if not is_file(source):
        raise DigsError(f"export: {source}: no such table; `digs-survey map` or `run` makes it")
    if exists(target) and not overwrite:
        raise DigsError(f"export: {target} exists already; name another file or ask to overwrite it")
    if target.is_dir():
        raise DigsError(f"export: {target} is a folder; expected a file")
    with new_file(target) as building:
        FORMATS[format](source, building)
    return target


def _read(source: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from astropy.table import Column, MaskedColumn, Table
    from astropy.units import Unit

    try:
        arrow = pq.read_table(pa.BufferReader(read_bytes(source)))
    except (OSError, pa.ArrowInvalid) as error:
        message = f"export: {source}: expected a Parquet table, but it cannot be read ({error})"
        raise DigsError(message) from error
    table = Table()
    for field, column in zip(arrow.schema, arrow.columns, strict=True):
        metadata = field.metadata or {}
        unit = metadata.get(b"unit", b"").decode()
        described = {
            # a survey's own unit that astropy does not know is kept as it stands
            "unit": Unit(unit, parse_strict="silent") if unit else None,
            "description": metadata.get(b"description", b"").decode() or None,
        }
        values = _values(field.name, column)
        if column.null_count:
            table[field.name] = MaskedColumn(values, mask=column.is_null().to_numpy(), **described)
        else:
            table[field.name] = Column(values, **described)
    return table


def _values(name: str, column: Any) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.fill_null("").to_pylist(), dtype=str)
    if pa.types.is_floating(kind):
        return column.to_numpy()
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.fill_null(0 if pa.types.is_integer(kind) else False).to_numpy()
    raise DigsError(f"export: column {name!r}: expected numbers or strings, found {kind}; use parquet")


def _write_fits(source: Path, target: Path) -> None:
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    table = _read(source)
    for column in table.itercols():
        if column.dtype.kind == "U" and not all(text.isascii() for text in np.asarray(column).tolist()):
            name = column.name
            raise DigsError(f"export: column {name!r} has letters that FITS cannot hold; use ecsv or votable")
    with warnings.catch_warnings():
        # units that FITS does not define, such as dex(solMass), are left out with a warning: set below
        warnings.simplefilter("ignore", AstropyWarning)
        table.write(target, format="fits", overwrite=True)
    with fits.open(target, mode="update") as hdus:
        header = hdus[1].header
        header["EXTNAME"] = "PERCENTILES"
        for i, column in enumerate(table.itercols(), start=1):
            if column.unit is not None:
                header.set(f"TUNIT{i}", column.unit.to_string(), after=f"TFORM{i}")
            if column.description:
                description = column.description.encode("ascii", "replace").decode()
                header.set(f"TCOMM{i}", description, after=f"TFORM{i}")


def _write_ecsv(source: Path, target: Path) -> None:
    _read(source).write(target, format="ascii.ecsv", overwrite=True)


def _write_votable(source: Path, target: Path) -> None:
    from astropy.io.votable.exceptions import W50

    with warnings.catch_warnings():
        # VOUnits has no name for dex(solMass), which every reader still shows as it stands
        warnings.simplefilter("ignore", W50)
        _read(source).write(target, format="votable", overwrite=True)


def _write_csv(source: Path, target: Path) -> None:
    _read(source).write(target, format="ascii.csv", overwrite=True)


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(read_bytes(source))


FORMATS: dict[str, Callable[[Path, Path], None]] = {
    "fits": _write_fits,
    "ecsv": _write_ecsv,
    "votable": _write_votable,
    "csv": _write_csv,
    "parquet": _copy,
}
"""Name of each format and what writes it."""
