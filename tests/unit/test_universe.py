"""Ages that know of the redshift: the age of the universe, and theta with ages in Gyr."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.cosmology import WMAP9, Planck18

from digs_survey.audit.sample import _truth
from digs_survey.config import load_config
from digs_survey.prior import Prior
from digs_survey.sps.universe import age_of_universe, physical_names, physical_prior, physical_theta

SHARE = Prior({"tage_tuniv": (0.05, 0.9), "logmass": (7.0, 12.0)}, age="tage_tuniv")
CONSTANT = Prior({}, ["logtau"], age="tage_tuniv")


def test_the_age_of_the_universe_is_that_of_wmap9():
    redshift = np.concatenate([[0.0, 30.0], np.random.default_rng(0).uniform(0, 30, 300), np.geomspace(1e-6, 1, 50)])
    expected = WMAP9.age(redshift).to_value("Gyr")
    np.testing.assert_allclose(age_of_universe(redshift), expected, rtol=1e-8)
    assert np.abs(Planck18.age(redshift).to_value("Gyr") / expected - 1).max() > 1e-3
    assert age_of_universe(0.5).shape == ()
    assert age_of_universe(np.full((2, 3), 0.5)).shape == (2, 3)


def test_ages_are_those_shares_of_the_age_of_the_universe_at_each_row():
    rng = np.random.default_rng(1)
    theta, redshift = SHARE.from_unit_cube(rng.random((50, 5))), rng.uniform(0.01, 2, 50)
    before = theta.copy()
    found = physical_theta(SHARE, theta, redshift)
    np.testing.assert_array_equal(theta, before)
    column = SHARE.index("tage_tuniv")
    np.testing.assert_allclose(found[:, column], theta[:, column] * WMAP9.age(redshift).to_value("Gyr"), rtol=1e-8)
    np.testing.assert_array_equal(np.delete(found, column, axis=1), np.delete(theta, column, axis=1))
    assert (found[:, column] < WMAP9.age(redshift).to_value("Gyr")).all()


def test_redshifts_broadcast_against_rows_of_draws():
    rng = np.random.default_rng(2)
    draws, redshift = SHARE.from_unit_cube(rng.random((4, 7, 5))), rng.uniform(0.01, 2, 4)
    found = physical_theta(SHARE, draws, redshift[:, None])
    for row in range(4):
        np.testing.assert_array_equal(found[row], physical_theta(SHARE, draws[row], redshift[row]))


@pytest.mark.parametrize("prior", [SHARE, CONSTANT])
def test_the_physical_prior_has_the_same_columns_and_room_for_every_age(prior):
    physical = physical_prior(prior)
    assert physical.names == physical_names(prior)
    assert "tage" in physical.names
    assert "tage_tuniv" not in physical.names
    rng = np.random.default_rng(3)
    theta = prior.from_unit_cube(rng.random((2000, prior.ndim)))
    theta[:2] = prior.low, prior.high
    redshift = np.concatenate([[30.0, 0.0], rng.uniform(0, 30, 1998)])
    inside = np.isfinite(physical.log_prob(physical_theta(prior, theta, redshift)))
    assert inside.all()
    age, share = physical.index("tage"), prior.index("tage_tuniv")
    assert physical.low[age] == pytest.approx(prior.low[share] * WMAP9.age(30).to_value("Gyr"), rel=1e-8)
    assert physical.high[age] == pytest.approx(prior.high[share] * WMAP9.age(0).to_value("Gyr"), rel=1e-8)
    for name in set(prior.names) - {"tage_tuniv"}:
        own, its = prior.index(name), physical.index(name)
        assert (prior.low[own], prior.high[own]) == (physical.low[its], physical.high[its])


def test_a_prior_of_ages_in_gyr_is_left_alone():
    prior = Prior({"tage": (0.5, 3.0)})
    theta = prior.from_unit_cube(np.random.default_rng(0).random((5, 5)))
    assert physical_prior(prior) == prior
    assert physical_names(prior) == prior.names
    np.testing.assert_array_equal(physical_theta(prior, theta, 0.5), theta)


def test_the_configured_age_chooses_the_parameter():
    row = ["noise.kind=row", "train.whitening=least_squares"]
    assert "tage" in load_config(None, row).make_prior().names
    names = load_config(None, [*row, "model.age=tage_tuniv"]).make_prior().names
    assert names == ("logmass", "logzsol", "dust2", "tage_tuniv", "logtau")


@pytest.mark.parametrize("name", ["true_tage", "true_tage_tuniv"])
def test_a_catalogs_true_age_may_be_in_gyr_or_a_share(name):
    redshift, share = np.array([0.1, 0.5]), np.array([0.3, 0.7])
    values = share * age_of_universe(redshift) if name == "true_tage" else share
    columns = {name: values, "true_logmass": np.array([10.0, 11.0])}
    catalog = SimpleNamespace(
        survey_columns=tuple(columns), column=lambda column, start, stop: columns[column][start:stop]
    )
    prior = Prior(age="tage_tuniv")
    truth = _truth(catalog, np.arange(2), redshift, prior)
    np.testing.assert_allclose(truth[:, prior.index("tage_tuniv")], share, rtol=1e-12)
    np.testing.assert_array_equal(truth[:, prior.index("logmass")], [10.0, 11.0])
    assert np.isnan(truth[:, prior.index("dust2")]).all()
