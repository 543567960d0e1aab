r"""The density of sbi's masked autoregressive flow and its gradients, written out by hand.

nflows evaluates the flow as hundreds of small kernels, masks every weight matrix in each of its calls and leaves the
gradients to autograd. Here the weights are masked once, the contexts of all transforms are one matrix product,
activations lie with the samples last, so that a coordinate is a contiguous row, and the backward pass reuses what the
forward pass stored:

.. math::
    h_0 = \tanh(W_v v + b_v + \tanh(W_c x + b_c)), \quad h_l = \tanh(W_l h_{l-1} + b_l), \quad
    (r, m) = W_o h_L + b_o, \quad z = (\mathrm{softplus}(r) + \epsilon)\,v + m

for each transform (Papamakarios et al. 2017, arXiv 1705.07057), a permutation after it, and a standard normal base.
On the CPU, float32 goes by compiled loops of the same formulas (:mod:`~digs_survey.estimator.flows.gradient`) where the
sampler's are compiled (see :mod:`~digs_survey.estimator.flows.sampler`), anything else by torch.
The parameters stay those of nflows' modules: what is optimised, saved and read by others is sbi's own network.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from digs_survey.estimator.flows.sampler import compiled_loops

__all__ = ["affine_transforms", "flow_log_prob", "maf_log_prob"]

_EPSILON = 1e-3
"""Smallest scale, as in nflows' affine transform."""
_LOG_2PI = math.log(2 * math.pi)
_USED_UP = "the gradients of this density were computed already; evaluate it again"


def flow_log_prob(flow: Any, v: Tensor, features: Tensor) -> Tensor:
    """Log density (n,) of v (n, ndim) given features (n, features), of any flow that sbi's builders make.

    A masked autoregressive flow is evaluated here, any other by its own module. Under autocast the embedding network
    of the former is in lower precision; densities never are, since three digits do not resolve a narrow posterior.
    """
    pairs = affine_transforms(flow.net)
    context = None if pairs is None else flow.net._embedding_net(features)
    with torch.autocast(v.device.type, enabled=False):
        if pairs is None or context is None:
            return -flow.loss(v, features)
        return maf_log_prob(pairs, v, context.to(v.dtype))


def affine_transforms(net: nn.Module) -> list[tuple[Any, Any]] | None:
    """Return the pairs (affine transform, permutation) of a flow as sbi's ``build_maf`` makes it; None of any other."""
    from nflows.distributions import StandardNormal
    from nflows.transforms import MaskedAffineAutoregressiveTransform, Permutation
    from nflows.transforms.made import MaskedFeedforwardBlock

    stack: list[Any] = [getattr(net, "_transform", None)]
    while len(stack) == 1 and hasattr(stack[0], "_transforms"):
        stack = list(stack[0]._transforms)
    pairs = list(zip(stack[::2], stack[1::2], strict=False))
    if not isinstance(getattr(net, "_distribution", None), StandardNormal) or len(stack) != 2 * len(pairs):
        return None
    for affine, permutation in pairs:
        if not (type(affine) is MaskedAffineAutoregressiveTransform and isinstance(permutation, Permutation)):
            return None
        made = affine.autoregressive_net
        if made.use_residual_blocks or made.activation is not torch.tanh or not hasattr(made, "context_layer"):
            return None
        for block in made.blocks:
            if not isinstance(block, MaskedFeedforwardBlock) or block.batch_norm is not None or block.dropout.p:
                return None
    return pairs or None


def maf_log_prob(pairs: list[tuple[Any, Any]], v: Tensor, context: Tensor) -> Tensor:
    """Log density (n,) of a masked autoregressive flow, differentiable in its parameters, v and context.

    Parameters
    ----------
    pairs : list
        The flow's transforms, as :func:`affine_transforms` returns them.
    v : Tensor, shape (n, ndim)
    context : Tensor, shape (n, context)
        What the embedding network made of the features.
    """
    mades = [affine.autoregressive_net for affine, _ in pairs]
    ndim = v.shape[1]

    def stacked(layers: list[Any]) -> tuple[Tensor, Tensor]:
        weight = torch.stack([layer.weight for layer in layers])
        if hasattr(layers[0], "mask"):
            weight = weight * layers[0].mask
        return weight, torch.stack([layer.bias for layer in layers])

    w_in, b_in = stacked([made.initial_layer for made in mades])
    w_context, b_context = stacked([made.context_layer for made in mades])
    hidden = [stacked([made.blocks[k].linear for made in mades]) for k in range(len(mades[0].blocks))]
    w_out, b_out = stacked([made.final_layer for made in mades])
    # nflows interleaves scales and shifts; here the scales of all coordinates come first.
    w_out = w_out.unflatten(1, (ndim, 2)).transpose(1, 2).flatten(1, 2)
    b_out = b_out.unflatten(1, (ndim, 2)).transpose(1, 2).flatten(1, 2)
    permutations = [permutation._permutation for _, permutation in pairs]
    parameters = [w_in, b_in, w_context, b_context, w_out, b_out, *(tensor for pair in hidden for tensor in pair)]
    if v.device.type == "cpu" and v.dtype == w_in.dtype == torch.float32 and compiled_loops() is not None:
        return _CompiledDensity.apply(v, context, permutations, *parameters)
    return _Density.apply(v, context, permutations, *parameters)


