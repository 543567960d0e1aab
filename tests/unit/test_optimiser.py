"""SOAP on stacks of parameters against the library's, one parameter after the other."""

from __future__ import annotations

import pytest
import torch
from pytorch_optimizer import SOAP
from torch import nn

from digs_survey.estimator.training.optimiser import Soap


def problem(shapes, seed=0):
    """A quadratic whose axes are not those of the parameters, with noise in its gradients."""
    generator = torch.Generator().manual_seed(seed)
    targets = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    mixes = [torch.randn(shape[0], shape[0], generator=generator, dtype=torch.float64) for shape in shapes]

    def gradients(parameters):
        return [
            mix.T @ (mix @ (p.detach() - t)) + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for p, t, mix in zip(parameters, targets, mixes, strict=True)
        ]

    return [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes], gradients


# Square, so that the first gradients span all directions and the first bases are unique.
SHAPES = [(6, 6), (4, 4), (6, 6), (6,), (6,)]


def test_it_steps_as_the_library_does():
    ours, gradients = problem(SHAPES)
    theirs, again = problem(SHAPES)
    optimiser, library = Soap(ours), SOAP(theirs, lr=0.02, betas=(0.95, 0.95), weight_decay=0.0)
    for _ in range(35):
        optimiser.step(gradients(ours), 0.02)
        for parameter, gradient in zip(theirs, again(theirs), strict=True):
            parameter.grad = gradient
        library.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
        assert one.abs().max() > 0.1


def test_it_goes_on_from_a_saved_state_to_the_same_bytes():
    straight, gradients = problem(SHAPES)
    optimiser = Soap(straight)
    saved = None
    for step in range(30):
        if step == 13:
            saved = [p.detach().clone() for p in straight]
            other = Soap(resumed := [nn.Parameter(p) for p in saved])
            other.load_state_dict(optimiser.state_dict())
        found = gradients(straight)
        optimiser.step(found, 0.02)
        if saved is not None:
            other.step(found, 0.02)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


@pytest.mark.parametrize("largest", [1024, 5])
def test_it_minimises_whatever_the_shapes(largest):
    parameters, gradients = problem([(6, 3), (2, 8), (1, 5), (7,)])
    first = sum(float(g.square().sum()) for g in gradients(parameters))
    optimiser = Soap(parameters, largest=largest)
    for step in range(600):
        optimiser.step(gradients(parameters), 0.05 * (1 - step / 600))
    assert sum(float(g.square().sum()) for g in gradients(parameters)) < 0.01 * first


def test_kernels_of_a_convolution_are_one_matrix():
    shapes = [(6, 2, 3), (6, 2, 3), (5, 1, 4)]
    flat = [(shape[0], shape[1] * shape[2]) for shape in shapes]
    matrices, gradients = problem(flat)
    kernels = [nn.Parameter(matrix.detach().reshape(shape)) for matrix, shape in zip(matrices, shapes, strict=True)]
    one, other = Soap(matrices), Soap(kernels)
    for _ in range(25):
        found = gradients(matrices)
        one.step(found, 0.02)
        other.step([gradient.reshape(shape) for gradient, shape in zip(found, shapes, strict=True)], 0.02)
    for matrix, kernel in zip(matrices, kernels, strict=True):
        assert torch.equal(matrix, kernel.flatten(1))
        assert matrix.abs().max() > 0.1
