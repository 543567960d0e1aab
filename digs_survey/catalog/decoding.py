"""Variables of a catalog as xarray shows them: missing values, packed numbers, times, booleans and text.

A Zarr array holds encoded values, and its attributes say how to decode them (the CF conventions,
https://cfconventions.org, chapters 2.5, 4.4 and 8.1; xarray writes them). :class:`StoredArray` decodes as
``xarray.open_zarr`` does, with three differences:

- Integers, booleans and text with missing values stay what they are, as masked arrays. xarray makes floats of
  integers, which do not hold identifiers above 2**53.
- Times are text in ISO 8601, which all formats of tables hold.
- Zarr 2 gives every array a ``fill_value``. It marks missing values, as in xarray, unless it is 0, False or empty:
  this is what Zarr itself sets, and 0 is a value.
"""

from __future__ import annotations

import base64
import codecs
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from digs_survey.errors import CatalogError

__all__ = ["NotTextError", "StoredArray", "numbers", "plain_strings", "text_values"]

_CODING = ("missing_value", "scale_factor", "add_offset", "calendar")
"""Attributes that say how values are encoded, beside those that begin with an underscore."""
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_SINCE = re.compile(r"(day|d|hour|hr|h|minute|min|second|sec|s|(milli|micro|nano)second|msec|[mun]s)s?\s+since\s", re.I)
"""How units of times begin; others with the word, such as "counts since launch", are the survey's own."""
_NAT = np.iinfo(np.int64).min
"""What xarray writes for a time that is missing."""


class NotTextError(ValueError):
    """Bytes are not text in the encoding that they should have."""


