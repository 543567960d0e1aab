"""Agreement, predictive checks and cost, against numbers worked out by hand."""

import json

import numpy as np
import pytest
from scipy.special import ndtri

from digs_survey.audit.cost import cost_summary
from digs_survey.audit.mcmc.agreement import compare
from digs_survey.audit.residuals import chi_square, predictive_band, residual_percent
from digs_survey.config import NoiseConfig
from digs_survey.noise.model import NoiseModel

NAMES = ("a", "b")
STAGES = [
    {"stage": "simulate", "wall_s": 60.0, "core_s": 100.0, "rows": 5000},
    {"stage": "train", "wall_s": 300.0, "core_s": 500.0, "rows": 5000},
    {"stage": "map", "wall_s": 5.0, "core_s": 10.0, "rows": 1000},
]


def normal_draws(mean, sigma, count=2001):
    z = ndtri((np.arange(count) + 0.5) / count)
    return np.stack([m + s * z for m, s in zip(mean, sigma, strict=True)], axis=-1)


def test_shift_and_width_have_the_right_sign_and_unit():
    mcmc = np.stack([normal_draws([1.0, 5.0], [0.1, 2.0])] * 2)
    npe = np.stack([normal_draws([1.05, 4.0], [0.2, 2.0])] * 2)
    result = compare(npe, mcmc, [True, True])
    half = 0.5 * (ndtri(0.84) - ndtri(0.16))
    np.testing.assert_allclose(result.shift_sigma[0], np.array([0.5, -0.5]) / half, rtol=2e-3)
    np.testing.assert_allclose(result.width_ratio[0], [2.0, 1.0], rtol=1e-6)
    summary = result.summary(NAMES)
    assert summary["mean_abs_shift_sigma"]["all"] == pytest.approx(0.5 / half, rel=2e-3)
    assert summary["median_width_ratio"]["b"] == pytest.approx(1.0)


def test_only_converged_and_finite_chains_enter_the_summary():
    good, far = normal_draws([0.0, 0.0], [1.0, 1.0]), normal_draws([9.0, 9.0], [1.0, 1.0])
    mcmc = np.stack([good, far, np.full_like(good, np.nan)])
    summary = compare(np.stack([good] * 3), mcmc, [True, False, True]).summary(NAMES)
    assert (summary["converged"], summary["galaxies"]) == (1, 3)
    assert summary["mean_abs_shift_sigma"]["all"] == pytest.approx(0.0, abs=1e-9)
    none = compare(np.stack([good]), mcmc[1:2], [False]).summary(NAMES)
    assert none["mean_abs_shift_sigma"] == {"a": None, "b": None, "all": None}
    assert none["ratio_of_mean_widths_error"] == none["median_width_ratio"] == none["mean_abs_shift_sigma"]
    json.dumps(none, allow_nan=False)


def test_mean_ratios_of_widths_and_their_errors():
    rng = np.random.default_rng(0)
    width = rng.uniform(0.1, 2, (40, 2))
    ratio = 1.1 + 0.2 * rng.normal(size=(40, 2))
    mcmc = np.stack([normal_draws([0.0, 0.0], w) for w in width])
    npe = np.stack([normal_draws([0.0, 0.0], w) for w in width * ratio])
    summary = compare(npe, mcmc, np.ones(40, bool)).summary(NAMES)
    mean, error = summary["mean_width_ratio"], summary["mean_width_ratio_error"]
    assert list(mean.values()) == pytest.approx([*ratio.mean(axis=0), ratio.mean()], rel=1e-6)
    # For a plain mean the jackknife is the textbook's standard error.
    expected = [*ratio.std(axis=0, ddof=1), ratio.mean(axis=1).std(ddof=1)] / np.sqrt(40)
    assert list(error.values()) == pytest.approx(expected.tolist(), rel=1e-6)
    weighted = (width * ratio).sum(axis=0) / width.sum(axis=0)
    assert list(summary["ratio_of_mean_widths"].values()) == pytest.approx([*weighted, weighted.mean()], rel=1e-6)
    scatter = np.sqrt((((ratio - weighted) * width) ** 2).sum(axis=0)) / width.sum(axis=0)
    assert [summary["ratio_of_mean_widths_error"][name] for name in NAMES] == pytest.approx(scatter.tolist(), rel=0.1)
    one = compare(npe[:1], mcmc[:1], [True]).summary(NAMES)
    assert one["mean_width_ratio_error"] == {"a": None, "b": None, "all": None}
    assert one["ratio_of_mean_widths"]["a"] == pytest.approx(ratio[0, 0], rel=1e-6)


@pytest.mark.parametrize("space", ["flux", "log10"])
def test_residuals_of_the_truth_are_standard_normal(space):
    noise = NoiseModel.from_config(NoiseConfig(fraction=0.3, space=space))
    model = np.geomspace(1e-9, 1e-7, 20000)
    observed = noise.draw(model, np.random.default_rng(0))
    good = np.arange(model.size) % 10 != 0
    residual = noise.residuals(observed, model, good)
    assert np.isnan(residual[~good]).all()
    assert np.nanmean(residual) == pytest.approx(0, abs=0.03)
    assert np.nanstd(residual) == pytest.approx(1, abs=0.02)
    assert chi_square(residual) / good.sum() == pytest.approx(1, abs=0.04)
    assert chi_square(noise.residuals(observed, 1.8 * model, good)) / good.sum() > 2


def test_catalog_noise_adds_the_rows_own_error_in_quadrature():
    noise = NoiseModel.from_config(NoiseConfig(kind="catalog", fraction=0.03), np.full((1, 1, 2), 0.04))
    residual = noise.residuals([1.1, 1.0], [1.0, 1.0], [True, False], errors=[[0.04, 0.04]])
    assert residual[0] == pytest.approx(2.0)
    assert np.isnan(residual[1])


