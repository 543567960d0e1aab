"""A catalog from its parts: blocks of rows that are on the same numbered elements, in an archive for each file."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.flux_units import STORED_UNIT
from digs_survey.catalog.readers.reading import LeftOut
from digs_survey.catalog.readers.rebinning import Rebinned
from digs_survey.catalog.writing import new_catalog
from digs_survey.spectra import WavelengthGrid

__all__ = ["PROVENANCE", "Part", "Parts", "PartsWriter", "plain"]

_SHARD_BYTES = 2**25
"""Of flux, in one shard."""

PROVENANCE: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "source_file": (np.dtype("U1"), {"description": "file that the spectrum was read from"}),
    "source_hdu": (np.dtype("U1"), {"description": "HDU, group or column of the spectrum in its file"}),
    "source_row": (np.dtype("int64"), {"description": "row of the spectrum there, from 0"}),
}
"""Columns that every catalog of files has."""

_DIGEST_BYTES = 16
_MISSING = -1
"""In a column of integers, where a file lacks it."""

_LACKING = f"; {_MISSING} where the file has none"

_Columns = Mapping[str, tuple[np.dtype[Any], Mapping[str, Any]]]


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one block of spectra, which are in an archive.

    Attributes
    ----------
    archive : Path
        Of the file that the rows were read from.
    block : int
        Number of the block there.
    file, hdu : str
    first, stop : int
        The elements that they are on.
    size : int
        Rows in the block.
    text : bool
        Whether identifiers are text.
    columns : mapping
        Types and attributes of the survey's columns.
    keep : ndarray of bool, shape (row,), or None
        Rows that go into the catalog; None if all do.
    """

    archive: Path
    block: int
    file: str
    hdu: str
    first: int
    stop: int
    size: int
    text: bool
    columns: _Columns
    keep: NDArray[np.bool_] | None = None

    @property
    def rows(self) -> int:
        """Rows that go into the catalog."""
        return self.size if self.keep is None else int(self.keep.sum())


