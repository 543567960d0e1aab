"""How numbers, durations and identifiers are written on the page."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, TypeGuard

__all__ = ["FILTERS", "cell", "count", "duration", "fixed", "moment", "number", "percent"]

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """Write a value with ``digits`` significant digits; powers of ten where it is very large or small."""
    if not _known(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 <= power < 6:
        return f"{float(f'{mantissa}e{exponent}'):,.{max(0, digits - 1 - power)}f}".replace("-", "−")
    return f"{mantissa} × 10{str(power).translate(_SUPERSCRIPT)}".replace("-", "−")


def fixed(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """Write a value with a fixed number of decimals, with its sign if asked for."""
    if not _known(value):
        return MISSING
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def count(value: float | None) -> str:
    """Write a number of things: whole, thousands separated; estimates are for :func:`number`."""
    return f"{round(value):,}" if _known(value) else MISSING


def percent(value: float | None, decimals: int = 1) -> str:
    """Write a share of 1 in percent."""
    return f"{100 * value:.{decimals}f} %" if _known(value) else MISSING


def moment(text: str) -> str:
    """Write an ISO 8601 time to the minute, in UTC; other text stays as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float | None) -> str:
    """Write a time in the unit that suits it."""
    if not _known(seconds):
        return MISSING
    for limit, scale, unit in ((1e-3, 1e-6, "µs"), (1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds / 3600)} h"


def cell(value: Any) -> str:
    """Write one value of a table whose columns are not known beforehand."""
    if isinstance(value, bool) or value is None:
        return MISSING if value is None else str(value).lower()
    if isinstance(value, float):
        return MISSING if not math.isfinite(value) else f"{value:.6g}".replace("-", "−")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


FILTERS = {
    "number": number,
    "fixed": fixed,
    "whole": count,
    "percent": percent,
    "duration": duration,
    "moment": moment,
    "cell": cell,
}
"""The filters of the page's template."""
