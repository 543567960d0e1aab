"""The section of the model's parameters: free with a prior, or fixed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from digs_survey.config import ModelConfig, SurveyConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.identity import RunIdentity
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.universe import age_of_universe, physical_names, physical_theta

GRID = WavelengthGrid(np.arange(4000.0, 5000.0, 50.0))


def _load(tmp_path, text):
    path = tmp_path / "survey.toml"
    path.write_text(text)
    return load_config(path)


def test_parameters_of_the_model_are_its_prior(tmp_path):
    config = _load(
        tmp_path,
        """
        [model.parameters]
        dust2 = { prior = "clipped_normal", mean = 0.3, sigma = 0.5, low = 0.0, high = 2.0 }
        tage = { low = 0.5, high = 3.0 }
        logzsol = 0.0
        """,
    )
    prior = config.make_prior()
    assert prior.names == ("logmass", "dust2", "tage", "logtau")
    assert prior.constants == {"logzsol": 0.0}
    assert prior.bounds("tage") == (0.5, 3.0)
    assert str(prior.parameters[1].distribution) == "clipped normal, mean 0.3, sigma 0.5"
    again = SurveyConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.hash() == config.hash()


def test_bounds_alone_are_the_uniform_prior_that_they_were(tmp_path):
    new = _load(tmp_path, "[model.parameters]\ntage = { low = 0.5, high = 3.0 }")
    old = _load(tmp_path, "[prior]\ntage = { low = 0.5, high = 3.0 }")
    said = _load(tmp_path, '[model.parameters]\ntage = { prior = "uniform", low = 0.5, high = 3.0 }')
    assert new == old == said
    assert new.hash() == old.hash() == said.hash()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dust2 = { prior = "gauss", mean = 0.3 }', r"prior.dust2: expected one of the priors uniform, .* beta"),
        ('dust2 = { prior = "student_t", mean = 0, scale = 1, df = 2 }', r"prior.dust2.low: Field required"),
        ('dust2 = { prior = "normal", mean = 0.3, sigm = 1 }', r"prior.dust2.sigm: unknown key; did you mean .*sigma"),
        ("dust3 = 0.3", r"prior: unknown parameter 'dust3' \(did you mean 'dust2'\?\); the model has logmass"),
        ("sigma_smooth = 100.0", r"a line spread that is fixed is model.smoothing_kms"),
        ("tage_tuniv = 0.5", r"prior.tage_tuniv: model.age = 'tage' needs prior.tage in its place"),
        ('logmass = { prior = "normal", mean = 10, sigma = 0.2 }', r"needs a free, uniform prior.logmass"),
        ("logmass = 10.0", r"needs a free, uniform prior.logmass"),
        ("logmass = 10.0\nlogzsol = 0\ndust2 = 0\ntage = 1\nlogtau = 0", "no parameter is free"),
    ],
)
def test_what_is_no_parameter_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, f"[model.parameters]\n{text}")


def test_a_parameter_in_both_sections_is_refused(tmp_path):
    text = "[model.parameters]\ndust2 = 0.3\n[prior]\ndust2 = { low = 0, high = 1 }"
    with pytest.raises(ConfigError, match=r"model.parameters.dust2 and prior.dust2 are both given"):
        _load(tmp_path, text)


def test_a_prior_outside_the_populations_is_refused():
    prior = Prior.of({**Prior().priors, "logzsol": {"prior": "normal", "mean": 0.0, "sigma": 1.0}})
    with pytest.raises(ConfigError, match=r"prior.logzsol: source 'bc03' covers .* found -8 to 8"):
        BatchedModel.from_config(ModelConfig(), prior, GRID)


def test_spectra_with_fixed_parameters_are_those_with_free_ones_there():
    free = Prior()
    some = Prior.of({**free.priors, "logzsol": {"value": -0.4}, "dust2": {"value": 0.0}})
    theta = some.from_unit_cube(np.random.default_rng(3).random((20, some.ndim)))
    physical = physical_theta(some, theta, 0.1)
    assert physical_names(some) == free.names
    assert np.array_equal(physical[:, 1:3], np.tile([-0.4, 0.0], (20, 1)))
    batched = BatchedModel.from_config(ModelConfig(), some, GRID).spectra(physical)
    exact = ProspectorSimulator(ModelConfig(), some, GRID).spectra(physical)
    assert np.abs(batched / exact - 1).max() < 1e-3


def test_an_age_that_is_fixed_follows_the_universe():
    prior = Prior.of({**Prior(age="tage_tuniv").priors, "tage_tuniv": {"value": 0.5}})
    theta = prior.from_unit_cube(np.full((2, prior.ndim), 0.5))
    physical = physical_theta(prior, theta, np.array([0.0, 1.0]))
    column = physical_names(prior).index("tage")
    assert np.allclose(physical[:, column], 0.5 * age_of_universe([0.0, 1.0]))


def test_an_age_at_the_last_node_of_the_populations_has_a_spectrum():
    prior = Prior.of({**Prior().priors, "tage": {"value": 2.5}})
    model = BatchedModel.from_config(ModelConfig(), prior, GRID)
    theta = physical_theta(prior, prior.from_unit_cube(np.full((3, prior.ndim), 0.5)), np.nan)
    exact = ProspectorSimulator(ModelConfig(), prior, GRID).spectra(theta)
    assert np.abs(model.spectra(theta) / exact - 1).max() < 1e-3
    _, left = model.surviving_fraction(np.array([2.5]), np.array([1.0]))
    assert ((left > 0) & (left < 1)).all()


def test_parameters_tied_to_others_follow_them(tmp_path):
    config = _load(
        tmp_path,
        """
        [model.parameters]
        logzsol = { tied = "dust2", factor = -0.5 }
        dust2 = { tied = "tage", times = "logtau", factor = 0.1 }
        tage = { low = 1.0, high = 2.0 }
        logtau = { low = 0.5, high = 1.0 }
        """,
    )
    prior = config.make_prior()
    assert prior.names == ("logmass", "tage", "logtau")
    assert prior.ranges()["dust2"] == pytest.approx((0.05, 0.2))
    assert prior.ranges()["logzsol"] == pytest.approx((-0.1, -0.025))
    assert Prior.from_dict(prior.to_dict()) == prior
    assert SurveyConfig.model_validate(config.model_dump(mode="json")) == config
    theta = prior.from_unit_cube(np.random.default_rng(1).random((10, 3)))
    physical = dict(zip(physical_names(prior), physical_theta(prior, theta, np.nan).T, strict=True))
    assert np.allclose(physical["dust2"], 0.1 * physical["tage"] * physical["logtau"])
    assert np.allclose(physical["logzsol"], -0.5 * physical["dust2"])
    columns = physical_theta(prior, theta, np.nan)
    batched = BatchedModel.from_config(ModelConfig(), prior, GRID).spectra(columns)
    exact = ProspectorSimulator(ModelConfig(), prior, GRID).spectra(columns)
    assert np.abs(batched / exact - 1).max() < 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dust2 = { tied = "dust7" }', r"prior.dust2: tied to 'dust7', which the model does not have; it has logmass"),
        ('dust2 = { tied = "tage" }\ntage = { tied = "dust2" }', r"tied in a circle: dust2 to tage, tage to dust2"),
        ('dust2 = { tied = "dust2" }', r"tied in a circle: dust2 to dust2"),
        ('dust2 = { tied = "tage", by = 3 }', r"prior.dust2.by: unknown key"),
    ],
)
def test_ties_that_lead_nowhere_are_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, f"[model.parameters]\n{text}")


@pytest.mark.parametrize("section", ["model.parameters", "prior"])
def test_parameters_are_overridden_by_either_name_of_the_section(section):
    config = load_config("digs2022", [f"{section}.tage.high=3.0", f"{section}.logzsol=-0.5"])
    assert config.make_prior().bounds("tage") == (0.01, 3.0)
    assert config.make_prior().constants == {"logzsol": -0.5}


def _examples():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    return re.findall(r"```toml\n(.*?)```", text, flags=re.S)


@pytest.mark.parametrize("text", _examples())
def test_models_of_the_docs_have_the_spectra_of_prospector(tmp_path, text):
    config = _load(tmp_path, text)
    prior = config.make_prior()
    theta = physical_theta(prior, prior.from_unit_cube(np.random.default_rng(4).random((12, prior.ndim))), np.nan)
    batched = BatchedModel.from_config(config.model, prior, GRID).spectra(theta)
    exact = ProspectorSimulator(config.model, prior, GRID).spectra(theta)
    assert np.abs(batched / exact - 1).max() < 1e-3


def test_there_are_examples_in_the_docs():
    assert len(_examples()) >= 2


def test_a_fraction_that_nothing_follows_is_refused(tmp_path):
    text = '[model]\ndust_law = "kriek_conroy"\n[model.parameters]\ndust1_fraction = { low = 0.0, high = 2.0 }'
    with pytest.raises(ConfigError, match=r"prior.dust1_fraction: no parameter is tied to it"):
        _load(tmp_path, text)


@pytest.mark.parametrize("sfh", ["continuity", "dirichlet"])
def test_bins_have_the_priors_of_prospector(sfh):
    from prospect.models.priors import Beta, StudentT

    prior = load_config(None, [f"model.sfh={sfh}", "model.sfh_bins=5"]).make_prior()
    names = [name for name in prior.names if name[-1].isdigit() and name != "dust2"]
    x = np.array([0.1, 0.4, 0.9])
    for k, name in enumerate(names):
        ours = prior.priors[name].log_pdf(x)
        if sfh == "continuity":
            theirs = StudentT(mean=0.0, scale=0.3, df=2)(x)
            inside = np.exp(theirs - ours)
            assert np.ptp(inside) < 1e-9
            assert 0.99 < inside[0] < 1
        else:
            assert np.allclose(ours, Beta(alpha=4 - k, beta=1, mini=0, maxi=1)(x))
    assert len(names) == 4


def test_a_parameter_that_the_posterior_lacks_is_refused_by_name():
    config = load_config("digs2022")
    trained = RunIdentity.of_config(config, WavelengthGrid.from_config(config.grid))
    law = ["model.dust_law=smc", "prior.dust1={low=0,high=1}"]
    with pytest.raises(ConfigError, match=r"(?s)model.dust_law.*prior.dust1: the posterior has no such parameter"):
        trained.adopt(load_config(None, law))
    shaped = ["prior.dust2={prior='normal',mean=0.5,sigma=0.05}"]
    with pytest.raises(ConfigError, match=r"prior.dust2: posterior .*'low': 0.1.* configuration .*'normal'"):
        trained.adopt(load_config(None, shaped))
    # A constant rate has no logtau, whatever is given for it.
    constant = load_config(None, ["model.sfh=constant"])
    of_constant = RunIdentity.of_config(constant, WavelengthGrid.from_config(constant.grid))
    given = load_config(None, ["model.sfh=constant", "prior.logtau={low=-1,high=1}"])
    assert of_constant.adopt(given).make_prior() == constant.make_prior()
