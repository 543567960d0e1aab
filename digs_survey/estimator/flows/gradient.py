r"""The loss of a masked autoregressive flow and its gradients, compiled: a block of pairs through all transforms.

A block of :data:`~digs_survey.estimator.flows.compiled.BLOCK` pairs stays in the cache while it goes through the stack:

.. math::
    c = \tanh(W_c x + b_c), \quad h_0 = \tanh(W_v v + b_v + c), \quad h_l = \tanh(W_l h_{l-1} + b_l), \quad
    (r, m) = W_o h_L + b_o, \quad s = \mathrm{softplus}(r) + \epsilon, \quad y = s v + m

(Papamakarios et al. 2017, arXiv 1705.07057), and y permuted is the next transform's v. The backward pass evaluates
each block again: that takes about as long as reading back activations that have left the cache, and needs no memory
for those of all pairs. With g a pair's gradient of the loss in its log density, and :math:`\delta` gradients before
the nonlinearities,

.. math::
    \delta_m = \partial_y, \quad \delta_r = (\partial_y v + g / s)\,\sigma(r), \quad
    \delta_L = (1 - h_L^2)\, W_o^T (\delta_r, \delta_m), \quad \delta_{l-1} = (1 - h_{l-1}^2)\, W_l^T \delta_l, \quad
    \delta_c = (1 - c^2)\, \delta_0, \quad \partial_v = s\, \partial_y + W_v^T \delta_0

and a weight's gradient is the sum of :math:`\delta` times what the weight multiplied. Sums over the pairs are taken
in one order, whatever other threads do: the same input gives the same bytes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from digs_survey.estimator.flows.compiled import (
    _F,
    _HALF,
    _LOG_2PI,
    _ONE,
    _SCALE_FLOOR,
    _ZERO,
    BLOCK,
    _dense,
    tanh_rows,
)
from digs_survey.simd import STRIDE, cached_jit, exp, jit, log, softplus

__all__ = ["Inputs", "backward", "forward"]


class _Stack(NamedTuple):
    """Weights of t transforms over d coordinates, their last axis padded with zeros to a multiple of STRIDE."""

    w_in: NDArray[np.float32]
    b_in: NDArray[np.float32]
    w_context: NDArray[np.float32]
    b_context: NDArray[np.float32]
    w_hidden: NDArray[np.float32]
    b_hidden: NDArray[np.float32]
    w_out: NDArray[np.float32]
    b_out: NDArray[np.float32]
    targets: NDArray[np.int64]
    """Coordinate of the next transform that each coordinate becomes, (t, d)."""


class _Transposed(NamedTuple):
    """Transposed weights, padded likewise; those of the context (context, t * padded hidden)."""

    w_in: NDArray[np.float32]
    w_context: NDArray[np.float32]
    w_hidden: NDArray[np.float32]
    w_out: NDArray[np.float32]


class _Gradients(NamedTuple):
    """Gradients of the weights, both of their last axes padded to a multiple of STRIDE."""

    w_in: NDArray[np.float32]
    b_in: NDArray[np.float32]
    w_context: NDArray[np.float32]
    b_context: NDArray[np.float32]
    w_hidden: NDArray[np.float32]
    b_hidden: NDArray[np.float32]
    w_out: NDArray[np.float32]
    b_out: NDArray[np.float32]


class Inputs(NamedTuple):
    """What :func:`backward` needs of :func:`forward`."""

    stack: _Stack
    v: NDArray[np.float32]
    context: NDArray[np.float32]


_sum_jit: Any = partial(njit, nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
"""For sums over the pairs of a block, which SIMD instructions take in another order than the loop."""


@_sum_jit
def _add_products(delta, source, total, rows, columns):  # type: ignore[no-untyped-def]
    """Add delta (rows, BLOCK) times the transpose of source (columns, BLOCK) to total, in tiles of 4 by 4."""
    for i in range(0, rows, 4):
        d = delta[i * BLOCK :]
        for k in range(0, columns, 4):
            h = source[k * BLOCK :]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = _ZERO
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = _ZERO
            for n in range(BLOCK):
                d0, d1, d2, d3 = d[n], d[BLOCK + n], d[2 * BLOCK + n], d[3 * BLOCK + n]
                h0, h1, h2, h3 = h[n], h[BLOCK + n], h[2 * BLOCK + n], h[3 * BLOCK + n]
                s00, s01, s02, s03 = s00 + d0 * h0, s01 + d0 * h1, s02 + d0 * h2, s03 + d0 * h3
                s10, s11, s12, s13 = s10 + d1 * h0, s11 + d1 * h1, s12 + d1 * h2, s13 + d1 * h3
                s20, s21, s22, s23 = s20 + d2 * h0, s21 + d2 * h1, s22 + d2 * h2, s23 + d2 * h3
                s30, s31, s32, s33 = s30 + d3 * h0, s31 + d3 * h1, s32 + d3 * h2, s33 + d3 * h3
            for r, (s0, s1, s2, s3) in enumerate(
                ((s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33))
            ):
                total[i + r, k] += s0
                total[i + r, k + 1] += s1
                total[i + r, k + 2] += s2
                total[i + r, k + 3] += s3


@_sum_jit
def _add_sums(delta, total):  # type: ignore[no-untyped-def]
    for i in range(total.shape[0]):
        row, s = delta[i * BLOCK :], _ZERO
        for n in range(BLOCK):
            s += row[n]
        total[i] += s


@jit
def _through_tanh(delta, reached, rows):  # type: ignore[no-untyped-def]
    """Multiply the gradients of tanh's values by its slopes, in place."""
    for i in range(rows):
        d, h = delta[i * BLOCK :], reached[i * BLOCK :]
        for n in range(BLOCK):
            d[n] *= _ONE - h[n] * h[n]


