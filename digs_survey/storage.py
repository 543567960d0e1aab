"""Zarr templates, done-markers and atomic small files.

A unit of work is one whole shard of its output: it is computed, checked, written once and then marked
done in the :class:`Ledger`. That a chunk exists says nothing; only its marker does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.locations import is_remote

__all__ = [
    "ArraySpec",
    "Ledger",
    "checksum",
    "create_arrays",
    "create_dataset",
    "create_group",
    "new_file",
    "new_folder",
    "read_bytes",
    "read_files",
    "read_json",
    "remove",
    "shard_count",
    "shard_rows",
    "write_bytes",
    "write_json",
    "write_shard",
    "write_text",
]


@dataclass(frozen=True)
class ArraySpec:
    """Metadata of one array that :func:`create_dataset` lays out.

    Attributes
    ----------
    dims : tuple of str
        Names of the dimensions, as xarray reads them.
    shape : tuple of int
    dtype : str
        Anything numpy or zarr understands.
    shard_rows : int or None
        Rows of the first dimension in one shard; None stores the array as one chunk.
    chunk_rows : int or None
        Rows in one chunk inside a shard (default: the whole shard).
    attrs : mapping
        Units (readable by astropy.units) and description.
    fill_value : float or None
        What elements that were never written read as; None takes the dtype's zero.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int | None = None
    chunk_rows: int | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    fill_value: float | None = None


