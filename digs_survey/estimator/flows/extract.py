"""The weights of sbi's autoregressive flows as plain arrays, hidden units sorted by degree.

Three of sbi's builders are known: ``build_maf`` (nflows), ``build_zuko_maf`` and ``build_zuko_nsf`` (zuko), each
without z-scoring (``z_score_x="none"``, ``z_score_y="none"``): features and coordinates are whitened before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["flow_arrays"]


@dataclass(frozen=True)
class _Masked:
    """One transform's network: masked layers in turn, and the coordinates in the order of the transform.

    ``layers`` are pairs of weight and bias, the first over the coordinates alone.
    """

    layers: list[tuple[Tensor, Tensor]]
    masks: list[Tensor]
    w_context: Tensor
    b_context: Tensor
    parameters: int
    reads: Tensor
    writes: Tensor


@torch.no_grad()
def flow_arrays(flow: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Kind and arrays of :class:`~digs_survey.estimator.flows.sampler.MaskedFlow`, from sbi's density estimator.

    Raises
    ------
    ValueError
        If the flow is none of the kinds that are known.
    """
    net: Any = flow.net
    if hasattr(net, "transform"):
        kind, found = _from_zuko(net)
    elif hasattr(net, "_transform"):
        kind, found = "maf", _from_nflows(net._transform)
    else:
        raise _unknown(type(net).__name__)
    sizes = {len(bias) for made in found for _, bias in made.layers[:-1]}
    if len(sizes) != 1:
        raise ValueError(f"expected hidden layers of equal size, found sizes {sorted(sizes)}")
    sorted_arrays = [_sort(made) for made in found]
    return kind, {name: torch.stack([a[name] for a in sorted_arrays]).contiguous() for name in sorted_arrays[0]}


def _unknown(found: str) -> ValueError:
    return ValueError(
        f"cannot sample from {found}: expected a flow of sbi's build_maf, build_zuko_maf or build_zuko_nsf, made with "
        'z_score_x="none" and z_score_y="none"'
    )


def _from_nflows(composite: Any) -> list[_Masked]:
    from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform, RandomPermutation

    stack = list(composite._transforms)
    while len(stack) == 1 and isinstance(stack[0], CompositeTransform):
        stack = list(stack[0]._transforms)
    found = []
    for affine, permutation in zip(stack[::2], stack[1::2], strict=len(stack) % 2 == 0):
        if not (isinstance(affine, MaskedAffineAutoregressiveTransform) and isinstance(permutation, RandomPermutation)):
            raise _unknown(f"a stack of {type(affine).__name__} and {type(permutation).__name__}")
        made = affine.autoregressive_net
        if made.use_residual_blocks or made.activation is not torch.tanh or any(b.batch_norm for b in made.blocks):
            raise _unknown("a masked network with residual blocks, batch normalisation, or without tanh")
        layers = [made.initial_layer, *(block.linear for block in made.blocks), made.final_layer]
        found.append(
            _Masked(
                layers=[(layer.weight, layer.bias) for layer in layers],
                masks=[layer.mask for layer in layers],
                w_context=made.context_layer.weight,
                b_context=made.context_layer.bias,
                parameters=2,
                reads=torch.arange(affine.features),
                writes=torch.argsort(permutation._permutation),
            )
        )
    if not found or len(stack) % 2:
        raise _unknown(f"a stack of {len(stack)} transforms")
    return found


