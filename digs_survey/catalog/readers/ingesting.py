"""From spectra to a catalog: one grid for all rows, in memory that does not grow with them.

Spectra are brought to the elements of the catalog as they are read, several files at a time, and kept in a hidden
folder beside it. When all are read, it is known how many rows there are and how far they reach, and the catalog is
written shard by shard. The grid spans what any row has. What a row lacks is masked. After an interruption the same
call goes on: files that were read are not read again, unless they, the choices or the reader have changed.

An element that shares a pixel with its neighbour has a correlated error, which ``ivar`` does not show. Of elements that
are m pixels wide, the variance of a broad mean is therefore understated by at most a share of 1 / (2 m), and by none
where the elements are the pixels.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from digs_survey.catalog.catalog import Catalog
from digs_survey.catalog.readers.appending import EarlierCatalog
from digs_survey.catalog.readers.assembling import Parts, PartsWriter
from digs_survey.catalog.readers.elements import Elements
from digs_survey.catalog.readers.grid_choice import MAX_ELEMENTS, GridChoice, too_many
from digs_survey.catalog.readers.reading import LeftOut, Reader, by_reason, read_file, usable_rows
from digs_survey.catalog.readers.rebinning import rebinned
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.cluster.dask_session import run_shards
from digs_survey.errors import CatalogError, ConfigError, StageError
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import is_remote, location, store_errors
from digs_survey.versions import __version__

__all__ = ["IngestReport", "ingest", "write_spectra"]

_LOG = logging.getLogger(__name__)
_MEMORY = "spectra in memory"
_FILES_PER_TASK = 32


@dataclass
class IngestReport:
    """What became of the files.

    Attributes
    ----------
    rows : int
        Rows of the catalog.
    added, replaced : int
        Those of them that were not in a catalog before to which files were added, and those that its own gave way to.
    gone : int
        Rows of the catalog that a file which was read again has no more; they were kept.
    left_out : list of LeftOut
    """

    rows: int = 0
    added: int = 0
    replaced: int = 0
    gone: int = 0
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
    append: bool = False,
    attrs: dict[str, Any] | None = None,
    workers: int | None = 0,
    address: str | None = None,
    advance: Callable[[int], None] = lambda files: None,
) -> IngestReport:
    """Read files and write a catalog; a file that cannot be used costs its own rows only.

    Parameters
    ----------
    files : sequence of path-like
        Their order is that of the rows.
    out : path-like
        The catalog, which is replaced when all is done.
    reader : callable
        See :data:`~digs_survey.catalog.readers.reading.Reader`. Workers get a pickled copy.
    source : str
        What the files are, for the catalog's attributes and for messages.
    strict : bool
        Stop at the first row with a fault.
    append : bool
        Add the rows to those of the catalog, on its elements. Of a file that it was made of already, rows take the
        place of those with the same identifier. If rows reach further than its grid, that grows.
    attrs : dict, optional
        More attributes of the catalog.
    workers : int, optional
        Dask processes on this machine that read files (None: one for each core); with 0, this process does.
    address : str, optional
        A running Dask scheduler. Its workers need the files, and the folder of the catalog, at the same paths.
    advance : callable
        Called with the number of files that were read.

    Raises
    ------
    CatalogError
        No row is left, or ``strict`` and a row has a fault; or there is no catalog to append to.
    ConfigError
        A cluster, and a catalog in an object store; or another choice than that of the catalog to append to.
    StageError
        Of a worker that was lost; the same call goes on.
    """
    out, paths = location(out), [location(path) for path in files]
    if append and is_remote(out):
        raise ConfigError(
            f"{out}: an object store cannot replace a catalog at once, and an interruption would lose it; append to a "
            "copy on a disk, and store that anew"
        )
    if address is not None and is_remote(out):
        raise ConfigError(
            f"{out}: a Dask cluster reads into a folder beside the catalog, and an object store has none; write the "
            "catalog to a disk that its workers see, or leave the address away to use this machine's cores"
        )
    report, parts = IngestReport(), Parts()
    with ExitStack() as stack:
        stack.enter_context(_locked(out))
        earlier = EarlierCatalog.open(out, choice) if append else None
        choice = earlier.choice if earlier else choice or GridChoice()
        folder = stack.enter_context(_parts_folder(out, _fingerprint(paths, reader, choice, earlier)))
        elements = earlier.elements if earlier else _first_elements(paths, reader, choice)
        work = _Reading(out, folder, paths, reader, choice, elements, strict)
        pending = [number for number in range(len(paths)) if not work.archive(number).is_file()]
        if len(pending) < len(paths):
            _LOG.info("ingest: %d of %d files were read before", len(paths) - len(pending), len(paths))
            advance(len(paths) - len(pending))
        try:
            run_shards(
                "ingest",
                work,
                pending,
                shards_per_task=_FILES_PER_TASK,
                address=address,
                workers=workers,
                advance=advance,
            )
        except StageError:
            if strict:
                work.refuse()
            raise
        if earlier:
            earlier.write_parts(folder / "earlier.npz")
            parts.load(folder / "earlier.npz")
            attrs = earlier.attrs
        own = len(parts)
        for number in range(len(paths)):
            report.left_out += parts.load(work.archive(number))
        if earlier and len(parts) == own:
            raise _no_spectrum(source, report)
        _finish(out, parts, elements, choice, source, strict, attrs or {}, report, own)
        report.added = report.rows - (earlier.catalog.n_rows if earlier else 0)
    return report


@dataclass(frozen=True)
class _Reading:
    """Reads files into archives of their rows; the shards of :class:`~digs_survey.cluster.dask_session.ShardWork`."""

    path: Path
    folder: Path
    files: list[Path]
    reader: Reader
    choice: GridChoice
    elements: Elements | None
    strict: bool

    def rows(self, shard: int) -> slice:
        """Return the files of a shard."""
        return slice(shard, shard + 1)

    def archive(self, number: int) -> Path:
        """Return where the rows of a file are kept."""
        return self.folder / f"{number:08d}.npz"

    def make(self, shards: Sequence[int]) -> None:
        """Read files."""
        for number in shards:
            file = self.files[number]
            with PartsWriter(self.archive(number)) as parts:
                for found in read_file(self.reader, file):
                    _put(parts, found, str(file), self.elements, self.choice)
            if self.strict and any(item.fault for item in parts.left_out):
                raise StageError(f"ingest: rows of {file} cannot be used")

    def refuse(self) -> None:
        """Name the faults of the files that were read, if there are any."""
        archives = [path for number in range(len(self.files)) if (path := self.archive(number)).is_file()]
        _refuse(self.path, [item for path in archives for item in Parts().load(path)])


def _first_elements(files: Sequence[Path], reader: Reader, choice: GridChoice) -> Elements | None:
    """Return the catalog's elements, which the first spectrum that can be used may decide; None if there is none."""
    for file in files:
        for found in read_file(reader, file):
            if isinstance(found, Spectra):
                return choice.elements(found)
    return None


