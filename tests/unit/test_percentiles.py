from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm

from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import MapConfig, NoiseConfig
from digs_survey.infer.rows import draw_quantiles, infer_rows, ordered_quantiles, piles_up
from digs_survey.noise.model import NoiseModel
from digs_survey.parameters import Prior
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


def test_quantiles_of_sorted_coordinates_are_those_of_theta():
    prior = Prior()
    u = np.random.default_rng(3).normal(0, 3, size=(4, 5, 997)).astype(np.float32)
    wanted = (0.025, 0.16, 0.5, 0.84, 0.975, 0.999, 1.0)
    expected = draw_quantiles(prior.from_unconstrained(u.transpose(0, 2, 1)), wanted)
    np.testing.assert_allclose(ordered_quantiles(np.sort(u, axis=-1), wanted, prior), expected, rtol=1e-12)


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
