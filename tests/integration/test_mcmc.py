"""MCMC jobs on Ray: the same fits however they are run, faults stay with their galaxy, kills are resumed."""

import os
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
from identities import untrained

from digs_survey.audit.mcmc.fit_galaxies import fit_galaxies
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit, GalaxyJob, fit_with, mcmc_draw_count
from digs_survey.config import MCMCConfig, NoiseConfig
from digs_survey.errors import StageError
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger

pytestmark = pytest.mark.slow

GRID = WavelengthGrid(np.arange(4000.0, 7001.0, 150.0))
PRIOR = Prior()
TRUTH = np.array([10.5, -0.4, 0.65, 1.6, 0.0])
SETUP = FitSetup(
    untrained(GRID, seed=9),
    mcmc=MCMCConfig(walkers=12, burn_in=(5,), steps=20, max_steps=40),
)


class Smooth:
    """A cheap stand-in for Prospector: a power law with a break, five parameters."""

    def spectra(self, theta):
        x, (mass, slope, dust, bend, step) = GRID.wavelength / 5000, theta.T[..., None]
        shape = 1 + bend * (x - 1) ** 2 + 0.5 * step / (1 + np.exp((GRID.wavelength - 5500) / 100))
        return 10 ** (mass - 18) * x**slope * np.exp(-dust / x) * shape


SMOOTH = Smooth()


def make_jobs(rows, simulator=SMOOTH):
    jobs = []
    for row in rows:
        rng = np.random.default_rng(row)
        flux = SETUP.identity.noise.draw(simulator.spectra(PRIOR.from_unit_cube(rng.uniform(0.3, 0.7, (1, 5)))), rng)[0]
        good = np.ones(len(GRID), dtype=bool)
        good[row % 5] = False
        draws = PRIOR.from_unit_cube(rng.uniform(0.3, 0.7, (64, 5)))
        jobs.append(GalaxyJob(row, flux, good, None, start=draws, predictive=draws[:16]))
    return jobs


def smooth_fit():
    return lambda setup, job: fit_with(SMOOTH, setup, job)


def same(first, second):
    return all(
        np.array_equal(value, getattr(second, name), equal_nan=name != "error")
        for name, value in vars(first).items()
        if not name.endswith("core_s")
    )


@pytest.fixture(autouse=True)
def _ray(ray_cores):
    # Workers need not be able to import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_a_fit_depends_on_nothing_but_its_row(tmp_path):
    jobs = make_jobs([3, 8, 21])
    counted = []
    spread = fit_galaxies(SETUP, jobs, tmp_path / "a", fit=smooth_fit(), advance=counted.append)
    alone = fit_galaxies(SETUP, jobs[::-1], tmp_path / "b", fit=smooth_fit())[::-1]
    here = [fit_with(SMOOTH, SETUP, job) for job in jobs]
    assert all(same(a, b) and same(a, c) for a, b, c in zip(spread, alone, here, strict=True))
    assert not np.array_equal(spread[0].draws, spread[1].draws)
    assert spread[0].draws.shape == (mcmc_draw_count(SETUP.mcmc), 5)
    assert sum(counted) == 3


def test_what_a_fit_says_about_its_spectra():
    job = make_jobs([4])[0]
    fit = fit_with(SMOOTH, SETUP, job)
    spectra = SMOOTH.spectra(job.predictive)
    likelihood = SETUP.identity.noise.log_likelihood(job.flux, spectra, job.good)
    np.testing.assert_array_equal(fit.best_npe, spectra[np.argmax(likelihood)])
    np.testing.assert_allclose(fit.band, np.quantile(spectra, [0.16, 0.5, 0.84], axis=0))
    best = SETUP.identity.noise.log_likelihood(job.flux, fit.best_mcmc, job.good)
    assert best >= SETUP.identity.noise.log_likelihood(job.flux, SMOOTH.spectra(fit.draws), job.good).max()
    assert np.isfinite(PRIOR.log_prob(fit.draws)).all()


def test_finished_fits_are_kept_and_stale_ones_are_not(tmp_path):
    jobs = make_jobs([1, 2])
    first = fit_galaxies(SETUP, jobs[:1], tmp_path, fit=smooth_fit())

    def refuse(setup, job):
        if job.row == 1:
            raise RuntimeError("computed again")
        return fit_with(SMOOTH, setup, job)

    counted = []
    again = fit_galaxies(SETUP, jobs, tmp_path, fit=refuse, advance=counted.append)
    assert same(first[0], again[0])
    assert again[0].core_s == first[0].core_s
    assert not again[1].error
    assert counted == [1, 1]
    changed = fit_galaxies(replace(SETUP, identity=untrained(GRID, seed=10)), jobs[:1], tmp_path, fit=smooth_fit())
    assert not np.array_equal(changed[0].draws, first[0].draws)


