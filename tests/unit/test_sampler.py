"""The sampler's flows: sbi's own draws and densities to the digit, compiled or not, from plain arrays."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from sbi.neural_nets.net_builders import build_maf, build_nsf, build_zuko_maf, build_zuko_nice, build_zuko_nsf

from digs_survey import jit, simd
from digs_survey.estimator.flows import compiled
from digs_survey.estimator.flows.sampler import KINDS, MaskedFlow
from digs_survey.jit import PLAIN

BUILDERS = {"maf": build_maf, "zuko_maf": build_zuko_maf, "zuko_nsf": build_zuko_nsf}
CONTEXT = 7
# Dimensions, hidden units, transforms, blocks, and the factor on the initial weights, from tame to wild.
SIZES = [
    (1, 8, 3, 1, 1.0),
    (2, 25, 3, 2, 2.0),
    (3, 7, 4, 3, 1.5),
    (4, 50, 2, 1, 2.0),
    (5, 25, 10, 2, 1.0),
    (5, 25, 6, 2, 2.0),
    (5, 3, 3, 2, 2.0),
    (6, 33, 3, 2, 2.0),
]


def build(kind, ndim=3, hidden=12, transforms=3, blocks=2, factor=1.5, embedding=None, **others):
    torch.manual_seed(ndim + hidden)
    settings = {"num_blocks": blocks} if kind == "maf" else {}
    with warnings.catch_warnings(action="ignore"):
        flow = BUILDERS[kind](
            torch.zeros(2, ndim),
            torch.zeros(2, CONTEXT),
            z_score_x="none",
            z_score_y="none",
            hidden_features=hidden,
            num_transforms=transforms,
            embedding_net=embedding or torch.nn.Identity(),
            **settings,
            **others,
        )
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(factor)
    return flow.eval()


@torch.no_grad()
def sbi_draws(flow, base, spectrum):
    """What sbi's own flow makes of base points (d, draws), in the flow's precision."""
    points, spectrum = (torch.as_tensor(values).to(next(flow.parameters())) for values in (base.T.copy(), spectrum))
    context = flow.embedding_net(spectrum[None]).expand(len(points), -1)
    net = flow.net
    if hasattr(net, "transform"):
        return net(context).transform.inv(points).T.numpy()
    return net._transform.inverse(points, context)[0].T.numpy()


@torch.no_grad()
def sbi_log_prob(flow, v, spectrum):
    points, spectrum = (torch.as_tensor(values).to(next(flow.parameters())) for values in (v.T.copy(), spectrum))
    return flow.log_prob(points[None], spectrum.expand(len(points), -1))[0].numpy()


def assert_close(found, exact, single):
    """Within 1e-4 of sbi in double precision, or some times as far from it as sbi in single precision is.

    How far either is depends on the order in which a processor's kernels add up.
    """
    np.testing.assert_allclose(found, exact, rtol=0, atol=max(1e-4, 30 * np.abs(single - exact).max()))


def points(ndim, draws=300, seed=1):
    return np.random.default_rng(seed).normal(size=(ndim, draws)).astype(np.float32)


@pytest.fixture(params=["compiled", "plain"])
def loops(request, monkeypatch):
    monkeypatch.setenv(PLAIN, "1" if request.param == "plain" else "0")
    return request.param


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_draws_and_densities_are_those_of_sbi(kind, size, embedded, loops):
    embedding = torch.nn.Sequential(torch.nn.Linear(CONTEXT, 4), torch.nn.Tanh()) if embedded else None
    flow = build(kind, *size, embedding=embedding)
    exact = copy.deepcopy(flow).double()
    ours = MaskedFlow.from_sbi(flow)
    spectrum = torch.randn(CONTEXT, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        context = flow.embedding_net(spectrum[None])[0].numpy()
    base = points(size[0])
    expected = sbi_draws(exact, base, spectrum)
    assert_close(ours.inverse(base, context), expected, sbi_draws(flow, base, spectrum))
    v = expected.astype(np.float32)
    assert_close(ours.log_prob(v, context), sbi_log_prob(exact, v, spectrum), sbi_log_prob(flow, v, spectrum))


def test_orders_other_than_sbis_are_followed(loops):
    flow = build("zuko_maf", 5, 25, 4, randperm=True)
    context = torch.randn(CONTEXT, generator=torch.Generator().manual_seed(2))
    expected = sbi_draws(copy.deepcopy(flow).double(), points(5), context)
    found = MaskedFlow.from_sbi(flow).inverse(points(5), context.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_far_points_come_back(kind, loops):
    flow, context = MaskedFlow.from_sbi(build(kind)), np.ones(CONTEXT, np.float32)
    base = np.array([[-30, 30, 0, 5, -5], [40, 5.0001, 0, -5, -6], [4, 3, 2, 1, 0]], np.float32)
    v = flow.inverse(base, context)
    assert np.isfinite(v).all()
    assert np.isfinite(flow.log_prob(v, context)).all()
    assert np.isinf(flow.log_prob(np.full((3, 1), 1e30, np.float32), context)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_does_not_depend_on_those_beside_it(kind, loops):
    flow, context = MaskedFlow.from_sbi(build(kind, 5, 25)), np.linspace(-1, 1, CONTEXT, dtype=np.float32)
    base = points(5, draws=3 * compiled.BLOCK + 5)
    whole = flow.inverse(base, context)
    assert flow.inverse(base, context).tobytes() == whole.tobytes()
    if loops == "compiled":
        few = flow.inverse(base[:, : compiled.BLOCK + 1], context)
        assert few.tobytes() == np.ascontiguousarray(whole[:, : compiled.BLOCK + 1]).tobytes()
    base[:, 3] = np.nan
    spoilt = flow.inverse(base, context)
    rest = np.arange(base.shape[1]) != 3
    assert np.isnan(spoilt[:, 3]).all()
    assert np.array_equal(spoilt[:, rest], whole[:, rest])


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan(kind, loops):
    flow = MaskedFlow.from_sbi(build(kind))
    context = np.full(CONTEXT, np.nan, np.float32)
    assert np.isnan(flow.inverse(points(3), context)).any(axis=0).all()
    assert np.isnan(flow.log_prob(points(3), context)).all()
    v = points(3)
    v[1, 7] = np.nan
    assert np.isnan(flow.log_prob(v, np.zeros(CONTEXT, np.float32))).tolist() == [n == 7 for n in range(300)]


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_bring_a_flow_back(kind):
    flow, context = MaskedFlow.from_sbi(build(kind)), np.ones(CONTEXT, np.float32)
    again = MaskedFlow.from_arrays(load(save(flow.arrays("member.1."))), "member.1.")
    assert again.kind == kind
    assert again.inverse(points(3), context).tobytes() == flow.inverse(points(3), context).tobytes()
    with pytest.raises(ValueError, match="expected one of the kinds maf, zuko_maf, zuko_nsf, found 'glow'"):
        MaskedFlow.from_arrays(flow.arrays() | {"flow.kind": np.frombuffer(b"glow", np.uint8)})


@pytest.mark.parametrize(
    ("builder", "settings"),
    [
        (build_nsf, {}),
        (build_zuko_nice, {}),
        (build_maf, {"z_score_x": "independent"}),
        (build_zuko_maf, {"z_score_x": "independent"}),
        (build_zuko_maf, {"residual": True}),
        (build_zuko_nsf, {"slope": 1e-2}),
        (build_maf, {"use_batch_norm": True}),
    ],
)
def test_other_flows_are_refused(builder, settings):
    data = torch.randn(10, 3), torch.randn(10, CONTEXT)
    flow = builder(*data, **({"z_score_x": "none", "z_score_y": "none", "hidden_features": 8} | settings))
    with pytest.raises(ValueError, match="expected a flow of sbi's build_maf, build_zuko_maf or build_zuko_nsf"):
        MaskedFlow.from_sbi(flow)


def test_elementary_functions():
    x = np.linspace(-30, 30, 200 * compiled.BLOCK + 1, dtype=np.float32)
    for ours, exact in (
        (simd.tanh, np.tanh),
        (simd.exp, np.exp),
        (simd.softplus, lambda x: np.logaddexp(0, x)),
    ):
        found = np.array([ours(value) for value in x], dtype=np.float32)
        np.testing.assert_allclose(found, exact(x.astype(float)), rtol=5e-6, atol=2e-7)
    positive = np.geomspace(1e-30, 1e30, 10_000).astype(np.float32)
    found = [simd.log(value) for value in positive]
    np.testing.assert_allclose(found, np.log(positive.astype(float)), rtol=1e-6, atol=2e-7)
    rows = np.resize(x, 3 * compiled.BLOCK)
    before = rows.copy()
    compiled.tanh_rows(rows, 1, 2)
    inner = slice(compiled.BLOCK, 2 * compiled.BLOCK)
    np.testing.assert_allclose(rows[inner], np.tanh(before[inner].astype(float)), rtol=0, atol=4e-7)
    rows[inner] = before[inner]
    assert np.array_equal(rows, before)


def test_without_numba_it_says_so_once_and_goes_on(monkeypatch, caplog):
    def broken():
        raise RuntimeError("no compiler here")

    flow, context = MaskedFlow.from_sbi(build("maf")), np.ones(CONTEXT, np.float32)
    compiled_draws = flow.inverse(points(3), context)
    jit._compiled.cache_clear()
    monkeypatch.setattr(compiled, "compile_all", broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_allclose(flow.inverse(points(3), context), compiled_draws, rtol=1e-5, atol=1e-5)
    jit._compiled.cache_clear()
    assert [r.getMessage() for r in caplog.records] == [
        "the loops of digs_survey.estimator.flows.compiled could not be compiled (RuntimeError: no compiler here); "
        "plain ones run, several times slower"
    ]


def test_arrays_need_no_training_library(tmp_path):
    path = tmp_path / "flow.safetensors"
    path.write_bytes(save(MaskedFlow.from_sbi(build("zuko_nsf")).arrays()))
    code = (
        "import sys, numpy as np; from safetensors.numpy import load_file\n"
        "from digs_survey.estimator.flows.sampler import MaskedFlow\n"
        f"flow = MaskedFlow.from_arrays(load_file({str(path)!r}))\n"
        f"flow.inverse(np.zeros((3, 2), 'f4'), np.zeros({CONTEXT}, 'f4'))\n"
        "print(sorted({'sbi', 'zuko', 'nflows', 'numba'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, PLAIN: "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