def create_dataset(
    path: Path,
    arrays: Mapping[str, ArraySpec],
    values: Mapping[str, NDArray[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Lay out a Zarr v3 dataset (metadata only), and write the small arrays in ``values`` in full.

    The dataset appears at ``path`` complete or not at all; what stood there before is replaced.
    """
    with new_folder(path) as building:
        create_arrays(building, arrays, values)
        create_group(building, attrs)


def create_arrays(
    folder: Path, arrays: Mapping[str, ArraySpec], values: Mapping[str, NDArray[Any]] | None = None
) -> None:
    """Lay out the arrays of a dataset below a folder, which :func:`create_group` is to make a dataset at the end."""
    for name, spec in arrays.items():
        rest = tuple(max(1, n) for n in spec.shape[1:])
        rows = max(1, spec.shape[0]) if spec.shard_rows is None else spec.shard_rows
        chunk_rows = min(spec.chunk_rows or rows, rows)
        rows = -(-rows // chunk_rows) * chunk_rows
        fill: dict[str, Any] = {} if spec.fill_value is None else {"fill_value": spec.fill_value}
        array = zarr.create_array(
            str(folder / name),
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=(chunk_rows, *rest),
            shards=None if spec.shard_rows is None else (rows, *rest),
            dimension_names=spec.dims,
            attributes=dict(spec.attrs),
            zarr_format=3,
            **fill,
        )
        if values and name in values:
            array[...] = values[name]


def create_group(folder: Path, attrs: Mapping[str, Any] | None = None) -> None:
    """Write a group's own metadata: to be called last, since nothing is a dataset without it."""
    zarr.create_group(str(folder), attributes=dict(attrs or {}), zarr_format=3)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write to, which stands at ``path`` at the end; after an error, nothing of it is left.

    On this machine it lies beside ``path``, and takes the place of what stood there when it is complete. On an object
    store nothing can be renamed: it is ``path`` itself, which is emptied first.
    """
    building = path
    if is_remote(path):
        remove(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield building
        if building != path:
            remove(path)
            building.chmod(0o755)
            os.replace(building, path)
    except BaseException:
        remove(building)
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file of this machine to write; it stands at ``path`` at the end, or nothing does.

    What stood there before is replaced as a whole. On an object store the file is uploaded when it is complete.
    """
    folder = None if is_remote(path) else path.parent
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=folder)
    os.close(handle)
    try:
        yield Path(name)
        if folder is None:
            store: Any = path
            store.fs.put_file(name, store.path)
        else:
            os.chmod(name, 0o644)
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_shard(path: Path, shard: int, rows: slice, values: Mapping[str, NDArray[Any]]) -> None:
    """Write one whole shard of arrays of the dataset at ``path``, in place of whatever stands there.

    Zarr reads a shard before it writes to it, and could not mend one that was left damaged.
    """
    group: Any = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    for name, value in values.items():
        array = group[name]
        key = array.metadata.encode_chunk_key((shard, *[0] * (array.ndim - 1)))
        remove(path / name / key)
        array[rows] = value


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there; a dataset is none at once, whenever this is interrupted."""
    if is_remote(path):
        store: Any = path
        for name in (store / "zarr.json", store):
            with suppress(FileNotFoundError):
                store.fs.rm(name.path, recursive=name is store)
    elif path.is_dir() and not path.is_symlink():
        grave = Path(tempfile.mkdtemp(prefix=f".{path.name}-removed-", dir=path.parent))
        os.replace(path, grave / path.name)
        shutil.rmtree(grave, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def shard_count(rows: int, rows_per_shard: int) -> int:
    """Return how many shards hold ``rows`` rows."""
    return -(-rows // rows_per_shard)


def shard_rows(shard: int, rows: int, rows_per_shard: int) -> slice:
    """Return the rows of a shard; the last shard may be shorter."""
    return slice(shard * rows_per_shard, min(rows, (shard + 1) * rows_per_shard))


def checksum(*arrays: NDArray[Any]) -> str:
    """SHA-256 over the dtype, shape and bytes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        value = np.ascontiguousarray(array)
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either the old one or the new one, never half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is either the old one or the new one, never half of it."""
    if is_remote(path):
        store: Any = path
        store.fs.pipe_file(store.path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_bytes(path: Path) -> bytes:
    """Read a file; of an object store, in one request."""
    if is_remote(path):
        store: Any = path
        return store.fs.cat_file(store.path)
    return path.read_bytes()


def read_files(folder: Path, pattern: str) -> dict[str, bytes]:
    """Read the files in a folder, many at once on an object store: contents by name, sorted; none without a folder."""
    if not is_remote(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}
    store: Any = folder
    try:
        # Not glob: it takes a listing that failed for an empty one.
        listed = store.fs.ls(store.path, detail=False)
    except FileNotFoundError:
        return {}
    found = sorted(path for path in listed if fnmatch(path.rpartition("/")[2], pattern))
    return {path.rpartition("/")[2]: data for path, data in store.fs.cat(found).items()} if found else {}


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; numbers that are not finite are refused rather than written."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(read_bytes(path))


class Ledger:
    """Done-markers of one stage, one small file for each finished shard.

    Parameters
    ----------
    folder : Path
        Where the markers lie, one folder a stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mark(self, shard: int, *, rows: int, checksum: str, core_seconds: float, **extra: Any) -> None:
        """Record that a shard was written in full: to be called last."""
        record = {"shard": shard, "rows": rows, "checksum": checksum, "core_seconds": core_seconds, **extra}
        write_json(self.folder / f"{shard:08d}.json", record)

    def records(self) -> dict[int, dict[str, Any]]:
        """Return the record of every finished shard."""
        found = (json.loads(data) for data in read_files(self.folder, "[0-9]*.json").values())
        return {record["shard"]: record for record in found}

    def pending(self, shards: int) -> list[int]:
        """Return the shards, of ``shards`` in all, that are not done."""
        done = self.records()
        return [shard for shard in range(shards) if shard not in done]

    def totals(self) -> tuple[int, float]:
        """Return the rows and core-seconds of the finished shards."""
        records: Sequence[dict[str, Any]] = list(self.records().values())
        return sum(r["rows"] for r in records), sum(r["core_seconds"] for r in records)

    def clear(self) -> None:
        """Forget all markers."""
        remove(self.folder)