@jit
def _add(values, total, rows):  # type: ignore[no-untyped-def]
    for i in range(rows):
        row, sums = values[i * BLOCK :], total[i * BLOCK :]
        for n in range(BLOCK):
            sums[n] += row[n]


@jit
def _load(values, first, out):  # type: ignore[no-untyped-def]
    """Lay BLOCK pairs of values (n, columns) from the first on out in rows, with zeros after the last pair."""
    count = min(BLOCK, values.shape[0] - first)
    for c in range(values.shape[1]):
        for n in range(count):
            out[c * BLOCK + n] = values[first + n, c]
        for n in range(count, BLOCK):
            out[c * BLOCK + n] = _ZERO


@jit
def _store(rows, first, out):  # type: ignore[no-untyped-def]
    for n in range(min(BLOCK, out.shape[0] - first)):
        for c in range(out.shape[1]):
            out[first + n, c] = rows[c * BLOCK + n]


@jit
def _padded(count):  # type: ignore[no-untyped-def]
    return (count + STRIDE - 1) // STRIDE * STRIDE


@jit
def _block_size(stack, ndim):  # type: ignore[no-untyped-def]
    """Floats that a transform's activations take: its v, the context's entry, the hidden layers and (r, m)."""
    return (_padded(ndim) + (stack.b_hidden.shape[1] + 2) * _padded(stack.b_in.shape[1]) + 2 * ndim) * BLOCK


@jit
def _activate(stack, v, context, first, x, block, total):  # type: ignore[no-untyped-def]
    """Fill a block with the activations of the pairs from the first on, x with contexts, total with log densities."""
    transforms, units = stack.b_in.shape
    layers, ndim, size = stack.b_hidden.shape[1], v.shape[1], _block_size(stack, v.shape[1])
    wide, unit_rows = _padded(ndim) * BLOCK, _padded(units) * BLOCK
    _load(context, first, x)
    _load(v, first, block)
    total[:] = -_HALF * _F(ndim * _LOG_2PI)
    for t in range(transforms):
        here, after = block[t * size :], block[(t + 1) * size :]
        entry, h = here[wide:], here[wide + unit_rows :]
        _dense(stack.w_context[t], stack.b_context[t], context.shape[1], x, entry, 0, units)
        tanh_rows(entry, 0, units)
        _dense(stack.w_in[t], stack.b_in[t], ndim, here, h, 0, units)
        _add(entry, h, units)
        tanh_rows(h, 0, units)
        for layer in range(layers):
            before, h = h, h[unit_rows:]
            _dense(stack.w_hidden[t, layer], stack.b_hidden[t, layer], units, before, h, 0, units)
            tanh_rows(h, 0, units)
        raw = h[unit_rows:]
        _dense(stack.w_out[t], stack.b_out[t], units, h, raw, 0, 2 * ndim)
        for d in range(ndim):
            r, shift, value = raw[d * BLOCK :], raw[(ndim + d) * BLOCK :], here[d * BLOCK :]
            y = after[stack.targets[t, d] * BLOCK :]
            for n in range(BLOCK):
                scale = softplus(r[n]) + _SCALE_FLOOR
                total[n] += log(scale)
                y[n] = scale * value[n] + shift[n]
    z = block[transforms * size :]
    for d in range(ndim):
        row = z[d * BLOCK :]
        for n in range(BLOCK):
            total[n] -= _HALF * row[n] * row[n]


