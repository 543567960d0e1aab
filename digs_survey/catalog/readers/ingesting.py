"""From spectra to a catalog: one grid for all rows, in memory that does not grow with them.

Spectra are brought to the elements of the catalog as they are read, and kept in files beside it. When all are read,
it is known how many rows there are and how far they reach, and the catalog is written shard by shard. The grid spans
what any row has. What a row lacks is masked.

An element that shares a pixel with its neighbour has a correlated error, which ``ivar`` does not show. Of elements that
are m pixels wide, the variance of a broad mean is therefore understated by at most a share of 1 / (2 m), and by none
where the elements are the pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from digs_survey.catalog.catalog import Catalog
from digs_survey.catalog.readers.assembling import Parts
from digs_survey.catalog.readers.elements import Elements
from digs_survey.catalog.readers.grid_choice import MAX_ELEMENTS, GridChoice, too_many
from digs_survey.catalog.readers.reading import LeftOut, Reader, by_reason, read_file, usable_rows
from digs_survey.catalog.readers.rebinning import rebinned
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.errors import CatalogError
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import is_remote, location

__all__ = ["IngestReport", "ingest", "write_spectra"]


@dataclass
class IngestReport:
    """What became of the files.

    Attributes
    ----------
    rows : int
        Rows of the catalog.
    left_out : list of LeftOut
    """

    rows: int = 0
    left_out: list[LeftOut] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Describe what was left out, one line a reason."""
        return by_reason(self.left_out)


def ingest(
    files: Sequence[Path | str],
    out: Path | str,
    reader: Reader,
    choice: GridChoice | None = None,
    *,
    source: str,
    strict: bool = False,
    attrs: dict[str, Any] | None = None,
    advance: Callable[[int], None] = lambda files: None,
) -> IngestReport:
    """Read files and write a catalog; a file that cannot be used costs its own rows only.

    Parameters
    ----------
    files : sequence of path-like
        Their order is that of the rows.
    out : path-like
        The catalog, which is replaced.
    reader : callable
        See :data:`~digs_survey.catalog.readers.reading.Reader`.
    source : str
        What the files are, for the catalog's attributes and for messages.
    strict : bool
        Stop at the first row with a fault.
    attrs : dict, optional
        More attributes of the catalog.
    advance : callable
        Called with 1 after each file.

    Raises
    ------
    CatalogError
        No row is left, or ``strict`` and a row has a fault.
    """

    def blocks() -> Iterator[tuple[str, Spectra | LeftOut]]:
        for path in map(location, files):
            for found in read_file(reader, path):
                yield str(path), found
            advance(1)

    return _ingest(blocks(), location(out), choice or GridChoice(), source, strict, attrs or {})


def write_spectra(
    out: Path | str, spectra: Spectra | Iterable[Spectra], *, strict: bool = True, **choice: Any
) -> Catalog:
    """Write a catalog of spectra in memory, or of any iterable of them, and open it.

    Parameters
    ----------
    out : path-like
        The catalog, which is replaced.
    spectra : Spectra or iterable of Spectra
    strict : bool
        Refuse rows without a positive redshift or a good pixel, and identifiers that come twice, instead of leaving
        them out.
    **choice
        ``step_angstrom``, ``start_angstrom``, ``stop_angstrom``, ``frame``, ``deredden`` and ``ebv`` of
        :class:`GridChoice`. Without a step the elements are the pixels of the first spectrum.

    Raises
    ------
    CatalogError
    """
    given = [spectra] if isinstance(spectra, Spectra) else spectra

    def blocks() -> Iterator[tuple[str, Spectra | LeftOut]]:
        for block in given:
            for found in usable_rows(block, "spectra in memory"):
                yield "", found

    out = location(out)
    _ingest(blocks(), out, GridChoice(**choice), "spectra in memory", strict, {})
    return Catalog.open(out)


def _ingest(
    blocks: Iterator[tuple[str, Spectra | LeftOut]],
    out: Path,
    choice: GridChoice,
    source: str,
    strict: bool,
    attrs: dict[str, Any],
) -> IngestReport:
    report = IngestReport()
    elements: Elements | None = None
    if not is_remote(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    nearby = None if is_remote(out) else out.parent

    def leave_out(left: list[LeftOut]) -> None:
        report.left_out += left
        if strict and (faults := [item for item in left if item.fault]):
            raise CatalogError(f"{out} is not written: rows cannot be used, and strict asks to stop", by_reason(faults))

    with tempfile.TemporaryDirectory(prefix=f".{out.name}-parts-", dir=nearby) as folder:
        parts = Parts(Path(folder))
        for file, found in blocks:
            if isinstance(found, LeftOut):
                leave_out([found])
                continue
            elements = elements or choice.elements(found)
            for made in rebinned(found, elements, choice):
                if isinstance(made, LeftOut):
                    leave_out([replace(made, file=file)])
                else:
                    parts.add(made, file)
        leave_out(parts.drop_duplicates())
        report.rows = parts.rows
        if elements is None or not report.rows:
            raise CatalogError(f"{source}: expected at least one spectrum that can be used, found none", report.lines())
        first, stop = parts.reach
        if stop - first > MAX_ELEMENTS:
            raise CatalogError(f"{source}: {too_many()}")
        grid = WavelengthGrid(elements.centres(first, max(stop, first + 2)), choice.frame, "vacuum")
        parts.write(out, grid, first, {**choice.attributes(source), **attrs})
    return report
