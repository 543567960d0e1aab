"""Laws of the dust: their curves, what they do to spectra, in batches and one at a time, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from digs_survey.config import ModelConfig, SurveyConfig, load_config
from digs_survey.config.dust_laws import DUST_CONSTANTS
from digs_survey.errors import ConfigError
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.jit import PLAIN
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps import element_dust
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.bc03 import BC03Basis, read_bc03
from digs_survey.sps.compiled_dust import predict
from digs_survey.sps.dust import LAWS, birth_cloud_curve, clouded
from digs_survey.sps.grid import calzetti_curve
from digs_survey.sps.prospector import ProspectorSimulator

INDEX, CLOUDS = "prior.dust_index={low=-1.0, high=0.4}", "prior.dust1={low=0.0, high=2.0}"
DEEP, SPREAD = "prior.dust2={low=0.0, high=2.0}", "prior.sigma_smooth={low=60, high=400}"
OPTICAL = np.arange(3000.0, 9500.0, 7.0)
# The break of Calzetti's curve at 6300 Angstrom lies within an element, and H-alpha two elements further.
GRID = WavelengthGrid(np.arange(6190.0, 6650.0, 50.0))

# Optical depths of FSPS 0.4.8 at wavelengths of its own, for unit dust2 and dust_index = -0.7.
FSPS_AT = np.array([1995.0, 2175.0, 3490.0, 6298.0411, 6301.6422, 7990.0])
FSPS_DEPTHS = {
    "power_law": [2.033733, 1.914399, 1.374916, 0.909515, 0.909152, 0.769965],
    "mw": [2.828014, 3.185075, 1.594147, 0.858843, 0.858279, 0.598926],
    "calzetti": [2.192797, 2.092407, 1.524755, 0.857610, 0.863207, 0.634239],
    "kriek_conroy": [4.967410, 5.036167, 2.115786, 0.781951, 0.786724, 0.489267],
    "smc": [3.400800, 3.136308, 1.765081, 0.841190, 0.840473, 0.583088],
}


def config_of(law, *overrides):
    return load_config("digs2022", [f"model.dust_law={law}", DEEP, *overrides])


def rows_of(prior, count, seed=1):
    """Points all over the prior, half of them young, and its corners."""
    rng = np.random.default_rng(seed)
    theta = prior.from_unit_cube(rng.random((count, prior.ndim)))
    theta[: count // 2, prior.index("tage")] = 10 ** rng.uniform(-1.99, -1, count // 2)
    corners = np.array(list(itertools.product((1e-9, 1 - 1e-9), repeat=prior.ndim)))
    return np.concatenate([theta, prior.from_unit_cube(corners)])


def test_curves_at_wavelengths_of_the_literature():
    """Of the papers' tables and figures; A(lambda)/A(V) at V is 1 but for the rounding that FSPS has."""
    for name, law in LAWS.items():
        # Cardelli's V is at 5495 Angstrom; Kriek & Conroy's bump has a wing there.
        assert law.curve(5500.0) == pytest.approx(1.0, abs=0.006), name
    np.testing.assert_allclose(LAWS["power_law"].curve([2750.0, 11000.0], -0.7), [2**0.7, 0.5**0.7])
    # Cardelli et al. 1989, table 3: U, B, R, I, and J, for R_V = 3.1.
    bands = 1e4 / np.array([2.78, 2.27, 1.43, 1.11, 0.80])
    np.testing.assert_allclose(LAWS["mw"].curve(bands), [1.569, 1.337, 0.751, 0.479, 0.282], atol=0.02)
    np.testing.assert_allclose(LAWS["smc"].curve([1160.0, 4400.0, 6500.0, 100.0, 3e4]), [6.992, 1.374, 0.801, 6.992, 0])
    assert LAWS["smc"].curve(6000.0) == pytest.approx(0.9005)
    np.testing.assert_allclose(birth_cloud_curve([2750.0, 5500.0]), [2.0, 1.0])


@pytest.mark.parametrize("name", LAWS)
def test_curves_are_those_of_fsps(name):
    np.testing.assert_allclose(LAWS[name].curve(FSPS_AT, -0.7), FSPS_DEPTHS[name], rtol=2e-5)


def test_kriek_conroy_without_a_slope_is_calzetti_with_a_bump():
    law, calzetti = LAWS["kriek_conroy"], calzetti_curve(OPTICAL)
    bump = law.curve(OPTICAL, 0.0) - calzetti
    assert (bump > 0).all()
    assert law.curve(2175.0, 0.0) - calzetti_curve(2175.0) == pytest.approx(0.85 / 4.05)
    assert bump[-1] < 5e-4
    # The bump is gone where its strength, 0.85 - 1.9 n, is zero.
    none = 0.85 / 1.9
    np.testing.assert_allclose(law.curve(OPTICAL, none), calzetti * (OPTICAL / 5500) ** none)


