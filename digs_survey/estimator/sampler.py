r"""A masked autoregressive flow from plain arrays: its density, and its inverse in one incremental pass.

One transform maps v to :math:`z_i = s_i v_i + m_i`, where the scale and the shift of coordinate i come from a
masked network of :math:`v_{<i}` and the context (Papamakarios et al. 2017, arXiv 1705.07057). Inverting it
needs :math:`v_{<i}` first: the plain way runs the whole network once for each coordinate. Here the hidden
units are sorted by degree (the number of coordinates that they may see), each pass evaluates only
the units that have just become computable, and the context is projected once for each galaxy. All draws
of a galaxy together cost about one evaluation of the network.

Everything is computed one galaxy at a time with shapes that depend on nothing else, so that a row's
draws are the same bytes whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from sbi.neural_nets.estimators import NFlowsFlow

__all__ = ["MaskedFlow", "MaskedTransform"]

_EPSILON = 1e-3
"""Smallest scale, as in nflows' affine transform."""


@dataclass(frozen=True)
class MaskedTransform:
    """One autoregressive transform and the permutation after it, hidden units sorted by degree.

    Attributes
    ----------
    w_in, b_in : Tensor, shape (hidden, ndim), (hidden,)
    w_context, b_context : Tensor, shape (hidden, context), (hidden,)
    w_hidden, b_hidden : Tensor, shape (blocks, hidden, hidden), (blocks, hidden)
    w_out, b_out : Tensor, shape (ndim, 2, hidden), (ndim, 2)
        Unconstrained scale and shift of each coordinate.
    stops : Tensor of int, shape (ndim,)
        ``stops[d]`` is the number of hidden units of degree <= d.
    permutation : Tensor of int, shape (ndim,)
        Applied to the coordinates after the transform.
    """

    w_in: Tensor
    b_in: Tensor
    w_context: Tensor
    b_context: Tensor
    w_hidden: Tensor
    b_hidden: Tensor
    w_out: Tensor
    b_out: Tensor
    stops: Tensor
    permutation: Tensor

    def project(self, context: Tensor) -> Tensor:
        """Contribution (hidden, 1) of one galaxy's context (context,) to the first hidden layer."""
        return (torch.tanh(self.w_context @ context + self.b_context) + self.b_in)[:, None]

    def forward(self, v: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Map v (ndim, draws) to z (ndim, draws) and log |dz/dv| (draws,)."""
        hidden = torch.tanh(self.w_in @ v + projected)
        for weight, bias in zip(self.w_hidden, self.b_hidden, strict=True):
            hidden = torch.tanh(torch.addmm(bias[:, None], weight, hidden))
        raw = torch.einsum("dkh,hn->dkn", self.w_out, hidden) + self.b_out[..., None]
        scale = functional.softplus(raw[:, 0]) + _EPSILON
        return (scale * v + raw[:, 1])[self.permutation], scale.log().sum(dim=0)

    @cached_property
    def _passes(self) -> list[_Pass]:
        """The slices of the weights that each pass of the inverse needs, one pass for each coordinate."""
        passes, start = [], 0
        for d, stop in enumerate(self.stops.tolist()):
            new = slice(start, stop)
            passes.append(
                _Pass(
                    new,
                    self.w_in[new, :d].contiguous(),
                    [w[new, :stop].contiguous() for w in self.w_hidden],
                    [b[new, None] for b in self.b_hidden],
                    self.w_out[d, :, :stop].contiguous(),
                    self.b_out[d, :, None],
                )
            )
            start = stop
        return passes

    def inverse(self, z: Tensor, projected: Tensor) -> Tensor:
        """Map z (ndim, draws) back to v (ndim, draws)."""
        z = z[torch.argsort(self.permutation)]
        layers = z.new_empty((len(self.b_hidden) + 1, len(self.b_in), z.shape[1]))
        v = torch.empty_like(z)
        for d, step in enumerate(self._passes):
            stop = step.new.stop
            if stop > step.new.start:
                unit = layers[0, step.new]
                torch.addmm(projected[step.new], step.w_in, v[:d], out=unit).tanh_()
                for k, (weight, bias) in enumerate(zip(step.w_hidden, step.b_hidden, strict=True)):
                    unit = layers[k + 1, step.new]
                    torch.addmm(bias, weight, layers[k, :stop], out=unit).tanh_()
            raw = torch.addmm(step.b_out, step.w_out, layers[-1, :stop])
            torch.div(z[d] - raw[1], functional.softplus(raw[0]) + _EPSILON, out=v[d])
        return v


@dataclass(frozen=True)
class _Pass:
    """One pass of the inverse: the hidden units that it newly needs, and the weights into and out of them."""

    new: slice
    w_in: Tensor
    w_hidden: list[Tensor]
    b_hidden: list[Tensor]
    w_out: Tensor
    b_out: Tensor


_FIELDS = tuple(field.name for field in fields(MaskedTransform))


class MaskedFlow:
    """A stack of :class:`MaskedTransform` over a standard normal base."""

    def __init__(self, transforms: list[MaskedTransform]) -> None:
        self.transforms = transforms

    def inverse(self, base: Tensor, context: Tensor) -> Tensor:
        """Draws v (ndim, draws) of one galaxy from standard-normal points (ndim, draws) and its context."""
        for transform in reversed(self.transforms):
            base = transform.inverse(base, transform.project(context))
        return base

    def log_prob(self, v: Tensor, context: Tensor) -> Tensor:
        """Log density (draws,) at v (ndim, draws) of one galaxy with this context."""
        total = v.new_zeros(v.shape[1])
        for transform in self.transforms:
            v, log_det = transform.forward(v, transform.project(context))
            total = total + log_det
        return total - 0.5 * (v.square().sum(dim=0) + v.shape[0] * torch.log(v.new_tensor(2 * torch.pi)))

    def tensors(self) -> dict[str, Tensor]:
        """Return every array under the name that :meth:`from_tensors` reads."""
        return {
            f"flow.{k}.{name}": value.contiguous()
            for k, transform in enumerate(self.transforms)
            for name in _FIELDS
            for value in [getattr(transform, name)]
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> MaskedFlow:
        """Rebuild a flow from :meth:`tensors`."""
        count = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("flow."))
        return cls([MaskedTransform(**{f: tensors[f"flow.{k}.{f}"] for f in _FIELDS}) for k in range(count)])

    @classmethod
    def from_sbi(cls, flow: NFlowsFlow) -> MaskedFlow:
        """Take the weights of a flow that sbi's ``build_maf`` made without z-scoring."""
        stack = list(flow.net._transform._transforms)
        while len(stack) == 1 and hasattr(stack[0], "_transforms"):
            stack = list(stack[0]._transforms)
        if len(stack) % 2:
            raise ValueError(f"expected pairs of transform and permutation, found {len(stack)} transforms")
        transforms = [_extract(a, b) for a, b in zip(stack[::2], stack[1::2], strict=True)]
        return cls(transforms)


@torch.no_grad()
def _extract(affine: Any, permutation: Any) -> MaskedTransform:
    made = affine.autoregressive_net
    ndim = affine.features
    layers = [made.initial_layer, *(block.linear for block in made.blocks)]
    orders = [torch.argsort(layer.degrees, stable=True) for layer in layers]
    if any(
        not torch.equal(layer.degrees[o], layers[0].degrees[orders[0]]) for layer, o in zip(layers, orders, strict=True)
    ):
        raise ValueError("expected hidden layers of equal degrees")
    degrees = layers[0].degrees[orders[0]]
    masked = [(layer.weight * layer.mask).detach() for layer in layers]
    out = (made.final_layer.weight * made.final_layer.mask).detach()[:, orders[-1]]
    empty = masked[0].new_zeros
    hidden = range(1, len(layers))
    return MaskedTransform(
        w_in=masked[0][orders[0]].clone(),
        b_in=layers[0].bias[orders[0]].clone(),
        w_context=made.context_layer.weight[orders[0]].clone(),
        b_context=made.context_layer.bias[orders[0]].clone(),
        w_hidden=torch.stack([masked[k][orders[k]][:, orders[k - 1]] for k in hidden])
        if len(layers) > 1
        else empty((0, len(degrees), len(degrees))),
        b_hidden=torch.stack([layers[k].bias[orders[k]] for k in hidden])
        if len(layers) > 1
        else empty((0, len(degrees))),
        w_out=out.reshape(ndim, 2, -1).clone(),
        b_out=made.final_layer.bias.detach().reshape(ndim, 2).clone(),
        stops=torch.stack([(degrees <= d).sum() for d in range(ndim)]),
        permutation=permutation._permutation.clone(),
    )
