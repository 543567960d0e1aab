"""Writing catalogs: at once, or shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from digs_survey import formats
from digs_survey.catalog.column_names import name_violations
from digs_survey.catalog.decoding import text_values
from digs_survey.catalog.schema import (
    FORMAT_ATTRIBUTE,
    open_group,
    parse_unit,
    schema_violations,
)
from digs_survey.errors import CatalogError
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.locations import location
from digs_survey.store.storage import ArraySpec, create_arrays, create_group, new_folder, rows_of_shard, shard_count

__all__ = ["new_catalog", "write_catalog"]

_CHUNK_ROWS = 256


def write_catalog(
    path: Path | str,
    *,
    grid: WavelengthGrid,
    flux: ArrayLike,
    ivar: ArrayLike,
    mask: ArrayLike,
    redshift: ArrayLike,
    galaxy_id: ArrayLike,
    flux_unit: str,
    columns: Mapping[str, tuple[ArrayLike, Mapping[str, Any]]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    rows_per_shard: int = 1024,
) -> None:
    """Write a catalog; it appears at ``path`` complete and valid, or not at all.

    Parameters
    ----------
    path : path-like
        What stood there before is replaced.
    flux, ivar : array_like, shape (galaxy, wavelength)
        f_lambda in ``flux_unit`` and its inverse variance; stored as float32.
    mask : array_like of int, shape (galaxy, wavelength)
        0 = good; stored as uint8.
    redshift : array_like, shape (galaxy,)
    galaxy_id : array_like of int or str, shape (galaxy,)
    flux_unit : str
        Read by :mod:`astropy.units`; a scale such as ``1e-17 erg / (s cm2 Angstrom)`` keeps float32 in range.
    columns : mapping of name to (values (galaxy,), attributes), optional
        The survey's own columns; attributes ``units`` and ``description`` reach the result tables.
    attrs : mapping, optional
        Attributes of the catalog as a whole.

    Raises
    ------
    CatalogError
        A shape, unit or name that the schema does not allow, or values out of float32's range.
    """
    arrays: dict[str, NDArray[Any]] = {
        "flux": np.asarray(flux, dtype=np.float64),
        "ivar": np.asarray(ivar, dtype=np.float64),
        "mask": np.asarray(mask),
        "redshift": np.asarray(redshift, dtype=np.float64),
        "galaxy_id": text_values("galaxy_id", galaxy_id),
    }
    described: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    for name, (values, attributes) in (columns or {}).items():
        arrays[name] = text_values(name, values)
        described[name] = arrays[name].dtype, attributes
    rows = arrays["redshift"].size
    wrong = []
    for name, array in arrays.items():
        expected = (rows, len(grid)) if name in ("flux", "ivar", "mask") else (rows,)
        if array.shape != expected:
            wrong.append(f"{name}: expected shape {expected}, found {array.shape}")
    if wrong:
        raise CatalogError(f"catalog {path} cannot be written:", wrong)
    with new_catalog(
        path,
        grid=grid,
        rows=rows,
        id_dtype=arrays["galaxy_id"].dtype,
        flux_unit=flux_unit,
        columns=described,
        attrs=attrs,
        rows_per_shard=rows_per_shard,
    ) as (shards, write):
        for part in shards:
            write(part, {name: array[part] for name, array in arrays.items()})


@contextmanager
def new_catalog(
    path: Path | str,
    *,
    grid: WavelengthGrid,
    rows: int,
    id_dtype: Any,
    flux_unit: str,
    columns: Mapping[str, tuple[Any, Mapping[str, Any]]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    rows_per_shard: int = 1024,
) -> Iterator[tuple[list[slice], Callable[[slice, Mapping[str, NDArray[Any]]], None]]]:
    """Write a catalog shard by shard; it appears at ``path`` when all is written and valid, or not at all.

    Parameters
    ----------
    path : path-like
        What stood there before is replaced.
    rows : int
        Rows in all.
    id_dtype : dtype
        Of ``galaxy_id``: of integers or strings.
    columns : mapping of name to (dtype, attributes), optional
        The survey's own columns.
    grid, flux_unit, attrs
        As :func:`write_catalog` takes them.

    Yields
    ------
    shards : list of slice
        The rows of each shard.
    write : callable
        Takes the rows of a shard and the values of every array in them, wavelengths excepted.

    Raises
    ------
    CatalogError
        As :func:`write_catalog`.
    """
    path = location(path)
    try:
        ivar_unit = (parse_unit(flux_unit) ** -2).to_string()
    except ValueError as error:
        raise CatalogError(f"catalog {path}: flux_unit {flux_unit!r} cannot be read: {error}") from error
    if wrong := list(name_violations(columns or {})):
        raise CatalogError(f"catalog {path} cannot be written:", wrong)
    wanted: dict[str, tuple[Any, Mapping[str, Any]]] = {
        "flux": ("float32", {"units": flux_unit}),
        "ivar": ("float32", {"units": ivar_unit}),
        "mask": ("uint8", {}),
        "redshift": ("float64", {}),
        "galaxy_id": (id_dtype, {}),
        **(columns or {}),
    }
    # A shard is whole chunks.
    chunk_rows = max(1, min(_CHUNK_ROWS, rows_per_shard, rows))
    shard_size = -(-max(1, min(rows_per_shard, rows)) // chunk_rows) * chunk_rows
    spectra = ("flux", "ivar", "mask")
    specs = {
        name: ArraySpec(
            ("galaxy", "wavelength") if name in spectra else ("galaxy",),
            (rows, len(grid)) if name in spectra else (rows,),
            "str" if np.dtype(dtype).kind == "U" else str(np.dtype(dtype)),
            rows_per_shard=shard_size,
            rows_per_chunk=chunk_rows,
            attrs=attributes,
        )
        for name, (dtype, attributes) in wanted.items()
    }
    wave_attrs = {"units": "Angstrom", "frame": grid.frame, "medium": grid.medium}
    specs["wavelength"] = ArraySpec(("wavelength",), (len(grid),), "float64", attrs=wave_attrs)
    with new_folder(path) as building:
        create_arrays(building, specs, {"wavelength": grid.wavelength})
        arrays = {name: zarr.open_array(str(building / name), mode="r+") for name in wanted}

        def write(part: slice, values: Mapping[str, NDArray[Any]]) -> None:
            for name, array in arrays.items():
                array[part] = _float32(name, values[name]) if name in ("flux", "ivar") else values[name]

        yield [rows_of_shard(shard, rows, shard_size) for shard in range(shard_count(rows, shard_size))], write
        create_group(building, {**(attrs or {}), FORMAT_ATTRIBUTE: formats.CATALOG})
        violations = schema_violations(open_group(building))
        if violations:
            raise CatalogError(f"catalog {path} cannot be written:", violations)


def _float32(name: str, values: ArrayLike) -> NDArray[np.float32]:
    wide = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    if (np.isinf(narrow) & np.isfinite(wide)).any() or ((narrow == 0) & (wide != 0)).any():
        remedy = "give flux in a scaled unit, such as '1e-17 erg / (s cm2 Angstrom)'"
        raise CatalogError(f"{name}: values out of float32's range (1e-45 to 3e38); {remedy}")
    return narrow