class PartsWriter:
    """Writes the blocks of one file to an archive, which is there when all of them are in it.

    Parameters
    ----------
    path : Path
        On a disk; a file in the format of NumPy's ``savez``, whose member ``index`` says what is in it.

    Attributes
    ----------
    left_out : list of LeftOut
        What has no row.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._building = path, path.with_suffix(".building")
        self._archive = zipfile.ZipFile(self._building, "w", allowZip64=True)
        self._columns: list[list[list[Any]]] = []
        self._blocks: list[dict[str, Any]] = []
        self.left_out: list[LeftOut] = []

    def __enter__(self) -> PartsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            index = {
                "columns": self._columns,
                "blocks": self._blocks,
                "left_out": [asdict(item) for item in self.left_out],
            }
            self._put("index", np.array(json.dumps(index)))
        self._archive.close()
        if kind is None:
            self._building.replace(self._path)
        else:
            self._building.unlink(missing_ok=True)

    def add(self, block: Rebinned, file: str) -> None:
        """Keep a block of rows."""
        spectra, number = block.spectra, len(self._blocks)
        described = [
            [name, "<U1" if values.dtype.kind == "U" else values.dtype.str, dict(attrs)]
            for name, (values, attrs) in spectra.columns.items()
        ]
        if described not in self._columns:
            self._columns.append(described)
        digests = [
            hashlib.blake2b(str(name).encode(), digest_size=_DIGEST_BYTES).digest()
            for name in spectra.galaxy_id.tolist()
        ]
        values: dict[str, Any] = {
            "flux": block.flux,
            "ivar": block.ivar,
            "redshift": spectra.redshift,
            "galaxy_id": spectra.galaxy_id,
            "source_row": spectra.rows,
            "digest": np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2),
            **{f"column_{name}": values for name, (values, _) in spectra.columns.items()},
        }
        for name, array in values.items():
            self._put(f"{number}/{name}", np.asarray(array))
        self._blocks.append(
            {
                "file": file,
                "hdu": spectra.hdu,
                "first": block.first,
                "stop": block.first + block.flux.shape[1],
                "size": len(spectra),
                "text": spectra.galaxy_id.dtype.kind == "U",
                "columns": self._columns.index(described),
            }
        )

    def _put(self, name: str, values: NDArray[Any]) -> None:
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, values, allow_pickle=False)


class Parts:
    """The parts of all files. What stays in memory is some hundred bytes a part, and 16 a row."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._loaded: tuple[Path | None, int, dict[str, NDArray[Any]]] = None, 0, {}
        self._columns: dict[str, _Columns] = {}

    def load(self, path: Path) -> list[LeftOut]:
        """Add the parts of an archive of :class:`PartsWriter`, and return what it left out."""
        with np.load(path, allow_pickle=False) as stored:
            index = json.loads(stored["index"].item())
        columns = [self._shared(described) for described in index["columns"]]
        for number, block in enumerate(index["blocks"]):
            self._parts.append(Part(path, number, **{**block, "columns": columns[block["columns"]]}))
        return [LeftOut(**item) for item in index["left_out"]]

    @property
    def rows(self) -> int:
        """Rows that go into the catalog."""
        return sum(part.rows for part in self._parts)

    @property
    def reach(self) -> tuple[int, int]:
        """The first element, and the one after the last, that rows of the catalog are on."""
        having = [part for part in self._parts if part.rows]
        return min(part.first for part in having), max(part.stop for part in having)

    def __len__(self) -> int:
        return len(self._parts)

    def drop_duplicates(self, earlier: int = 0) -> tuple[int, int, list[LeftOut]]:
        """Leave out rows whose identifier a row before them has.

        Rows of a catalog to which files are added give way, in their place, to those that the same file has now.

        Parameters
        ----------
        earlier : int
            Parts, the first ones, that are such rows.

        Returns
        -------
        replaced, gone : int
            Rows of the catalog that gave way, and those that stay though their file has been read again without them.
        left_out : list of LeftOut
        """
        halves = np.concatenate([np.zeros((0, 2), np.uint64), *map(_digests, self._parts)])
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        begins = np.ones(order.size, dtype=bool)
        begins[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
        first = np.empty(order.size, dtype=np.int64)
        first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(order.size), 0))]
        again = first != np.arange(order.size)
        begin = np.cumsum([0, *(part.size for part in self._parts)])
        # Rows of a catalog stay, whatever their identifiers.
        again[: begin[earlier]] = False
        known: dict[str, int] = {}
        files = np.concatenate([np.zeros(0, np.int64), *(_numbered(part, known) for part in self._parts[:earlier])])
        numbers = [known.get(str(Path(part.file).absolute()), -1) for part in self._parts]
        renewed: dict[int, tuple[int, int]] = {}
        left = []
        for number, part in enumerate(self._parts):
            here = again[begin[number] : begin[number + 1]]
            if not here.any():
                continue
            self._parts[number], lost = replace(part, keep=~here), 0
            for row in np.flatnonzero(here).tolist():
                head = int(first[begin[number] + row])
                if head < files.size and files[head] == numbers[number] and head not in renewed:
                    renewed[head] = number, row
                else:
                    lost += 1
            if lost:
                left.append(LeftOut("galaxy_id was read before, in this or another file", lost, part.file))
        gone = int(np.isin(files, numbers[earlier:]).sum()) - len(renewed)
        self._parts = [*self._renewed(earlier, begin, renewed), *self._parts[earlier:]]
        return len(renewed), gone, left

    def _renewed(
        self, earlier: int, begin: NDArray[np.int64], renewed: Mapping[int, tuple[int, int]]
    ) -> Iterator[Part]:
        """Yield the parts of a catalog's rows, cut where rows of another part take their place."""
        for number in range(earlier):
            rows = range(int(begin[number]), int(begin[number + 1]))
            if not any(row in renewed for row in rows):
                yield self._parts[number]
                continue
            places = [renewed.get(row, (number, row - rows.start)) for row in rows]
            for origin, run in groupby(places, key=itemgetter(0)):
                for ascending in _ascending([row for _, row in run]):
                    source = self._parts[origin]
                    keep = np.zeros(source.size, dtype=bool)
                    keep[ascending] = True
                    yield replace(source, keep=keep)

    def write(self, out: Path, grid: WavelengthGrid, first: int, attrs: Mapping[str, Any]) -> None:
        """Write a catalog whose grid begins with element ``first``; what a part does not reach is masked."""
        parts = [part for part in self._parts if part.rows]
        begin = np.concatenate([[0], np.cumsum([part.rows for part in parts])])
        columns = {**_common(parts), **PROVENANCE}
        text = any(part.text for part in parts)
        with new_catalog(
            out,
            grid=grid,
            rows=int(begin[-1]),
            id_dtype=np.dtype("U1") if text else np.dtype("int64"),
            flux_unit=STORED_UNIT,
            columns=columns,
            attrs=attrs,
            rows_per_shard=int(np.clip(_SHARD_BYTES // (4 * len(grid)), 64, 1024)),
        ) as (shards, write):
            for shard in shards:
                pieces = []
                first_part, stop_part = np.searchsorted(begin, [shard.start, shard.stop - 1], side="right").tolist()
                for number in range(first_part - 1, stop_part):
                    part, offset = parts[number], int(begin[number])
                    here = slice(max(0, shard.start - offset), shard.stop - offset)
                    pieces.append(self._laid_out(part, here, grid, first, columns, text))
                write(shard, {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]})

    def _shared(self, described: list[list[Any]]) -> _Columns:
        """Return types and attributes of columns, the same object for the same ones."""
        found = {name: (np.dtype(kind), attrs) for name, kind, attrs in described}
        return self._columns.setdefault(json.dumps(described), found)

    def _arrays(self, part: Part) -> dict[str, NDArray[Any]]:
        """Return the arrays of a part's block; those that were read last are kept."""
        if self._loaded[:2] != (part.archive, part.block):
            block = f"{part.block}/"
            with np.load(part.archive, allow_pickle=False) as stored:
                whole = {name.removeprefix(block): stored[name] for name in stored.files if name.startswith(block)}
            self._loaded = part.archive, part.block, whole
        return self._loaded[2]

    def _laid_out(
        self, part: Part, rows: slice, grid: WavelengthGrid, first: int, columns: _Columns, text: bool
    ) -> dict[str, NDArray[Any]]:
        whole = self._arrays(part)
        values = {name: array[rows] if part.keep is None else array[part.keep][rows] for name, array in whole.items()}
        n = values["redshift"].size
        laid: dict[str, NDArray[Any]] = {name: np.zeros((n, len(grid)), np.float32) for name in ("flux", "ivar")}
        for name in ("flux", "ivar"):
            laid[name][:, part.first - first : part.stop - first] = values[name]
        laid["mask"] = (laid["ivar"] <= 0).astype(np.uint8)
        laid["redshift"] = values["redshift"]
        laid["galaxy_id"] = values["galaxy_id"].astype(str) if text else values["galaxy_id"].astype(np.int64)
        for name, (dtype, _) in columns.items():
            column = values.get(f"column_{name}")
            if column is None:
                missing = {"U": "", "i": _MISSING}.get(dtype.kind, np.nan)
                laid[name] = np.full(n, missing, dtype=dtype)
            else:
                lacks = str(part.columns[name][1].get("description", "")).endswith(_LACKING)
                some = lacks and column.dtype.kind == "i"
                laid[name] = _as(column, dtype, column == _MISSING if some else np.zeros(n, dtype=bool))
        if "column_source_file" not in values:
            laid |= {"source_file": np.full(n, part.file), "source_hdu": np.full(n, part.hdu)}
        laid["source_row"] = values["source_row"]
        return laid


def _digests(part: Part) -> NDArray[np.uint64]:
    with np.load(part.archive, allow_pickle=False) as stored:
        return np.asarray(stored[f"{part.block}/digest"])


def _numbered(part: Part, known: dict[str, int]) -> NDArray[np.int64]:
    """Return the numbers (row,) of the files of a catalog's rows; new ones are added to those that are known."""
    with np.load(part.archive, allow_pickle=False) as stored:
        names, which = np.unique(stored[f"{part.block}/column_source_file"], return_inverse=True)
    numbers = [known.setdefault(str(Path(name).absolute()), len(known)) for name in names.tolist()]
    return np.array(numbers, dtype=np.int64)[which]


def plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return integers, booleans or text (row,) without a mask: -1 or "" where they are missing."""
    if not np.ma.getmaskarray(values).any():
        return np.asarray(np.ma.getdata(values))
    if values.dtype.kind == "U":
        return np.asarray(np.ma.filled(values, ""))
    return np.asarray(np.ma.filled(values.astype(np.int64), _MISSING))


def _as(values: NDArray[Any], dtype: np.dtype[Any], missing: NDArray[np.bool_]) -> NDArray[Any]:
    """Convert values (row,) of a column to its common type, and what is ``missing`` to what that has for it."""
    if dtype.kind == "U":
        text = values.astype(str)
        text[missing | (np.isnan(values) if values.dtype.kind == "f" else False)] = ""
        return text
    found = values.astype(dtype)
    if dtype.kind == "f":
        found[missing] = np.nan
    return found


def _ascending(rows: list[int]) -> Iterator[list[int]]:
    """Cut rows into stretches in which they increase."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or rows[stop] <= rows[stop - 1]:
            yield rows[start:stop]
            start = stop


def _common(parts: list[Part]) -> dict[str, tuple[np.dtype[Any], Mapping[str, Any]]]:
    """Return one type and the attributes for each column.

    Integers stay integers, so that no bit of a mask or an identifier changes: where files lack them they are -1, and
    where no type has room for all they become text.
    """
    kinds = {id(part.columns): part.columns for part in parts}
    found: dict[str, tuple[np.dtype[Any], Mapping[str, Any]]] = {}
    for name in dict.fromkeys(name for columns in kinds.values() for name in columns):
        having = [columns[name] for columns in kinds.values() if name in columns]
        dtypes = [dtype for dtype, _ in having]
        attrs = dict(having[0][1])
        told = str(attrs.get("description", name))
        lacking = len(having) < len(kinds) or any(
            str(more.get("description", "")).endswith(_LACKING) for _, more in having
        )
        if told.endswith(_LACKING):
            attrs["description"] = told.removesuffix(_LACKING)
        if any(dtype.kind == "U" for dtype in dtypes):
            dtype = np.dtype("U1")
        elif all(dtype.kind in "biu" for dtype in dtypes):
            dtype = np.result_type(*dtypes, *([np.int8] if lacking else []))
            dtype = dtype if dtype.kind in "biu" else np.dtype("U1")
            if lacking and dtype.kind == "i":
                attrs["description"] = f"{told.removesuffix(_LACKING)}{_LACKING}"
        else:
            dtype = np.result_type(np.float64, *dtypes) if lacking else np.result_type(*dtypes)
        found[name] = dtype, attrs
    return found