@pytest.mark.parametrize("name", ["mw", "smc", "calzetti", "kriek_conroy"])
def test_curves_are_smooth_but_at_their_breaks(name):
    law = LAWS[name]
    for low, high in itertools.pairwise([1200.0, *(b for b in law.breaks if 1200 < b < 2e4), 2e4]):
        wave = np.linspace(low, high, 2_000)[1:-1]
        step = np.diff(law.curve(wave, 0.3), 2)
        assert np.abs(np.diff(step)).max() < 1e-4


def test_clouds_hold_populations_to_10_myr():
    assert clouded(np.array([6.0, 6.95, 7.0, 7.05])) == 3
    # Unsmoothed lines are slightly negative on their sides.
    wave = np.geomspace(4000, 7000, 512)
    grid, with_gas = (read_bc03(wave, max_age_gyr=0.1, nebular=nebular) for nebular in (False, True))
    basis, young = BC03Basis(grid), clouded(grid.log_age)
    common = {"logzsol": 0.0, "dust2": 0.3, "tau": 1.0, "dust_type": 4, "dust_index": -0.4}

    def depth(tage):
        clear, dusty = (basis.get_galaxy_spectrum(**common, tage=tage, dust1=d)[1].copy() for d in (0.0, 1.0))
        return -np.log(dusty / clear)

    np.testing.assert_allclose(
        depth(0.9 * 10 ** (grid.log_age[young - 1] - 9)), birth_cloud_curve(grid.wavelength), rtol=1e-5
    )
    older = depth(0.05)
    assert (older > 0).all()
    assert (older < birth_cloud_curve(grid.wavelength)).all()
    basis = BC03Basis(with_gas)
    basis.get_galaxy_spectrum(**common, tage=0.005, dust1=0.0)
    bare = basis.get_galaxy_elines()[1].copy()
    basis.get_galaxy_spectrum(**common, tage=0.005, dust1=1.0)
    where, after = basis.get_galaxy_elines()
    np.testing.assert_allclose(after, bare * np.exp(-birth_cloud_curve(where)))


@pytest.mark.parametrize(
    ("law", "overrides", "rtol"),
    [
        ("power_law", (), 1e-4),
        ("power_law", (INDEX, CLOUDS), 1e-4),
        ("kriek_conroy", (INDEX,), 1e-4),
        ("kriek_conroy", (INDEX, CLOUDS), 1e-4),
        ("kriek_conroy", (INDEX, CLOUDS, SPREAD), 1e-3),
        ("kriek_conroy", (CLOUDS, "model.sfh=constant", "model.nebular=false", "model.resampling=point"), 1e-4),
        ("mw", (), 1e-4),
        ("smc", (CLOUDS,), 1e-4),
    ],
)
def test_spectra_are_prospectors(law, overrides, rtol):
    config = config_of(law, *overrides)
    prior = config.make_prior()
    theta = rows_of(prior, 60 if SPREAD in overrides else 120)
    batched = BatchedModel.from_config(config.model, prior, GRID).spectra(theta)
    exact = ProspectorSimulator(config.model, prior, GRID).spectra(theta)
    np.testing.assert_allclose(batched, exact, rtol=rtol)


def test_spectra_of_the_whole_grid_are_prospectors_on_500_draws():
    config = config_of("kriek_conroy", INDEX, CLOUDS)
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    theta = rows_of(prior, 500)
    batched = BatchedModel.from_config(config.model, prior, grid).spectra(theta)
    np.testing.assert_allclose(batched, ProspectorSimulator(config.model, prior, grid).spectra(theta), rtol=1e-4)


def test_narrow_elements_are_prospectors():
    config = config_of("kriek_conroy", INDEX, CLOUDS)
    prior, grid = config.make_prior(), WavelengthGrid(np.geomspace(6200, 6400, 200), medium="air")
    theta, model = rows_of(prior, 40), BatchedModel.from_config(config.model, prior, grid)
    np.testing.assert_allclose(
        model.spectra(theta), ProspectorSimulator(config.model, prior, grid).spectra(theta), rtol=1e-4
    )
    # All that see both sides of the break have two pieces.
    assert 20 < len(model._dust.owners) < 200


