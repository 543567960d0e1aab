"""Tables in many formats as one: columns with units, metadata, and rows in batches."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.fits_files import Table, image, open_fits, table
from digs_survey.catalog.readers.reading import Unusable

__all__ = ["ENDINGS", "Source", "sources"]

_BATCH_ROWS = 256
_HDF5 = (".h5", ".hdf5", ".he5")
_PARQUET = (".parquet", ".pq")
_FITS = (".fits", ".fit", ".fts")
_TEXT = (".ecsv", ".csv", ".txt", ".dat")
ENDINGS = (*_FITS, *_TEXT, *_HDF5, *_PARQUET)
"""Of the files that can be read; FITS and text may be gzipped."""


@dataclass(frozen=True)
class Source:
    """Some rows of a table.

    Attributes
    ----------
    read : callable
        Returns a column by name, as an array or, where rows differ in length, as an array of arrays.
    unit : callable
        Returns the unit of a column that the file gives, or None.
    header : mapping
    names : sequence of str
        The columns.
    first : int
        Number of the first row in the file.
    several : bool
        Whether the file has other rows than these.
    """

    read: Callable[[Any], NDArray[Any]]
    unit: Callable[[Any], str | None]
    header: Mapping[str, Any]
    names: Sequence[str] = ()
    first: int = 0
    several: bool = False


@contextmanager
def sources(
    path: Path, hdu: int | str | None, layout: str, flux: int | str | None = None
) -> Iterator[Iterator[Source]]:
    """Open a file by its ending: FITS, ECSV, CSV, HDF5 or Parquet.

    Parameters
    ----------
    path : Path
    hdu : int or str, optional
        HDU of a FITS table, or group of an HDF5 file.
    layout : {"pixels", "arrays", "image"}
        Rows that are spectra come in batches, others at once.
    flux : int or str, optional
        The image, or the HDF5 dataset with a row for each spectrum.

    Raises
    ------
    Unusable
    """
    plain = path.name.removesuffix(".gz")
    ending = f".{plain.rpartition('.')[2].lower()}"
    if ending in _FITS:
        with open_fits(path, memmap=True) as hdus:
            if layout == "image":
                yield _images(hdus, 0 if flux is None else flux)
            else:
                found = table(hdus, 1 if hdu is None else hdu)
                yield _fits(found, dict(hdus[0].header), found.rows if layout == "pixels" else _BATCH_ROWS)
    elif layout == "image":
        raise Unusable(f"expected a FITS file for layout = 'image', found {path.name}")
    elif ending in _TEXT:
        yield iter([_text(path, ending)])
    elif plain != path.name and ending in ENDINGS:
        raise Unusable(f"expected {plain}, found it gzipped: unpack it first")
    elif ending in _HDF5:
        import h5py

        with path.open("rb") as file, h5py.File(file, "r") as opened:
            group = opened if hdu is None else _member(opened, str(hdu))
            yield _hdf5(group, None if layout == "pixels" or flux is None else str(flux))
    elif ending in _PARQUET:
        import pyarrow.parquet

        with path.open("rb") as file:
            yield _parquet(pyarrow.parquet.ParquetFile(file), all_at_once=layout == "pixels")
    else:
        raise Unusable(f"expected a file that ends in {', '.join(ENDINGS)}, found {path.name}")


def stacked(values: NDArray[Any]) -> NDArray[Any]:
    """Return arrays of one length as one array (row, ...); others, and what is no array of arrays, as they are."""
    if values.dtype != object or not values.size or not all(isinstance(row, np.ndarray) for row in values):
        return values
    return np.stack(list(values)) if len({row.shape for row in values}) == 1 else values


def _fits(found: Table, primary: Mapping[str, Any], batch: int) -> Iterator[Source]:
    header = {**primary, **dict(found.header)}

    def unit(name: str) -> str | None:
        return found.unit(name) if found.has(name) else None

    for first in range(0, max(1, found.rows), max(1, batch)):

        def read(name: str, rows: slice = slice(first, first + batch)) -> NDArray[Any]:
            return stacked(found.read(name, rows))

        yield Source(read, unit, header, found.names, first, found.rows > batch)


def _images(hdus: Any, flux: int | str) -> Iterator[Source]:
    """Yield rows of images: their header is that of the flux, and of the first HDU where that lacks a card."""
    shape = image(hdus, flux, rows=slice(0, 1)).shape
    spectra = hdus[flux].shape[0] if len(shape) == 2 else 1
    header = {**dict(hdus[0].header), **dict(hdus[flux].header)}

    def unit(name: int | str) -> str | None:
        return hdus[name].header.get("BUNIT") or None

    for first in range(0, spectra, _BATCH_ROWS):

        def read(name: int | str, rows: slice = slice(first, first + _BATCH_ROWS)) -> NDArray[Any]:
            return image(hdus, name, rows=rows if spectra > 1 else None)

        yield Source(read, unit, header, (), first, spectra > _BATCH_ROWS)


def _text(path: Path, ending: str) -> Source:
    from astropy.io import ascii as text

    formats = {".ecsv": "ecsv", ".csv": "csv"}
    data = path.read_bytes()
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    # Lines, since astropy takes a text of one line for the name of a file.
    lines = plain.decode("utf-8-sig").splitlines()
    with warnings.catch_warnings():
        # Of numbers beyond float64, which become infinite, and of files without rows.
        warnings.simplefilter("ignore")
        found = text.read(lines, **({"format": formats[ending]} if ending in formats else {}))

    def read(name: str) -> NDArray[Any]:
        if name not in found.colnames:
            raise Unusable(f"expected a column {name}, found {', '.join(found.colnames)}")
        column = found[name]
        values: Any = np.ma.asarray(getattr(column, "value", column))
        if values.dtype.kind in "iuf" and np.ma.is_masked(values):
            return values.astype(float).filled(np.nan)
        return np.asarray(values.filled() if values.dtype.kind != "O" else values.data)

    def unit(name: str) -> str | None:
        return str(found[name].unit) if name in found.colnames and found[name].unit is not None else None

    return Source(read, unit, dict(found.meta), found.colnames)


def _member(opened: Any, name: str) -> Any:
    if name not in opened:
        raise Unusable(f"expected {name} in the HDF5 file, found {', '.join(opened)}")
    return opened[name]


def _hdf5(group: Any, flux: str | None) -> Iterator[Source]:
    """Yield rows of datasets; one that has another length than the flux, or one dimension of several, is read whole."""
    total = 1 if flux is None else _member(group, flux).shape[0]

    def unit(name: str) -> str | None:
        attrs = _member(group, name).attrs
        found = attrs.get("units", attrs.get("unit"))
        return found.decode() if isinstance(found, bytes) else None if found is None else str(found)

    for first in range(0, max(1, total), _BATCH_ROWS):

        def read(name: str, first: int = first) -> NDArray[Any]:
            member = _member(group, name)
            here = slice(first, first + _BATCH_ROWS) if flux is not None and member.shape[:1] == (total,) else ()
            values = np.asarray(member[here])
            if values.dtype.kind == "S":
                return np.char.decode(values, "utf-8")
            return np.asarray(member.asstr()[here]).astype(str) if values.dtype.kind == "O" else values

        yield Source(read, unit, dict(group.attrs), tuple(group), first, total > _BATCH_ROWS)


def _parquet(opened: Any, all_at_once: bool) -> Iterator[Source]:
    first = 0
    schema = opened.schema_arrow
    header = {key.decode(): value.decode("utf-8", "replace") for key, value in (schema.metadata or {}).items()}
    total = opened.metadata.num_rows

    def unit(name: str) -> str | None:
        metadata = schema.field(name).metadata if name in schema.names else None
        return (metadata or {}).get(b"unit", (metadata or {}).get(b"units", b"")).decode() or None

    for batch in opened.iter_batches(max(1, total) if all_at_once else _BATCH_ROWS):

        def read(name: str, batch: Any = batch) -> NDArray[Any]:
            if name not in batch.schema.names:
                raise Unusable(f"expected a column {name}, found {', '.join(batch.schema.names)}")
            return stacked(batch[name].to_numpy(zero_copy_only=False))

        yield Source(read, unit, header, schema.names, first, total > _BATCH_ROWS)
        first += batch.num_rows
