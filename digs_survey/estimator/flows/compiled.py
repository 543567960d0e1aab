r"""The flow's loops, compiled: a block of draws at a time, eight or sixteen of them in each instruction.

All values lie in rows of :data:`BLOCK` draws; see :mod:`digs_survey.simd`. A pass over a layer takes three of its units
and four of those before at a time, so that there are more multiplications than loads and stores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from digs_survey.simd import STRIDE, cached_jit, dense_of, exp, jit, log, softplus, tanh

__all__ = [
    "BLOCK",
    "EXPONENTIAL",
    "SOFTPLUS",
    "SPLINE",
    "Packed",
    "compile_all",
    "density",
    "draw",
    "tanh_rows",
]

BLOCK = 128
"""Draws in a row: the rows of a layer of some 30 units fit in the first cache."""
SOFTPLUS, EXPONENTIAL, SPLINE = 0, 1, 2
"""What a flow's univariate transforms are: see :data:`digs_survey.estimator.flows.sampler.KINDS`."""


class Packed(NamedTuple):
    """Weights of a flow of t transforms over d coordinates, as the loops read them.

    The names are those of :class:`~digs_survey.estimator.flows.sampler.MaskedFlow`; the last axis of ``w_in``,
    ``w_hidden``
    and ``w_out`` is padded to a multiple of :data:`STRIDE`, and ``w_context`` has shape (t, context, hidden).
    """

    kind: int
    w_in: NDArray[np.float32]
    b_in: NDArray[np.float32]
    w_context: NDArray[np.float32]
    b_context: NDArray[np.float32]
    w_hidden: NDArray[np.float32]
    b_hidden: NDArray[np.float32]
    w_out: NDArray[np.float32]
    b_out: NDArray[np.float32]
    stops: NDArray[np.int64]
    reads: NDArray[np.int64]
    writes: NDArray[np.int64]


_dense = dense_of(BLOCK)

_F = np.float32
_ZERO, _HALF, _ONE, _TWO = _F(0), _F(0.5), _F(1), _F(2)
_SCALE_FLOOR = _F(1e-3)
"""Smallest scale, as in nflows' affine transform."""
_LOG_SLOPE = _F(np.log(1e-3))
"""Logarithm of the smallest slope of zuko's affine transforms and splines."""
_BOUND = _F(5)
"""zuko's splines reach from -5 to 5, and are the identity beyond."""
_LOG_2PI = np.log(2 * np.pi)


@jit
def _squash(x, limit):  # type: ignore[no-untyped-def]
    """Bring x softly within +-limit, as zuko does with logarithms of slopes and of bin sizes."""
    return x / (_ONE + abs(x / limit))


@jit
def tanh_rows(values, start, stop):  # type: ignore[no-untyped-def]
    """Replace the rows start to stop of ``values``, a flat array of rows, by their hyperbolic tangents."""
    for i in range(start, stop):
        row = values[i * BLOCK :]
        for n in range(BLOCK):
            row[n] = tanh(row[n])


@jit
def tanh_repeatedly(values, rows, times):  # type: ignore[no-untyped-def]
    """Take the hyperbolic tangent of the first rows again and again: the rate that benchmarks compare with."""
    for _ in range(times):
        tanh_rows(values, 0, rows)


