"""numba's compiler, whose results are kept on disk where that is possible, and what to do without it."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PLAIN", "STRIDE", "cached", "loops", "padded"]

PLAIN = "DIGS_SURVEY_PLAIN_SAMPLER"
"""Environment variable that keeps all loops (sampler, likelihood, spectra) from being compiled, unless it is 0 or
empty."""

STRIDE = 4
"""Columns of every weight are padded with zeros to a multiple of this."""

log = logging.getLogger(__name__)


def cached(jit: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles with ``jit`` and keeps what it made; a partial of :func:`numba.njit`."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return jit(cache=True)(function)
        except RuntimeError:
            # numba finds no folder that it may write to: neither beside the source, nor in the user's cache.
            return jit(function)

    return compiled


def padded(weight: NDArray[Any]) -> NDArray[Any]:
    """Return weights whose last axis is padded with zeros to a multiple of :data:`STRIDE`."""
    # np.pad keeps Fortran order, of which numba would compile the loops once more.
    return np.ascontiguousarray(np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, -weight.shape[-1] % STRIDE)]))


def loops(name: str) -> ModuleType | None:
    """Return the module of compiled loops of this name, or None where plain ones are to run; says why once.

    Its ``compile_all`` is called first.
    """
    return None if os.environ.get(PLAIN, "0") not in ("", "0") else _compiled(name)


@cache
def _compiled(name: str) -> ModuleType | None:
    try:
        module = importlib.import_module(name)
        module.compile_all()
    except Exception as error:  # Whatever keeps numba from working, the plain loops give the same answers.
        log.warning(
            "the loops of %s could not be compiled (%s: %s); plain ones run, several times slower",
            name,
            type(error).__name__,
            error,
        )
        return None
    return module