def _from_zuko(net: Any) -> tuple[str, list[_Masked]]:
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform
    from zuko.flows.gaussianization import ElementWiseTransform
    from zuko.nn import Linear

    kinds, found = set(), []
    for transform in net.transform.transforms:
        if not isinstance(transform, (MaskedAutoregressiveTransform, ElementWiseTransform)):
            raise _unknown(f"a stack with a {type(transform).__name__}")
        kinds.add(_univariate(transform.univariate))
        linear, activations = list(transform.hyper)[::2], list(transform.hyper)[1::2]
        if not (
            all(isinstance(m, (nn.Linear, Linear)) for m in linear) and all(isinstance(m, nn.ReLU) for m in activations)
        ):
            raise _unknown("a masked network with residual or normalised layers, or without ReLU")
        ndim = linear[-1].out_features // transform.total
        masks = [getattr(layer, "mask", torch.ones_like(layer.weight)).to(layer.weight) for layer in linear]
        order = getattr(transform, "order", None)
        sequence = torch.arange(ndim) if order is None else torch.argsort(order, stable=True)
        outputs = (sequence[:, None] * transform.total + torch.arange(transform.total)).flatten()
        # The first layer sees coordinates and context side by side; that of a single coordinate, the context alone.
        seen = ndim if isinstance(transform, MaskedAutoregressiveTransform) else 0
        both, both_mask = linear[0].weight, masks[0]
        found.append(
            _Masked(
                layers=[
                    (both[:, sequence] if seen else both.new_zeros(len(both), ndim), torch.zeros_like(linear[0].bias)),
                    *((layer.weight, layer.bias) for layer in linear[1:-1]),
                    (linear[-1].weight[outputs], linear[-1].bias[outputs]),
                ],
                masks=[
                    both_mask[:, sequence] if seen else both.new_zeros(len(both), ndim),
                    *masks[1:-1],
                    masks[-1][outputs],
                ],
                w_context=(both * both_mask)[:, seen:],
                b_context=linear[0].bias,
                parameters=transform.total,
                reads=sequence,
                writes=sequence,
            )
        )
    if len(kinds) != 1:
        raise _unknown(f"a zuko flow with transforms of {len(kinds)} kinds")
    return kinds.pop(), found


def _univariate(made: Any) -> str:
    """Kind of a zuko flow whose univariate transforms are made so, if it is as sbi's builders leave it."""
    from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

    if made is MonotonicAffineTransform:
        return "zuko_maf"
    if isinstance(made, partial) and made.func is MonotonicRQSTransform and made.keywords == {"slope": 1e-3}:
        return "zuko_nsf"
    raise _unknown(f"a zuko flow of {made}")


def _sort(made: _Masked) -> dict[str, Tensor]:
    """Arrays of one transform, the units of each layer sorted by the number of coordinates that reach them."""
    ndim = len(made.reads)
    reached = torch.eye(ndim)
    degrees: list[Tensor] = []
    for mask in made.masks[:-1]:
        # A unit is computable once the last of the coordinates that reach it is known.
        reached = (mask @ reached > 0).float()
        degrees.append((reached * torch.arange(1, ndim + 1)).amax(dim=1).long())
    orders = [torch.argsort(d, stable=True) for d in degrees]
    stops = torch.stack([torch.stack([(d <= k).sum() for k in range(ndim)]) for d in degrees])
    out_mask = made.masks[-1].reshape(ndim, -1, len(degrees[-1]))
    early = torch.stack([(out_mask[k] * (degrees[-1] > k)).any() for k in range(ndim)])
    if not (stops == stops[0]).all() or early.any():
        raise ValueError("expected hidden layers of equal degrees, and parameters that see earlier coordinates only")
    masked = [(weight * mask, bias) for (weight, bias), mask in zip(made.layers, made.masks, strict=True)]
    hidden = [(masked[k][0][orders[k]][:, orders[k - 1]], masked[k][1][orders[k]]) for k in range(1, len(orders))]
    units, blank = len(orders[0]), made.b_context.new_zeros
    return {
        "w_in": masked[0][0][orders[0]],
        "b_in": masked[0][1][orders[0]],
        "w_context": made.w_context[orders[0]],
        "b_context": made.b_context[orders[0]],
        "w_hidden": torch.stack([w for w, _ in hidden]) if hidden else blank((0, units, units)),
        "b_hidden": torch.stack([b for _, b in hidden]) if hidden else blank((0, units)),
        "w_out": masked[-1][0][:, orders[-1]].reshape(ndim, made.parameters, units),
        "b_out": masked[-1][1].reshape(ndim, made.parameters),
        "stops": stops[0],
        "reads": made.reads,
        "writes": made.writes,
    }
