"""Priors of single parameters: each density integrates to one, and all forms of a prior say the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import integrate, stats

from digs_survey.distributions import KINDS, AnyPrior, Uniform
from digs_survey.prior import Prior

PRIOR = TypeAdapter(AnyPrior)
EXAMPLES = [
    {"low": -1.0, "high": 3.0},
    {"prior": "log_uniform", "low": 0.1, "high": 10.0},
    {"prior": "normal", "mean": 1.0, "sigma": 0.1},
    {"prior": "clipped_normal", "mean": 0.3, "sigma": 1.0, "low": 0.0, "high": 4.0},
    {"prior": "clipped_normal", "mean": 0.0, "sigma": 1.0, "low": 8.0, "high": 12.0},
    {"prior": "clipped_normal", "mean": 0.0, "sigma": 1.0, "low": -30.0, "high": -9.0},
    {"prior": "log_normal", "median": 0.3, "sigma": 0.5},
    {"prior": "student_t", "mean": 0.0, "scale": 0.3, "df": 2.0, "low": -10.0, "high": 10.0},
    {"prior": "student_t", "mean": 1.0, "scale": 0.3, "df": 3.5, "low": 0.0, "high": 10.0},
    {"prior": "beta", "alpha": 3.0, "beta": 1.0},
    {"prior": "beta", "alpha": 2.0, "beta": 2.5, "low": -2.0, "high": 0.2},
]
"""One or more of each kind; some are cut far from their middle."""


def _name(data):
    return f"{data.get('prior', 'uniform')}-{data.get('low', '')}"


def test_every_kind_is_tried():
    assert {data.get("prior", "uniform") for data in EXAMPLES} == set(KINDS)


@pytest.mark.parametrize("data", EXAMPLES, ids=_name)
def test_density_integrates_to_one_and_is_the_slope_of_the_cdf(data):
    prior = PRIOR.validate_python(data)
    inner = prior.ppf(np.linspace(0, 1, 21))[1:-1]
    whole, error = integrate.quad(lambda x: np.exp(prior.log_pdf(x)), prior.low, prior.high, points=inner, limit=500)
    assert whole == pytest.approx(1.0, abs=1e-7 + 10 * error)
    for value in inner:
        below, _ = integrate.quad(lambda x: np.exp(prior.log_pdf(x)), prior.low, value, limit=500)
        assert prior.cdf(value) == pytest.approx(below, abs=1e-7)


@pytest.mark.parametrize("data", EXAMPLES, ids=_name)
def test_cdf_and_its_inverse(data):
    prior = PRIOR.validate_python(data)
    share = np.concatenate([[1e-9, 1e-6], np.linspace(0.001, 0.999, 500), [1 - 1e-6]])
    value = prior.ppf(share)
    assert (np.diff(value) > 0).all()
    assert np.allclose(prior.cdf(value), share, rtol=1e-9, atol=1e-10)
    assert np.allclose(prior.ppf([0.0, 1.0]), [prior.low, prior.high], rtol=0.01, atol=1e-12)
    assert np.array_equal(prior.cdf([prior.low, prior.high]), [0.0, 1.0])


def test_densities_are_those_of_scipy():
    x = np.array([0.05, 0.3, 0.9])
    pairs = [
        ({"prior": "normal", "mean": 0.2, "sigma": 0.3}, stats.norm(0.2, 0.3)),
        ({"prior": "clipped_normal", "mean": 0.3, "sigma": 1.0, "low": 0, "high": 4}, stats.truncnorm(-0.3, 3.7, 0.3)),
        ({"prior": "log_normal", "median": 0.3, "sigma": 0.5}, stats.lognorm(0.5, scale=0.3)),
        ({"prior": "beta", "alpha": 2.0, "beta": 5.0}, stats.beta(2, 5)),
        ({"prior": "log_uniform", "low": 0.01, "high": 2}, stats.loguniform(0.01, 2)),
    ]
    for data, known in pairs:
        assert np.allclose(PRIOR.validate_python(data).log_pdf(x), known.logpdf(x), atol=1e-12), data
    t = PRIOR.validate_python({"prior": "student_t", "mean": 0, "scale": 0.3, "df": 2, "low": -10, "high": 10})
    inside = np.diff(stats.t(2, 0, 0.3).cdf([-10, 10]))[0]
    assert np.allclose(t.log_pdf(x), stats.t(2, 0, 0.3).logpdf(x) - np.log(inside), atol=1e-12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"prior": "gaussian", "low": 0, "high": 1}, "expected one of the priors uniform, log_uniform, normal"),
        ({"low": 2, "high": 1}, r"expected finite low < high, found \[2, 1\]"),
        ({"prior": "log_uniform", "low": 0, "high": 1}, "expected a positive low, found 0"),
        ({"prior": "clipped_normal", "mean": 0, "sigma": 1}, "Field required"),
        ({"prior": "clipped_normal", "mean": 0, "sigma": 0, "low": 0, "high": 1}, "greater than 0"),
        ({"prior": "clipped_normal", "mean": 0, "sigma": 1, "low": 50, "high": 60}, "some of the distribution between"),
        ({"prior": "student_t", "mean": 0, "scale": 1, "df": 2}, "Field required"),
        ({"low": 0, "high": float("inf")}, "finite"),
        ({"value": 1, "low": 2}, "Extra inputs"),
    ],
)
def test_what_is_no_prior_is_refused(data, message):
    with pytest.raises(ValidationError, match=message):
        PRIOR.validate_python(data)


SHAPED = Prior(
    {
        "logzsol": PRIOR.validate_python(
            {"prior": "clipped_normal", "mean": -0.3, "sigma": 0.4, "low": -1.9, "high": 0.2}
        ),
        "dust2": PRIOR.validate_python({"prior": "log_normal", "median": 0.3, "sigma": 0.4}),
        "logtau": PRIOR.validate_python(
            {"prior": "student_t", "mean": 0, "scale": 0.3, "df": 2, "low": -1.0, "high": 1}
        ),
        "tage": PRIOR.validate_python({"value": 2.0}),
    }
)
"""A prior with a fixed parameter and one of each shape."""


def test_a_fixed_parameter_is_no_column():
    assert SHAPED.names == ("logmass", "logzsol", "dust2", "logtau")
    assert SHAPED.constants == {"tage": 2.0}


def test_unconstrained_coordinates_have_the_jacobian_of_the_prior():
    cube = np.random.default_rng(0).uniform(0.01, 0.99, (50, 4))
    theta = SHAPED.from_unit_cube(cube)
    assert np.allclose(SHAPED.cdf(theta), cube, atol=1e-10)
    u = SHAPED.to_unconstrained(theta)
    assert np.allclose(SHAPED.from_unconstrained(u), theta, rtol=1e-9)
    step = 1e-5
    slope = (SHAPED.from_unconstrained(u + step) - SHAPED.from_unconstrained(u - step)) / (2 * step)
    assert np.allclose(np.log(slope).sum(1), SHAPED.log_abs_det_jacobian(u), atol=1e-6)
    assert np.allclose(np.log(slope)[:, 1:].sum(1), SHAPED.log_abs_det_jacobian(u, without=0), atol=1e-6)
    outside = theta.copy()
    outside[:, 1] = 0.21
    assert (SHAPED.cdf(outside)[:, 1] > 1).all()
    assert np.isneginf(SHAPED.log_prob(outside)).all()


def test_prospector_and_sbi_have_the_same_density():
    theta = SHAPED.from_unit_cube(np.random.default_rng(1).uniform(0.01, 0.99, (20, 4)))
    expected = sum(SHAPED.parameters[i].distribution.log_pdf(theta[:, i]) for i in range(4))
    assert np.allclose(SHAPED.log_prob(theta), expected)
    forms = SHAPED.prospector_priors()
    assert list(forms) == list(SHAPED.names)
    for k, row in enumerate(theta):
        parts = [float(form(value)) for form, value in zip(forms.values(), row, strict=True)]
        assert np.sum(parts) == pytest.approx(expected[k])
        again = [
            form.unit_transform(form.inverse_unit_transform(v)) for form, v in zip(forms.values(), row, strict=True)
        ]
        assert np.allclose(again, row)
    assert np.isneginf(forms["dust2"](np.array([1e9])))
    ours = SHAPED.torch_distribution()
    assert np.allclose(ours.log_prob(torch.as_tensor(theta)), expected, rtol=1e-5)
    torch.manual_seed(0)
    drawn = ours.sample((4_000,)).numpy()
    share = np.sort(SHAPED.cdf(drawn), axis=0)
    assert drawn.shape == (4_000, 4)
    assert np.abs(share - (np.arange(4_000)[:, None] + 0.5) / 4_000).max() < 0.035


def test_plain_values_give_the_prior_again():
    plain = SHAPED.to_dict()
    assert Prior.from_dict(plain) == SHAPED
    assert plain[-1] == {"name": "tage", "value": 2.0}
    assert "prior" not in Prior().to_dict()[0], "a uniform prior has the plain values that it had before"
    wider = Prior.of(SHAPED.priors | {"dust2": Uniform(low=0, high=1)})
    assert wider != SHAPED
    assert wider.without("dust2").names == ("logmass", "logzsol", "logtau")
    assert wider.without("dust2").constants == {"tage": 2.0}
