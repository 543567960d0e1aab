"""From uniform random numbers to those of other distributions, for numpy arrays and torch tensors alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import ndtri

from digs_survey.sps.arrays import namespace

__all__ = ["log_uniform", "standard_normal"]


def log_uniform(interval: tuple[float, float], uniform: Any) -> Any:
    """Values (n, 1) between two ends, uniform in the logarithm, for random numbers (n,)."""
    low, high = (math.log(end) for end in interval)
    return namespace(uniform).exp(low + (high - low) * uniform[:, None])


def standard_normal(uniform: Any) -> Any:
    """Standard normals (...) for random numbers (...) between 0 and 1."""
    if isinstance(uniform, np.ndarray):
        return ndtri(uniform)
    import torch

    return torch.special.ndtri(uniform)