def test_nodes_are_as_many_as_the_tolerance_needs(monkeypatch):
    config = config_of("kriek_conroy", INDEX, CLOUDS)
    prior = config.make_prior()
    fine = BatchedModel.from_config(config.model, prior, GRID)
    monkeypatch.setattr("digs_survey.sps.dusty_parts._TOLERANCE", 0.1)
    coarse, theta = BatchedModel.from_config(config.model, prior, GRID), rows_of(prior, 60)
    assert coarse._dust.powers == element_dust._FEWEST < fine._dust.powers
    error = np.abs(coarse.spectra(theta) / fine.spectra(theta) - 1).max()
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("overrides", [(), (INDEX,), (INDEX, CLOUDS), (INDEX, CLOUDS, SPREAD)])
def test_compiled_plain_and_torch_agree_and_a_row_is_the_same_bytes_anywhere(overrides, monkeypatch):
    config = config_of("kriek_conroy", *overrides)
    prior = config.make_prior()
    model, theta = BatchedModel.from_config(config.model, prior, GRID), rows_of(prior, 100)
    flux, shuffled = model.spectra(theta), np.random.default_rng(2).permutation(len(theta))
    assert model.by_itself
    np.testing.assert_array_equal(model.spectra(theta[shuffled]), flux[shuffled])
    np.testing.assert_array_equal(np.concatenate([model.spectra(theta[[k]]) for k in range(20)]), flux[:20])
    likelihood = SpectrumLikelihood(model, NoiseModel.from_config(config.noise))
    of_rows = likelihood.spectra_of_rows(theta[:6].reshape(2, 3, -1), flux[:2])
    np.testing.assert_array_equal(np.concatenate(of_rows), flux[:6])
    assert len(predict.signatures) == 4, "arrays of another layout would be compiled for once more"
    on_torch = model.spectra(torch.as_tensor(theta))
    np.testing.assert_allclose(on_torch.numpy(), flux, rtol=2e-5)
    assert model.spectra(theta[:0]).shape == (0, len(GRID))
    monkeypatch.setenv(PLAIN, "1")
    assert not model.by_itself
    np.testing.assert_allclose(model.spectra(theta), flux, rtol=2e-5)
    assert model.spectra(theta[:0]).shape == (0, len(GRID))


def test_an_index_that_is_not_free_is_fspss_default():
    fixed, free = config_of("power_law"), config_of("power_law", INDEX)
    assert DUST_CONSTANTS == {"dust_index": -0.7, "dust1": 0.0}
    model, prior = (BatchedModel.from_config(fixed.model, fixed.make_prior(), GRID), free.make_prior())
    theta = rows_of(prior, 20)
    theta[:, prior.index("dust_index")] = -0.7
    expected = model.spectra(np.delete(theta, prior.index("dust_index"), axis=1))
    np.testing.assert_allclose(BatchedModel.from_config(free.model, prior, GRID).spectra(theta), expected, rtol=1e-4)


def test_derived_quantities_do_not_depend_on_dust():
    plain, dusty = load_config("digs2022"), config_of("kriek_conroy", INDEX, CLOUDS)
    prior, theta = dusty.make_prior(), rows_of(dusty.make_prior(), 20)
    theta[:, prior.index("dust2")] = 0.5
    bare = np.delete(theta, [prior.index("dust1"), prior.index("dust_index")], axis=1)
    names = ("surviving_mass", "ssfr_100", "mass_weighted_age")
    found = [
        DerivedQuantities.of_model(names, "delayed_tau", BatchedModel.from_config(c.model, p, GRID), p)(t)
        for c, p, t in ((dusty, prior, theta), (plain, plain.make_prior(), bare))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([INDEX], r"prior.dust_index: the slope .* model.dust_law = 'power_law' or 'kriek_conroy', found 'calzetti'"),
        (["model.dust_law=smc", INDEX], "prior.dust_index: the slope of this law is fixed; .* found 'smc'"),
        ([CLOUDS], r"prior.dust1: this law is one of all stars alike.* = 'power_law' or .* or 'smc', found 'calzetti'"),
        (
            ["model.dust_law=gordon"],
            "model.dust_law: .*'calzetti', 'power_law', 'kriek_conroy', 'mw' or 'smc'.*'gordon'",
        ),
        (["model.dust_law=power_law", "prior.dust_index={low=0, high=-1}"], "prior.dust_index: expected finite low"),
        (["model.dust_law=power_law", "prior.dust_slope={low=0, high=1}"], "unknown parameter 'dust_slope'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize("build", [BatchedModel.from_config, ProspectorSimulator])
def test_a_prior_that_does_not_fit_the_law_is_refused(build):
    with pytest.raises(ConfigError, match=r"prior.dust1: .* found 'calzetti'"):
        build(ModelConfig(), Prior({"dust1": (0.0, 1.0)}), GRID)


def test_older_settings_keep_their_hash_and_names_their_order():
    assert "dust_law" not in ModelConfig().model_dump()
    assert ModelConfig(dust_law="mw").model_dump()["dust_law"] == "mw"
    config = config_of("kriek_conroy", INDEX, CLOUDS, SPREAD)
    names = ("logmass", "logzsol", "dust2", "dust1", "dust_index", "tage", "logtau", "sigma_smooth")
    assert config.make_prior().names == names
    assert Prior.from_dict(config.make_prior().to_dict()) == config.make_prior()
    assert SurveyConfig.model_validate_json(config.model_dump_json()) == config
    assert config.hash("model") != load_config("digs2022").hash("model")
