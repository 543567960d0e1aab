"""Spectra fainter than their noise: calibrated where negative flux is data, too bright where it is filled."""

from __future__ import annotations

import numpy as np
import pytest
from estimators import GRID, simulations, small_config
from scipy.stats import kstest

from digs_survey.catalog import CatalogRows
from digs_survey.catalog.prepare import prepare
from digs_survey.config import MapConfig
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.training.loop import blank_estimator, fit
from digs_survey.infer.rows import infer_rows
from digs_survey.noise.model import NoiseModel
from digs_survey.quality import QualityFlag

ROWS = 1_500
SIGMA = 1e-9


@pytest.mark.slow
def test_negative_flux_is_data(tmp_path):
    # Flux from a tenth of the noise to some thirty times as much.
    config = small_config(
        *("train.flux_transform=asinh", "train.amplitude=centred", "prior.logmass={low=7.0, high=9.5}"),
        *("noise.kind=constant", f"noise.sigma_flam={SIGMA}", "noise.fraction=0.02"),
        *("train.hidden_features=32", "train.epochs=30", "train.batch_size=512"),
    )
    noise = NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform)
    theta, flux = simulations(config, 80_000)
    estimator = blank_estimator(config, len(GRID))
    estimator.load_state_dict(fit(config, theta, flux, noise, tmp_path / "last.pt", "faint")["best"])
    posterior = freeze_posterior(tmp_path, [estimator], config, GRID, noise, training={})
    assert posterior.noise.keeps_negative

    truth, spectra = simulations(config, ROWS, seed=8)
    observed = noise.draw(spectra, np.random.default_rng(9))
    negative = (observed <= 0).mean(axis=1)
    assert 0.15 < negative.mean() < 0.4
    rows = CatalogRows(
        flux=observed,
        ivar=np.full(observed.shape, SIGMA**-2),
        good=np.ones(observed.shape, dtype=bool),
        redshift=np.full(ROWS, config.model.zred),
        galaxy_id=np.arange(ROWS),
        quality=np.zeros(ROWS, dtype=np.int64),
        maggies=np.zeros((ROWS, 0)),
        maggies_ivar=np.zeros((ROWS, 0)),
    )
    settings = MapConfig(draws=256)

    def mapped(keeps_negative: bool):
        ready = prepare(rows, "rest", config.model.zred, 0.5, keeps_negative=keeps_negative)
        ranks = (posterior.sample(ready.flux, 255)[..., 0] < truth[:, :1]).mean(axis=1)
        return infer_rows(posterior, ready, settings), ranks

    kept, ranks = mapped(True)
    assert np.isfinite(kept.percentiles).all()
    assert (kept.n_good == len(GRID)).all()
    assert not (kept.quality & (QualityFlag.NONPOSITIVE_FLUX | QualityFlag.FILLED_ELEMENTS)).any()
    assert kstest(ranks, "uniform").pvalue > 0.01
    inside = (kept.percentiles[:, 0, 1] < truth[:, 0]) & (truth[:, 0] < kept.percentiles[:, 0, 3])
    assert inside.mean() == pytest.approx(0.68, abs=0.06)

    filled, ranks = mapped(False)
    lost = (filled.quality & QualityFlag.FEW_GOOD_ELEMENTS) != 0
    assert lost.mean() > 0.02
    some = ~lost & (negative > 0)
    assert kstest(ranks[some], "uniform").pvalue < 1e-8
    assert (filled.percentiles[some, 0, 2] - kept.percentiles[some, 0, 2]).mean() > 0.05