@cached_jit
def _forward(stack, v, context, log_prob):  # type: ignore[no-untyped-def]
    """Write the log densities (n,)."""
    x, total = np.zeros(_padded(context.shape[1]) * BLOCK, np.float32), np.empty(BLOCK, np.float32)
    # Rows that pad the layers stay zero, here and in the backward pass.
    block = np.zeros(stack.b_in.shape[0] * _block_size(stack, v.shape[1]) + v.shape[1] * BLOCK, np.float32)
    for first in range(0, v.shape[0], BLOCK):
        _activate(stack, v, context, first, x, block, total)
        for n in range(min(BLOCK, v.shape[0] - first)):
            log_prob[first + n] = total[n]


@cached_jit
def _backward(stack, turned, v, context, gradient, grads, g_v, g_context):  # type: ignore[no-untyped-def]
    """Write the gradients in v and the context, and add those in the weights, from that in the log densities (n,)."""
    transforms, units = stack.b_in.shape
    layers, ndim, features = stack.b_hidden.shape[1], g_v.shape[1], context.shape[1]
    out_rows, in_rows, rows, context_rows = _padded(2 * ndim), _padded(ndim), _padded(units), _padded(features)
    wide, unit_rows = in_rows * BLOCK, rows * BLOCK
    size = _block_size(stack, ndim)
    block, total = np.zeros(transforms * size + ndim * BLOCK, np.float32), np.empty(BLOCK, np.float32)
    x, g_x = np.zeros(context_rows * BLOCK, np.float32), np.zeros(context_rows * BLOCK, np.float32)
    g, other = np.zeros(unit_rows, np.float32), np.zeros(unit_rows, np.float32)
    g_entry, g_raw = np.zeros(transforms * unit_rows, np.float32), np.zeros(out_rows * BLOCK, np.float32)
    g_z, g_in = np.zeros(wide, np.float32), np.zeros(wide, np.float32)
    upstream, zeros = np.empty(BLOCK, np.float32), np.zeros(max(units, ndim, features), np.float32)
    for first in range(0, gradient.shape[0], BLOCK):
        _activate(stack, v, context, first, x, block, total)
        upstream[:] = _ZERO
        for n in range(min(BLOCK, gradient.shape[0] - first)):
            upstream[n] = gradient[first + n]
        z = block[transforms * size :]
        for d in range(ndim):
            row, g_row = z[d * BLOCK :], g_z[d * BLOCK :]
            for n in range(BLOCK):
                g_row[n] = -row[n] * upstream[n]
        for step in range(transforms):
            t = transforms - 1 - step
            here = block[t * size :]
            entry, h = here[wide:], here[wide + (1 + layers) * unit_rows :]
            raw = h[unit_rows:]
            for d in range(ndim):
                r, value, g_y = raw[d * BLOCK :], here[d * BLOCK :], g_z[stack.targets[t, d] * BLOCK :]
                g_r, g_m, g_d = g_raw[d * BLOCK :], g_raw[(ndim + d) * BLOCK :], g_in[d * BLOCK :]
                for n in range(BLOCK):
                    e = exp(-abs(r[n]))
                    slope = (_ONE if r[n] > _ZERO else e) / (_ONE + e)
                    scale = softplus(r[n]) + _SCALE_FLOOR
                    g_r[n] = (g_y[n] * value[n] + upstream[n] / scale) * slope
                    g_m[n] = g_y[n]
                    g_d[n] = g_y[n] * scale
            _add_products(g_raw, h, grads.w_out[t], out_rows, rows)
            _add_sums(g_raw, grads.b_out[t])
            _dense(turned.w_out[t], zeros, 2 * ndim, g_raw, g, 0, units)
            _through_tanh(g, h, units)
            for back in range(layers):
                layer = layers - 1 - back
                h = here[wide + (1 + layer) * unit_rows :]
                _add_products(g, h, grads.w_hidden[t, layer], rows, rows)
                _add_sums(g, grads.b_hidden[t, layer])
                _dense(turned.w_hidden[t, layer], zeros, units, g, other, 0, units)
                g, other = other, g
                _through_tanh(g, h, units)
            _add_products(g, here, grads.w_in[t], rows, in_rows)
            _add_sums(g, grads.b_in[t])
            _dense(turned.w_in[t], zeros, units, g, g_z, 0, ndim)
            _add(g_in, g_z, ndim)
            through = g_entry[t * unit_rows :]
            through[:unit_rows] = g
            _through_tanh(through, entry, units)
            _add_products(through, x, grads.w_context[t], rows, context_rows)
            _add_sums(through, grads.b_context[t])
        _store(g_z, first, g_v)
        if g_context.shape[0]:
            _dense(turned.w_context, zeros, transforms * rows, g_entry, g_x, 0, features)
            _store(g_x, first, g_context)


