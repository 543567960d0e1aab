"""Histories in bins of age: their bins and masses, their spectra, and what is derived, against Prospector's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prospect.models import templates, transforms
from scipy.integrate import quad

from digs_survey.config import GridConfig, SurveyConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.identity import RunIdentity
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.quantiles import positive_quantiles
from digs_survey.jit import PLAIN
from digs_survey.parameters import BINS, DERIVED, PARAMETERS, binned_names
from digs_survey.results.columns import quantity_of
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import one_thread
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.bins import BinWeights, agebins, bin_edges, bin_rates
from digs_survey.sps.formed import BinnedHistories, TimedHistories
from digs_survey.sps.history import bin_weights, mass_formed
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.universe import age_of_universe, at_zred, physical_names, physical_prior, physical_theta

GRID = WavelengthGrid.from_config(GridConfig())
HISTORIES = ("continuity", "dirichlet")
ROW = ["noise.kind=row", "train.whitening=least_squares"]


def drawn(sfh, count, *overrides):
    """A configuration, theta of its prior, their corners first, and redshifts that some of them lack."""
    config = load_config(None, [f"model.sfh={sfh}", *overrides])
    prior, rng = config.make_prior(), np.random.default_rng(1)
    cube = rng.random((count, prior.ndim))
    cube[: count // 10] = np.clip(cube[: count // 10].round(), 1e-9, 1 - 1e-9)
    redshift = rng.uniform(0.0, 8.0, count)
    redshift[::5] = np.nan
    return config, prior, prior.from_unit_cube(cube), redshift


def masses(sfh, row, names, bins):
    """Prospector's masses, of one row of physical theta."""
    values = row[[names.index(name) for name in binned_names(sfh, len(bins))]]
    logmass = row[names.index("logmass")]
    if sfh == "continuity":
        return transforms.logsfr_ratios_to_masses(logmass=logmass, logsfr_ratios=values, agebins=bins)
    return transforms.zfrac_to_masses(total_mass=10**logmass, z_fraction=values, agebins=bins)


@pytest.mark.parametrize("bins", [4, 7, 14])
@pytest.mark.parametrize("redshift", [0.0, 0.7, 6.0, 20.0])
def test_bins_are_prospectors(bins, redshift):
    tuniv = float(age_of_universe(redshift))
    found = agebins(bin_edges(np.array(tuniv), bins))
    empty = {name: {} for name in ("mass", "agebins", "logsfr_ratios")}
    expected = templates.adjust_continuity_agebins(empty, tuniv=tuniv, nbins=bins)["agebins"]["init"]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found, transforms.zred_to_agebins(redshift, expected), atol=1e-6)