def test_a_dead_worker_is_replaced_once_and_a_failing_galaxy_holds_up_no_other(tmp_path):
    marker = str(tmp_path / "died")

    def fit(setup, job):
        if job.row == 1 and not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(1)
        if job.row == 2:
            raise ValueError("no spectrum for this one")
        return fit_with(SMOOTH, setup, job)

    jobs = make_jobs([0, 1, 2])
    fits = fit_galaxies(SETUP, jobs, tmp_path / "jobs", fit=fit)
    assert os.path.exists(marker)
    assert same(fits[1], fit_with(SMOOTH, SETUP, jobs[1]))
    assert not fits[0].error
    assert "ValueError: no spectrum for this one" in fits[2].error
    assert (fits[2].converged, fits[2].steps) == (False, 0)
    assert np.isnan(fits[2].draws).all()
    assert fits[2].draws.shape == fits[0].draws.shape
    assert sorted(Ledger(tmp_path / "jobs" / "ledger").records()) == [0, 1]
    with pytest.raises(StageError, match="no spectrum for this one"):
        fit_galaxies(SETUP, jobs[2:], tmp_path / "jobs", fit=fit)


def test_a_fit_that_stalls_loses_its_worker_and_is_tried_once_more(tmp_path):
    from digs_survey.audit.mcmc.fit_galaxies import end_after

    marker = str(tmp_path / "stalled")

    def fit(setup, job):
        with end_after(setup.mcmc.timeout_s):
            if job.row == 3 or not os.path.exists(marker):
                open(marker, "w").close()
                time.sleep(600)
            return replace(GalaxyFit.failed(setup, ""), steps=job.row, core_s=1.0, job_core_s=1.0)

    setup = replace(SETUP, mcmc=SETUP.mcmc.model_copy(update={"timeout_s": 3.0}))
    (fine,) = fit_galaxies(setup, make_jobs([1]), tmp_path / "a", fit=fit)
    assert os.path.exists(marker)
    assert (fine.steps, fine.error) == (1, "")
    other, stuck = fit_galaxies(setup, make_jobs([2, 3]), tmp_path / "b", fit=fit)
    assert not other.error
    assert "WorkerCrashedError" in stuck.error


def test_a_budget_ends_the_giving_out_of_fits_and_a_larger_one_goes_on(ray_cores, tmp_path):
    def fit(setup, job):
        return replace(fit_with(SMOOTH, setup, job), job_core_s=10.0)

    jobs = make_jobs(range(12))
    some = fit_galaxies(SETUP, jobs, tmp_path, fit=fit, budget_s=35.0)
    begun = [job.row for job, outcome in zip(jobs, some, strict=True) if outcome is not None]
    assert 4 <= len(begun) <= max(4, ray_cores), "those under way count as much as those that ended"
    assert begun != list(range(len(begun)))
    assert fit_galaxies(SETUP, jobs, tmp_path, fit=fit, budget_s=35.0, advance=lambda n: None)[begun[0]] is not None
    more = fit_galaxies(SETUP, jobs, tmp_path, fit=fit, budget_s=85.0)
    assert {row for row, outcome in enumerate(more) if outcome is not None} > set(begun)
    assert None in more
    assert None not in fit_galaxies(SETUP, jobs, tmp_path, fit=fit)


def test_saved_fits_come_back_as_they_were(tmp_path):
    for fit in (fit_with(SMOOTH, SETUP, make_jobs([0])[0]), GalaxyFit.failed(SETUP, "why")):
        fit.save(tmp_path / "one.npz")
        back = GalaxyFit.load(tmp_path / "one.npz")
        assert same(fit, back)
        assert isinstance(back.converged, bool)
        assert isinstance(back.error, str)
    assert os.listdir(tmp_path) == ["one.npz"]


