"""A catalog from its parts: blocks of rows that are on the same numbered elements, each in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.spectra_block import STORED_UNIT
from digs_survey.catalog.writing import new_catalog
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.storage import read_arrays

__all__ = ["Part", "write_parts"]

_SHARD_BYTES = 2**25
"""Of flux, in one shard."""

_PROVENANCE: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "source_file": (np.dtype("U1"), {"description": "file that the spectrum was read from"}),
    "source_hdu": (np.dtype("U1"), {"description": "HDU, group or column of the spectrum in its file"}),
    "source_row": (np.dtype("int64"), {"description": "row of the spectrum there, from 0"}),
}


class Part:
    """Rows of one block of spectra.

    Attributes
    ----------
    first, stop : int
        The elements that they are on.
    galaxy_id : ndarray, shape (row,)
    keep : ndarray of bool, shape (row,)
        Rows that go into the catalog.
    """

    def __init__(
        self,
        path: Path,
        first: int,
        values: Mapping[str, NDArray[Any]],
        described: Mapping[str, Mapping[str, Any]],
        file: str,
        hdu: str,
    ) -> None:
        self.path, self.first, self.file, self.hdu = path, first, file, hdu
        self.stop = first + values["flux"].shape[1]
        self.galaxy_id = values["galaxy_id"]
        self.keep = np.ones(self.galaxy_id.size, dtype=bool)
        self.columns = {name: (values[f"column_{name}"].dtype, attrs) for name, attrs in described.items()}

    @property
    def rows(self) -> int:
        """Rows that go into the catalog."""
        return int(self.keep.sum())

    def read(self) -> dict[str, NDArray[Any]]:
        """Read the rows that go into the catalog."""
        return {name: values[self.keep] for name, values in read_arrays(self.path).items()}


def write_parts(out: Path, parts: list[Part], grid: WavelengthGrid, first: int, attrs: Mapping[str, Any]) -> None:
    """Write a catalog whose grid begins with element ``first``; what a part does not reach is masked."""
    parts = [part for part in parts if part.rows]
    begin = np.concatenate([[0], np.cumsum([part.rows for part in parts])])
    columns = {**_columns(parts), **_PROVENANCE}
    text = any(part.galaxy_id.dtype.kind == "U" for part in parts)
    per_shard = int(np.clip(_SHARD_BYTES // (4 * len(grid)), 64, 1024))
    with new_catalog(
        out,
        grid=grid,
        rows=int(begin[-1]),
        id_dtype=np.dtype("U1") if text else np.dtype("int64"),
        flux_unit=STORED_UNIT,
        columns=columns,
        attrs=attrs,
        rows_per_shard=per_shard,
    ) as (shards, write):
        for shard in shards:
            pieces = []
            first_part, stop_part = np.searchsorted(begin, [shard.start, shard.stop - 1], side="right").tolist()
            for number in range(first_part - 1, stop_part):
                part, offset = parts[number], int(begin[number])
                here = slice(max(0, shard.start - offset), shard.stop - offset)
                pieces.append(_laid_out(part, here, grid, first, columns, text))
            write(shard, {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]})


def _laid_out(
    part: Part, rows: slice, grid: WavelengthGrid, first: int, columns: Mapping[str, Any], text: bool
) -> dict[str, NDArray[Any]]:
    values = {name: array[rows] for name, array in part.read().items()}
    n = values["redshift"].size
    laid: dict[str, NDArray[Any]] = {name: np.zeros((n, len(grid)), np.float32) for name in ("flux", "ivar")}
    where = slice(part.first - first, part.stop - first)
    for name in ("flux", "ivar"):
        laid[name][:, where] = values[name]
    laid["mask"] = (laid["ivar"] <= 0).astype(np.uint8)
    laid["redshift"] = values["redshift"]
    laid["galaxy_id"] = values["galaxy_id"].astype(str) if text else values["galaxy_id"].astype(np.int64)
    for name, (dtype, _) in columns.items():
        stored = values.get(f"column_{name}")
        if stored is None:
            laid[name] = np.full(n, "", dtype="U1") if dtype.kind == "U" else np.full(n, np.nan)
        else:
            laid[name] = stored.astype(str if dtype.kind == "U" else dtype)
    laid["source_file"] = np.full(n, part.file)
    laid["source_hdu"] = np.full(n, part.hdu)
    laid["source_row"] = values["source_row"]
    return laid


def _columns(parts: list[Part]) -> dict[str, tuple[np.dtype[Any], Mapping[str, Any]]]:
    """Return one dtype and the attributes for each column; integers that some parts lack become floats, with NaN."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    found: dict[str, tuple[np.dtype[Any], Mapping[str, Any]]] = {}
    for name in names:
        having = [part.columns[name] for part in parts if name in part.columns]
        dtypes = [dtype for dtype, _ in having]
        if any(dtype.kind == "U" for dtype in dtypes):
            dtype = np.dtype("U1")
        elif len(having) < len(parts):
            dtype = np.result_type(np.float64, *dtypes)
        else:
            dtype = np.result_type(*dtypes)
        found[name] = dtype, having[0][1]
    return found