class StoredArray:
    r"""One variable of a catalog, whose values are decoded when they are read.

    Parameters
    ----------
    name : str
    array : zarr.Array
    strict : bool
        Whether bytes that are no text are an error; else they are shown as ``\xNN``.

    Attributes
    ----------
    name : str
    shape, chunks : tuple of int
    dims : tuple of str or None
    attrs : dict
        Units, description and the like, without those that say how values are encoded.
    dtype : dtype
        Of the decoded values; of text that of the store.
    problems : list of str
        Why values cannot be decoded; empty if they can.
    """

    def __init__(self, name: str, array: zarr.Array, *, strict: bool = False) -> None:
        self.name, self._array, self._strict = name, array, strict
        self.shape: tuple[int, ...] = array.shape
        self.chunks: tuple[int, ...] = array.chunks
        self.dims = _dims(array)
        self.problems: list[str] = []
        stored = dict(array.attrs)
        self._stored: np.dtype[Any] = _unsigned(array.dtype, stored.get("_Unsigned"))
        self._missing = list(self._missing_values(stored))
        self._scale, self._offset = (self._number(stored, key) for key in ("scale_factor", "add_offset"))
        self._is_bool = stored.get("dtype") == "bool" and self._stored.kind in "iu"
        self._is_duration = str(stored.get("dtype", "")).startswith("timedelta64")
        self._since = self._time_units(stored)
        self._encoding = self._text_encoding(stored)
        self.dtype = self._decoded_dtype()
        hidden = {*_CODING, *(["dtype"] if self._is_bool or self._is_duration else [])}
        if self.is_time:
            hidden.add("units")
        self.attrs = {key: value for key, value in stored.items() if key[:1] != "_" and key not in hidden}

    @property
    def itemsize(self) -> int:
        """Bytes of one value in memory, at least 1."""
        return max(1, self._array.dtype.itemsize, self.dtype.itemsize)

    @property
    def is_time(self) -> bool:
        """Whether the values are dates or times."""
        return self._since is not None or self._stored.kind == "M"

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """Read and decode rows; values that are missing are NaN in floats, and masked in all other types.

        Raises
        ------
        NotTextError
            Bytes are no text, and the array is strict.
        ValueError
            A time is out of range.
        """
        values: Any = np.asarray(self._array[part])
        if values.dtype.kind in "SUTO":
            return self._text(values)
        if self._stored.kind != values.dtype.kind and values.dtype.kind in "iu":
            values = values.view(self._stored.newbyteorder(values.dtype.byteorder))
        absent = self._absent(values)
        if self.is_time:
            return self._times(values, absent)
        if self.dtype.kind == "f":
            if self._scale is not None or self._offset is not None:
                values = values.astype(np.float64) * (1.0 if self._scale is None else self._scale)
                values += 0.0 if self._offset is None else self._offset
            if absent.any():
                values = np.where(absent, np.array(np.nan, values.dtype), values)
            return values
        if self._is_bool:
            values = values != 0
        return np.ma.array(values, mask=absent) if self._missing or self._is_duration else values

    # -- what the attributes say -----------------------------------------------------------------------

    def _missing_values(self, attrs: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the values that stand for none, as they are stored."""
        if getattr(self._array.metadata, "zarr_format", 3) == 2:
            fill = self._array.fill_value
            # Zero, False and the empty string are what Zarr sets where nobody said anything.
            if fill is not None and bool(fill):
                yield from self._usable(fill, "fill_value")
        for key in ("_FillValue", "missing_value"):
            found = attrs.get(key)
            for value in found if isinstance(found, (list, tuple)) else [found]:
                if value is not None:
                    yield from self._usable(value, key)

    def _usable(self, value: Any, key: str) -> Iterator[Any]:
        """Yield a value in the stored type; nothing for NaN, which is missing already."""
        kind = self._stored.kind
        if kind in "mM":  # NaT says it
            return
        if kind in "SUTO":
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            yield str(value)
            return
        try:
            number = _as_number(value, kind)
        except (ValueError, TypeError, struct.error):
            self.problems.append(f"{self.name}: attribute {key}: expected a number, found {value!r}")
            return
        if number != number:
            return
        if kind == "f":
            yield self._stored.type(number)
        elif kind in "iu" and float(number).is_integer():
            whole, bounds = int(number), np.iinfo(self._stored)
            if whole < 0 and kind == "u":  # _Unsigned: given as the signed integer that is stored
                whole += 2 ** (8 * self._stored.itemsize)
            if bounds.min <= whole <= bounds.max:
                yield whole
        elif kind == "b":
            yield bool(number)

    def _number(self, attrs: Mapping[str, Any], key: str) -> float | None:
        found: Any = attrs.get(key)
        if isinstance(found, (list, tuple)) and len(found) == 1:
            found = found[0]
        if found is None or self._stored.kind not in "iuf":
            return None
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number) or (key == "scale_factor" and number == 0):
            self.problems.append(f"{self.name}: attribute {key}: expected a finite number, found {found!r}")
            return None
        return number

    def _time_units(self, attrs: Mapping[str, Any]) -> str | None:
        """Return units like 'days since 2000-01-01'; None of an array that has none."""
        found = attrs.get("units")
        if not isinstance(found, str) or not _SINCE.match(found) or self._stored.kind not in "iuf":
            return None
        self._calendar = str(attrs.get("calendar", "standard")).lower()
        if self._calendar not in _CALENDARS:
            self.problems.append(
                f"{self.name}: attribute calendar: expected {' or '.join(_CALENDARS)}, found {self._calendar!r}; "
                "write the times as text in ISO 8601"
            )
        return found

    def _text_encoding(self, attrs: Mapping[str, Any]) -> str:
        found = attrs.get("_Encoding", "utf-8")
        try:
            return codecs.lookup(found).name
        except (LookupError, TypeError):
            self.problems.append(
                f"{self.name}: attribute _Encoding: expected one that Python knows, such as 'utf-8' or 'latin-1', "
                f"found {found!r}"
            )
            return "utf-8"

    def _decoded_dtype(self) -> np.dtype[Any]:
        if self.is_time:
            return np.dtype("U")
        if self._scale is not None or self._offset is not None:
            return np.dtype(np.float64)
        return np.dtype(bool) if self._is_bool else self._stored

    # -- values ----------------------------------------------------------------------------------------

    def _absent(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        absent = np.isnat(values) if values.dtype.kind in "mM" else np.zeros(values.shape, dtype=bool)
        for value in self._missing:
            absent |= values == value
        if (self._since is not None or self._is_duration) and values.dtype.kind == "i" and values.dtype.itemsize == 8:
            absent |= values == _NAT
        return absent

    def _text(self, values: NDArray[Any]) -> NDArray[Any]:
        absent = np.zeros(values.shape, dtype=bool)
        if values.dtype.kind == "O":
            absent = np.array([value is None for value in values.ravel()], dtype=bool).reshape(values.shape)
        if absent.any():
            values = np.where(absent, "", values)
        text = plain_strings(values, self._encoding, strict=self._strict)
        if self._missing:
            absent |= np.isin(text, self._missing)
        return np.ma.array(text, mask=absent) if absent.any() or self._missing else text

    def _times(self, values: NDArray[Any], absent: NDArray[np.bool_]) -> NDArray[Any]:
        """Return text in ISO 8601, whose precision is the same in all rows."""
        if values.dtype.kind == "f":
            absent = absent | ~np.isfinite(values)
        unit = _precision(self._since, values.dtype, packed=self.dtype.kind == "f" or self._scale is not None)
        if self._since is None:
            moments: Any = values
        else:
            from xarray.coding.times import decode_cf_datetime

            values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
            if self._scale is not None or self._offset is not None:
                values = values * (1.0 if self._scale is None else self._scale) + (self._offset or 0.0)
            given = np.where(absent, 0, values)
            with warnings.catch_warnings():
                # It takes a finer resolution where fractions need one, with a warning.
                warnings.simplefilter("ignore")
                step: Any = "ns" if unit == "ns" else "us"
                moments = np.asarray(decode_cf_datetime(given, self._since, self._calendar, False, step))
        if unit == "us" and np.datetime_data(moments.dtype)[0] == "ns":
            moments = moments + np.timedelta64(500, "ns")
        moments = moments.astype(f"datetime64[{unit}]")
        iso: Any = unit
        text = np.datetime_as_string(moments, unit=iso)
        return np.ma.array(np.where(absent, "", text), mask=absent)


def numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return values as floats, NaN where they are masked."""
    if not isinstance(values, np.ma.MaskedArray):
        return values.astype(np.float64)
    return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))