class _CompiledDensity(torch.autograd.Function):
    """What :class:`_Density` is, by compiled loops, for float32 on the CPU."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, context: Tensor, permutations: list[Tensor], *parameters: Tensor) -> Tensor:
        from digs_survey.estimator.flows import gradient as loops

        density, ctx.stored = loops.forward(v, context, permutations, parameters)
        return density

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from digs_survey.estimator.flows import gradient as loops

        if ctx.stored is None:
            raise RuntimeError(_USED_UP)
        stored, ctx.stored = ctx.stored, None
        to_v, to_context, grads = loops.backward(stored, gradient, ctx.needs_input_grad[1])
        return to_v if ctx.needs_input_grad[0] else None, to_context, None, *grads


class _Density(torch.autograd.Function):
    """Log density of a stack of transforms; parameters have the transform as their first dimension."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, context: Tensor, permutations: list[Tensor], *parameters: Tensor) -> Tensor:
        w_in, b_in, w_context, b_context, w_out, b_out, *hidden = parameters
        count, units, ndim = w_in.shape
        b_in = 2 * b_in
        projected = torch.addmm(b_context.view(-1, 1), w_context.view(count * units, -1), context.T, alpha=2, beta=2)
        _tanh_of_half(projected)
        z = v.T.contiguous()
        total = torch.zeros_like(z[0])
        saved = []
        for k, permutation in enumerate(permutations):
            entry = projected[k * units : (k + 1) * units]
            layers = [_tanh_of_half(torch.addmm(entry, w_in[k], z, alpha=2, beta=2).add_(b_in[k, :, None]))]
            for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
                layers.append(_tanh_of_half(torch.addmm(bias[k, :, None], weight[k], layers[-1], alpha=2, beta=2)))
            raw = torch.addmm(b_out[k, :, None], w_out[k], layers[-1])
            scale = functional.softplus(raw[:ndim]).add_(_EPSILON)
            total += scale.log().sum(dim=0)
            saved.append((z, layers, raw[:ndim], scale))
            z = torch.addcmul(raw[ndim:], scale, z)[permutation]
        ctx.stored = context, projected, saved, z, permutations
        ctx.save_for_backward(*parameters)
        return total - 0.5 * (z.square().sum(dim=0) + ndim * _LOG_2PI)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        w_in, b_in, w_context, b_context, w_out, b_out, *hidden = ctx.saved_tensors
        if ctx.stored is None:
            raise RuntimeError(_USED_UP)
        context, projected, saved, z, permutations = ctx.stored
        ctx.stored = None
        count, units, ndim = w_in.shape
        grads = [torch.empty_like(p) for p in (w_in, b_in, w_context, b_context, w_out, b_out, *hidden)]
        g_in, g_b_in, g_context, g_b_context, g_out, g_b_out, *g_hidden = grads
        through_tanh = torch.ops.aten.tanh_backward.grad_input
        # Room that all transforms use in turn: fresh memory costs more than what is computed in it.
        g, other, g_raw = (z.new_empty(rows, len(gradient)) for rows in (units, units, 2 * ndim))
        g_z = z * -gradient
        for k in reversed(range(count)):
            v, layers, raw, scale = saved[k]
            g_y = torch.empty_like(g_z)
            g_y[permutations[k]] = g_z
            torch.addcdiv(g_y * v, gradient, scale, out=g_raw[:ndim]).mul_(raw.sigmoid())
            g_raw[ndim:] = g_y
            torch.mm(g_raw, layers[-1].T, out=g_out[k])
            torch.sum(g_raw, dim=1, out=g_b_out[k])
            torch.mm(w_out[k].T, g_raw, out=g)
            for layer in reversed(range(1, len(layers))):
                through_tanh(g, layers[layer], grad_input=g)
                torch.mm(g, layers[layer - 1].T, out=g_hidden[2 * layer - 2][k])
                torch.sum(g, dim=1, out=g_hidden[2 * layer - 1][k])
                torch.mm(hidden[2 * layer - 2][k].T, g, out=other)
                g, other = other, g
            through_tanh(g, layers[0], grad_input=g)
            torch.mm(g, v.T, out=g_in[k])
            torch.sum(g, dim=1, out=g_b_in[k])
            g_z = torch.addmm(g_y.mul_(scale), w_in[k].T, g)
            entry = projected[k * units : (k + 1) * units]
            through_tanh(g, entry, grad_input=entry)
        g_projected = projected  # each transform's part was overwritten by its gradient
        torch.mm(g_projected, context, out=g_context.view(count * units, -1))
        torch.sum(g_projected, dim=1, out=g_b_context.view(-1))
        to_context = g_projected.T @ w_context.reshape(count * units, -1) if ctx.needs_input_grad[1] else None
        return g_z.T if ctx.needs_input_grad[0] else None, to_context, None, *grads


def _tanh_of_half(doubled: Tensor) -> Tensor:
    """Replace 2x by tanh(x), which is 2 sigmoid(2x) - 1: torch's sigmoid is several times faster than its tanh."""
    return doubled.sigmoid_().mul_(2).sub_(1)
