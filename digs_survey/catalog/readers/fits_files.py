"""FITS files as readers need them: what is missing, or ends too early, is said in a sentence."""

from __future__ import annotations

import gzip
import io
import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from digs_survey.catalog.readers.reading import Unusable
from digs_survey.store.locations import is_remote

__all__ = ["Table", "find_hdu", "image", "middle_plane", "open_fits", "table"]

_TRUNCATED = re.compile(
    "truncated|Error validating header|file size|buffer is (too small|smaller)|cannot reshape|Compressed file ended",
    re.I,
)
_SPOOL_BYTES = 2**26
"""Of a gzipped file that is unpacked in memory; a larger one goes to a temporary file."""
_BLOCK = 2880
_MOST = 999
_SCALED = {"BZERO", "BSCALE", "BLANK"}
_STRUCTURE = re.compile(rb"BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS")


@contextmanager
def open_fits(path: Path, *, memmap: bool = False) -> Iterator[fits.HDUList]:
    """Open a FITS file, gzipped or not; only the HDUs that are used are read.

    Parameters
    ----------
    path : Path
    memmap : bool
        Read only the rows of tables that are used, where the file is one of this machine and is not packed.

    Raises
    ------
    Unusable
        It is no FITS file, or it ends too early.
    """
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="(?s).*(truncated|Error validating header)")
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            if packed:
                # HDUs are looked up in any order, and a gzipped file can only be read from its beginning.
                plain = stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOL_BYTES))
                shutil.copyfileobj(gzip.GzipFile(fileobj=file), plain, 2**20)
                file = plain
            _check_headers(file)
            mapped = memmap and not packed and not is_remote(path)
            with fits.open(file, memmap=mapped, lazy_load_hdus=True) as hdus:
                yield hdus
        except (Warning, OSError, EOFError, ValueError, TypeError) as error:
            text = str(error)
            if _TRUNCATED.search(text):
                raise Unusable("the file ends too early, or is damaged; get it again") from error
            if "SIMPLE" in text or "Empty or corrupt" in text:
                raise Unusable("no FITS file") from error
            raise


