"""The flow's loops in plain torch, for machines where they cannot be compiled; the same passes, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from digs_survey.estimator.flows.sampler import MaskedFlow

__all__ = ["density", "draw"]

_SCALE_FLOOR = 1e-3
_LOG_SLOPE = float(np.log(1e-3))
_BOUND = 5.0
_LOG_2PI = float(np.log(2 * np.pi))


def draw(flow: MaskedFlow, base: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draws v (d, draws) of one galaxy from standard-normal points (d, draws) and its context (context,)."""
    state = torch.tensor(base, dtype=torch.float32)
    for transform in reversed(_transforms(flow, context)):
        z, v = state[transform.writes], torch.empty_like(state)
        layers = transform.scratch(state.shape[1])
        for d in range(flow.ndim):
            v[d] = transform.map(z[d], transform.parameters(d, v, layers), forward=False)[0]
        state = v[torch.argsort(transform.reads)]
    return state.numpy()


def density(flow: MaskedFlow, v: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log density (draws,) at v (d, draws) of one galaxy with this context (context,)."""
    state = torch.as_tensor(v, dtype=torch.float32)
    total = state.new_zeros(state.shape[1])
    for transform in _transforms(flow, context):
        x, z = state[transform.reads], torch.empty_like(state)
        layers = transform.scratch(state.shape[1])
        for d in range(flow.ndim):
            z[d], log_det = transform.map(x[d], transform.parameters(d, x, layers), forward=True)
            total += log_det
        state = z[torch.argsort(transform.writes)]
    return (total - 0.5 * (state.square().sum(dim=0) + len(state) * _LOG_2PI)).numpy()


class _Transform:
    """One transform of a flow for one galaxy's context."""

    def __init__(self, flow: MaskedFlow, t: int, context: Tensor) -> None:
        def weight(name: str) -> Tensor:
            return torch.as_tensor(getattr(flow, name)[t])

        projected = weight("w_context") @ context + weight("b_context")
        tanh = flow.kind == "maf"
        self.activation: Callable[[Tensor], Tensor] = torch.tanh_ if tanh else torch.relu_
        self.map = {"maf": _softplus_affine, "zuko_maf": _exponential_affine, "zuko_nsf": _spline}[flow.kind]
        self.projected = ((torch.tanh(projected) if tanh else projected) + weight("b_in"))[:, None]
        self.w_in, self.w_hidden, self.b_hidden = weight("w_in"), weight("w_hidden"), weight("b_hidden")
        self.w_out, self.b_out = weight("w_out"), weight("b_out")
        self.reads, self.writes = weight("reads"), weight("writes")
        self.stops = flow.stops[t].tolist()

    def scratch(self, draws: int) -> Tensor:
        return self.w_in.new_empty((len(self.w_hidden) + 1, len(self.w_in), draws))

    def parameters(self, d: int, x: Tensor, layers: Tensor) -> Tensor:
        """Raw parameters (parameters, draws) of coordinate d, evaluating the units that are newly computable."""
        stop = self.stops[d]
        new = slice(self.stops[d - 1] if d else 0, stop)
        if new.stop > new.start:
            layers[0, new] = self.activation(torch.addmm(self.projected[new], self.w_in[new, :d], x[:d]))
            for k, (weight, bias) in enumerate(zip(self.w_hidden, self.b_hidden, strict=True)):
                sums = torch.addmm(bias[new, None], weight[new, :stop], layers[k, :stop])
                layers[k + 1, new] = self.activation(sums)
        return torch.addmm(self.b_out[d, :, None], self.w_out[d, :, :stop], layers[-1, :stop])


def _transforms(flow: MaskedFlow, context: NDArray[np.float32]) -> list[_Transform]:
    given = torch.as_tensor(context, dtype=torch.float32)
    return [_Transform(flow, t, given) for t in range(len(flow.w_in))]


def _softplus_affine(value: Tensor, raw: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
    scale = functional.softplus(raw[0]) + _SCALE_FLOOR
    return (scale * value + raw[1] if forward else (value - raw[1]) / scale), scale.log()


def _exponential_affine(value: Tensor, raw: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
    log_scale = _squash(raw[1], _LOG_SLOPE)
    scale = log_scale.exp()
    return (scale * value + raw[0] if forward else (value - raw[0]) / scale), log_scale


def _spline(value: Tensor, raw: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
    """Monotonic rational-quadratic spline (Durkan et al. 2019, arXiv 1906.04032, equations 4 to 8)."""
    bins = (len(raw) + 1) // 3
    sizes = [2 * _BOUND * _squash(part, _LOG_SLOPE / 2).softmax(dim=0) for part in (raw[:bins], raw[bins : 2 * bins])]
    edges = [functional.pad(size.cumsum(dim=0), (0, 0, 1, 0)) - _BOUND for size in sizes]
    slopes = functional.pad(_squash(raw[2 * bins :], _LOG_SLOPE).exp(), (0, 0, 1, 1), value=1.0)
    bin_ = (edges[0 if forward else 1][1:-1] < value).sum(dim=0, keepdim=True)
    left, low, width, height, slope, next_slope = (
        rows.gather(0, index)[0]
        for rows, index in zip([*edges, *sizes, slopes, slopes], [bin_] * 5 + [bin_ + 1], strict=True)
    )
    mean = height / width
    bend = slope + next_slope - 2 * mean
    inside = value.abs() <= _BOUND
    if forward:
        z = (value - left) / width
        rest = z * (1 - z)
        below = mean + bend * rest
        mapped = low + height * (mean * z.square() + slope * rest) / below
        steep = (2 * mean * rest + slope * (1 - z).square() + next_slope * z.square()) / below.square()
        log_det = torch.where(inside, (mean.square() * steep).log(), 0.0)
    else:
        rise = value - low
        a = height * (mean - slope) + rise * bend
        b = height * slope - rise * bend
        c = -mean * rise
        mapped = left + width * 2 * c / (-b - (b.square() - 4 * a * c).sqrt())
        log_det = torch.zeros_like(mapped)
    return torch.where(inside, mapped, value), log_det


def _squash(x: Tensor, limit: float) -> Tensor:
    """Bring x softly within +-limit, as zuko does with logarithms of slopes and of bin sizes."""
    return x / (1 + (x / limit).abs())
