"""One code for numpy arrays and torch tensors, and one thread for what must not depend on their number."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

__all__ = ["as_like", "as_numpy", "namespace", "one_thread"]


def namespace(array: Any) -> Any:
    """Return the module, numpy or torch, whose functions take this array."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def as_like(values: NDArray[Any], like: Any) -> Any:
    """Return values as an array of the kind and type, and on the device, of another."""
    return namespace(like).asarray(values, dtype=like.dtype, device=like.device)


def as_numpy(array: Any) -> NDArray[Any]:
    """Return a numpy array, or a torch tensor of any device, as a numpy array."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.detach().cpu())


def one_thread() -> AbstractContextManager[Any]:
    """Keep numpy's linear algebra on one thread: how a product is shared among threads changes its last digits."""
    return _threadpools().limit(limits=1)


@cache
def _threadpools() -> ThreadpoolController:
    """Find the thread pools of the linear algebra once for each process, after it was loaded."""
    return ThreadpoolController()
