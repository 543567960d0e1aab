"""FITS binary tables, streamed."""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from digs_survey.errors import DigsError
from digs_survey.results.export.records import (
    ROWS,
    WIDER,
    IntegerExtent,
    StoredAs,
    TextExtent,
    integer_extents,
    logical,
    pack,
    text_extents,
)
from digs_survey.results.export.source import Column, StoredTable
from digs_survey.results.export.units import as_astropy, as_fits, described

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["write_fits"]


def write_fits(source: StoredTable, target: Path) -> None:
    """Write the table as the extension PERCENTILES, with TUNITn, TCOMMn and TUCDn.

    A unit that FITS cannot spell, such as ``dex(solMass)``, stands at the end of TCOMMn in brackets.
    A missing float is NaN, a missing integer the value of TNULLn, a missing string is empty.
    """
    from astropy.io import fits

    texts, integers = text_extents(source), integer_extents(source)
    for column in source.columns:
        if not column.name.isascii() or (column.is_text and not texts[column.name].ascii):
            raise DigsError(f"export: column {column.name!r} has letters that FITS cannot hold; use ecsv or votable")
    dtypes = {column.name: _stored_dtype(column, texts, integers) for column in source.columns}
    nulls = {name: _null(name, extent, dtypes[name]) for name, extent in integers.items() if extent.nulls}
    layout = {column.name: _stored_as(column, dtypes[column.name], nulls) for column in source.columns}
    with fits.StreamingHDU(target, _header(source, dtypes, nulls)) as stream:
        for batch in source.batches(ROWS):
            stream.write(pack(batch, layout).view(np.uint8))


def _stored_dtype(column: Column, texts: dict[str, TextExtent], integers: dict[str, IntegerExtent]) -> np.dtype[Any]:
    if column.is_text:
        # a width of 0 is allowed, but not every reader knows it
        return np.dtype(f"S{max(1, texts[column.name].width)}")
    dtype = np.dtype(column.dtype)
    if dtype == np.int8 or (dtype.kind == "u" and integers[column.name].nulls):
        # astropy takes int8 for a boolean, and TNULLn of an unsigned integer (TZEROn) for another value than it is
        return np.dtype(WIDER.get(dtype.str[1:], dtype.str))
    return dtype


def _header(source: StoredTable, dtypes: dict[str, np.dtype[Any]], nulls: dict[str, int]) -> Header:
    """Return the header that astropy writes for a table without rows, and what it leaves out."""
    from astropy.io import fits
    from astropy.table import Column as AstropyColumn
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    empty, spelled = Table(), {column.name: as_fits(column.unit) for column in source.columns if column.unit}
    for column in source.columns:
        text = described(column.description, column.unit, spelled.get(column.name))
        empty[column.name] = AstropyColumn(
            np.empty(0, dtypes[column.name]), unit=as_astropy(column.unit), description=text or None
        )
    written = io.BytesIO()
    with warnings.catch_warnings():
        # Units that FITS does not define: astropy keeps them in comments of its own.
        warnings.simplefilter("ignore", AstropyWarning)
        empty.write(written, format="fits")
    with fits.open(io.BytesIO(written.getvalue())) as hdus:
        header = hdus[1].header.copy()
    header["NAXIS2"] = source.n_rows
    header["EXTNAME"] = "PERCENTILES"
    for i, column in enumerate(source.columns, start=1):
        header.remove(f"TUNIT{i}", ignore_missing=True)
        place = f"TFORM{i}"
        for keyword, value in (
            ("TUNIT", spelled.get(column.name)),
            ("TCOMM", described(column.description, column.unit, spelled.get(column.name))),
            ("TUCD", column.ucd),
        ):
            if value:
                header.set(f"{keyword}{i}", value.encode("ascii", "replace").decode(), after=place)
                place = f"{keyword}{i}"
        if column.name in nulls:
            header.set(f"TNULL{i}", nulls[column.name], after=place)
    return header


def _stored_as(column: Column, dtype: np.dtype[Any], nulls: dict[str, int]) -> StoredAs:
    if column.is_text:
        return StoredAs(dtype.str, partial(_text, dtype=dtype))
    if dtype.kind == "b":
        return StoredAs("u1", partial(logical, null=b"\0"))
    if dtype.kind == "f":
        return StoredAs(f">f{dtype.itemsize}", _floats)
    kind = "u" if dtype == np.uint8 else "i"
    return StoredAs(f">{kind}{dtype.itemsize}", partial(_integers, dtype=dtype, null=nulls.get(column.name, 0)))


def _null(name: str, extent: IntegerExtent, dtype: np.dtype[Any]) -> int:
    """Return a value that no row has."""
    bounds = np.iinfo(dtype)
    for value, free in ((bounds.min, extent.low > bounds.min), (bounds.max, extent.high < bounds.max)):
        if free:
            return int(value)
    raise DigsError(
        f"export: column {name!r} has nulls, and values from {bounds.min} to {bounds.max}: none is left "
        "to mark a null in FITS; use ecsv or votable"
    )


def _text(values: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[np.bytes_]:
    return np.array(values.fill_null("").to_pylist(), dtype=dtype)


def _floats(values: pa.ChunkedArray) -> NDArray[Any]:
    return values.fill_null(float("nan")).to_numpy()


def _integers(values: pa.ChunkedArray, dtype: np.dtype[Any], null: int) -> NDArray[Any]:
    found = values.cast(pa.from_numpy_dtype(dtype)).fill_null(null).to_numpy()
    if dtype.kind == "i" or dtype == np.uint8:
        return found
    # stored less half their range (TZEROn): that is to flip the highest bit
    return (found ^ dtype.type(1 << (8 * dtype.itemsize - 1))).view(f"i{dtype.itemsize}")
