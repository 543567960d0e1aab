"""A line spread that is a parameter: spectra, settings, and that nothing else changes where it is not one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from digs_survey.config import ModelConfig, SurveyConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.estimator.artefact import identify
from digs_survey.estimator.shipped import shipped
from digs_survey.identity import RunIdentity
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps import spread
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.coverage import check_source
from digs_survey.sps.linespread import describe
from digs_survey.sps.parts import Part, SpreadPart
from digs_survey.sps.prospector import ProspectorSimulator

LOW, HIGH = 60.0, 400.0
BOUNDS = {"logmass": (7.0, 13.0), "logzsol": (-2.0, 0.4), "dust2": (0.0, 2.0), "tage": (0.01, 4.0)}
FREE, FIXED = Prior({**BOUNDS, "sigma_smooth": (LOW, HIGH)}), Prior(BOUNDS)
FREE_TOML = "prior.sigma_smooth={low=60, high=400}"
# Around H-alpha, the elements beside which take the most nodes.
COARSE, FINE = (WavelengthGrid(np.arange(6450.0, 6650.0, step)) for step in (10.0, 2.0))
SIGMA = FREE.index("sigma_smooth")


def rows_of(count, seed=1):
    """Points all over the prior, the first half of them young: the lines of these are the hardest."""
    rng = np.random.default_rng(seed)
    theta = FREE.from_unit_cube(rng.random((count, FREE.ndim)))
    theta[: count // 2, FREE.index("tage")] = 10 ** rng.uniform(-1.99, -1.2, count // 2)
    theta[:2, SIGMA] = LOW, HIGH
    return theta


@pytest.fixture(scope="module")
def coarse():
    return BatchedModel.from_config(ModelConfig(), FREE, COARSE)


@pytest.fixture(scope="module")
def fine():
    return BatchedModel.from_config(ModelConfig(), FREE, FINE)


@pytest.mark.parametrize("grid", ["coarse", "fine"])
def test_spectra_are_those_smoothed_by_that_sigma(grid, request):
    model, theta = request.getfixturevalue(grid), rows_of(60)
    for sigma in (LOW, HIGH, *np.exp(np.random.default_rng(0).uniform(np.log(LOW), np.log(HIGH), 3))):
        theta[:, SIGMA] = sigma
        direct = BatchedModel.from_config(ModelConfig(smoothing_kms=sigma), FIXED, model.grid)
        np.testing.assert_allclose(model.spectra(theta), direct.spectra(theta[:, :SIGMA]), rtol=1e-3)


def test_a_finer_grid_takes_more_nodes(coarse, fine):
    numbers = [[len(nodes) for nodes in model._parts[0].spread_nodes] for model in (coarse, fine)]
    assert sum(numbers[0]) < sum(numbers[1])


def test_the_number_of_nodes_is_what_the_tolerance_needs(monkeypatch):
    monkeypatch.setattr(spread, "TOLERANCE", 0.02)
    model, theta = BatchedModel.from_config(ModelConfig(), FREE, COARSE), rows_of(60)
    exact = ProspectorSimulator(ModelConfig(), FREE, COARSE).spectra(theta)
    assert 1e-3 < np.abs(model.spectra(theta) / exact - 1).max() < 0.02


@pytest.mark.parametrize("model", [ModelConfig(), ModelConfig(resampling="point", zred=0.2, gas_logu=-3.0)])
@pytest.mark.parametrize("grid", [COARSE, WavelengthGrid(FINE.wavelength, medium="air")])
def test_spectra_are_prospectors(model, grid):
    theta = rows_of(60, seed=2)
    batched = BatchedModel.from_config(model, FREE, grid).spectra(theta)
    np.testing.assert_allclose(batched, ProspectorSimulator(model, FREE, grid).spectra(theta), rtol=1e-3)


def test_prospector_smooths_by_the_parameter():
    """Its populations are sampled for the least sigma and padded for the largest; a fixed sigma needs less."""
    theta, simulator = rows_of(8), ProspectorSimulator(ModelConfig(), FREE, COARSE)
    assert tuple(simulator.model.theta_labels()) == FREE.names
    for row in theta:
        fixed = ProspectorSimulator(ModelConfig(smoothing_kms=row[SIGMA]), FIXED, COARSE)
        np.testing.assert_allclose(simulator.spectrum(row), fixed.spectrum(row[:SIGMA]), rtol=2e-4)


def test_wide_grids_are_kept_as_sums_of_few_vectors():
    grid = WavelengthGrid(np.arange(4800.0, 6800.0, 4.0))
    model, theta = BatchedModel.from_config(ModelConfig(), FREE, grid), rows_of(30)
    for panel in model._parts[0].panels:
        assert panel.terms.sum() < 4 * panel.histories.shape[1]
        assert sum(len(rows) for _, rows in panel.factors) < 300
    np.testing.assert_allclose(
        model.spectra(theta), ProspectorSimulator(ModelConfig(), FREE, grid).spectra(theta), rtol=1e-3
    )


def test_torch_and_numpy_agree_and_rows_do_not_depend_on_their_batch(coarse):
    theta = rows_of(100)
    flux = coarse.spectra(theta)
    np.testing.assert_allclose(coarse.spectra(torch.as_tensor(theta)).numpy(), flux, rtol=1e-5)
    shuffled = np.random.default_rng(3).permutation(len(theta))
    np.testing.assert_array_equal(coarse.spectra(theta[shuffled]), flux[shuffled])
    np.testing.assert_array_equal(np.concatenate([coarse.spectra(theta[[k]]) for k in range(20)]), flux[:20])
    with pytest.raises(ValueError, match="expected rows inside the prior"):
        coarse.spectra(theta * np.where(np.arange(FREE.ndim) == SIGMA, 10, 1))


def test_only_a_free_spread_takes_parts_with_a_spread():
    model = BatchedModel.from_config(ModelConfig(), FIXED, COARSE)
    assert [type(part) for part in model._parts] == [Part]
    assert "sigma_smooth" not in Prior().names
    free = BatchedModel.from_config(ModelConfig(), FREE, COARSE)
    assert [type(part) for part in free._parts] == [SpreadPart]


def test_derived_quantities_do_not_depend_on_it(coarse):
    fixed = BatchedModel.from_config(ModelConfig(), FIXED, COARSE)
    theta = rows_of(20)
    for name, values in coarse.derived(theta).items():
        np.testing.assert_allclose(values, fixed.derived(theta[:, :SIGMA])[name], rtol=1e-6)
    names = ("surviving_mass", "ssfr_100")
    ours, theirs = (DerivedQuantities.of_model(names, "delayed_tau", fixed, prior) for prior in (FREE, FIXED))
    np.testing.assert_allclose(ours(theta), theirs(theta[:, :SIGMA]), rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.smoothing_kms=200"], "prior.sigma_smooth .* model.smoothing_kms .* one of the two, found .* = 200"),
        (["model.line_spread=resolving_power"], "prior.sigma_smooth needs model.line_spread = 'velocity', found 'res"),
        (["prior.sigma_smooth.low=0"], r"prior.sigma_smooth: expected 10 to 12000 km/s, found \[0, 400\]"),
        (["prior.sigma_smooth.low=-5"], r"prior.sigma_smooth: expected 10 to 12000 km/s, found \[-5, 400\]"),
        (["prior.sigma_smooth.high=20000"], r"prior.sigma_smooth: expected 10 to 12000 km/s, found \[60, 20000\]"),
        (["prior.sigma_smooth.high=50"], r"prior.sigma_smooth: expected finite low < high, found \[60, 50\]"),
        (["prior.sigma_smooth.least=50"], "prior.sigma_smooth.least: unknown key"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [FREE_TOML, *overrides])


def test_a_grid_that_the_widest_smoothing_takes_beyond_the_populations_is_refused():
    grid = WavelengthGrid(np.arange(10.0, 20.0, 0.5))
    wide = Prior({"sigma_smooth": (1000.0, 12_000.0)})
    check_source(ModelConfig(), Prior(), grid)
    with pytest.raises(ConfigError, match="grid: source 'bc03' covers"):
        check_source(ModelConfig(), wide, grid)


def test_a_tabulated_line_spread_beside_it_is_refused():
    table = ModelConfig(line_spread="table", line_spread_angstrom=(3000, 9000), line_spread_resolving_power=(90, 90))
    with pytest.raises(ConfigError, match="prior.sigma_smooth needs model.line_spread = 'velocity', found 'table'"):
        BatchedModel.from_config(table, FREE, COARSE)


def test_the_parameter_is_the_last_and_goes_with_every_kind_of_noise():
    row = ["noise.kind=row", "train.whitening=least_squares", "model.age=tage_tuniv"]
    for settings in ([], ["noise.kind=constant"], ["model.sfh=constant"], row):
        config = load_config(None, [*settings, FREE_TOML])
        prior = config.make_prior()
        assert prior.names[-1] == "sigma_smooth"
        assert prior.bounds("sigma_smooth") == (60.0, 400.0)
        assert Prior.from_dict(prior.to_dict()) == prior
        assert prior.without("sigma_smooth").names == prior.names[:-1]
        assert SurveyConfig.model_validate_json(config.model_dump_json()) == config
        assert describe(config.model, prior) == "smoothed by σ = 60 to 400 km/s (sigma_smooth)"
    assert load_config(None, [FREE_TOML]).hash("prior") != load_config(None).hash("prior")
    assert load_config(None, [FREE_TOML]).hash("model") == load_config(None).hash("model")


def test_a_posterior_of_another_line_spread_is_refused_by_name():
    fixed = identify(shipped()["digs2022"], seed=1)
    with pytest.raises(
        ConfigError, match="prior.sigma_smooth: the posterior has model.smoothing_kms = 350 in its place"
    ):
        fixed.adopt(load_config(None, [FREE_TOML]))
    config = load_config(None, [FREE_TOML])
    free = RunIdentity.of_config(config, WavelengthGrid.from_config(config.grid))
    with pytest.raises(ConfigError, match="model.smoothing_kms: the posterior has prior.sigma_smooth in its place"):
        free.adopt(load_config(None, ["model.smoothing_kms=200"]))
    adopted = free.adopt(load_config(None))
    assert adopted.make_prior() == config.make_prior()
    assert SurveyConfig.model_validate_json(adopted.model_dump_json()) == adopted