@jit
def _relu_rows(values, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        row = values[i * BLOCK :]
        for n in range(BLOCK):
            row[n] = _ZERO if row[n] < _ZERO else row[n]


@jit
def _project(flow, context):  # type: ignore[no-untyped-def]
    """Contribution (t, hidden) of one galaxy's context (context,) to the first hidden layers."""
    projected = flow.b_context.copy()
    for t in range(projected.shape[0]):
        for c in range(context.shape[0]):
            for i in range(projected.shape[1]):
                projected[t, i] += flow.w_context[t, c, i] * context[c]
        for i in range(projected.shape[1]):
            if flow.kind == SOFTPLUS:
                projected[t, i] = tanh(projected[t, i])
            projected[t, i] += flow.b_in[t, i]
    return projected


@jit
def _univariate_parameters(flow, t, d, projected, x, hidden, raw):  # type: ignore[no-untyped-def]
    """Raw parameters of coordinate d from x before it, evaluating the units that have just become computable."""
    start = flow.stops[t, d - 1] if d else 0
    stop = flow.stops[t, d]
    layers = flow.w_hidden.shape[1]
    for layer in range(layers + 1):
        if layer:
            weight, bias = flow.w_hidden[t, layer - 1], flow.b_hidden[t, layer - 1]
            _dense(weight, bias, stop, hidden[layer - 1], hidden[layer], start, stop)
        else:
            _dense(flow.w_in[t], projected, d, x, hidden[0], start, stop)
        if flow.kind == SOFTPLUS:
            tanh_rows(hidden[layer], start, stop)
        else:
            _relu_rows(hidden[layer], start, stop)
    _dense(flow.w_out[t, d], flow.b_out[t, d], stop, hidden[layers], raw, 0, flow.b_out.shape[-1])


@jit
def _affine(kind, forward, raw, value, log_det):  # type: ignore[no-untyped-def]
    """Map a row of values by an affine transform or back; add the forward way's logarithmic slope to log_det."""
    for n in range(BLOCK):
        if kind == SOFTPLUS:
            scale, shift = softplus(raw[n]) + _SCALE_FLOOR, raw[BLOCK + n]
        else:
            scale, shift = exp(_squash(raw[BLOCK + n], _LOG_SLOPE)), raw[n]
        if forward:
            value[n] = scale * value[n] + shift
            log_det[n] += log(scale)
        else:
            value[n] = (value[n] - shift) / scale


_LEFT, _LOW, _WIDTH, _HEIGHT, _SLOPE, _NEXT_SLOPE, _X, _Y, _TO_X, _TO_Y = (np.int64(BLOCK * row) for row in range(10))
"""Rows of a spline's scratch: the bin that a draw falls into, the edges gone through, and what makes sizes lengths."""
_SCRATCH = 10


@jit
def _spline(forward, bins, raw, value, log_det, at):  # type: ignore[no-untyped-def]
    """Map a row of values by a monotonic rational-quadratic spline or back; like :func:`_affine` otherwise.

    ``raw`` holds rows of unconstrained widths (bins), heights (bins) and slopes at the inner knots (bins - 1);
    ``at`` is scratch. Durkan et al. 2019, arXiv 1906.04032, equations 4 to 8.
    """
    for n in range(2 * bins * BLOCK):
        # Softmax needs no shift by the largest: squashed, these are within +-3.5.
        raw[n] = exp(_squash(raw[n], _HALF * _LOG_SLOPE))
    for n in range(2 * bins * BLOCK, (3 * bins - 1) * BLOCK):
        raw[n] = exp(_squash(raw[n], _LOG_SLOPE))
    for n in range(BLOCK):
        at[_X + n], at[_Y + n] = -_BOUND, -_BOUND
        at[_TO_X + n], at[_TO_Y + n] = _ZERO, _ZERO
    for k in range(bins):
        w, h = raw[k * BLOCK :], raw[(bins + k) * BLOCK :]
        for n in range(BLOCK):
            at[_TO_X + n] += w[n]
            at[_TO_Y + n] += h[n]
    for n in range(BLOCK):
        at[_TO_X + n] = _TWO * _BOUND / at[_TO_X + n]
        at[_TO_Y + n] = _TWO * _BOUND / at[_TO_Y + n]
    for k in range(bins):
        w, h, s = raw[k * BLOCK :], raw[(bins + k) * BLOCK :], raw[(2 * bins + k - 1) * BLOCK :]
        for n in range(BLOCK):
            width, height = w[n] * at[_TO_X + n], h[n] * at[_TO_Y + n]
            slope = s[n] if k > 0 else _ONE
            next_slope = s[BLOCK + n] if k < bins - 1 else _ONE
            reached = k == 0 or value[n] > (at[_X + n] if forward else at[_Y + n])
            at[_LEFT + n] = at[_X + n] if reached else at[_LEFT + n]
            at[_LOW + n] = at[_Y + n] if reached else at[_LOW + n]
            at[_WIDTH + n] = width if reached else at[_WIDTH + n]
            at[_HEIGHT + n] = height if reached else at[_HEIGHT + n]
            at[_SLOPE + n] = slope if reached else at[_SLOPE + n]
            at[_NEXT_SLOPE + n] = next_slope if reached else at[_NEXT_SLOPE + n]
            at[_X + n] += width
            at[_Y + n] += height
    for n in range(BLOCK):
        width, height, slope = at[_WIDTH + n], at[_HEIGHT + n], at[_SLOPE + n]
        mean = height / width
        bend = slope + at[_NEXT_SLOPE + n] - _TWO * mean
        inside = abs(value[n]) <= _BOUND
        if forward:
            z = (value[n] - at[_LEFT + n]) / width
            rest = z * (_ONE - z)
            below = mean + bend * rest
            mapped = at[_LOW + n] + height * (mean * z * z + slope * rest) / below
            steep = (_TWO * mean * rest + slope * (_ONE - z) * (_ONE - z) + at[_NEXT_SLOPE + n] * z * z) / (
                below * below
            )
            log_det[n] += log(mean * mean * steep) if inside else _ZERO
        else:
            rise = value[n] - at[_LOW + n]
            a = height * (mean - slope) + rise * bend
            b = height * slope - rise * bend
            c = -mean * rise
            mapped = at[_LEFT + n] + width * _TWO * c / (-b - np.sqrt(b * b - _F(4) * a * c))
        value[n] = mapped if inside else value[n]


@cached_jit
def _run(flow, forward, values, context):  # type: ignore[no-untyped-def]
    """Map values (d, draws) of one galaxy by the flow or back; also the log |dz/dv| (draws,) of the forward way."""
    transforms, units, stride = flow.b_in.shape[0], flow.w_hidden.shape[-1], flow.w_in.shape[-1]
    parameters = flow.b_out.shape[-1]
    ndim, draws = values.shape
    projected = _project(flow, context)
    out, out_log_det = np.empty_like(values), np.empty(draws, np.float32)
    hidden = np.empty((flow.w_hidden.shape[1] + 1, units * BLOCK), np.float32)
    x, raw = np.empty(stride * BLOCK, np.float32), np.empty(parameters * BLOCK, np.float32)
    state, row = np.empty((ndim, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    log_det, scratch = np.empty(BLOCK, np.float32), np.empty(_SCRATCH * BLOCK, np.float32)
    for first in range(0, draws, BLOCK):
        count = min(BLOCK, draws - first)
        # Weights of zero read rows that are not computed yet: they must not hold an earlier block's NaN.
        hidden[:], x[:], state[:], log_det[:] = _ZERO, _ZERO, _ZERO, _ZERO
        state[:, :count] = values[:, first : first + count]
        for step in range(transforms):
            t = step if forward else transforms - 1 - step
            if forward:
                for d in range(ndim):
                    for n in range(BLOCK):
                        x[d * BLOCK + n] = state[flow.reads[t, d], n]
            for d in range(ndim):
                _univariate_parameters(flow, t, d, projected[t], x, hidden, raw)
                for n in range(BLOCK):
                    row[n] = x[d * BLOCK + n] if forward else state[flow.writes[t, d], n]
                if flow.kind == SPLINE:
                    _spline(forward, (parameters + 1) // 3, raw, row, log_det, scratch)
                else:
                    _affine(flow.kind, forward, raw, row, log_det)
                for n in range(BLOCK):
                    if forward:
                        state[flow.writes[t, d], n] = row[n]
                    else:
                        x[d * BLOCK + n] = row[n]
            if not forward:
                for d in range(ndim):
                    for n in range(BLOCK):
                        state[flow.reads[t, d], n] = x[d * BLOCK + n]
        out[:, first : first + count] = state[:, :count]
        out_log_det[first : first + count] = log_det[:count]
    return out, out_log_det


def compile_all() -> None:
    """Compile the loops for all kinds of flows, or take them from numba's cache; raises what keeps numba from it."""
    shapes = [(1, 1, STRIDE), (1, 1), (1, 1, 1), (1, 1), (1, 0, 1, STRIDE), (1, 0, 1), (1, 1, 2, STRIDE), (1, 1, 2)]
    weights: list[Any] = [np.zeros(shape, np.float32) for shape in shapes]
    smallest = Packed(SOFTPLUS, *weights, *(np.zeros((1, 1), np.int64) for _ in range(3)))
    _run(smallest, True, np.zeros((1, 1), np.float32), np.zeros(1, np.float32))


def draw(flow: Packed, base: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draws v (d, draws) of one galaxy from standard-normal points (d, draws) and its context."""
    return _run(flow, False, base, context)[0]


def density(flow: Packed, v: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log density (draws,) at v (d, draws) of one galaxy with this context."""
    z, log_det = _run(flow, True, v, context)
    with np.errstate(over="ignore"):
        return log_det - _HALF * (np.square(z).sum(axis=0) + _F(len(z) * _LOG_2PI))