def plain_strings(values: Any, encoding: str = "utf-8", *, strict: bool = True) -> NDArray[Any]:
    r"""Turn numpy's several kinds of strings into the fixed-width one that every reader knows.

    Bytes are decoded. Those that are no text raise :class:`NotTextError`, or are shown as ``\xNN``.
    """
    array = np.asarray(values)
    if array.dtype.kind == "O" and any(isinstance(value, bytes) for value in array.ravel()):
        array = array.astype("S")
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, encoding, "strict" if strict else "backslashreplace")
        except UnicodeDecodeError as error:
            raise NotTextError(f"{error.object!r} is not {encoding}") from error
    return np.array(array.tolist(), dtype=str) if array.dtype.kind in "TO" else array


def text_values(name: str, values: Any) -> NDArray[Any]:
    """Return strings of any kind as numpy's, and other values as they are.

    Raises
    ------
    CatalogError
        Bytes are not UTF-8; it names the variable.
    """
    try:
        return plain_strings(values)
    except NotTextError as error:
        raise CatalogError(
            f"{name}: expected text or bytes of UTF-8, found other bytes ({error}); decode them"
        ) from error


def _dims(array: zarr.Array) -> tuple[str, ...] | None:
    """Names of the dimensions, as Zarr 3 or (in its attributes) xarray's Zarr 2 gives them."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(str(name) for name in names) if names else None  # type: ignore[union-attr]


def _unsigned(dtype: np.dtype[Any], said: Any) -> np.dtype[Any]:
    """Return the type that the attribute _Unsigned gives to an integer."""
    wanted = {("i", "true"): "u", ("u", "false"): "i"}.get((dtype.kind, str(said).lower()))
    return np.dtype(f"{wanted}{dtype.itemsize}") if wanted else np.dtype(dtype)


def _as_number(value: Any, kind: str) -> Any:
    """Return a fill value as a number; xarray writes those of floats into Zarr 3 as base64."""
    if kind == "f" and isinstance(value, str) and value.endswith("="):
        return struct.unpack("<d", base64.standard_b64decode(value))[0]
    return value if isinstance(value, int) else float(value)


def _precision(since: str | None, dtype: np.dtype[Any], *, packed: bool) -> str:
    """Return numpy's unit that times are written in: by type and units alone, so that all rows have it."""
    if since is None:
        stored = np.datetime_data(dtype)[0]
        return stored if stored in ("ms", "us", "ns") else "s"
    step = since.split()[0].lower()
    for unit, names in (("ns", ("nanosecond", "ns")), ("us", ("microsecond", "us")), ("ms", ("millisecond", "ms"))):
        if step.startswith(names):
            return unit
    return "us" if packed or dtype.kind == "f" else "s"