def galaxy_of(simulator):
    """Observation of a known galaxy, which of its elements are good, and starting points about its truth."""
    rng = np.random.default_rng(1)
    flux, good = SETUP.identity.noise.draw(simulator.spectra(TRUTH[None]), rng)[0], np.arange(len(GRID)) != 4
    start = np.clip(TRUTH + 0.05 * rng.normal(size=(64, 5)), PRIOR.low, PRIOR.high)
    return flux, good, start


def test_prospector_in_workers_finds_the_galaxy_it_made(tmp_path):
    from digs_survey.audit.mcmc.target import GalaxyPosterior
    from digs_survey.sps.prospector import ProspectorSimulator

    simulator = ProspectorSimulator(SETUP.identity.model, PRIOR, GRID)
    flux, good, start = galaxy_of(simulator)
    posterior, clean = GalaxyPosterior(simulator, SETUP.identity.noise, PRIOR, flux, good), simulator.spectrum(TRUTH)
    expected = SETUP.identity.noise.log_likelihood(flux, clean, good) + PRIOR.log_prob(TRUTH)
    assert posterior(TRUTH[None])[0] == pytest.approx(float(expected), rel=1e-10)
    assert np.isneginf(posterior(np.array([PRIOR.high + 1, PRIOR.low - 1, TRUTH + 99]))).all()
    assert posterior.inside_share == 0.25

    setup = replace(SETUP, mcmc=MCMCConfig(walkers=32, burn_in=(120,), steps=100, max_steps=100))
    jobs = [GalaxyJob(row, flux, good, None, start, start[:4]) for row in (0, 1)]
    first, second = fit_galaxies(setup, jobs, tmp_path)
    assert not np.array_equal(first.draws, second.draws)
    width = first.draws.std(axis=0)
    assert (np.abs(first.draws.mean(axis=0) - TRUTH) < 3.5 * width).all()
    assert (np.abs(first.draws.mean(axis=0) - second.draws.mean(axis=0)) < width).all()
    assert width[0] < 0.2
    assert np.median(np.abs(first.best_mcmc / clean - 1)) < 0.05
    assert first.likelihoods == 32 * 221
    # Batches are checked to be the cheaper engine; by how much is for the benchmarks.
    assert 0 < first.other_core_s < first.core_s / first.likelihoods
    assert 0 < first.log_likelihood_difference < 1e-3

    batched = replace(SETUP, mcmc=MCMCConfig(engine="batched", walkers=64, burn_in=(200,), steps=500, max_steps=6000))
    (fast,) = fit_galaxies(batched, jobs[:1], tmp_path)
    assert fast.converged
    # The same posterior, within what a chain of a few autocorrelation times tells about it.
    assert (np.abs(fast.draws.mean(axis=0) - first.draws.mean(axis=0)) < 0.7 * width).all()
    np.testing.assert_allclose(fast.draws.std(axis=0), width, rtol=0.4)
    assert 0 < fast.log_likelihood_difference < 1e-3
    assert fast.core_s / fast.likelihoods < fast.other_core_s


@pytest.mark.parametrize("noise", [NoiseConfig(), NoiseConfig(kind="catalog", kernel=[1.0, 0.3], fraction=0.02)])
def test_batched_log_likelihoods_are_prospectors(noise):
    from digs_survey.audit.mcmc.target import GalaxyPosterior
    from digs_survey.sps.batched import BatchedModel
    from digs_survey.sps.prospector import ProspectorSimulator

    prospector = ProspectorSimulator(SETUP.identity.model, PRIOR, GRID)
    flux, good, _ = galaxy_of(prospector)
    errors = np.full((1, len(GRID)), 0.04) if noise.needs_catalog else None
    about = (NoiseModel.from_config(noise), PRIOR, flux, good, errors)
    exact = GalaxyPosterior(prospector, *about)
    fast = GalaxyPosterior(BatchedModel.from_config(SETUP.identity.model, PRIOR, GRID), *about)
    spread = 0.1 * (PRIOR.high - PRIOR.low) * [0.1, 1, 1, 1, 1]
    theta = TRUTH + spread * np.random.default_rng(2).normal(size=(300, 5))
    expected = exact(theta)
    assert np.isneginf(expected).tolist() == (np.abs(PRIOR.cdf(theta) - 0.5) > 0.5).any(axis=1).tolist()
    # Where a walker of a chain may be; a few sigma further out both are as good as zero.
    plausible = expected > expected.max() - 25
    assert plausible.sum() > 30
    np.testing.assert_allclose(fast(theta)[plausible], expected[plausible], rtol=0, atol=1e-3)