def test_percent_band_and_empty_rows():
    assert residual_percent([1.1, 2.0], [1.0, 2.0], [True, False])[0] == pytest.approx(10)
    assert np.isnan(chi_square([np.nan, np.nan]))
    band = predictive_band(np.arange(101.0)[:, None] * [1.0, 2.0])
    np.testing.assert_allclose(band, [[16, 32], [50, 100], [84, 168]])


def test_costs_by_hand():
    # m = 200, e = 0.01, T = 600, N = 1000: 200/0.01; 200*1000/(600 + 10); 600/199.99 = 3.0002 -> 4
    cost = cost_summary(STAGES, [150.0, 250.0], catalog_rows=1000, cores=2)
    assert cost["npe_core_s_per_galaxy"] == pytest.approx(0.01)
    assert cost["mcmc_core_s_per_galaxy"] == pytest.approx(200)
    assert cost["galaxies_per_mcmc_fit_map_only"] == pytest.approx(20_000)
    assert cost["galaxies_per_mcmc_fit_with_training_at_catalog"] == pytest.approx(200_000 / 610)
    assert cost["break_even_galaxies"] == 4
    assert cost["stages"] == STAGES
    assert (cost["mcmc_engine"], cost["mcmc_core_s_per_galaxy_by_prospector"]) == ("prospector", pytest.approx(200))
    fast = cost_summary(STAGES, [15.0, 25.0], 1000, 2, engine="batched", other_core_s=[150.0, 250.0])
    assert fast["galaxies_per_mcmc_fit_map_only"] == pytest.approx(2_000)
    assert (fast["mcmc_engine"], fast["mcmc_core_s_per_galaxy_by_prospector"]) == ("batched", pytest.approx(200))
    slow = fast["baselines"]["prospector"]
    assert slow["core_s_per_galaxy"] == pytest.approx(200)
    assert slow["core_s_per_galaxy_95"] == [150, 250]
    assert (slow["galaxies_per_fit_map_only"], slow["break_even_galaxies"]) == (pytest.approx(20_000), 4)
    assert slow["break_even_galaxies_95"] == [3, 5]
    # [150, 250] * 1000/(600 + 10)
    with_training = slow["galaxies_per_fit_with_training_at_catalog_95"]
    assert with_training == [pytest.approx(150_000 / 610), pytest.approx(250_000 / 610)]
    strong = fast["baselines"]["batched"]
    assert (strong["core_s_per_galaxy"], strong["break_even_galaxies"]) == (pytest.approx(20), 31)
    assert cost["baselines"]["batched"]["core_s_per_galaxy"] is None
    assert (cost["once_core_s"], cost["training_from"]) == (600, "run")
    assert cost["baselines"]["prospector"]["break_even_galaxies"] == cost["break_even_galaxies"]


def test_a_posterior_from_elsewhere_costs_what_its_card_says():
    card = {"simulate_core_s": 500.0, "train_core_s": 1500.0}
    cost = cost_summary(STAGES[2:], [200.0], 1000, 2, elsewhere=card)
    assert (cost["once_core_s"], cost["training_from"], cost["break_even_galaxies"]) == (2000, "card", 11)
    assert cost_summary(STAGES, [200.0], 1000, 2, elsewhere=card)["training_from"] == "run"
    unknown = cost_summary(STAGES[2:], [200.0], 1000, 2, elsewhere={"simulate_core_s": None, "train_core_s": 3.0})
    assert (unknown["once_core_s"], unknown["training_from"]) == (None, None)


def test_pairs_cost_what_they_took_where_the_posterior_was_trained_on_them():
    augmented = {"stage": "augment", "wall_s": 40.0, "core_s": 70.0, "rows": 50_000}
    on_pairs = {**STAGES[1], "key": {"train": {}, "pairs": "hash"}}
    assert cost_summary([*STAGES, augmented], [200.0], 1000, 2)["once_core_s"] == 600
    assert cost_summary([STAGES[0], augmented, on_pairs, STAGES[2]], [200.0], 1000, 2)["once_core_s"] == 670
    card = {"simulate_core_s": 500.0, "augment_core_s": 30.0, "train_core_s": 1500.0}
    assert cost_summary(STAGES[2:], [200.0], 1000, 2, elsewhere=card)["once_core_s"] == 2030


def test_at_break_even_the_neural_posterior_is_the_cheaper_and_one_galaxy_before_it_is_not():
    m, e, once = 7.3, 0.4, 600.0
    stages = [*STAGES[:2], {"stage": "map", "wall_s": 1.0, "core_s": 100 * e, "rows": 100}]
    n = cost_summary(stages, [m], 100, 2)["break_even_galaxies"]
    assert once + e * n <= m * n
    assert once + e * (n - 1) > m * (n - 1)


@pytest.mark.parametrize(
    ("stages", "mcmc", "unknown"),
    [
        (STAGES, [], "mcmc_core_s_per_galaxy"),
        (STAGES, [float("nan")], "galaxies_per_mcmc_fit_map_only"),
        (STAGES[1:], [200.0], "break_even_galaxies"),
        (STAGES[:2], [200.0], "npe_core_s_per_galaxy"),
        (STAGES, [0.005], "break_even_galaxies"),
    ],
)
def test_what_cannot_be_known_is_none(stages, mcmc, unknown):
    cost = cost_summary(stages, mcmc, 1000, 2)
    assert cost[unknown] is None
    json.dumps(cost, allow_nan=False)