@pytest.mark.parametrize("sfh", HISTORIES)
def test_rates_form_prospectors_masses(sfh):
    _, prior, theta, redshift = drawn(sfh, 60, "model.sfh_bins=9")
    # Ratios beyond 10 dex are clipped.
    if sfh == "continuity":
        theta[20:30, prior.index("logsfr_ratios_3")] = np.linspace(-14, 14, 10)
    physical = at_zred(physical_names(prior), physical_theta(prior, theta, redshift), 0.3)
    columns = [prior.index(name) for name in binned_names(sfh, 9)]
    edges = bin_edges(physical[:, physical_names(prior).index("tage")], 9)
    formed = bin_rates(sfh, theta[:, columns], edges) * np.diff(edges)
    for k, row in enumerate(physical):
        expected = masses(sfh, row, physical_names(prior), agebins(edges[k])) / 10 ** theta[k, 0]
        np.testing.assert_allclose(formed[k], expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("sfh", HISTORIES)
@pytest.mark.parametrize(
    "overrides",
    [(), ("model.sfh_bins=14", "model.zred=0.7", "audit.mcmc.walkers=64"), ("prior.sigma_smooth={low=100,high=300}",)],
)
def test_spectra_are_prospectors(sfh, overrides):
    config, prior, theta, redshift = drawn(sfh, 60 if overrides else 150, *overrides)
    physical = physical_theta(prior, theta, redshift)
    batched = BatchedModel.from_config(config.model, prior, GRID).spectra(physical)
    rtol = 3e-4 if "sigma_smooth" in prior.names else 1e-4
    expected = ProspectorSimulator(config.model, prior, GRID).spectra(physical)
    np.testing.assert_allclose(batched, expected, rtol=rtol)


@pytest.mark.parametrize("sfh", HISTORIES)
def test_torch_and_plain_loops_agree_and_a_row_is_the_same_bytes_anywhere(sfh, monkeypatch):
    config, prior, theta, redshift = drawn(sfh, 150)
    model, physical = BatchedModel.from_config(config.model, prior, GRID), physical_theta(prior, theta, redshift)
    flux, shuffled = model.spectra(physical), np.random.default_rng(2).permutation(len(theta))
    np.testing.assert_array_equal(model.spectra(physical[shuffled]), flux[shuffled])
    np.testing.assert_array_equal(np.concatenate([model.spectra(physical[[k]]) for k in range(30)]), flux[:30])
    np.testing.assert_allclose(model.spectra(torch.as_tensor(physical)).numpy(), flux, rtol=3e-5)
    monkeypatch.setenv(PLAIN, "1")
    np.testing.assert_allclose(model.spectra(physical), flux, rtol=3e-5)
    assert model.spectra(physical[:0]).shape == (0, len(GRID))


@pytest.mark.parametrize("plain", ["0", "1"])
def test_weights_are_the_integrals_over_each_bin(plain, monkeypatch):
    monkeypatch.setenv(PLAIN, plain)
    log_age = np.concatenate([[6.0, 7.0, 7.1], np.arange(7.3, 10.25, 0.05)])
    rng = np.random.default_rng(3)
    # Edges on a node, two within one interval, below the first node, and beyond.
    edges = np.sort(10 ** rng.uniform(-3.5, 1.0, (40, 6)), axis=1)
    edges[0, 2], edges[1, 1:4], edges[2, 0] = 10 ** (log_age[20] - 9), [0.015, 0.0151, 0.0152], 2e-4
    edges = np.sort(np.concatenate([np.zeros((40, 1)), edges], axis=1), axis=1)
    rates = 10 ** rng.uniform(-6, 0, (40, 6))
    found = BinWeights(log_age)(rates, edges)
    for k in range(40):
        expected = (rates[k] * np.diff(edges[k])) @ bin_weights(log_age, agebins(edges[k]))
        np.testing.assert_allclose(found[k], expected, rtol=1e-6, atol=1e-12 * expected.max())


def test_a_row_without_a_redshift_is_at_the_models():
    config, prior, theta, _ = drawn("continuity", 20, "model.zred=0.4")
    model = BatchedModel.from_config(config.model, prior, GRID)
    here = model.spectra(physical_theta(prior, theta, 0.4))
    np.testing.assert_array_equal(model.spectra(physical_theta(prior, theta, np.nan)), here)
    assert np.abs(model.spectra(physical_theta(prior, theta, 2.0)) / here - 1).max() > 0.05
    derive = DerivedQuantities.of_model(("surviving_mass", "t50"), "continuity", model, prior)
    np.testing.assert_array_equal(derive(theta), derive(theta, 0.4))
    physical = physical_prior(prior)
    assert physical_names(prior) == physical.names
    assert (physical.low <= physical_theta(prior, theta, 20.0)).all()
    # The universe at a redshift beyond is not among the ages.
    with pytest.raises(ValueError, match="inside the prior"):
        model.spectra(physical_theta(prior, theta, 25.0))


@pytest.mark.parametrize("sfh", HISTORIES)
def test_derived_quantities_are_those_of_prospectors_masses(sfh):
    config, prior, theta, redshift = drawn(sfh, 60)
    names, physical = (
        physical_names(prior),
        at_zred(physical_names(prior), physical_theta(prior, theta, redshift), 1e-5),
    )
    model = BatchedModel.from_config(config.model, prior, GRID)
    derive = DerivedQuantities.of_model(tuple(DERIVED), sfh, model, prior)
    found = dict(
        zip(DERIVED, np.moveaxis(derive(theta.reshape(6, 10, -1), redshift.reshape(6, 10)), -1, 0), strict=True)
    )
    for name, expected in model.derived(physical).items():
        np.testing.assert_allclose(found[name].ravel(), expected, rtol=1e-7, err_msg=name)
    prospector = ProspectorSimulator(config.model, prior, GRID)
    for k in range(0, 60, 3):
        bins = agebins(bin_edges(np.asarray(physical[k, names.index("tage")]), 7))
        years = np.where(bins <= 0, 0, 10**bins)
        formed, width = masses(sfh, physical[k], names, bins), np.diff(years)[:, 0]
        mine = {name: values.ravel()[k] for name, values in found.items()}
        _, _, left = prospector.model.predict(physical[k], obs=prospector.obs, sps=prospector.sps)
        assert mine["surviving_mass"] == pytest.approx(formed.sum() * left, rel=1e-6)
        assert mine["mass_weighted_age"] == pytest.approx(formed @ years.mean(1) / formed.sum() / 1e9, rel=1e-6)
        assert mine["sfr_10"] == pytest.approx(formed[0] / width[0], rel=1e-6)
        hundred = formed[0] + formed[1]
        assert mine["sfr_100"] == pytest.approx(hundred / 1e8, rel=1e-6)
        # The mass that is younger than the time.
        for name, younger in (("t50", 0.5), ("t90", 0.1)):
            share = np.interp(
                mine[name] * 1e9, np.append(0, years[:, 1]), np.append(0, np.cumsum(formed)) / formed.sum()
            )
            assert share == pytest.approx(younger, abs=1e-6)


@pytest.mark.parametrize("sfh", ["delayed_tau", "continuity"])
def test_rates_at_lookback_times_are_quantities(sfh):
    config = load_config(None, [f"model.sfh={sfh}", "map.history_lookback_gyr=[0.02, 3]"])
    prior = config.make_prior()
    theta = prior.from_unit_cube(np.random.default_rng(4).random((50, prior.ndim)))
    names = config.map.quantities
    assert names == ("sfr_at_0_02gyr", "sfr_at_3gyr")
    assert quantity_of(names[1]).unit == "solMass / yr"
    model = BatchedModel.from_config(config.model, prior, GRID)
    rates = DerivedQuantities.of_model((*names, "sfr_10"), sfh, model, prior)(theta, 0.0)
    if sfh == "delayed_tau":
        # Before the galaxy began there is none.
        assert ((rates[:, 1] == 0) == (theta[:, prior.index("tage")] <= 3)).all()
    else:
        np.testing.assert_allclose(rates[:, 0], rates[:, 2], rtol=1e-12)
        assert (rates > 0).all()
    with pytest.raises(ConfigError, match="history_lookback_gyr: expected increasing lookback times"):
        load_config(None, ["map.history_lookback_gyr=[3, 1]"])


def test_quantiles_of_what_may_be_zero_are_order_statistics():
    values = np.random.default_rng(5).lognormal(size=(2, 400, 2))
    values[0, :160, 1] = 0
    found = positive_quantiles(values, (0.16, 0.5, 0.84))
    np.testing.assert_allclose(found[0, 1], np.quantile(values[0, :, 1], (0.16, 0.5, 0.84)))
    np.testing.assert_allclose(found[:, 0], positive_quantiles(values[..., :1], (0.16, 0.5, 0.84))[:, 0])


def test_priors_of_other_kinds_and_fixed_bins():
    """The literature's prior of the ratios (Leja et al. 2019), one of which is fixed."""
    one = "{prior='student_t', mean=0, scale=0.3, df=2, low=-5, high=5}"
    fixed = "model.parameters.logsfr_ratios_3=0.2"
    config = load_config(None, ["model.sfh=continuity", f"prior.logsfr_ratios_1={one}", fixed])
    prior = config.make_prior()
    assert (prior.ndim, prior.constants) == (8, {"logsfr_ratios_3": 0.2})
    theta = prior.from_unit_cube(np.random.default_rng(6).random((40, 8)))
    assert np.abs(np.median(theta[:, prior.index("logsfr_ratios_1")])) < 0.3
    physical = physical_theta(prior, theta, 1.0)
    flux = BatchedModel.from_config(config.model, prior, GRID).spectra(physical)
    np.testing.assert_allclose(ProspectorSimulator(config.model, prior, GRID).spectra(physical), flux, rtol=1e-4)


@pytest.mark.parametrize("sfh", ["delayed_tau", "tau", "constant"])
def test_when_the_mass_of_functions_of_time_formed(sfh):
    tage = np.array([[0.02, 0.5, 13.0], [3.0, 3.0, 9.0]])
    tau = np.array([[10.0, 0.1, 0.3], [0.01, 3.0, 100.0]])
    formed = TimedHistories(sfh, tage, tau)
    for share in (0.1, 0.5, 0.9):
        time = tage - formed.lookback_of(share)
        found = mass_formed(sfh, time, tau) / mass_formed(sfh, tage, tau)
        np.testing.assert_allclose(found, share, rtol=1e-5)
    for i in np.ndindex(tage.shape):
        one = TimedHistories(sfh, tage[i][None], tau[i][None])
        whole, _ = quad(
            lambda t, one=one: one.rate_at(t)[0] * 1e9,
            0,
            tage[i],
            points=[tage[i] - tau[i]] if tau[i] < tage[i] else None,
            limit=400,
        )
        assert whole == pytest.approx(1, rel=1e-6)
        assert one.rate_at(tage[i] * 1.01)[0] == 0


def test_the_rate_at_a_time_is_that_of_its_bin():
    edges = np.array([[0.0, 0.03, 0.1, 1.0, 5.0]])
    rates = np.array([[2.0, 0.0, 0.1, 0.2]])
    formed = BinnedHistories(rates, edges)
    asked = (0.0, 0.0299, 0.03, 0.5, 4.9, 5.0)
    assert [formed.rate_at(t)[0] * 1e9 for t in asked] == pytest.approx([2.0, 2.0, 0.0, 0.1, 0.2, 0.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["prior.tage={low=1,high=2}"], "prior.tage: model.sfh = 'continuity' has no tage.*Leave out prior.tage"),
        (["prior.logtau={low=0,high=1}"], "prior.logtau: model.sfh = 'continuity' has no logtau"),
        (["prior.logsfr_ratios_7={low=-1,high=1}"], "in 7 bins .* has logsfr_ratios_1 to logsfr_ratios_6"),
        (["prior.z_fraction_1={low=0,high=1}"], "prior.z_fraction_1: .* has logsfr_ratios_1 to"),
        (["prior.logsfr_ratio_1={low=0,high=1}"], "unknown parameter 'logsfr_ratio_1'"),
        (["model.sfh_bins=2"], "model.sfh_bins: .* greater than or equal to 4, found 2"),
        (["model.sfh_bins=15"], "model.sfh_bins: .* less than or equal to 14, found 15"),
        (
            ["model.sfh=dirichlet", "prior.z_fraction_2={low=0,high=2}"],
            "prior.z_fraction_2: expected values from 0 to 1",
        ),
        (["model.zred=21"], "model.zred: expected at most 20 with model.sfh = 'continuity'"),
        (["model.sfh=tau", "prior.z_fraction_1={low=0,high=1}"], "prior.z_fraction_1 needs model.sfh = 'dirichlet'"),
        (['map.derived=["tage"]'], "model.sfh = 'continuity' has no tage; expected t50 or t90"),
    ],
)
def test_what_does_not_fit_bins_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["model.sfh=continuity", *settings])


