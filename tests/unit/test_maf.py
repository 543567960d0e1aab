"""The flow's density and gradients by hand against nflows' own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from estimators import simulations, small_config
from sbi.neural_nets.net_builders import build_maf, build_nsf
from torch import nn

from digs_survey.estimator.flows.maf import affine_transforms, flow_log_prob, maf_log_prob
from digs_survey.estimator.flows.sampler import compiled_loops
from digs_survey.estimator.training.loop import prepare_estimator
from digs_survey.jit import PLAIN
from digs_survey.noise.model import NoiseModel

NETWORKS = {
    "paper's form": {"hidden_features": 25, "num_transforms": 10},
    "one block": {"hidden_features": 7, "num_transforms": 2, "num_blocks": 1},
    "no blocks": {"hidden_features": 7, "num_transforms": 2, "num_blocks": 0},
    "three blocks": {"hidden_features": 16, "num_transforms": 1, "num_blocks": 3},
}


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def loops(request, monkeypatch):
    monkeypatch.setenv(PLAIN, "1" if request.param == "plain" else "0")
    if request.param == "compiled":
        assert compiled_loops() is not None
    return request.param


def build(builder=build_maf, ndim=5, context=30, rows=200, **network):
    torch.manual_seed(3)
    flow = builder(torch.zeros(2, ndim), torch.zeros(2, context), z_score_x="none", z_score_y="none", **network)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    return flow, torch.randn(rows, ndim), torch.randn(rows, context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
@pytest.mark.parametrize(("ndim", "rows"), [(1, 200), (5, 1), (5, 127), (5, 128), (5, 300)])
def test_density_and_gradients_are_those_of_nflows(network, ndim, rows, dtype):
    flow, v, context = (thing.to(dtype) for thing in build(ndim=ndim, rows=rows, **network))
    v.requires_grad_()
    context.requires_grad_()
    weights = torch.rand(len(v), dtype=dtype)
    wanted = [v, context, *flow.parameters()]
    theirs = -flow.loss(v, context)
    ours = maf_log_prob(affine_transforms(flow.net), v, context)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    # nflows keeps the base density's constant in float32.
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad((weights * ours).sum(), wanted),
        torch.autograd.grad((weights * theirs).sum(), wanted),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max() + 1))


def test_gradients_are_the_same_bytes_in_any_thread(loops):
    flow, v, context = build(hidden_features=25, num_transforms=3, rows=300)
    parameters = list(flow.parameters())

    def gradients(_=None):
        loss = flow_log_prob(flow, v, context).mean()
        return [loss.detach(), *torch.autograd.grad(loss, parameters, materialize_grads=True)]

    def same(one, other):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    once = gradients()
    with ThreadPoolExecutor(2) as pool:
        assert all(same(once, again) for again in pool.map(gradients, range(6)))
    node = type(flow_log_prob(flow, v, context).grad_fn).__name__
    assert ("Compiled" in node) == (loops == "compiled")


def test_gradients_reach_the_embedding():
    config = small_config()
    theta, flux = simulations(config, 100)
    estimator = prepare_estimator(config, theta, flux, NoiseModel.from_config(config.noise))
    u = torch.as_tensor(config.make_prior().to_unconstrained(theta), dtype=torch.float32)
    ours = estimator(u, torch.as_tensor(flux))
    features = estimator.features(torch.as_tensor(flux))
    centre, scale = estimator.features.centring(features)
    theirs = (estimator.flow.loss((u - centre) / scale, features) + scale.log().sum(dim=-1)).mean()
    parameters = list(estimator.parameters())
    assert any(name.startswith("flow.net._embedding_net") for name, _ in estimator.named_parameters())
    for one, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        assert other.abs().max() > 0
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_any_other_flow_goes_by_its_own_module():
    flow, v, context = build(build_nsf, hidden_features=10, num_transforms=2)
    assert affine_transforms(flow.net) is None
    assert torch.equal(flow_log_prob(flow, v, context), -flow.loss(v, context))
    batch_norm, _, _ = build(hidden_features=10, num_transforms=2, use_batch_norm=True)
    assert affine_transforms(batch_norm.net) is None
    dropout, _, _ = build(hidden_features=10, num_transforms=2, dropout_probability=0.1)
    assert affine_transforms(dropout.net) is None


def test_without_gradients_and_on_one_row():
    flow, v, context = build(hidden_features=10, num_transforms=3)
    with torch.no_grad():
        assert torch.allclose(
            torch.cat([flow_log_prob(flow, v[i : i + 1], context[i : i + 1]) for i in range(3)]),
            -flow.loss(v, context)[:3],
            atol=1e-5,
        )


def test_a_second_backward_pass_is_refused_since_the_first_used_up_its_memory():
    flow, v, context = build(hidden_features=10, num_transforms=3)
    total = flow_log_prob(flow, v, context).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="evaluate it again"):
        total.backward()
