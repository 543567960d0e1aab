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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.catalog import Catalog
from digs_survey.catalog.readers.assembling import Part, write_parts
from digs_survey.catalog.readers.elements import Elements, native_elements, steps_of
from digs_survey.catalog.readers.extinction import SFD_SCALE, extinction_per_ebv
from digs_survey.catalog.readers.reading import LeftOut, Reader, Unusable, by_reason, read_file, usable_rows
from digs_survey.catalog.readers.spectra_block import STORED_UNIT, Spectra
from digs_survey.catalog.rest_frame import to_rest_frame
from digs_survey.errors import CatalogError, ConfigError
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import is_remote, location
from digs_survey.store.storage import write_arrays

__all__ = ["GridChoice", "IngestReport", "ingest", "write_spectra"]

_MAX_ELEMENTS = 100_000
_PART_ROWS = 512
_REST_STEP = 50.0


@dataclass(frozen=True)
class GridChoice:
    """The elements of a catalog, and whether Galactic extinction is corrected.

    Attributes
    ----------
    step_angstrom : float or None
        Width of the elements. Without it, they are the pixels of the first spectrum, continued to wherever rows reach;
        in the rest frame, 50 Angstrom.
    start_angstrom, stop_angstrom : float or None
        Centres beyond which there are no elements; with a step, an element is centred on the first.
    frame : {"observed", "rest"}
    deredden : bool
        Correct for Galactic extinction: Fitzpatrick 1999, R_V = 3.1, with E(B-V) of Schlegel et al. 1998 times 0.86.
    ebv : float or None
        E(B-V) of all rows, in the place of that of their files.
    """

    step_angstrom: float | None = None
    start_angstrom: float | None = None
    stop_angstrom: float | None = None
    frame: Literal["observed", "rest"] = "observed"
    deredden: bool = False
    ebv: float | None = None

    def __post_init__(self) -> None:
        for name in ("step_angstrom", "start_angstrom", "stop_angstrom"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a positive number, found {value}")
        if self.start_angstrom and self.stop_angstrom and self.stop_angstrom <= self.start_angstrom:
            found = f"{self.start_angstrom:g} and {self.stop_angstrom:g}"
            raise ConfigError(f"start_angstrom, stop_angstrom: expected the second above the first, found {found}")
        if self.ebv is not None and not (np.isfinite(self.ebv) and self.ebv >= 0):
            raise ConfigError(f"ebv: expected E(B-V) in mag, not negative, found {self.ebv}")

    def elements(self, first: Spectra) -> Elements:
        """Return the elements, given the first spectra."""
        step = self.step_angstrom
        if step is None and first.frame != self.frame:
            if self.frame == "observed":
                raise ConfigError("rest-frame spectra: expected frame 'rest', or a step for the observed frame")
            step = _REST_STEP
        return native_elements(first.wavelength) if step is None else steps_of(step, self.start_angstrom)


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
    """Read files and write a catalog; a file that cannot be used only loses its own rows.

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
    parts: list[Part] = []
    if not is_remote(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    nearby = None if is_remote(out) else out.parent
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-parts-", dir=nearby) as folder:
        for file, found in blocks:
            if isinstance(found, Spectra):
                elements = elements or choice.elements(found)
                made, left = _parts(found, file, elements, choice, Path(folder), len(parts))
                parts += made
            else:
                left = [found]
            report.left_out += left
            _stop_if(strict, left, out)
        left = _drop_duplicates(parts)
        report.left_out += left
        _stop_if(strict, left, out)
        report.rows = sum(part.rows for part in parts)
        if elements is None or not report.rows:
            raise CatalogError(f"{source}: expected at least one spectrum that can be used, found none", report.lines())
        first, stop = min(part.first for part in parts), max(part.stop for part in parts)
        if stop - first > _MAX_ELEMENTS:
            raise CatalogError(f"{source}: {_too_many(stop - first)}")
        grid = WavelengthGrid(elements.centres(first, max(stop, first + 2)), choice.frame, "vacuum")
        write_parts(out, parts, grid, first, {**_told(source, choice), **attrs})
    return report


def _told(source: str, choice: GridChoice) -> dict[str, Any]:
    law = f"corrected: Fitzpatrick 1999, R_V = 3.1, E(B-V) times {SFD_SCALE}"
    rest = {"rest_frame": "wavelength / (1 + z), flux * (1 + z), ivar / (1 + z)^2"} if choice.frame == "rest" else {}
    return {"source": source, "galactic_extinction": law if choice.deredden else "not corrected", **rest}


def _stop_if(strict: bool, left: list[LeftOut], out: Path) -> None:
    if strict and (faults := [item for item in left if item.fault]):
        raise CatalogError(f"{out} is not written: rows cannot be used, and --strict asks to stop", by_reason(faults))


def _too_many(elements: int) -> str:
    return (
        f"expected at most {_MAX_ELEMENTS} elements, found {elements}; give a wider step, or start and stop "
        "(--step-angstrom, --start-angstrom, --stop-angstrom)"
    )


def _parts(
    spectra: Spectra, file: str, elements: Elements, choice: GridChoice, folder: Path, count: int
) -> tuple[list[Part], list[LeftOut]]:
    """Bring spectra to the elements and keep them in the folder, some hundred rows at a time."""
    edges = spectra.edges
    try:
        factor = _dereddening(spectra, choice)
    except Unusable as error:
        return [], [LeftOut(str(error), len(spectra), file)]
    flux, ivar = spectra.flux * factor, spectra.ivar / factor**2
    parts: list[Part] = []
    for start in range(0, len(spectra), _PART_ROWS):
        rows = slice(start, start + _PART_ROWS)
        stretch = spectra.stretch(choice.frame)[rows]
        some = np.flatnonzero(spectra.good[rows].any(axis=0))
        low, high = edges[some[0]] / stretch.max(), edges[some[-1] + 1] / stretch.min()
        first, stop = elements.covering(low, high)
        first, stop = _within(first, stop, elements, choice)
        if stop <= first:
            reason = f"no good pixel between start and stop (pixels reach from {low:.1f} to {high:.1f} Angstrom)"
            return [], [LeftOut(reason, len(spectra), file)]
        if stop - first > _MAX_ELEMENTS:
            return [], [LeftOut(_too_many(stop - first), len(spectra), file)]
        target = WavelengthGrid(elements.centres(first, max(stop, first + 2))).edges
        made = to_rest_frame(edges, flux[rows], ivar[rows], spectra.good[rows], stretch - 1, target)
        narrow = [values.astype(np.float32) for values in made]
        if not all(np.isfinite(values).all() for values in narrow) or ((narrow[1] == 0) & (made[1] != 0)).any():
            return [], [LeftOut(f"flux or ivar out of range in {STORED_UNIT}: is its unit right?", len(spectra), file)]
        values: dict[str, NDArray[Any]] = {
            "flux": narrow[0],
            "ivar": narrow[1],
            "redshift": spectra.redshift[rows],
            "galaxy_id": spectra.galaxy_id[rows],
            "source_row": spectra.rows[rows],
            **{f"column_{name}": values[rows] for name, (values, _) in spectra.columns.items()},
        }
        path = folder / f"{count + len(parts):08d}.npz"
        write_arrays(path, values)
        described = {name: attrs for name, (_, attrs) in spectra.columns.items()}
        parts.append(Part(path, first, values, described, file, spectra.hdu))
    return parts, []


def _dereddening(spectra: Spectra, choice: GridChoice) -> NDArray[np.float64]:
    """Return the factors (n, pixel) that undo Galactic extinction, or (1, 1) if they are not asked for."""
    if not choice.deredden:
        return np.ones((1, 1))
    if spectra.frame == "rest":
        raise Unusable("expected the observed frame for --deredden, found rest")
    if choice.ebv is None and spectra.ebv is None:
        raise Unusable("no E(B-V) in the file for --deredden; give --ebv")
    ebv = np.full(len(spectra), choice.ebv) if choice.ebv is not None else np.asarray(spectra.ebv)
    if not (np.isfinite(ebv) & (ebv >= 0)).all():
        raise Unusable("E(B-V) is not a number, or negative")
    return 10 ** (0.4 * SFD_SCALE * ebv[:, None] * extinction_per_ebv(spectra.wavelength))


def _within(first: int, stop: int, elements: Elements, choice: GridChoice) -> tuple[int, int]:
    """Cut a range of elements to those whose centres lie between start and stop."""
    if stop - first > _MAX_ELEMENTS:
        return first, stop
    centres = elements.centres(first, stop)
    low = -np.inf if choice.start_angstrom is None else choice.start_angstrom * (1 - 1e-9)
    high = np.inf if choice.stop_angstrom is None else choice.stop_angstrom * (1 + 1e-9)
    inside = np.flatnonzero((centres >= low) & (centres <= high) & (centres > 0))
    return (first + int(inside[0]), first + int(inside[-1]) + 1) if inside.size else (first, first)


def _drop_duplicates(parts: list[Part]) -> list[LeftOut]:
    """Leave out rows whose identifier an earlier row has."""
    left = []
    seen: dict[Any, str] = {}
    for part in parts:
        ids = part.galaxy_id.tolist()
        for row, name in enumerate(ids):
            if name in seen:
                part.keep[row] = False
                left.append(LeftOut("galaxy_id was read before, in this or another file", 1, part.file))
            else:
                seen[name] = part.file
    return left
