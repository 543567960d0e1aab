"""Chains of the audit against densities whose moments are known."""

import numpy as np
import pytest
from scipy.stats import norm, rankdata, truncnorm

from digs_survey.audit.mcmc.chain import prior_points, r_hat, run_chain, start_points
from digs_survey.config import MCMCConfig
from digs_survey.errors import StageError
from digs_survey.prior import Prior

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[1.0, 0.8], [0.8, 1.0]])
PRECISION = np.linalg.inv(COVARIANCE)


def gaussian(theta):
    return -0.5 * ((theta - MEAN) @ PRECISION * (theta - MEAN)).sum(axis=-1)


def start(walkers=16, ndim=2, at=MEAN):
    return at + 0.3 * np.abs(np.random.default_rng(0).normal(size=(walkers, ndim)))


@pytest.mark.parametrize("moves", ["kde", "stretch"])
def test_gaussian_moments(moves):
    config = MCMCConfig(walkers=16, burn_in=(200, 100), steps=2000, max_steps=2000, moves=moves)
    chain = run_chain(gaussian, [start()], config, seed=1)
    assert chain.converged
    assert (chain.steps, chain.draws.shape, chain.log_prob.shape) == (2000, (32_000, 2), (32_000,))
    assert chain.draws.mean(axis=0) == pytest.approx(MEAN, abs=0.1)
    np.testing.assert_allclose(np.cov(chain.draws.T), COVARIANCE, atol=0.12)
    assert 0.1 < chain.acceptance < 0.9
    assert chain.core_s > 0
    assert chain.log_prob[100] == pytest.approx(gaussian(chain.draws[100]))
    assert chain.evaluations == 16 * 2301


def test_default_moves_are_not_biased_in_five_dimensions():
    """A mixture with a fifth of emcee 3.1.6's snooker move narrows this density by 3 %."""
    config = MCMCConfig(walkers=32, burn_in=(300,), steps=6000, max_steps=6000)
    chain = run_chain(lambda theta: -0.5 * (theta**2).sum(axis=-1), [start(32, 5, 0.0)], config, seed=2)
    assert chain.draws.std() == pytest.approx(1, abs=0.01)


def test_box_cuts_the_density_and_nothing_leaks_out():
    prior = Prior({"dust2": (0.1, 1.0)})
    width = 0.1 * (prior.high - prior.low)
    at = prior.low + 0.02 * (prior.high - prior.low)
    at[0] = prior.high[0]

    def log_prob(theta):
        return prior.log_prob(theta) - 0.5 * (((theta - at) / width) ** 2).sum(axis=-1)

    first = start_points(np.full((40, 5), 99.0), prior, 32, seed=3)
    config = MCMCConfig(walkers=32, burn_in=(400,), steps=2000, max_steps=2000)
    chain = run_chain(log_prob, [first], config, seed=4)
    assert chain.log_prob[50] == pytest.approx(log_prob(chain.draws[50]))
    assert np.isfinite(prior.log_prob(chain.draws)).all()
    exact = truncnorm((prior.low - at) / width, (prior.high - at) / width, loc=at, scale=width)
    np.testing.assert_allclose((chain.draws.mean(axis=0) - exact.mean()) / exact.std(), 0, atol=0.1)
    np.testing.assert_allclose(chain.draws.std(axis=0), exact.std(), rtol=0.05)


def test_chain_is_extended_until_it_is_long_enough_or_gives_up():
    config = MCMCConfig(walkers=16, burn_in=(50,), steps=150, max_steps=3000, moves="stretch")
    long = run_chain(gaussian, [start()], config, seed=5)
    assert long.converged
    assert 150 < long.steps < 3000
    assert (long.steps > 50 * long.autocorrelation_time).all()
    assert not (long.steps > 65 * long.autocorrelation_time).all()
    short = run_chain(gaussian, [start()], config.model_copy(update={"max_steps": 200}), seed=5)
    assert (short.converged, short.steps) == (False, 200)


def test_a_chain_of_single_steps_comes_to_its_end():
    config = MCMCConfig(walkers=16, burn_in=(20,), steps=1, max_steps=40, moves="stretch")
    assert run_chain(gaussian, [start()], config, seed=5).steps == 40