def _pad(weight: Tensor) -> Tensor:
    return functional.pad(weight, (0, -weight.shape[-1] % STRIDE))


def forward(
    v: Tensor, context: Tensor, permutations: list[Tensor], parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Inputs]:
    """Log density (n,) of float32 tensors on the CPU, and what :func:`backward` takes.

    Parameters
    ----------
    v : Tensor, shape (n, d)
    context : Tensor, shape (n, context)
    permutations : list of Tensor, shape (d,)
        That after each of the t transforms.
    parameters : tuple of Tensor
        Weights and biases, masked, of the layers: in (t, hidden, d), context (t, hidden, context), out (t, 2 d, hidden;
        scales first), and of each further hidden layer (t, hidden, hidden).
    """
    w_in, b_in, w_context, b_context, w_out, b_out, *hidden = (p.detach() for p in parameters)
    transforms, units, _ = w_in.shape
    w_hidden = torch.stack(hidden[::2], dim=1) if hidden else w_in.new_empty(transforms, 0, units, units)
    b_hidden = torch.stack(hidden[1::2], dim=1) if hidden else w_in.new_empty(transforms, 0, units)
    weights = (_pad(w_in), b_in, _pad(w_context), b_context, _pad(w_hidden), b_hidden, _pad(w_out), b_out)
    targets = torch.argsort(torch.stack(permutations), dim=1)
    stack = _Stack(*(_array(tensor) for tensor in (*weights, targets)))
    stored = Inputs(stack, _array(v), _array(context))
    log_prob = torch.empty(len(v))
    _forward(*stored, log_prob.numpy())
    return log_prob, stored


def backward(stored: Inputs, gradient: Tensor, to_context: bool) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Gradients in v, the context (where asked for) and the parameters of :func:`forward`.

    ``gradient`` (n,) is that of the loss in the log density of each pair.
    """
    stack, v, context = stored
    transforms, units = stack.b_in.shape
    ndim, features, layers = v.shape[1], context.shape[1], stack.b_hidden.shape[1]
    w_in, w_context, w_hidden, w_out = (
        torch.from_numpy(weight)[..., :columns].transpose(-1, -2)
        for weight, columns in (
            (stack.w_in, ndim), (stack.w_context, features), (stack.w_hidden, units), (stack.w_out, units)
        )
    )  # fmt: skip
    w_context = _pad(w_context).transpose(0, 1).flatten(1)
    turned = _Transposed(*(_array(weight) for weight in (_pad(w_in), w_context, _pad(w_hidden), _pad(w_out))))
    rows = int(_padded(units))
    grads = _Gradients(
        w_in=np.zeros((transforms, rows, stack.w_in.shape[-1]), np.float32),
        b_in=np.zeros_like(stack.b_in),
        w_context=np.zeros((transforms, rows, stack.w_context.shape[-1]), np.float32),
        b_context=np.zeros_like(stack.b_context),
        w_hidden=np.zeros((transforms, layers, rows, rows), np.float32),
        b_hidden=np.zeros_like(stack.b_hidden),
        w_out=np.zeros((transforms, int(_padded(2 * ndim)), rows), np.float32),
        b_out=np.zeros_like(stack.b_out),
    )
    g_v = np.empty_like(v)
    g_context = np.empty((len(v) if to_context else 0, features), np.float32)
    _backward(stack, turned, v, context, _array(gradient), grads, g_v, g_context)
    g_in, g_b_in, g_w_context, g_b_context, g_hidden, g_b_hidden, g_out, g_b_out = map(torch.from_numpy, grads)
    of_parameters = [g_in[:, :units, :ndim], g_b_in, g_w_context[:, :units, :features], g_b_context]
    of_parameters += [g_out[:, : 2 * ndim, :units], g_b_out]
    for layer in range(layers):
        of_parameters += [g_hidden[:, layer, :units, :units], g_b_hidden[:, layer]]
    return torch.from_numpy(g_v), torch.from_numpy(g_context) if to_context else None, of_parameters


def _array(tensor: Tensor) -> NDArray[Any]:
    """One layout for all arrays, since numba compiles again for every other."""
    return tensor.detach().contiguous().numpy()