def _put(
    parts: PartsWriter, found: Spectra | LeftOut, file: str, elements: Elements | None, choice: GridChoice
) -> None:
    if isinstance(found, LeftOut):
        parts.left_out.append(found)
        return
    for made in rebinned(found, elements or choice.elements(found), choice):
        if isinstance(made, LeftOut):
            parts.left_out.append(replace(made, file=file))
        else:
            parts.add(made, file)


def _fingerprint(files: Sequence[Path], reader: Reader, choice: GridChoice, earlier: EarlierCatalog | None) -> str:
    """Return a digest of what decides the rows: files by path, size and time, reader, choices and earlier rows."""
    seen: list[Any] = [(str(path), *_size_and_time(path)) for path in files]
    if earlier:
        seen.append(earlier.catalog.state())
    try:
        return hashlib.sha256(pickle.dumps((__version__, seen, reader, choice))).hexdigest()
    except (pickle.PicklingError, AttributeError, TypeError):
        # A function that was made on the spot cannot be known again.
        return uuid.uuid4().hex


def _size_and_time(path: Path) -> tuple[int, int]:
    errors: tuple[type[Exception], ...] = (OSError, *store_errors())
    try:
        found = path.stat()
    except errors:
        return 0, 0
    return int(found.st_size), int(getattr(found, "st_mtime_ns", 0) or 0)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other processes on this machine from writing the same catalog."""
    if is_remote(out):
        yield
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.parent / f".{out.name}-parts.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CatalogError(f"{out}: another process writes it; wait for its end, or choose another name") from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def _parts_folder(out: Path, fingerprint: str) -> Iterator[Path]:
    """Give a folder for the parts of a catalog. It stays after an interruption, for the same work to go on."""
    if is_remote(out):
        with tempfile.TemporaryDirectory(prefix="digs-survey-parts-") as name:
            yield Path(name)
        return
    folder = out.parent / f".{out.name}-parts"
    try:
        told = folder / "fingerprint"
        if not told.is_file() or told.read_text() != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            told.write_text(fingerprint)
        yield folder
    except Exception as error:
        # A worker that was lost, as an interruption, leaves what was read.
        if not isinstance(error, StageError):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder)


def _refuse(out: Path, left: list[LeftOut]) -> None:
    """Raise, if any of the rows that were left out have a fault."""
    if faults := [item for item in left if item.fault]:
        raise CatalogError(f"{out} is not written: rows cannot be used, and strict asks to stop", by_reason(faults))


def _finish(
    out: Path,
    parts: Parts,
    elements: Elements | None,
    choice: GridChoice,
    source: str,
    strict: bool,
    attrs: dict[str, Any],
    report: IngestReport,
    earlier: int = 0,
) -> None:
    """Write the catalog of all parts, of which the first ``earlier`` are rows that it has already."""
    report.replaced, report.gone, left = parts.drop_duplicates(earlier)
    report.left_out += left
    if strict:
        _refuse(out, report.left_out)
    report.rows = parts.rows
    if elements is None or not report.rows:
        raise _no_spectrum(source, report)
    first, stop = parts.reach
    if stop - first > MAX_ELEMENTS:
        raise CatalogError(f"{source}: {too_many()}")
    grid = WavelengthGrid(elements.centres(first, max(stop, first + 2)), choice.frame, "vacuum")
    parts.write(out, grid, first, {**choice.attributes(source), **attrs})


def _no_spectrum(source: str, report: IngestReport) -> CatalogError:
    return CatalogError(f"{source}: expected at least one spectrum that can be used, found none", report.lines())


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
    out, grid = location(out), GridChoice(**choice)
    if not is_remote(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    elements: Elements | None = None
    nearby = None if is_remote(out) else out.parent
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-parts-", dir=nearby) as folder:
        archive = Path(folder) / "memory.npz"
        with PartsWriter(archive) as written:
            for block in given:
                for found in usable_rows(block, _MEMORY):
                    if strict and isinstance(found, LeftOut):
                        _refuse(out, [found])
                    if isinstance(found, Spectra):
                        elements = elements or grid.elements(found)
                    _put(written, found, "", elements, grid)
        parts, report = Parts(), IngestReport()
        report.left_out += parts.load(archive)
        _finish(out, parts, elements, grid, _MEMORY, strict, {}, report)
    return Catalog.open(out)
