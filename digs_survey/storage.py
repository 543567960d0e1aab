"""Zarr templates, whole shards and atomic small files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

__all__ = [
    "ArraySpec",
    "checksum",
    "create_bytes",
    "create_dataset",
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    root = zarr.create_group(str(building), zarr_format=3, overwrite=True)
    root.attrs.update(dict(attrs or {}))
    for name, spec in arrays.items():
        rest = tuple(max(1, n) for n in spec.shape[1:])
        rows = max(1, spec.shape[0]) if spec.shard_rows is None else spec.shard_rows
        chunk_rows = min(spec.chunk_rows or rows, rows)
        rows = -(-rows // chunk_rows) * chunk_rows
        fill: dict[str, Any] = {} if spec.fill_value is None else {"fill_value": spec.fill_value}
        root.create_array(
            name,
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=(chunk_rows, *rest),
            shards=None if spec.shard_rows is None else (rows, *rest),
            compressors=ZstdCodec(checksum=True),
            dimension_names=spec.dims,
            attributes=dict(spec.attrs),
            **fill,
        )
    for name, value in (values or {}).items():
        root[name][...] = value  # type: ignore[index]
    remove(path)
    building.chmod(0o755)
    os.replace(building, path)


def write_shard(path: Path, shard: int, rows: slice, values: Mapping[str, NDArray[Any]]) -> None:
    """Write one whole shard of arrays of the dataset at ``path``, in place of whatever stands there.

    Each array's shard is either the old one or the new one at any time, also where two processes write the same.
    """
    store = _WriteOnly(LocalStore(path))
    group: Any = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name, value in values.items():
        group[name][rows] = value


class _WriteOnly(WrapperStore[LocalStore]):
    """A store that shows metadata, and no values: Zarr reads a shard before it writes to it, even a damaged one."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if not key.endswith("zarr.json"):
            return None
        return await super().get(key, prototype, byte_range)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there (renamed first, so that it is gone at once)."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
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


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file unless there is one: of several processes that try, one succeeds. Return whether this one did."""
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
    path = Path(path)
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


def write_json(path: Path, data: Any, *, lasting: bool = True) -> None:
    """Write JSON as :func:`write_bytes` does; numbers that are not finite are refused rather than written."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", lasting=lasting)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
