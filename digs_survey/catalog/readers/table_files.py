"""Tables in many formats as one: columns with units, metadata, and rows in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.fits_files import image, open_fits, table
from digs_survey.catalog.readers.reading import Unusable

__all__ = ["Source", "sources"]

_BATCH_ROWS = 256
_HDF5 = (".h5", ".hdf5", ".he5")
_PARQUET = (".parquet", ".pq")
_FITS = (".fits", ".fit", ".fts")


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
    first : int
        Number of the first row in the file.
    """

    read: Callable[[Any], NDArray[Any]]
    unit: Callable[[Any], str | None]
    header: Mapping[str, Any]
    first: int = 0


@contextmanager
def sources(path: Path, hdu: int | str | None, layout: str) -> Iterator[Iterator[Source]]:
    """Open a file by its ending: FITS, ECSV, CSV, HDF5 or Parquet."""
    ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    ending = f".{ending}"
    if ending in _FITS:
        with open_fits(path) as hdus:
            yield iter([_image(hdus) if layout == "image" else _fits(hdus, 1 if hdu is None else hdu)])
    elif layout == "image":
        raise Unusable(f"expected a FITS file for layout = 'image', found {path.name}")
    elif ending in _HDF5:
        import h5py

        with path.open("rb") as file, h5py.File(file, "r") as opened:
            yield iter([_hdf5(opened if hdu is None else _member(opened, str(hdu)))])
    elif ending in _PARQUET:
        import pyarrow.parquet

        with path.open("rb") as file:
            yield _parquet(pyarrow.parquet.ParquetFile(file))
    elif ending in (".ecsv", ".csv", ".txt", ".dat"):
        yield iter([_text(path, ending)])
    else:
        raise Unusable(f"expected .fits, .ecsv, .csv, .txt, .h5, .hdf5 or .parquet, found {path.name}")


def _fits(hdus: Any, hdu: int | str) -> Source:
    found = table(hdus, hdu)

    def unit(name: str) -> str | None:
        return found.unit(name) if found.has(name) else None

    return Source(found.__getitem__, unit, {**dict(hdus[0].header), **dict(found.header)})


def _image(hdus: Any) -> Source:
    return Source(lambda name: image(hdus, name), lambda name: hdus[name].header.get("BUNIT"), dict(hdus[0].header))


def _text(path: Path, ending: str) -> Source:
    from astropy.io import ascii as text

    formats = {".ecsv": "ecsv", ".csv": "csv"}
    # Lines, since astropy takes a text of one line for the name of a file.
    lines = path.read_text(encoding="utf-8-sig").splitlines()
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

    return Source(read, unit, dict(found.meta))


def _member(opened: Any, name: str) -> Any:
    if name not in opened:
        raise Unusable(f"expected {name} in the HDF5 file, found {', '.join(opened)}")
    return opened[name]


def _hdf5(group: Any) -> Source:
    def read(name: str) -> NDArray[Any]:
        values = np.asarray(_member(group, name)[()])
        return np.char.decode(values.astype("S"), "utf-8") if values.dtype.kind in "OS" else values

    def unit(name: str) -> str | None:
        attrs = _member(group, name).attrs
        found = attrs.get("units", attrs.get("unit"))
        return found.decode() if isinstance(found, bytes) else None if found is None else str(found)

    return Source(read, unit, dict(group.attrs))


def _parquet(opened: Any) -> Iterator[Source]:
    first = 0
    schema = opened.schema_arrow

    def unit(name: str) -> str | None:
        metadata = schema.field(name).metadata if name in schema.names else None
        return (metadata or {}).get(b"unit", (metadata or {}).get(b"units", b"")).decode() or None

    for batch in opened.iter_batches(_BATCH_ROWS):

        def read(name: str, batch: Any = batch) -> NDArray[Any]:
            if name not in batch.schema.names:
                raise Unusable(f"expected a column {name}, found {', '.join(batch.schema.names)}")
            return batch[name].to_numpy(zero_copy_only=False)

        header = {key.decode(): value.decode("utf-8", "replace") for key, value in (schema.metadata or {}).items()}
        yield Source(read, unit, header, first)
        first += batch.num_rows
