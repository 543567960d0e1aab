"""What a reader is: a function of a file that yields spectra, and what it leaves out with the reason."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io.fits import VerifyError

from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.errors import CatalogError, DigsError
from digs_survey.store.locations import is_file, store_errors

__all__ = ["DAMAGE", "LeftOut", "Reader", "Unusable", "by_reason", "read_file", "usable_rows"]

DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError, EOFError),
    *(AssertionError, VerifyError, struct.error, zlib.error),
)
"""What astropy, pyarrow, h5py and numpy raise on bytes that are not what a file's name or header says."""


class Unusable(CatalogError):
    """A file, or some rows of it, cannot become spectra; the message says why."""


@dataclass(frozen=True)
class LeftOut:
    """Rows of a file that get no row in the catalog.

    Attributes
    ----------
    reason : str
    rows : int
        How many; 1 for a file that cannot be read.
    file : str
        Path of the file; :func:`read_file` fills it.
    fault : bool
        Whether something is wrong with the rows. Rows that a reader passes over, such as those of sky fibres, are none.
    """

    reason: str
    rows: int = 1
    file: str = ""
    fault: bool = True


Reader = Callable[[Path], Iterator[Spectra | LeftOut]]
"""Yields the spectra of a file, some hundred at a time, and the rows that it leaves out.

It raises :class:`Unusable`, or what its libraries raise, if it cannot go on with the file.
"""


def read_file(reader: Reader, path: Path) -> Iterator[Spectra | LeftOut]:
    """Yield what a reader yields, and the reason where it stops before the end of a file."""

    def left_out(reason: str) -> LeftOut:
        return LeftOut(" ".join(reason.split()), file=str(path))

    try:
        if not is_file(path):
            yield left_out("no such file")
            return
        for found in reader(path):
            if isinstance(found, LeftOut):
                yield LeftOut(found.reason, found.rows, str(path), found.fault)
            else:
                yield from usable_rows(found, str(path))
    except DigsError as error:
        yield left_out(str(error))
    except (*DAMAGE, *store_errors()) as error:
        yield left_out(f"cannot be read: {type(error).__name__}: {str(error)[:300] or 'no message'}")


def usable_rows(spectra: Spectra, path: str) -> Iterator[Spectra | LeftOut]:
    """Yield the rows that have a positive redshift and a good pixel, and the reasons of those that have not."""
    with np.errstate(invalid="ignore"):
        placed = np.isfinite(spectra.redshift) & (spectra.redshift > 0)
    seen = spectra.good.any(axis=1)
    if (~placed).any():
        shown = ", ".join(f"{z:g}" for z in spectra.redshift[~placed][:3])
        yield LeftOut(f"no positive redshift (such as {shown})", int((~placed).sum()), path)
    if (placed & ~seen).any():
        reason = "no usable pixel: none has finite flux, a positive inverse variance and no mask"
        yield LeftOut(reason, int((placed & ~seen).sum()), path)
    keep = np.flatnonzero(placed & seen)
    if keep.size:
        yield spectra if keep.size == len(spectra) else spectra.take(keep)


def by_reason(left_out: list[LeftOut], limit: int = 10) -> list[str]:
    """Describe what was left out, one line a reason, with at most ``limit`` files each."""
    found: dict[str, dict[str, int]] = {}
    for item in left_out:
        files = found.setdefault(item.reason, {})
        files[item.file] = files.get(item.file, 0) + item.rows
    lines = []
    for reason, files in found.items():
        shown = ", ".join(f"{Path(file).name} ({rows})" for file, rows in list(files.items())[:limit])
        more = f" and {len(files) - limit} more files" if len(files) > limit else ""
        lines.append(f"{sum(files.values())} left out: {reason}: {shown}{more}")
    return lines