def test_walkers_that_never_move_do_not_count_as_converged():
    config = MCMCConfig(walkers=16, burn_in=(5,), steps=50, max_steps=50)
    origin = start()

    def log_prob(theta):
        return np.where((theta[:, None] == origin).all(axis=2).any(axis=1), 0.0, -np.inf)

    stuck = run_chain(log_prob, [origin], config, seed=0)
    assert not stuck.converged
    assert np.isnan(stuck.autocorrelation_time).all()


def test_a_chain_that_begins_where_there_is_no_density_says_so_or_finds_its_way():
    config = MCMCConfig(walkers=16, burn_in=(20,), steps=50, max_steps=50)
    with pytest.raises(StageError, match="no walker is where the posterior density is above zero"):
        run_chain(lambda theta: np.full(len(theta), -np.inf), [start()], config, seed=0)
    first = start()

    def half_of_them(theta):
        return np.where(theta[:, 0] > np.median(first[:, 0]), gaussian(theta), -np.inf)

    assert np.isfinite(run_chain(half_of_them, [first], config, seed=0).log_prob).all()


def test_starting_from_a_wrong_posterior_leaves_no_trace_after_burn_in():
    """As from neural draws that are three times too narrow and shifted by two sigma."""
    wrong = MEAN + 2 + 0.3 * np.random.default_rng(1).normal(size=(32, 2))
    config = MCMCConfig(walkers=32, burn_in=(250,), steps=2000, max_steps=2000)
    chain = run_chain(gaussian, [wrong], config, seed=7)
    early = chain.draws[: 32 * 200]
    assert early.mean(axis=0) == pytest.approx(MEAN, abs=0.15)
    assert chain.draws.mean(axis=0) == pytest.approx(MEAN, abs=0.06)
    np.testing.assert_allclose(chain.draws.std(axis=0), 1, rtol=0.05)


def test_same_seed_same_chain():
    config = MCMCConfig(walkers=16, burn_in=(10,), steps=30, max_steps=30)
    first, again, other = (run_chain(gaussian, [start()], config, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.draws, again.draws)
    assert not np.array_equal(first.draws, other.draws)


def test_starting_points_span_the_space_even_from_one_repeated_draw():
    prior = Prior()
    points = start_points(np.full((3, 5), [10.0, 0.2, 0.1, 4.0, -1.0]), prior, 32, seed=0)
    assert np.isfinite(prior.log_prob(points)).all()
    assert np.linalg.matrix_rank(prior.cdf(points) - prior.cdf(points).mean(axis=0)) == 5
    assert np.abs(prior.cdf(points) - prior.cdf(points[0])).max() < 2e-3


def test_ensembles_from_near_and_from_the_prior_agree():
    prior = Prior({"logmass": (-9, 11), "dust2": (-12, 8)}, left_out=("logzsol", "tage", "logtau"))
    config = MCMCConfig(walkers=16, burn_in=(300,), steps=1500, max_steps=6000, starts=("posterior", "prior"))
    starts = [start(), prior_points(prior, 16, seed=3)]
    assert np.ptp(starts[1], axis=0).min() > 8
    chain = run_chain(gaussian, starts, config, seed=1)
    assert chain.converged
    assert (chain.r_hat < 1.01).all()
    assert chain.walkers.shape == (chain.steps, 32, 2)
    assert chain.draws.shape == (chain.steps * 32, 2)
    np.testing.assert_array_equal(np.sort(chain.walkers.ravel()), np.sort(chain.draws.ravel()))
    np.testing.assert_array_equal(chain.log_prob[[5, -5]], gaussian(chain.draws[[5, -5]]))
    assert chain.core_s > 0
    np.testing.assert_allclose(np.cov(chain.draws.T), COVARIANCE, atol=0.1)
    alone = run_chain(gaussian, starts[:1], config, seed=1)
    np.testing.assert_array_equal(alone.draws[:16], chain.draws[:16])
    assert np.isnan(alone.r_hat).all()
    assert alone.converged


def test_ensembles_that_sit_on_different_peaks_have_not_converged():
    """Each is long enough by itself; only the other one shows that there are two."""

    def two_peaks(theta):
        return np.logaddexp(*(-0.5 * ((theta - at) ** 2).sum(axis=-1) / 0.05**2 for at in (-3.0, 3.0)))

    config = MCMCConfig(walkers=16, burn_in=(200,), steps=1500, max_steps=3000, moves="stretch")
    starts = [start(at=-3.0 * np.ones(2)) - 0.3, start(at=3.0 * np.ones(2)) - 0.3]
    assert all(run_chain(two_peaks, [one], config, seed=1).converged for one in starts)
    chain = run_chain(two_peaks, starts, config, seed=1)
    assert not chain.converged
    assert chain.steps == 3000
    # As far apart as ranks can be.
    assert (chain.r_hat > 1.7).all()


def classical_r_hat(chains):
    """Gelman & Rubin (1992), for long chains: the scatter of the means beside the scatter of the draws."""
    flat = np.stack([chain.reshape(-1, chain.shape[-1]) for chain in chains])
    return np.sqrt(1 + flat.mean(axis=1).var(axis=0, ddof=1) / flat.var(axis=1, ddof=1).mean(axis=0))


def ensembles(draw, seed=0):
    """Two ensembles of 500 steps, 16 walkers and 2 parameters, of independent draws."""
    rng = np.random.default_rng(seed)
    return [draw(rng, (500, 16, 2), number) for number in range(2)]


def gaussians(rng, shape, number):
    return rng.normal(size=shape)


def test_r_hat_by_hand():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 51, 4, 3))
    second = second * [1, 1, 2] + [0, 1, 0]

    def scaled(halves):
        z = norm.ppf((rankdata(halves).reshape(halves.shape) - 3 / 8) / (halves.size + 1 / 4))
        n, means, variances = halves.shape[1], z.mean(axis=1), z.var(axis=1, ddof=1)
        return np.sqrt((n - 1) / n + means.var(ddof=1) / variances.mean())

    expected = []
    for k in range(3):
        # 204 draws of an ensemble, step after step: halves of 102.
        halves = np.stack([half for one in (first, second) for half in one[..., k].reshape(2, 102)])
        expected.append(max(scaled(halves), scaled(np.abs(halves - np.median(halves)))))
    np.testing.assert_allclose(r_hat([first, second]), expected, rtol=1e-12)
    assert expected[0] < 1.02
    assert min(expected[1:]) > 1.05


