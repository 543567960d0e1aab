r"""Spectra of composite populations behind dust of any law, compiled: a group of galaxies at a time, one in each lane.

The steps are those of :mod:`~digs_survey.sps.compiled_spectra` but for the last: the terms' sums on the pieces of the
grid are attenuated as :class:`~digs_survey.sps.element_dust.ElementDust` has it, and the pieces of an element added up.
"""

from __future__ import annotations

import numpy as np

from digs_survey.simd import STRIDE, cached_jit, exp, jit
from digs_survey.sps.burst import no_burst
from digs_survey.sps.compiled_spectra import LANES, add_burst, add_part, smallest, take_known, weigh
from digs_survey.sps.element_dust import PackedDust

__all__ = ["compile_all", "predict"]

_ZERO = np.float32(0)


@jit
def _attenuate(dust, pieces, dust2, index, dust1, flux, node, total):  # type: ignore[no-untyped-def]
    """Fill rows of total (piece * LANES) with the attenuated sums of flux (component, term * piece * LANES)."""
    powers, components = dust.to_terms.shape[0], flux.shape[0]
    for e in range(pieces):
        out = total[e * LANES :]
        out[:LANES] = _ZERO
        for k in range(powers):
            for c in range(components):
                kept = node[c * LANES :]
                for j in range(powers):
                    row, share = flux[c, (j * pieces + e) * LANES :], dust.to_terms[j, k]
                    for n in range(LANES):
                        kept[n] = (kept[n] if j else _ZERO) + share * row[n]
            if components > 1:
                kept, cloud = node[LANES:], dust.birth[k, e]
                for n in range(LANES):
                    node[n] += kept[n] * exp(-dust1[n] * cloud)
            base, tilt, slope = dust.base[k, e], dust.tilt[k, e], dust.log_slope[k, e]
            for n in range(LANES):
                depth = dust2[n] * exp(index[n] * slope) * (base + index[n] * tilt)
                out[n] += node[n] * exp(-depth)


@cached_jit
def predict(  # type: ignore[no-untyped-def]
    history, parts, places, dust, tage, inverse, depths, scale, shares, order, out, known, burst
):
    """Spectra of the galaxies ``order``, all between the same metallicities and line spreads, to their rows of ``out``.

    Parameters
    ----------
    history : PackedHistory
    parts : tuple of PackedPart
        Of these metallicities and line spreads.
    places : ndarray of int64, shape (part, 2)
        First population and component of each part; components in order.
    dust : PackedDust
    tage, inverse : ndarray of float32, shape (n,)
        Ages in Gyr and inverse e-folding times in 1/Gyr.
    depths : ndarray of float32, shape (n, 3)
        dust2, dust_index and dust1.
    scale : ndarray of float64, shape (n,)
        What a solar mass's flux is multiplied by.
    shares : ndarray of float32, shape (n, share)
        Of the metallicities, and of the line spreads, of all parts.
    order : ndarray of int64, shape (chosen,)
    out : ndarray of float64, shape (n, element)
    known : ndarray of float32, shape (n, age)
    burst : PackedBurst
        As of :func:`~digs_survey.sps.compiled_spectra.predict`.
    """
    count, pieces, elements = history.edges.shape[0] - 1, dust.base.shape[1], out.shape[1]
    powers, components = dust.to_terms.shape[0], places[-1, 1] + 1
    wide = max([max(part.mixing.shape[1], part.histories.shape[1]) for part in parts])
    most = max([max(part.mixing.shape[0], part.histories.shape[0]) for part in parts]) + STRIDE
    zeros = np.zeros(max(pieces, wide, most, count + 1), np.float32)
    formed = np.zeros((history.ages.shape[0] + STRIDE) * LANES, np.float32)
    older, younger = np.zeros((count + 1) * LANES, np.float32), np.zeros((count + 1) * LANES, np.float32)
    weights, last = np.zeros((count + 1) * LANES, np.float32), np.zeros(LANES, np.int64)
    mixed, coefficients = np.zeros(wide * LANES, np.float32), np.zeros(most * LANES, np.float32)
    flux = np.zeros((components, powers * pieces * LANES), np.float32)
    sums, total = np.zeros(pieces * LANES, np.float32), np.zeros(pieces * LANES, np.float32)
    node = np.zeros(components * LANES, np.float32)
    lane_tage, lane_inverse = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    lane_depths, lane_shares = np.zeros((3, LANES), np.float32), np.zeros(shares.shape[1] * LANES, np.float32)
    for first in range(0, order.shape[0], LANES):
        used = min(LANES, order.shape[0] - first)
        for n in range(LANES):
            row = order[first + min(n, used - 1)]
            lane_tage[n], lane_inverse[n] = tage[row], inverse[row]
            for d in range(3):
                lane_depths[d, n] = depths[row, d]
            for a in range(shares.shape[1]):
                lane_shares[a * LANES + n] = shares[row, a]
        if known.shape[0]:
            take_known(known, order[first : first + used], weights)
        else:
            weigh(history, lane_tage, lane_inverse, last, formed, older, younger, zeros, weights)
        if burst.share.shape[0]:
            add_burst(burst, order[first : first + used], count, weights)
        for p in range(len(parts)):
            age, component = places[p, 0], places[p, 1]
            fresh = p == 0 or places[p - 1, 1] != component
            some = weights[age * LANES :]
            add_part(parts[p], lane_shares, some, mixed, coefficients, zeros, sums, flux[component], fresh)
        _attenuate(dust, pieces, lane_depths[0], lane_depths[1], lane_depths[2], flux, node, total)
        for extra in range(dust.owners.shape[0]):
            row, more = total[dust.owners[extra] * LANES :], total[(elements + extra) * LANES :]
            for n in range(LANES):
                row[n] += more[n]
        for begin in range(0, elements, 8):
            for n in range(used):
                row = order[first + n]
                for e in range(begin, min(begin + 8, elements)):
                    out[row, e] = total[e * LANES + n] * scale[row]


def compile_all() -> None:
    """Compile the loops, or take them from numba's cache; raises what keeps numba from it."""
    (history, part), one = smallest(), np.ones(1, np.float32)
    single = np.ones((1, 1), np.float32)
    dust = PackedDust(single, single, single, single, single, np.zeros(0, np.int64))
    order, depths, known = np.zeros(1, np.int64), np.ones((1, 3), np.float32), np.zeros((0, 0), np.float32)
    # Birth clouds, and gas whose metallicities have nodes of their own, double the parts.
    for parts, components in (
        ((part,), [0]),
        ((part,) * 2, [0, 1]),
        ((part,) * 3, [0, 0, 1]),
        ((part,) * 4, [0, 0, 1, 1]),
    ):
        places = np.array([[0, component] for component in components])
        rest = np.ones(1), single, order, np.ones((1, 1)), known, no_burst()
        predict(history, parts, places, dust, one, one, depths, *rest)
