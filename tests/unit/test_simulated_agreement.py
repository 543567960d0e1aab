"""Simulations that teach agreement: judged as the table judges rows, for both kinds of noise, whoever does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from digs_survey.audit.agreement_model import Compared, fit_agreement
from digs_survey.audit.agreement_predictors import predictors
from digs_survey.audit.calibration.calibrate import observe_rows
from digs_survey.audit.simulated_agreement import GOOD_K, Weighed, compare_simulations
from digs_survey.config import SurveyConfig, load_config
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.importance.predictive_check import Checker
from digs_survey.importance.psis import MIN_ESS
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.infer.rows import infer_rows
from digs_survey.noise.observation import split_clean
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra

ROWS = 70
"""More than a block."""
KINDS = ("digs2022", "survey")
_Case = tuple[FrozenPosterior, SurveyConfig, Path, np.ndarray]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Case:
    """A shipped posterior, its preset, simulations on disk, and their noiseless spectra."""
    posterior = FrozenPosterior.load(shipped()[request.param])
    config = load_config(request.param, ["map.draws=400", f"audit.agreement_simulations={ROWS}"])
    likelihood = SpectrumLikelihood.of_posterior(posterior)
    what = likelihood.model, posterior.prior, posterior.noise, config.seed, "calibration"
    theta, clean = simulated_spectra(*what, 0, ROWS)
    path = tmp_path_factory.mktemp(request.param) / "calibration.zarr"
    group = zarr.open_group(str(path), mode="w")
    arrays: dict[str, Any] = {"theta": theta, "flux": clean}
    if posterior.noise.config.by_row:
        arrays["flux"], arrays["redshift"] = split_clean(clean)
    for name, values in arrays.items():
        group.create_array(name, data=np.asarray(values))
    return posterior, config, path, clean


@pytest.fixture(scope="module")
def weighed(case: _Case) -> Weighed:
    posterior, config, path, _ = case
    return compare_simulations(posterior, path, path.parent / "posterior.zarr", config)[0]


def test_simulations_are_judged_as_the_table_judges_rows(case: _Case, weighed: Weighed) -> None:
    posterior, config, _, clean = case
    uniform = row_uniforms(config.seed, "noise/calibration", 0, ROWS, posterior.noise.columns(clean.shape[1]))
    # As they are on disk.
    stored = np.asarray(clean, dtype=float)
    rows, _ = observe_rows(posterior.noise, stored, uniform, config.map.min_good_fraction)
    checker = Checker(posterior, SpectrumLikelihood.of_posterior(posterior), config.map.predictive_draws)
    result = infer_rows(posterior, rows, config.map, checker=checker).arrays()
    names = ("feature_distance", "predictive_reduced_chi2", "weight_scatter")
    quantiles, elements = config.map.quantiles, rows.good.shape[1]
    table = predictors(
        posterior.prior,
        quantiles,
        result["percentiles"],
        result["quality"],
        result["n_good"],
        elements,
        {name: result[name] for name in names},
    )
    there = np.isfinite(table["narrow"])
    assert set(weighed.predictors) == set(table)
    assert weighed.distance.size == there.sum() > 0.9 * ROWS
    for name, values in table.items():
        np.testing.assert_allclose(weighed.predictors[name], values[there], rtol=2e-4, atol=2e-4, err_msg=name)


def test_most_simulations_have_good_weights_and_the_others_are_left_out(weighed: Weighed) -> None:
    assert weighed.good.mean() > 0.6
    bad = ~weighed.good
    assert (weighed.pareto_k[weighed.good] < GOOD_K).all()
    assert (weighed.ess[weighed.good] >= MIN_ESS).all()
    assert np.isnan(weighed.compared.disagreement[bad]).all()
    told = weighed.summary()
    assert (told["weighed"], told["good"]) == (weighed.good.size, weighed.good.sum())


def test_what_they_teach_holds_for_those_that_were_held_out(weighed: Weighed) -> None:
    nothing = Compared({name: np.zeros(0) for name in weighed.predictors}, np.zeros(0))
    model, told = fit_agreement(nothing, weighed.compared, 0.3, 1)
    assert model is not None
    assert told["rank_correlation"] > 0.4
    assert told["mean_agreement"] == pytest.approx(told["share_within"], abs=0.15)


def test_the_same_whatever_comes_beside_a_block(case: _Case, weighed: Weighed) -> None:
    posterior, config, path, _ = case
    few = config.model_copy(update={"audit": config.audit.model_copy(update={"agreement_simulations": 10})})
    alone = compare_simulations(posterior, path, path.parent / "posterior.zarr", few)[0]
    count = alone.distance.size
    np.testing.assert_array_equal(alone.distance, weighed.distance[:count])
    for name, values in alone.predictors.items():
        np.testing.assert_array_equal(values, weighed.predictors[name][:count])
