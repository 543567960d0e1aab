"""numba's compiler, whose results are kept on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["cached"]


def cached(jit: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles with ``jit`` and keeps what it made; a partial of :func:`numba.njit`."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return jit(cache=True)(function)
        except RuntimeError:
            # numba finds no folder that it may write to: neither beside the source, nor in the user's cache.
            return jit(function)

    return compiled