@pytest.mark.parametrize("draw", [gaussians, lambda rng, shape, number: rng.standard_cauchy(shape)])
def test_r_hat_passes_ensembles_of_one_density(draw):
    """Whether or not it has a mean and a variance."""
    assert (r_hat(ensembles(draw)) < 1.01).all()


@pytest.mark.parametrize(
    "draw",
    [
        # One twice as wide, about the same place.
        lambda rng, shape, number: (1 + number) * gaussians(rng, shape, number),
        # Cauchy's tails, which hide a shift of one half-width from a variance.
        lambda rng, shape, number: rng.standard_cauchy(shape) + number,
        # Both on their way, one up and the other down, past the same mean.
        lambda rng, shape, number: (
            gaussians(rng, shape, number) + (-1) ** number * np.linspace(-1, 1, shape[0])[:, None, None]
        ),
    ],
    ids=["scale", "shifted tails", "drift"],
)
def test_r_hat_catches_what_the_classical_one_passes(draw):
    apart = ensembles(draw)
    assert (classical_r_hat(apart) < 1.01).all()
    assert (r_hat(apart) > 1.01).all()


def test_walkers_that_keep_to_their_places_do_not_count_as_chains():
    """An ensemble is judged as a whole: its walkers may be apart, since they know each other."""
    places = np.random.default_rng(2).normal(size=(1, 2000, 2))
    still = [np.repeat(places[:, number::2], 100, axis=0) for number in range(2)]
    assert (r_hat(still) < 1.01).all()


def test_an_ensemble_that_is_too_wide_has_not_converged():
    """Walkers of the second are stuck in tails; both have the same mean, and each is long enough."""
    config = MCMCConfig(walkers=16, burn_in=(200,), steps=1500, max_steps=1500, moves="stretch")

    def narrow_and_wide(theta):
        return np.where(theta[:, 0] > 50, gaussian(theta - 100) / 9, gaussian(theta))

    chain = run_chain(narrow_and_wide, [start(), start() + 100], config, seed=1)
    assert not chain.converged
    apart = chain.walkers[:, :16], chain.walkers[:, 16:] - 100
    assert (classical_r_hat(apart) < 1.01).all()
    assert (r_hat(apart) > 1.01).all()