def _check_headers(file: Any) -> None:
    """Raise :class:`Unusable` for dimensions and columns beyond FITS's limit, through which astropy would count.

    The file is back at its beginning then. Other faults are left to astropy.
    """
    size, at = file.seek(0, io.SEEK_END), 0
    file.seek(0)
    while at < size and (at or file.read(6) == b"SIMPLE"):
        file.seek(at)
        cards: dict[bytes, bytes] = {}
        while b"END" not in cards:
            block = file.read(_BLOCK)
            at += _BLOCK
            if len(block) < _BLOCK:
                break
            for start in range(0, _BLOCK, 80):
                key = block[start : start + 8].rstrip()
                if key == b"END" or _STRUCTURE.fullmatch(key):
                    cards[key] = block[start + 10 : start + 80].partition(b"/")[0].strip()
        cards.pop(b"END", None)
        if odd := [key for key, value in cards.items() if not re.fullmatch(rb"[+-]?\d+", value)]:
            raise Unusable(f"the header is damaged: {odd[0].decode()}: expected an integer")
        counts = {key.decode(): int(value) for key, value in cards.items()}
        for key in ("NAXIS", "TFIELDS"):
            if not 0 <= counts.get(key, 0) <= _MOST:
                raise Unusable(f"the header is damaged: {key}: expected 0 to {_MOST}, found {counts[key]}")
        axes = [counts.get(f"NAXIS{number}", 0) for number in range(1, counts.get("NAXIS", 0) + 1)]
        values = counts.get("PCOUNT", 0) + (math.prod(axes) if axes else 0)
        data = abs(counts.get("BITPIX", 8)) // 8 * counts.get("GCOUNT", 1) * values
        at += -(-max(0, data) // _BLOCK) * _BLOCK
    file.seek(0)


class Table:
    """A table of a FITS file, whose columns are looked up without regard to case."""

    def __init__(self, hdu: Any, name: str) -> None:
        self.name, self.header = name, hdu.header
        self.data = hdu.data
        self._names = {column.upper(): column for column in hdu.columns.names}
        self._units = {column.name.upper(): column.unit for column in hdu.columns}
        self.names = tuple(hdu.columns.names)
        self.rows = 0 if self.data is None else len(self.data)

    def has(self, name: str) -> bool:
        """Tell whether there is a column."""
        return name.upper() in self._names

    def first(self, *names: str) -> str | None:
        """Return the first of the names that is a column with one value a row."""
        return next((n for n in names if self.has(n) and self.data[self._names[n.upper()]].ndim == 1), None)

    def unit(self, name: str) -> str | None:
        """Return the unit of a column, None where the file gives none."""
        return self._units[name.upper()] or None

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column as :meth:`read` does."""
        return self.read(name)

    def read(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Return a column as a plain array (rows, ...) in this machine's byte order; text without trailing blanks."""
        if not self.has(name):
            raise Unusable(f"{self.name}: expected a column {name}, found none")
        values = np.asarray(self.data[self._names[name.upper()]][rows])
        if values.dtype.kind in "SU":
            return np.char.rstrip(values.astype(str) if values.dtype.kind == "U" else np.char.decode(values, "latin-1"))
        if values.dtype == object:
            return values
        return np.array(values, dtype=values.dtype.newbyteorder("="))

    def needs(self, *names: str) -> None:
        """Raise :class:`Unusable` that lists the columns that are missing."""
        if missing := [name for name in names if not self.has(name)]:
            raise Unusable(f"{self.name}: expected the columns {', '.join(names)}, found no {', '.join(missing)}")


def table(hdus: fits.HDUList, which: str | int) -> Table:
    """Return a table by the name or number of its HDU."""
    hdu = find_hdu(hdus, which)
    if not hasattr(hdu, "columns"):
        raise Unusable(f"HDU {which}: expected a table, found an image")
    return Table(hdu, f"HDU {which}")


def image(
    hdus: fits.HDUList, which: str | int, ndim: int | None = None, rows: slice | None = None, *, copy: bool = True
) -> NDArray[Any]:
    """Return the values of an image, or of some of its rows.

    They are in this machine's byte order, or without ``copy`` as they are in the file.
    """
    hdu = find_hdu(hdus, which)
    if hasattr(hdu, "columns") or not hdu.shape:
        raise Unusable(f"HDU {which}: expected an image, found {'a table' if hasattr(hdu, 'columns') else 'no data'}")
    # Scaled values cannot be mapped as a whole.
    whole = rows is None or len(hdu.shape) < 2
    scaled = bool(_SCALED & set(hdu.header))
    values = np.asarray(hdu.data if whole and not scaled else hdu.section[slice(None) if whole else rows])
    if ndim is not None and values.ndim != ndim:
        raise Unusable(f"HDU {which}: expected {ndim} dimension(s), found shape {values.shape}")
    return np.array(values, dtype=values.dtype.newbyteorder("=")) if copy else values


def middle_plane(hdus: fits.HDUList, which: str | int) -> NDArray[Any]:
    """Return ``cube[:, middle, :]`` of an image with three dimensions; the rest of it is not read.

    Rows are read one by one, which for plain files takes a sixth of the time of astropy's sections.
    """
    hdu = find_hdu(hdus, which)
    shape = tuple(hdu.shape or ())
    if hasattr(hdu, "columns") or len(shape) != 3:
        raise Unusable(f"HDU {which}: expected an image of 3 dimensions, found shape {shape}")
    rows, planes, pixels = shape
    at = hdu.fileinfo() if type(hdu) is fits.ImageHDU and not _SCALED & set(hdu.header) else None
    if at is None or hdu.header["BITPIX"] != -32:
        return np.asarray(hdu.section[:, planes // 2, :])
    found = np.empty((rows, pixels), dtype=np.float32)
    for row in range(rows):
        at["file"].seek(at["datLoc"] + 4 * pixels * (row * planes + planes // 2))
        data = at["file"].read(4 * pixels)
        if len(data) < 4 * pixels:
            raise Unusable("the file ends too early, or is damaged; get it again")
        found[row] = np.frombuffer(data, dtype=">f4")
    return found


def find_hdu(hdus: fits.HDUList, which: str | int) -> Any:
    """Return an HDU by name or number; :class:`Unusable` if there is none."""
    try:
        return hdus[which]
    except (KeyError, IndexError):
        known = ", ".join(hdu.name or str(i) for i, hdu in enumerate(hdus))
        raise Unusable(f"expected an HDU {which}, found {known}") from None
