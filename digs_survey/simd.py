"""Arithmetic on rows of lanes, for loops that numba compiles: layers of sums, and the functions that they need.

A row holds one value for each of a fixed number of lanes (draws, galaxies). The loop over the lanes is innermost
everywhere and its length is fixed, so that the compiler turns it into SIMD instructions without a remainder. What
becomes of a lane does not depend on its place or on its neighbours: that is how a row of a survey gets the same
bytes in any batch. A product of matrices from a library does not promise this.

Only contractions (fused multiply-adds) are allowed of the compiler's fast maths: NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.polynomial import Chebyshev, Polynomial

from digs_survey.jit import STRIDE, cached, padded

__all__ = ["STRIDE", "cached_jit", "dense_of", "exp", "jit", "log", "padded", "softplus", "tanh"]

jit: Any = partial(njit, nogil=True, fastmath={"contract"}, error_model="numpy")
cached_jit = cached(jit)


def _polynomial(function: Callable[[Any], Any], degree: int, low: float, high: float) -> tuple[np.float32, ...]:
    """Coefficients, constant first, of the polynomial through a function's values at the Chebyshev points."""
    found = Chebyshev.interpolate(function, degree, domain=[low, high]).convert(kind=Polynomial)
    return tuple(np.float32(c) for c in found.coef)


_F = np.float32
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)
_LOG2_E, _LN_2 = _F(np.log2(np.e)), _F(np.log(2))
_EXP2 = _polynomial(np.exp2, 5, -0.5, 0.5)
_LOG1P = _polynomial(lambda x: np.log1p(np.maximum(x, 1e-12)) / np.maximum(x, 1e-12), 9, 0.0, 1.0)
_MANTISSA, _BIAS = np.int32(23), np.int32(127)
_TANH_END, _EXP_END = _F(7.90531110763549805), _F(87)
"""Beyond these, tanh is 1 and exp leaves the range of float32."""
_TANH_OVER = tuple(
    _F(c)
    for c in (
        4.89352455891786e-03,
        6.37261928875436e-04,
        1.48572235717979e-05,
        5.12229709037114e-08,
        -8.60467152213735e-11,
        2.00018790482477e-13,
        -2.76076847742355e-16,
    )
)
_TANH_UNDER = tuple(
    _F(c) for c in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
)
"""Of the rational function of x, in powers of x squared, that Eigen has for the tangent (MathFunctionsImpl.h)."""


@jit
def exp(x):  # type: ignore[no-untyped-def]
    """Exponential of a float32."""
    x = _EXP_END if x > _EXP_END else (-_EXP_END if x < -_EXP_END else x)
    y = x * _LOG2_E
    whole = np.floor(y + _HALF)
    f = y - whole
    p = ((((_EXP2[5] * f + _EXP2[4]) * f + _EXP2[3]) * f + _EXP2[2]) * f + _EXP2[1]) * f + _EXP2[0]
    return p * np.int32((np.int32(whole) + _BIAS) << _MANTISSA).view(np.float32)


@jit
def log1p(x):  # type: ignore[no-untyped-def]
    """Logarithm of 1 + x for a float32 x from 0 to 1."""
    p = (((_LOG1P[9] * x + _LOG1P[8]) * x + _LOG1P[7]) * x + _LOG1P[6]) * x + _LOG1P[5]
    p = ((((p * x + _LOG1P[4]) * x + _LOG1P[3]) * x + _LOG1P[2]) * x + _LOG1P[1]) * x + _LOG1P[0]
    return p * x


@jit
def log(x):  # type: ignore[no-untyped-def]
    """Logarithm of a positive normal float32."""
    bits = np.float32(x).view(np.int32)
    exponent = (bits >> _MANTISSA) - _BIAS
    fraction = np.int32(bits - (exponent << _MANTISSA)).view(np.float32) - _ONE
    return log1p(fraction) + _F(exponent) * _LN_2


@jit
def tanh(x):  # type: ignore[no-untyped-def]
    """Hyperbolic tangent of a float32, to 4e-7: a division and half the operations that an exponential takes."""
    x = _TANH_END if x > _TANH_END else (-_TANH_END if x < -_TANH_END else x)
    y = x * x
    over = ((_TANH_OVER[6] * y + _TANH_OVER[5]) * y + _TANH_OVER[4]) * y + _TANH_OVER[3]
    over = ((over * y + _TANH_OVER[2]) * y + _TANH_OVER[1]) * y + _TANH_OVER[0]
    under = ((_TANH_UNDER[3] * y + _TANH_UNDER[2]) * y + _TANH_UNDER[1]) * y + _TANH_UNDER[0]
    return x * over / under


@jit
def softplus(x):  # type: ignore[no-untyped-def]
    """Logarithm of 1 + exp(x) for a float32."""
    return (x if x > _ZERO else _ZERO) + log1p(exp(-abs(x)))


def dense_of(lanes: int) -> Any:
    """Return the compiled function that adds up layers of units over rows of so many lanes.

    ``dense(weight, bias, depth, source, out, start, stop)`` computes units start to stop of a layer, rows of the flat
    ``out``, from the first ``depth`` rows of ``source``: the bias and the products with ``weight`` (unit, row before),
    whose columns are zero from ``depth`` on. A pass takes three units and four rows before at a time, so that there
    are more multiplications than loads and stores.
    """

    @jit
    def dense(weight, bias, depth, source, out, start, stop):  # type: ignore[no-untyped-def]
        i = start
        while i < stop:
            # Views from an offset on, since the compiler cannot rule out that an offset within an index is negative.
            row = out[i * lanes :]
            three = i + 2 < stop
            a, b, c = bias[i], bias[i + 1 if three else i], bias[i + 2 if three else i]
            for k in range(0, max(depth, 1), STRIDE):
                h = source[k * lanes :]
                a0, a1, a2, a3 = weight[i, k], weight[i, k + 1], weight[i, k + 2], weight[i, k + 3]
                if three:
                    b0, b1, b2, b3 = weight[i + 1, k], weight[i + 1, k + 1], weight[i + 1, k + 2], weight[i + 1, k + 3]
                    c0, c1, c2, c3 = weight[i + 2, k], weight[i + 2, k + 1], weight[i + 2, k + 2], weight[i + 2, k + 3]
                    for n in range(lanes):
                        h0, h1, h2, h3 = h[n], h[lanes + n], h[2 * lanes + n], h[3 * lanes + n]
                        m, p = lanes + n, 2 * lanes + n
                        row[n] = (row[n] if k else a) + a0 * h0 + a1 * h1 + a2 * h2 + a3 * h3
                        row[m] = (row[m] if k else b) + b0 * h0 + b1 * h1 + b2 * h2 + b3 * h3
                        row[p] = (row[p] if k else c) + c0 * h0 + c1 * h1 + c2 * h2 + c3 * h3
                else:
                    for n in range(lanes):
                        h0, h1, h2, h3 = h[n], h[lanes + n], h[2 * lanes + n], h[3 * lanes + n]
                        row[n] = (row[n] if k else a) + a0 * h0 + a1 * h1 + a2 * h2 + a3 * h3
            i += 3 if three else 1

    return dense
