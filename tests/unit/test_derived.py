from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from scipy.special import gammainc

from digs_survey.config import load_config
from digs_survey.config.map_section import DerivedName
from digs_survey.errors import ConfigError
from digs_survey.infer.derived import DerivedQuantities, star_formation_rates
from digs_survey.infer.quantiles import draw_quantiles
from digs_survey.parameters import DERIVED
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.history import formed_since, mass_formed, mass_weighted_age


@pytest.mark.parametrize("sfh", ["delayed_tau", "tau", "constant"])
def test_equal_to_the_model_over_the_whole_prior(sfh):
    config = load_config(None, [f"model.sfh={sfh}"])
    prior = config.make_prior()
    model = BatchedModel.from_config(config.model, prior, WavelengthGrid(np.arange(4000.0, 4500.0, 50.0)))
    cube = np.random.default_rng(1).random((3_000, prior.ndim))
    # The corners too.
    cube[:64] = np.round(cube[:64])
    theta = np.clip(prior.from_unit_cube(cube), prior.low, prior.high)
    derive = DerivedQuantities.of_model(tuple(DERIVED), sfh, model)
    found = dict(
        zip(DERIVED, np.moveaxis(derive(theta.reshape(30, 100, -1)), -1, 0).reshape(len(DERIVED), -1), strict=True)
    )
    for name, expected in model.derived(theta).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-4 if name == "surviving_mass" else 1e-9, err_msg=name)
    np.testing.assert_allclose(found["ssfr_10"], found["sfr_10"] / found["surviving_mass"], rtol=1e-12)
    assert all((values > 0).all() for values in found.values())


@pytest.mark.parametrize(("sfh", "power"), [("tau", 1), ("delayed_tau", 2)])
def test_closed_forms_are_the_incomplete_gamma_function(sfh, power):
    x = np.geomspace(1e-7, 300, 20_001)
    np.testing.assert_allclose(mass_formed(sfh, x, np.ones_like(x)), gammainc(power, x), rtol=1e-10)
    # Beyond, the difference of the two ages is lost in their rounding.
    x = x[x > 1e-3]
    age = x - power * gammainc(power + 1, x) / gammainc(power, x)
    np.testing.assert_allclose(mass_weighted_age(sfh, x, np.ones_like(x)), age, rtol=1e-9)


def test_the_share_formed_lately():
    tage, tau = np.array([4.0, 4.0, 0.05]), np.array([0.1, 1.0, 1.0])
    for sfh, power in (("tau", 1), ("delayed_tau", 2)):
        share = formed_since(sfh, 0.1, tage, tau)
        assert share[2] == pytest.approx(1.0)
        difference = gammainc(power, 4.0) - gammainc(power, 3.9)
        assert share[1] == pytest.approx(difference / gammainc(power, 4.0), rel=1e-9)
        # 40 e-folding times after the onset a difference of two ones would be nothing.
        assert 1e-18 < share[0] < 1e-14
    assert formed_since("constant", 0.1, tage, tau).tolist() == [0.1 / 4.0, 0.1 / 4.0, 1.0]


def test_names_are_known_to_configurations():
    assert get_args(DerivedName) == ("tage", *DERIVED)
    with pytest.raises(ConfigError, match=r"map\.derived"):
        load_config(None, ['map.derived=["stellar_mass"]'])
    with pytest.raises(ConfigError, match="each quantity once"):
        load_config(None, ['map.derived=["sfr_10", "sfr_10"]'])


def test_quantiles_of_what_is_not_monotonic_need_the_draws_themselves():
    theta = np.random.default_rng(2).random((3, 501, 2))
    quotient = theta[..., :1] / theta[..., 1:]
    expected = np.quantile(quotient, (0.16, 0.5), axis=1).transpose(1, 2, 0)
    np.testing.assert_allclose(draw_quantiles(quotient, (0.16, 0.5)), expected)


@pytest.mark.parametrize("sfh", ["delayed_tau", "tau", "constant", "continuity"])
def test_star_formation_rates_make_up_the_mass(sfh):
    config = load_config(None, [f"model.sfh={sfh}", "noise.kind=row", "train.whitening=least_squares"])
    prior = config.make_prior()
    theta = prior.from_unit_cube(np.random.default_rng(3).random((20, prior.ndim)))
    times = np.linspace(0.0, 13.7, 20_001)
    rates = star_formation_rates(prior, config.model, theta, 0.1, times)
    assert rates.shape == (20, times.size)
    formed = 1e9 * np.trapezoid(rates, times, axis=1)
    np.testing.assert_allclose(formed, 10 ** theta[:, prior.index("logmass")], rtol=0.02)
    began = prior.index("tage") if "tage" in prior.names else None
    if began is not None:
        assert (np.where(times > theta[:, [began]], rates, 0.0) == 0).all()
