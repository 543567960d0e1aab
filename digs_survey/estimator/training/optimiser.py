"""SOAP, with the work of all parameters of one shape done at once.

SOAP (Vyas et al. 2024, arXiv 2409.11321) runs Adam in the eigenbasis of each weight matrix's gradients. Posteriors are
up to a thousand times narrower than the prior, and Adam's own steps, each scaled element by element, are slow to find
them. A flow is a stack of equal transforms, whose small matrices would each cost a dozen calls; stacked, they cost one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Soap"]

_EPSILON = 1e-8


class _Stack:
    """The parameters of one shape, and their moments and bases with the parameter as first dimension.

    The kernels of a convolution are one matrix, of a row for each channel that it makes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], largest: int) -> None:
        self.parameters = [_matrix(parameter.detach()) for parameter in parameters]
        shape = self.parameters[0].shape
        like = self.parameters[0].new_zeros((len(parameters), *shape))
        sides = [side if len(shape) == 2 and side <= largest else None for side in shape]
        self.state: dict[str, Any] = {
            "mean": like.clone(),
            "square": like.clone(),
            "covariance": [None if n is None else like.new_zeros(len(parameters), n, n) for n in sides],
            "basis": [None if n is None else like.new_zeros(len(parameters), n, n) for n in sides],
        }


class Soap:
    """Adam in the slowly changing eigenbasis of the gradients of each weight matrix; plain Adam for vectors.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        Changed in place by :meth:`step`.
    betas : tuple of float
        Decay of the first and of the second moments, the latter also of the gradients' covariances.
    refresh : int
        Steps after which the eigenbases follow the covariances, by one round of power iteration.
    largest : int
        Largest side of a matrix that gets a basis; larger ones keep their own axes.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        betas: tuple[float, float] = (0.95, 0.95),
        refresh: int = 10,
        largest: int = 1024,
    ) -> None:
        self.betas, self.refresh, self.steps = betas, refresh, 0
        self.parameters = list(parameters)
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, parameter in enumerate(self.parameters):
            alike.setdefault(tuple(parameter.shape), []).append(index)
        self._places = list(alike.values())
        self._stacks = [_Stack([self.parameters[i] for i in places], largest) for places in self._places]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Change the parameters by their gradients (in the parameters' order). The first call only sets the bases."""
        first = self.steps == 0
        self.steps += 1
        done = self.steps - 1
        for places, stack in zip(self._places, self._stacks, strict=True):
            gradient, state = torch.stack([_matrix(gradients[i]) for i in places]), stack.state
            if not first:
                bias = math.sqrt(1 - self.betas[1] ** done) / (1 - self.betas[0] ** done)
                state["mean"].lerp_(gradient, 1 - self.betas[0])
                state["square"].lerp_(_project(gradient, state["basis"]).square_(), 1 - self.betas[1])
                scaled = _project(state["mean"], state["basis"]).div_(state["square"].sqrt().add_(_EPSILON))
                change = _project(scaled, state["basis"], back=True)
                torch._foreach_add_(stack.parameters, list(change.unbind()), alpha=-learning_rate * bias)
            self._follow(state, gradient, first)

    def _follow(self, state: dict[str, Any], gradient: Tensor, first: bool) -> None:
        for side, covariance in enumerate(state["covariance"]):
            if covariance is None:
                continue
            flat = gradient if side == 0 else gradient.mT
            covariance.lerp_(flat @ flat.mT, 1 - self.betas[1])
            if first:
                state["basis"][side] = torch.linalg.eigh(covariance)[1].flip(-1).contiguous()
            elif (self.steps - 1) % self.refresh == 0:
                product = covariance @ state["basis"][side]
                order = (state["basis"][side] * product).sum(dim=1).argsort(dim=-1, descending=True)
                state["basis"][side] = torch.linalg.qr(product.take_along_dim(order[:, None, :], dim=2))[0]
                rows = order[:, :, None] if side == 0 else order[:, None, :]
                state["square"] = state["square"].take_along_dim(rows, dim=1 + side)

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on; tensors are not copied."""
        return {"steps": self.steps, "stacks": [stack.state for stack in self._stacks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of an optimiser of the same parameters."""
        self.steps = state["steps"]
        for stack, saved in zip(self._stacks, state["stacks"], strict=True):
            device = stack.state["mean"].device
            for name in ("mean", "square"):
                stack.state[name] = saved[name].to(device, copy=True)
            for name in ("covariance", "basis"):
                stack.state[name] = [None if part is None else part.to(device, copy=True) for part in saved[name]]


def _matrix(parameter: Tensor) -> Tensor:
    return parameter.flatten(1) if parameter.dim() > 2 else parameter


def _project(stack: Tensor, basis: list[Tensor | None], back: bool = False) -> Tensor:
    """Bring matrices (k, m, n) into the bases of their two sides, or back; a new tensor."""
    for side, vectors in enumerate(basis):
        if vectors is not None:
            turned = vectors if back else vectors.mT
            stack = turned @ stack if side == 0 else stack @ turned.mT
    return stack.clone() if all(vectors is None for vectors in basis) else stack
