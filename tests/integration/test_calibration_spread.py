"""Calibration by Ray's workers: the same bytes on any number of them, whatever happens to one."""

import os
from dataclasses import fields

import numpy as np
import pytest
from estimators import analytic_spectra, freeze, small_config

from digs_survey.audit.calibration import blocks
from digs_survey.audit.calibration import calibrate as simulations
from digs_survey.audit.calibration.calibrate import calibrate_posterior, observe_rows
from digs_survey.audit.calibration.calibration import Calibration
from digs_survey.catalog.gaps import fill_flux
from digs_survey.config import NoiseConfig
from digs_survey.errors import StageError
from digs_survey.noise.model import NoiseModel
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.store.storage import ArraySpec, create_dataset

pytestmark = pytest.mark.slow

COUNT, DRAWS = 70, 100


@pytest.fixture(scope="module")
def posterior(tmp_path_factory):
    return freeze(tmp_path_factory.mktemp("model"), small_config())


@pytest.fixture(scope="module")
def path(posterior, tmp_path_factory):
    theta = draw_theta(posterior.prior, 5, "calibration", 0, COUNT)
    arrays = {
        "theta": ArraySpec(("simulation", "parameter"), theta.shape, "float64"),
        "flux": ArraySpec(("simulation", "wavelength"), (COUNT, len(posterior.grid)), "float32"),
    }
    folder = tmp_path_factory.mktemp("simulations") / "calibration.zarr"
    create_dataset(folder, arrays, {"theta": theta, "flux": analytic_spectra(theta)})
    return folder


@pytest.fixture
def run(ray_cores, posterior, path, monkeypatch):
    monkeypatch.setattr(simulations, "_BLOCK", 24)
    return lambda workers: calibrate_posterior(posterior, path, posterior.noise, 5, DRAWS, workers=workers)


@pytest.fixture(scope="module")
def here(shared_ray, posterior, path):
    shared_ray.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulations, "_BLOCK", 24)
        return calibrate_posterior(posterior, path, posterior.noise, 5, DRAWS)


def assert_same(one, other):
    for field in fields(Calibration):
        if field.name != "core_s":
            mine, theirs = (getattr(found, field.name) for found in (one, other))
            assert mine.tobytes() == theirs.tobytes() if isinstance(mine, np.ndarray) else mine == theirs, field.name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_figures_are_the_same_bytes_on_any_number_of_workers(run, here, workers):
    found = run(workers)
    assert (len(found.theta), len(found.planted)) == (COUNT, 12)
    assert_same(found, here)
    assert found.core_s > 0


def test_a_worker_that_dies_is_replaced_and_its_block_done_again(run, here, tmp_path, monkeypatch):
    died = tmp_path / "died"

    class DiesOnce(blocks.BlockWorker):
        def work(self, block):
            if block == 1 and not died.exists():
                died.touch()
                os._exit(1)
            return super().work(block)

    monkeypatch.setattr(blocks, "BlockWorker", DiesOnce)
    found = run(2)
    assert died.exists()
    assert_same(found, here)


def test_a_block_that_fails_once_is_tried_again_and_one_that_always_does_is_named(run, here, tmp_path, monkeypatch):
    failed = tmp_path / "failed"

    class FailsOnce(blocks.BlockWorker):
        def work(self, block):
            if block == 2 and not failed.exists():
                failed.touch()
                raise OSError("connection lost")
            return super().work(block)

    class Fails(blocks.BlockWorker):
        def work(self, block):
            if block == 2:
                raise ValueError("no such spectrum")
            return super().work(block)

    monkeypatch.setattr(blocks, "BlockWorker", FailsOnce)
    found = run(1)
    assert failed.exists()
    assert_same(found, here)
    monkeypatch.setattr(blocks, "BlockWorker", Fails)
    with pytest.raises(StageError, match=r"audit: calibration on simulations 48 to 69 of .*no such spectrum") as caught:
        run(1)
    assert isinstance(caught.value.__cause__, ValueError)


def test_simulations_go_the_way_of_a_catalogs_rows(posterior, path):
    config = NoiseConfig.model_validate(
        {"fraction": 0.4, "missing": {"probability": 1.0, "stretches": 1, "elements": [1, 6]}}
    )
    noise = NoiseModel.from_config(config)
    clean = analytic_spectra(draw_theta(posterior.prior, 5, "calibration", 0, COUNT))
    uniform = np.random.default_rng(3).random((COUNT, noise.columns(clean.shape[1])))
    least = 1 - 4.5 / clean.shape[1]
    rows, errors = observe_rows(noise, clean, uniform, least)
    noisy, good, _ = noise.observe(clean, uniform)
    assert errors is None
    np.testing.assert_array_equal(rows.good, good)
    few = good.mean(axis=1) < least
    assert 0 < few.sum() < COUNT
    np.testing.assert_array_equal((rows.quality & NO_POSTERIOR) != 0, few)
    assert (rows.quality[~few] & int(QualityFlag.FILLED_ELEMENTS) != 0).all()
    np.testing.assert_array_equal(rows.flux[~few], noisy[~few])
    np.testing.assert_array_equal(rows.flux[~few], fill_flux(noisy, good, linear=noise.keeps_negative)[~few])

    found = calibrate_posterior(posterior, path, noise, 5, DRAWS, min_good_fraction=least)
    assert found.without_posterior > 0
    assert len(found.theta) + found.without_posterior == COUNT
    assert found.summary(posterior.prior.names)["without_posterior"] == found.without_posterior


def test_the_audits_draws_are_those_of_the_map(posterior, path):
    flux = analytic_spectra(draw_theta(posterior.prior, 8, "test", 0, 5))
    u, _ = posterior.draw_and_judge(flux, DRAWS)
    theta = posterior.prior.from_unconstrained(u.transpose(0, 2, 1))
    assert posterior.sample(flux, DRAWS).tobytes() == theta.tobytes()
