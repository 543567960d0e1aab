r"""Spectra of composite populations, compiled: a group of galaxies at a time, one in each lane.

The steps are those of :class:`~digs_survey.sps.batched.BatchedModel`: weights of the populations from the history,
coefficients of the populations' vectors, the vectors' sums on the grid by powers of the attenuation's offset, and the
attenuation. A group's galaxies lie between the same metallicities and line spreads, so that they share all
matrices. The matrices stay in the cache, and a galaxy's spectrum is the same bytes in any group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digs_survey.simd import STRIDE, cached_jit, dense_of, exp, jit, log, padded
from digs_survey.sps.burst import no_burst

__all__ = [
    "CONSTANT",
    "DELAYED",
    "EXPONENTIAL",
    "LANES",
    "PackedHistory",
    "PackedPart",
    "add_part",
    "compile_all",
    "pack_part",
    "predict",
    "smallest",
    "take_known",
    "weigh",
]

LANES = 64
"""Galaxies of a group."""
CONSTANT, EXPONENTIAL, DELAYED = 0, 1, 2
"""Rates of star formation: 1, exp(-x) and x exp(-x) of the time x in e-folding times."""

_ZERO, _ONE = np.float32(0), np.float32(1)


class PackedHistory(NamedTuple):
    """What weights of populations are made of; :class:`~digs_survey.sps.history.HistoryWeights` explains the parts.

    ``panels`` has a row for each panel: its first interval, how many it has, its first point, how many it has, and
    where its weights begin in ``old`` and ``young``: (interval, padded point), those for both ends of the intervals.
    """

    rate: int
    edges: NDArray[np.float32]
    ages: NDArray[np.float32]
    before: NDArray[np.float32]
    panels: NDArray[np.int64]
    old: NDArray[np.float32]
    young: NDArray[np.float32]
    rule: NDArray[np.float32]
    rule_weights: NDArray[np.float32]


class PackedPart(NamedTuple):
    """Populations between some metallicities as sums of fewer vectors, for each power of the attenuation's offset.

    ``mixing`` (vector, padded node * age) makes coefficients of shares times weights, of which the first ``ages``
    count. Power j has the vectors ``starts[j]`` to ``starts[j + 1]``; its rows of ``vectors`` (power, element, padded
    vector) are those that add up to its flux.

    Where the line spread is free it has terms, as many more shares. ``histories`` (sum, padded node * age) then makes
    sums of shares times weights, and ``mixing`` (vector, padded term and sum) coefficients of terms times the first
    ``terms`` (term,) of these.
    """

    first_share: int
    nodes: int
    ages: int
    terms: NDArray[np.int64]
    histories: NDArray[np.float32]
    mixing: NDArray[np.float32]
    starts: NDArray[np.int64]
    vectors: NDArray[np.float32]


def pack_part(
    first_share: int,
    nodes: int,
    ages: int,
    factors: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    histories: NDArray[np.float32] | None = None,
    terms: NDArray[np.int64] | None = None,
) -> PackedPart:
    """Return a part between some metallicities from the two matrices of each power; see the class."""
    counts = [mixing.shape[1] for mixing, _ in factors]
    longest = max(max(counts), 1)
    vectors = np.stack([padded(np.pad(rows.T, ((0, 0), (0, longest - rows.shape[0])))) for _, rows in factors])
    mixing = padded(np.concatenate([mixing for mixing, _ in factors], axis=1).T)
    first = np.zeros((0, STRIDE), np.float32) if histories is None else padded(histories.T)
    of_spread = np.zeros(0, np.int64) if terms is None else terms.astype(np.int64)
    return PackedPart(first_share, nodes, ages, of_spread, first, mixing, np.cumsum([0, *counts]), vectors)


_dense = dense_of(LANES)


@jit
def _rate(kind, time, inverse):  # type: ignore[no-untyped-def]
    x = time * inverse
    decay = _ONE if kind == CONSTANT else exp(-x)
    return x * decay if kind == DELAYED else decay


@jit
def weigh(history, tage, inverse, last, formed, older, younger, zeros, weights):  # type: ignore[no-untyped-def]
    """Fill rows of weights (age * LANES) for ages and inverse e-folding times of the lanes; the rest is scratch."""
    count = history.edges.shape[0] - 1
    for n in range(LANES):
        last[n] = min(np.searchsorted(history.edges, tage[n]) - 1, count - 1)
    for k in range(history.ages.shape[0]):
        row, age, before = formed[k * LANES :], history.ages[k], -history.before[k]
        for n in range(LANES):
            time = tage[n] - age
            row[n] = _rate(history.rate, time if time > before else before, inverse[n])
    for p in range(history.panels.shape[0]):
        first, width, point, points, at = history.panels[p]
        depth = points + (-points) % STRIDE
        old = history.old[at : at + width * depth].reshape(width, depth)
        young = history.young[at : at + width * depth].reshape(width, depth)
        _dense(old, zeros, depth, formed[point * LANES :], older[first * LANES :], 0, width)
        _dense(young, zeros, depth, formed[point * LANES :], younger[first * LANES :], 0, width)
    for i in range(count):
        # Intervals before the one in which the history began count as a whole.
        row, old, young = weights[i * LANES :], older[i * LANES :], younger[(i + 1) * LANES :]
        for n in range(LANES):
            row[n] = (old[n] if i < last[n] else _ZERO) + (young[n] if i + 1 < last[n] else _ZERO)
    for n in range(LANES):
        piece = last[n]
        low = history.edges[piece]
        span = tage[n] - low
        step = log(history.edges[piece + 1] / low) if piece else _ONE
        for k in range(history.rule.shape[0]):
            age = low + span * history.rule[k]
            mass = _rate(history.rate, span * (_ONE - history.rule[k]), inverse[n]) * span * history.rule_weights[k]
            share = log(age / low) / step if piece else _ONE
            weights[piece * LANES + n] += mass * share
            weights[(piece - 1 if piece else 0) * LANES + n] += mass * (_ONE - share)
    total = younger[:LANES]
    total[:] = _ZERO
    for i in range(count):
        row = weights[i * LANES :]
        for n in range(LANES):
            total[n] += row[n]
    for i in range(count):
        row = weights[i * LANES :]
        for n in range(LANES):
            row[n] /= total[n]


@jit
def take_known(known, rows, weights):  # type: ignore[no-untyped-def]
    """Fill rows of weights (age * LANES) from known ones (n, age), for the galaxies ``rows`` of the lanes."""
    for n in range(LANES):
        row = rows[min(n, rows.shape[0] - 1)]
        for i in range(known.shape[1]):
            weights[i * LANES + n] = known[row, i]


@jit
def add_burst(burst, rows, count, weights):  # type: ignore[no-untyped-def]
    """Add bursts to rows of weights (age * LANES), for the galaxies ``rows`` of the lanes."""
    for n in range(LANES):
        row = rows[min(n, rows.shape[0] - 1)]
        share, lower, older = burst.share[row], burst.lower[row], burst.older[row]
        for i in range(count):
            weights[i * LANES + n] *= _ONE - share
        weights[lower * LANES + n] += share * (_ONE - older)
        weights[(lower + 1) * LANES + n] += share * older


@jit
def add_part(part, shares, weights, mixed, coefficients, zeros, sums, flux, is_first):  # type: ignore[no-untyped-def]
    """Add a part's flux for each power to rows of flux (power * element * LANES)."""
    for a in range(part.nodes):
        share = shares[(part.first_share + a) * LANES :]
        for i in range(part.ages):
            row, weight = mixed[(a * part.ages + i) * LANES :], weights[i * LANES :]
            for n in range(LANES):
                row[n] = share[n] * weight[n]
    filled, depth = part.nodes * part.ages, part.mixing.shape[1]
    if part.terms.shape[0]:
        sums_of, wide = part.histories.shape
        mixed[filled * LANES : wide * LANES] = _ZERO
        _dense(part.histories, zeros, wide, mixed, coefficients, 0, sums_of)
        filled = 0
        for d in range(part.terms.shape[0]):
            share = shares[(part.first_share + part.nodes + d) * LANES :]
            for i in range(part.terms[d]):
                row, weight = mixed[(filled + i) * LANES :], coefficients[i * LANES :]
                for n in range(LANES):
                    row[n] = share[n] * weight[n]
            filled += part.terms[d]
    mixed[filled * LANES : depth * LANES] = _ZERO
    count, elements = part.mixing.shape[0], part.vectors.shape[1]
    _dense(part.mixing, zeros, depth, mixed, coefficients, 0, count)
    coefficients[count * LANES : (count + STRIDE) * LANES] = _ZERO
    for j in range(part.vectors.shape[0]):
        out, start = flux[j * elements * LANES :], part.starts[j]
        vectors = part.starts[j + 1] - start
        made = out if is_first else sums
        _dense(part.vectors[j], zeros, vectors, coefficients[start * LANES :], made, 0, elements)
        if not is_first:
            for m in range(elements * LANES):
                out[m] += sums[m]