def test_an_age_is_not_asked_of_a_posterior_of_bins():
    config = load_config(None, ["model.sfh=continuity"])
    identity = RunIdentity.of_config(config, GRID)
    other = SurveyConfig.model_validate({"prior": {"tage": {"low": 0.1, "high": 3.0}}})
    with pytest.raises(ConfigError, match=r"prior\.tage: the posterior has bins of age in its place"):
        identity.adopt(other)
    assert identity.adopt(SurveyConfig()).make_prior() == config.make_prior()


def test_names_and_bounds():
    assert set(binned_names("continuity", BINS[1])) < set(PARAMETERS)
    config = load_config(None, ["model.sfh=dirichlet", "model.sfh_bins=5", "prior.z_fraction_2={low=0.1,high=0.4}"])
    prior = config.make_prior()
    assert prior.names == ("logmass", "logzsol", "dust2", *binned_names("dirichlet", 5))
    assert prior.bounds("z_fraction_2") == (0.1, 0.4)
    assert SurveyConfig.model_validate(config.model_dump()).make_prior() == prior
    row = load_config(None, [*ROW, "model.age=tage_tuniv", "model.sfh=continuity"]).make_prior()
    assert row.names == ("logmass", "logzsol", "dust2", *binned_names("continuity", 7))
    with one_thread(), pytest.raises(ConfigError, match="covers"):
        BatchedModel.from_config(
            config.model,
            load_config(None, ["model.sfh=continuity", "prior.logzsol={low=-4,high=0}"]).make_prior(),
            GRID,
        )
