"""Weights of populations for histories in bins, compiled: a galaxy at a time, whatever its bins."""

from __future__ import annotations

import math

import numpy as np

from digs_survey.simd import cached_jit

__all__ = ["compile_all", "weigh_bins"]


@cached_jit
def weigh_bins(nodes, steps, whole_older, whole_younger, rates, edges, weights):  # type: ignore[no-untyped-def]
    """Fill weights (n, age), which are zero, for rates (n, bin) and edges (n, bin + 1).

    :class:`~digs_survey.sps.bins.BinWeights` explains them. ``nodes`` are the ages in Gyr with a zero before them,
    ``steps`` the widths of the intervals in log age, and ``whole_older`` and ``whole_younger`` the integrals of both
    ends' shares over them.
    """
    bins, count = rates.shape[1], weights.shape[1]
    for n in range(rates.shape[0]):
        k = 0
        for i in range(count):
            low, high = nodes[i], nodes[i + 1]
            while k < bins and edges[n, k + 1] <= low:
                k += 1
            if k == bins:
                break
            older, younger = rates[n, k] * whole_older[i], rates[n, k] * whole_younger[i]
            at = k
            while at < bins and edges[n, at + 1] < high:
                age = edges[n, at + 1]
                if i:
                    part = (high * (math.log(high / low) - 1) - age * (math.log(age / low) - 1)) / steps[i]
                else:
                    part = high - age
                change = (rates[n, at + 1] if at + 1 < bins else 0.0) - rates[n, at]
                older += change * part
                younger += change * (high - age - part)
                at += 1
            weights[n, i] += older
            if i:
                weights[n, i - 1] += younger


def compile_all() -> None:
    """Compile the loops, or take them from numba's cache; raises what keeps numba from it."""
    one = np.ones(1)
    edges = np.arange(2, dtype=float)
    weigh_bins(edges, one, one, one, np.ones((1, 1)), edges[None], np.zeros((1, 1)))