@cached_jit
def predict(  # type: ignore[no-untyped-def]
    history, parts, curve, tage, inverse, dust, scale, shares, order, out, known, burst
):
    """Spectra of the galaxies ``order``, all between the same metallicities and line spreads, to their rows of ``out``.

    Parameters
    ----------
    history : PackedHistory
    parts : tuple of PackedPart
        Of these metallicities and line spreads.
    curve : ndarray of float32, shape (element,)
        Attenuation for a ``dust`` of 1.
    tage, inverse, dust : ndarray of float32, shape (n,)
        Ages in Gyr, inverse e-folding times in 1/Gyr, and dust2.
    scale : ndarray of float64, shape (n,)
        What a solar mass's flux is multiplied by.
    shares : ndarray of float32, shape (n, share)
        Of the metallicities, and of the line spreads, of all parts.
    order : ndarray of int64, shape (chosen,)
    out : ndarray of float64, shape (n, element)
    known : ndarray of float32, shape (n, age)
        Weights of the populations in the place of those from ``history``; (0, 0) where there are none.
    burst : PackedBurst
    """
    elements, count = curve.shape[0], history.edges.shape[0] - 1
    powers = parts[0].vectors.shape[0]
    wide = max([max(part.mixing.shape[1], part.histories.shape[1]) for part in parts])
    most = max([max(part.mixing.shape[0], part.histories.shape[0]) for part in parts]) + STRIDE
    zeros = np.zeros(max(elements, wide, most, count + 1), np.float32)
    formed = np.zeros((history.ages.shape[0] + STRIDE) * LANES, np.float32)
    older, younger = np.zeros((count + 1) * LANES, np.float32), np.zeros((count + 1) * LANES, np.float32)
    weights, last = np.zeros((count + 1) * LANES, np.float32), np.zeros(LANES, np.int64)
    mixed, coefficients = np.zeros(wide * LANES, np.float32), np.zeros(most * LANES, np.float32)
    flux = np.zeros(powers * elements * LANES, np.float32)
    sums = np.zeros(elements * LANES if len(parts) > 1 else 0, np.float32)
    lane_tage, lane_inverse = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    lane_dust, lane_shares = np.zeros(LANES, np.float32), np.zeros(shares.shape[1] * LANES, np.float32)
    for first in range(0, order.shape[0], LANES):
        used = min(LANES, order.shape[0] - first)
        for n in range(LANES):
            row = order[first + min(n, used - 1)]
            lane_tage[n], lane_inverse[n], lane_dust[n] = tage[row], inverse[row], dust[row]
            for a in range(shares.shape[1]):
                lane_shares[a * LANES + n] = shares[row, a]
        if known.shape[0]:
            take_known(known, order[first : first + used], weights)
        else:
            weigh(history, lane_tage, lane_inverse, last, formed, older, younger, zeros, weights)
        if burst.share.shape[0]:
            add_burst(burst, order[first : first + used], count, weights)
        for p in range(len(parts)):
            add_part(parts[p], lane_shares, weights, mixed, coefficients, zeros, sums, flux, p == 0)
        for e in range(elements):
            row, tau = flux[e * LANES :], curve[e]
            if powers == 1:
                for n in range(LANES):
                    row[n] *= exp(-lane_dust[n] * tau)
            else:
                second = flux[(elements + e) * LANES :]
                for j in range(powers - 2, 0, -1):
                    below, above = flux[(j * elements + e) * LANES :], flux[((j + 1) * elements + e) * LANES :]
                    for n in range(LANES):
                        below[n] -= lane_dust[n] * above[n]
                for n in range(LANES):
                    row[n] = (row[n] - lane_dust[n] * second[n]) * exp(-lane_dust[n] * tau)
        for begin in range(0, elements, 8):
            for n in range(used):
                row = order[first + n]
                for e in range(begin, min(begin + 8, elements)):
                    out[row, e] = flux[e * LANES + n] * scale[row]


def smallest() -> tuple[PackedHistory, PackedPart]:
    """Return a history and a part of one of everything, to compile the loops with."""
    one = np.ones(1, np.float32)
    panels = np.array([[0, 1, 0, 1, 0]], np.int64)
    matrix = padded(np.ones((1, 1), np.float32))
    history = PackedHistory(
        DELAYED, np.arange(2, dtype=np.float32), one, one, panels, matrix.ravel(), matrix.ravel(), one, one
    )
    part = PackedPart(
        0, 1, 1, np.zeros(0, np.int64), np.zeros((0, STRIDE), np.float32), matrix, np.arange(2), matrix[None]
    )
    return history, part


def compile_all() -> None:
    """Compile the loops, or take them from numba's cache; raises what keeps numba from it."""
    (history, part), one = smallest(), np.ones(1, np.float32)
    shares, order, known = np.ones((1, 1), np.float32), np.zeros(1, np.int64), np.zeros((0, 0), np.float32)
    # Gas whose metallicities have nodes of their own is a second part.
    for parts in ((part,), (part, part)):
        predict(history, parts, one, one, one, one, np.ones(1), shares, order, np.ones((1, 1)), known, no_burst())
