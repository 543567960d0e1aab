from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import gamma, norm

from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MapConfig, NoiseConfig
from digs_survey.estimator.flows.points import base_points
from digs_survey.infer.quantiles import draw_quantiles, ordered_quantiles, positive_quantiles, smooth_quantiles
from digs_survey.infer.rows import infer_rows, piles_up
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag

CONFIG = MapConfig(draws=2001)


class KnownPosterior:
    """Gaussian in every parameter: flux[0] is the centre, flux[1] the width, in the prior's CDF."""

    prior = Prior()
    noise = NoiseModel.from_config(NoiseConfig(fraction=0.05))

    def draw_and_judge(self, flux, draws, ordered):
        assert ordered
        points = norm.ppf((np.arange(draws) + 0.5) / draws)
        cdf = np.clip(flux[:, 0, None] + flux[:, 1, None] * points, 1e-9, 1 - 1e-9)
        return np.repeat(logit(cdf)[:, None], self.prior.ndim, axis=1), flux[:, 2] > 0


def prepared(rows, quality=None):
    flux = np.array([[centre, width, outside, 1.0] for centre, width, outside in rows], dtype=float)
    quality = np.zeros(len(flux), dtype=np.int64) if quality is None else np.array(quality, dtype=np.int64)
    with np.errstate(divide="ignore"):
        ivar = (KnownPosterior.noise.config.fraction * flux) ** -2
    return PreparedRows(flux, ivar, np.ones(flux.shape, dtype=bool), quality)


def test_quantiles_are_those_of_numpy():
    theta = np.random.default_rng(3).normal(size=(4, 997, 5))
    wanted = (0.025, 0.16, 0.5, 0.84, 0.975, 0.999)
    expected = np.moveaxis(np.quantile(theta, wanted, axis=1), 0, -1)
    np.testing.assert_allclose(draw_quantiles(theta, wanted), expected, rtol=0, atol=1e-13)


def test_smooth_quantiles_of_a_gaussian_are_exact_and_theta_has_the_same():
    prior, levels = Prior(), (0.05, 0.16, 0.5, 0.84, 0.95)
    centre, width = np.linspace(-2, 2, 5)[:, None], np.linspace(0.1, 2, 5)[:, None]
    u = (centre + width * norm.ppf((np.arange(512) + 0.5) / 512))[None]
    found = smooth_quantiles(u, levels)
    np.testing.assert_allclose(found[0], centre + width * norm.ppf(levels), atol=1e-12)
    theta = prior.from_unconstrained(found.transpose(0, 2, 1)).transpose(0, 2, 1)
    np.testing.assert_array_equal(ordered_quantiles(u, levels, prior), theta)


def test_smooth_quantiles_of_a_skewed_distribution_are_its_own():
    levels, score = (0.05, 0.16, 0.5, 0.84, 0.95), norm.ppf((np.arange(512) + 0.5) / 512)
    skewed = gamma(3)
    found = smooth_quantiles(skewed.ppf(norm.cdf(score))[None, None], levels)
    np.testing.assert_allclose(found[0, 0], skewed.ppf(levels), atol=0.02 * skewed.std())
    rates = 10 ** (3 * score - 5)
    np.testing.assert_allclose(
        positive_quantiles(rates[None, :, None], levels)[0, 0], 10 ** (3 * norm.ppf(levels) - 5), rtol=1e-9
    )


@pytest.mark.parametrize("draws", [16, 30, 997])
def test_levels_beyond_which_there_are_few_draws_are_interpolated(draws):
    u = np.sort(np.random.default_rng(3).normal(size=(4, 2, draws)), axis=-1)
    levels = (0.0, 7.9 / draws, 1 - 7.9 / draws, 1.0)
    expected = np.moveaxis(np.quantile(u, levels, axis=-1), 0, -1)
    np.testing.assert_allclose(smooth_quantiles(u, levels), expected, rtol=1e-12, atol=1e-12)


