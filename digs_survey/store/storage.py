"""Zarr templates, whole shards and atomic small files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from digs_survey.store.locations import is_remote
from digs_survey.store.targets import writing

__all__ = [
    "ArraySpec",
    "checksum",
    "create_arrays",
    "create_bytes",
    "create_dataset",
    "create_group",
    "new_file",
    "new_folder",
    "read_arrays",
    "read_bytes",
    "read_files",
    "read_json",
    "remove",
    "shard_count",
    "rows_of_shard",
    "write_arrays",
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
    rows_per_shard : int or None
        Rows of the first dimension in one shard; None stores the array as one chunk.
    rows_per_chunk : int or None
        Rows in one chunk inside a shard (default: the whole shard).
    attrs : mapping
        Units (readable by astropy.units) and description.
    fill_value : float or None
        What elements that were never written read as; None takes the dtype's zero.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    rows_per_shard: int | None = None
    rows_per_chunk: int | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    fill_value: float | None = None

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Shape of a chunk, and of a shard if there are any."""
        rest = tuple(max(1, n) for n in self.shape[1:])
        rows = max(1, self.shape[0]) if self.rows_per_shard is None else self.rows_per_shard
        rows_per_chunk = min(self.rows_per_chunk or rows, rows)
        rows = -(-rows // rows_per_chunk) * rows_per_chunk
        return (rows_per_chunk, *rest), None if self.rows_per_shard is None else (rows, *rest)

    def fits(self, array: Any) -> bool:
        """Tell whether a Zarr array differs in its number of rows at most."""
        if dict(array.attrs) != json.loads(json.dumps(dict(self.attrs))):
            return False
        if self.rows_per_shard is None:
            return bool(array.shape == self.shape)
        is_text = array.dtype.kind == "T"
        same_type = is_text if self.dtype == "str" else not is_text and array.dtype == np.dtype(self.dtype)
        return same_type and array.shape[1:] == self.shape[1:] and (array.chunks, array.shards) == self.chunks


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
        chunks, shards = spec.chunks
        fill: dict[str, Any] = {} if spec.fill_value is None else {"fill_value": spec.fill_value}
        array = zarr.create_array(
            str(folder / name),
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=chunks,
            shards=shards,
            compressors=ZstdCodec(checksum=True),
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
        with writing("folder", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield building
        if building != path:
            building.chmod(0o755)
            old = _set_aside(path) if _is_folder(path) else None
            path.unlink(missing_ok=True)
            os.replace(building, path)
            # To delete takes long. The new folder stands at ``path`` before it begins.
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        remove(building)
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file of this machine to write; it stands at ``path`` at the end, or nothing does.

    What stood there before is replaced as a whole. On an object store the file is uploaded when it is complete.
    """
    folder = None if is_remote(path) else path.parent
    with writing("file", path):
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

    Each array's shard is either the old one or the new one at any time, also where two processes write the same.
    """
    store = _WriteOnly(FsspecStore.from_url(str(path)) if is_remote(path) else LocalStore(path))
    group: Any = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name, value in values.items():
        group[name][rows] = value


class _WriteOnly(WrapperStore[Any]):
    """A store that shows metadata, and no values: Zarr reads a shard before it writes to it, even a damaged one."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if not key.endswith("zarr.json"):
            return None
        return await super().get(key, prototype, byte_range)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there; a dataset is none at once, whenever this is interrupted."""
    if is_remote(path):
        store: Any = path
        for name in (store / "zarr.json", store):
            with suppress(FileNotFoundError):
                store.fs.rm(name.path, recursive=name is store)
    elif _is_folder(path):
        shutil.rmtree(_set_aside(path), ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _set_aside(folder: Path) -> Path:
    """Move a folder into a hidden one beside it, at once, and return that."""
    grave = Path(tempfile.mkdtemp(prefix=f".{folder.name}-removed-", dir=folder.parent))
    os.replace(folder, grave / folder.name)
    return grave


def shard_count(rows: int, rows_per_shard: int) -> int:
    """Return how many shards hold ``rows`` rows."""
    return -(-rows // rows_per_shard)


def rows_of_shard(shard: int, rows: int, rows_per_shard: int) -> slice:
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


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file unless there is one: of several processes that try, one succeeds. Return whether this one did."""
    if is_remote(path):
        store: Any = path
        try:
            store.fs.pipe_file(store.path, data, mode="create")
        except FileExistsError:
            return False
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write a text file as :func:`write_bytes` does."""
    write_bytes(path, text.encode(), lasting=lasting)


def write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Write a file that is either the old one or the new one, never half of it.

    A ``lasting`` one is on the disk when this returns, also if the power fails then.
    """
    if is_remote(path):
        store: Any = path
        store.fs.pipe_file(store.path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if lasting:
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
    """Read the files in a folder, many at once on an object store: contents by name, sorted; none without a folder.

    What others take away meanwhile is left out.
    """
    found: dict[str, bytes] = {}
    if not is_remote(folder):
        for path in sorted(folder.glob(pattern)):
            with suppress(FileNotFoundError):
                found[path.name] = path.read_bytes()
        return found
    store: Any = folder
    try:
        # Not glob: it takes a listing that failed for an empty one.
        listed = store.fs.ls(store.path, detail=False)
    except FileNotFoundError:
        return {}
    paths = sorted(path for path in listed if fnmatch(path.rpartition("/")[2], pattern))
    for path, data in (store.fs.cat(paths, on_error="return") if paths else {}).items():
        if isinstance(data, bytes):
            found[path.rpartition("/")[2]] = data
        elif not isinstance(data, FileNotFoundError):
            raise data
    return found


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays and numbers to one file (NumPy's ``npz``), as :func:`write_bytes` does."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what :func:`write_arrays` wrote; numbers come as arrays without dimensions."""
    with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as stored:
        return dict(stored)


def write_json(path: Path, data: Any, *, lasting: bool = True) -> None:
    """Write JSON as :func:`write_bytes` does; numbers that are not finite are refused rather than written."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", lasting=lasting)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(read_bytes(path))
