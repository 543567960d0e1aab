"""One code for numpy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_like", "namespace"]


def namespace(array: Any) -> Any:
    """Return the module, numpy or torch, whose functions take this array."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def as_like(values: NDArray[Any], like: Any) -> Any:
    """Return values as an array of the kind and type, and on the device, of another."""
    return namespace(like).asarray(values, dtype=like.dtype, device=like.device)