def test_few_even_draws_give_smooth_quantiles_better_than_order_statistics():
    """Of a skewed parameter that five base coordinates make together, as a flow does."""

    def parameter_of(z):
        return np.sinh(0.5 * z[0] + 0.4 * z[1] * z[2] + 0.5 * (z[3] + z[4]))

    levels = (0.16, 0.5, 0.84)
    exact = np.quantile(parameter_of(base_points(2**17, 5, 99)), levels)
    errors = []
    for seed in range(8):
        ordered = np.sort(parameter_of(base_points(512, 5, seed)))[None, None]
        errors.append([smooth_quantiles(ordered, levels)[0, 0] - exact, np.quantile(ordered, levels) - exact])
    smooth, rough = np.sqrt(np.square(errors).mean(axis=(0, 2)))
    assert smooth < 0.8 * rough


def test_percentiles_of_a_known_posterior():
    result = infer_rows(KnownPosterior(), prepared([(0.4, 0.05, 0), (0.6, 0.1, 0)]), CONFIG)
    prior = KnownPosterior.prior
    cdf = np.array([0.4, 0.6])[:, None] + np.array([0.05, 0.1])[:, None] * norm.ppf(CONFIG.quantiles)
    expected = prior.low[:, None] + (prior.high - prior.low)[:, None] * cdf[:, None, :]
    np.testing.assert_allclose(result.percentiles, expected, rtol=2e-3, atol=2e-3)
    assert result.percentiles.dtype == np.float32
    assert result.quality.tolist() == [0, 0]
    assert result.n_good.tolist() == [4, 4]


def test_every_row_gets_percentiles_or_a_bit_and_keeps_its_bits():
    few, filled = int(QualityFlag.FEW_GOOD_ELEMENTS), int(QualityFlag.FILLED_ELEMENTS)
    outside, edge = int(QualityFlag.OUTSIDE_SIMULATIONS), int(QualityFlag.PRIOR_EDGE)
    rows = prepared(
        [(0.5, 0.1, 0), (0.5, 0.1, 0), (0.5, 0.1, 1), (np.nan, 0.1, 0), (0.0, 0.01, 0), (0.5, 0.1, 0)],
        [filled, few, 0, 0, filled, 0],
    )
    before = rows.quality.copy()
    result = infer_rows(KnownPosterior(), rows, CONFIG)
    assert result.quality.tolist() == [filled, few, outside, outside, filled | edge, 0]
    assert np.isnan(result.percentiles).all(axis=(1, 2)).tolist() == [False, True, False, True, False, False]
    assert np.isfinite(result.percentiles[[0, 2, 4, 5]]).all()
    np.testing.assert_array_equal(rows.quality, before)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.02, 0.02, False), (0.2, 0.2, False), (0.3, 0.0, True), (0.0, 0.3, True), (0.25, 0.0, False)],
)
def test_prior_edge_counts_each_edge_by_itself(low, high, expected):
    draws = 1000
    cdf = np.full((1, 5, draws), 0.5)
    cdf[0, 3, : int(low * draws)] = 0.01
    cdf[0, 3, draws - int(high * draws) :] = 0.99
    assert piles_up(logit(cdf), 0.02, 0.25).tolist() == [expected]


def test_rows_do_not_depend_on_their_neighbours():
    rng = np.random.default_rng(5)
    rows = [(c, w, 0) for c, w in zip(rng.uniform(0, 1, 150), rng.uniform(0.01, 0.2, 150), strict=True)]
    together = infer_rows(KnownPosterior(), prepared(rows), CONFIG)
    alone = [infer_rows(KnownPosterior(), prepared([row]), CONFIG) for row in rows]
    assert together.percentiles.tobytes() == b"".join(r.percentiles.tobytes() for r in alone)
    assert together.quality.tolist() == [int(r.quality[0]) for r in alone]
