"""Importance weights with the batched spectra: against exact posteriors, by row, in posterior.zarr, in the audit."""

from __future__ import annotations

import json
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from identities import identity_of
from pyarrow import parquet
from scipy.stats import norm

from digs_survey.audit.weighing import importance_summary, smoothed_log_weights, weigh_calibration, weigh_rows
from digs_survey.catalog import Catalog, write_catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.config import ModelConfig, NoiseConfig, SurveyConfig, TrainConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.estimator.features import Features
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import build_estimator
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import Importance, Weigher, simulated_importance, weighted_quantiles
from digs_survey.infer.map_catalog import map_catalog
from digs_survey.infer.rows import infer_rows
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.store.ledger import Ledger
from digs_survey.store.storage import ArraySpec, create_dataset

GRID, PRIOR, MODEL = WavelengthGrid(np.arange(4000.0, 7001.0, 100.0)), Prior(), ModelConfig()
ROWS, BAD, DRAWS = 20, 13, 128
CENTRE = np.array([10.0, -0.4, 0.4, 2.0, 0.1])


@pytest.fixture(scope="module")
def model():
    return BatchedModel.from_config(MODEL, PRIOR, GRID)


class MassPosterior:
    """The exact posterior of log mass where all else is known (the prior is a needle), on a fine grid.

    Prospector's spectrum and numerical integration make it; ``widen`` scales it about its mean.
    """

    def __init__(self, noise, observed, good, errors=None, widen=1.0):
        self.prior = Prior(
            {p.name: (c - 1e-7, c + 1e-7) for p, c in zip(PRIOR.parameters[1:], CENTRE[1:], strict=True)}
        )
        self.grid, self.model = GRID, MODEL
        self.noise, self.widen = noise, widen
        unit = ProspectorSimulator(MODEL, PRIOR, GRID).spectrum(CENTRE)

        def density(mass):
            return noise.log_likelihood(observed, unit * 10 ** (mass[:, None] - CENTRE[0]), good, errors)

        wide = np.linspace(9, 11, 4001)
        near = wide[density(wide) > density(wide).max() - 40]
        self.mass = np.linspace(near[0], near[-1], 8001)
        log_density = density(self.mass)
        shape = np.exp(log_density - log_density.max())
        total = np.trapezoid(shape, self.mass)
        self.log_evidence = log_density.max() + np.log(total) - np.log(5.0)
        self.log_density = log_density - log_density.max() - np.log(total)
        self.cdf = np.append(0, np.cumsum(0.5 * (shape[1:] + shape[:-1]))) / (
            shape.sum() - 0.5 * (shape[0] + shape[-1])
        )
        self.mean = np.trapezoid(np.exp(self.log_density) * self.mass, self.mass)

    def sample(self, flux, draws, seed=0):
        uniform = (np.random.default_rng(seed).permutation(draws) + 0.5) / draws
        theta = np.tile(CENTRE, (len(flux), draws, 1))
        theta[..., 0] = self.mean + self.widen * (np.interp(uniform, self.cdf, self.mass) - self.mean)
        return theta

    def log_prob(self, theta, flux, *, normalised=True):
        mass = self.mean + (theta[..., 0] - self.mean) / self.widen
        others = np.log(self.prior.high - self.prior.low)[1:].sum()
        return np.interp(mass, self.mass, self.log_density) - np.log(self.widen) - others


@pytest.mark.parametrize(
    "noise", [NoiseConfig(), NoiseConfig(kernel=[1.0, 0.3]), NoiseConfig(space="log10"), NoiseConfig(kind="catalog")]
)
def test_weights_are_flat_where_draws_follow_the_exact_posterior_and_not_where_they_are_narrow(noise):
    noise = NoiseModel.from_config(noise, np.full((1, 3, len(GRID)), 0.06))
    clean = ProspectorSimulator(MODEL, PRIOR, GRID).spectra(CENTRE[None])
    observed, good, errors = noise.observe(clean, row_uniforms(1, "test", 0, 1, noise.columns(len(GRID))))
    good[:, [2, 9]] = False
    observed[:, [2, 9]] *= 30.0
    own = None if errors is None else errors[:, 0]

    def figures(widen):
        exact = MassPosterior(noise, observed[0], good[0], own, widen)
        weigher = Weigher(exact, SpectrumLikelihood.of_posterior(exact), 4000)
        return exact, weigher(observed, good, errors)

    exact, flat = figures(1.0)
    assert flat.ess[0] / 4000 > 0.999
    assert flat.pareto_k[0] < 0.3
    assert flat.log_evidence[0] == pytest.approx(exact.log_evidence, abs=0.01)
    quantiles = np.interp((0.16, 0.5, 0.84), exact.cdf, exact.mass)
    width = quantiles[2] - quantiles[0]
    np.testing.assert_allclose(flat.percentiles[0, 0], quantiles, atol=0.01 * width)
    _, narrow = figures(0.8)
    # Theory for a Gaussian: sqrt(2 s^2 - 1) / s^2 = 0.827, and a tail of shape 1 - s^2.
    assert 0.75 < narrow.ess[0] / 4000 < 0.9
    assert narrow.pareto_k[0] > 0.2
    _, narrower = figures(0.5)
    assert narrower.ess[0] < narrow.ess[0] / 2
    assert narrower.pareto_k[0] > 0.6


def test_single_precision_in_the_spectra_does_not_show_in_the_likelihood(model):
    """Differences between draws, against Prospector's double precision; and rows do not depend on their company."""
    noise = NoiseModel.from_config(NoiseConfig())
    rng = np.random.default_rng(2)
    centres = PRIOR.from_unit_cube(0.1 + 0.8 * rng.random((4, 1, PRIOR.ndim)))
    theta = centres + 0.01 * (PRIOR.high - PRIOR.low) * rng.normal(size=(4, 40, PRIOR.ndim))
    prospector = ProspectorSimulator(MODEL, PRIOR, GRID)
    observed = noise.draw(prospector.spectra(centres[:, 0]), rng)
    good = np.ones(observed.shape, dtype=bool)
    likelihood = SpectrumLikelihood(model, noise)
    found = likelihood(theta, observed, good)
    exact = np.stack([noise.log_likelihood(x, prospector.spectra(t)) for x, t in zip(observed, theta, strict=True)])
    assert np.ptp(exact, axis=1).min() > 3
    likely = exact > exact.max(axis=1, keepdims=True) - 50
    difference = np.where(likely, found - exact, np.nan)
    assert np.nanmax(np.abs(difference - np.nanmedian(difference, axis=1, keepdims=True))) < 0.01
    for row in (3, 0):
        alone = likelihood(theta[row : row + 1], observed[row : row + 1], good[row : row + 1])
        assert alone.tobytes() == found[row : row + 1].tobytes()


@pytest.fixture(scope="module")
def posterior_folder(model, tmp_path_factory):
    """A frozen posterior with random weights: nothing here asks that it is good."""
    theta = draw_theta(PRIOR, 1, "train", 0, 2000)
    network = TrainConfig(hidden_features=12, transforms=2, components=6)
    config = SurveyConfig(train=network)
    noise = NoiseModel.from_config(config.noise)
    features, flux = Features(len(GRID), network, PRIOR), model.spectra(theta)
    features.fit(noise.draw(flux, np.random.default_rng(0)), flux, theta)
    folder = tmp_path_factory.mktemp("model")
    freeze_posterior(folder, [build_estimator(network, features, seed=3)], config, GRID, noise, training={})
    return folder


@pytest.fixture(scope="module")
def catalog(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("catalog") / "catalog.zarr"
    flux = NoiseModel.from_config(NoiseConfig()).draw(
        model.spectra(draw_theta(PRIOR, 2, "test", 0, ROWS)), np.random.default_rng(1)
    )
    mask = np.zeros(flux.shape, dtype=np.uint8)
    mask[4, 5:8] = 1
    mask[BAD] = 1
    write_catalog(
        path,
        grid=GRID,
        flux=flux * 1e17,
        ivar=(0.05 * flux * 1e17) ** -2.0,
        mask=mask,
        redshift=np.full(ROWS, MODEL.zred),
        galaxy_id=np.arange(ROWS),
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    return path


def settings(*overrides):
    return load_config(None, [f"map.draws={DRAWS}", f"importance.draws={DRAWS}", "importance.rows='all'", *overrides])


def mapped(folder, catalog, model, *overrides):
    config = settings(*overrides)
    out = folder / "posterior.zarr"
    map_catalog(identity_of(model, catalog), catalog, out, config, ledger=Ledger(folder / "ledger"))
    with xr.open_zarr(out, consolidated=False) as data:
        return SimpleNamespace(out=out, config=config, data=data.load())


@pytest.mark.slow
def test_every_row_is_weighed_alike_whatever_the_shards_and_nothing_else_changes(
    ray_cores, posterior_folder, catalog, tmp_path
):
    one = mapped(tmp_path / "one", catalog, posterior_folder, "map.rows_per_shard=6", "map.workers=2")
    other = mapped(tmp_path / "other", catalog, posterior_folder, "map.rows_per_shard=64", "map.workers=1")
    none = mapped(tmp_path / "none", catalog, posterior_folder, "importance.rows='none'")
    more = set(one.data) - set(none.data)
    assert more == {
        "percentiles_weighted",
        "importance_ess",
        "importance_pareto_k",
        "log_evidence",
        "log_evidence_error",
    }
    for name in one.data:
        assert one.data[name].values.tobytes() == other.data[name].values.tobytes()
    for name in ("percentiles", "n_good"):
        assert one.data[name].values.tobytes() == none.data[name].values.tobytes()
    uneven = int(QualityFlag.UNEVEN_WEIGHTS)
    np.testing.assert_array_equal(one.data.quality.values & ~uneven, none.data.quality.values)
    known = np.arange(ROWS) != BAD
    heavy = known & ~((one.data.importance_pareto_k.values <= 0.7) & (one.data.importance_ess.values >= 20))
    np.testing.assert_array_equal(one.data.quality.values & uneven != 0, heavy)
    assert heavy.any()
    for name in more:
        missing = np.isnan(one.data[name].values).reshape(ROWS, -1)
        assert missing.all(axis=1).tolist() == missing.any(axis=1).tolist() == (~known).tolist()
    assert one.data.importance_ess.attrs["draws"] == DRAWS
    assert one.data.percentiles_weighted.dims == ("galaxy", "parameter", "quantile")

    frame = pd.read_parquet(tmp_path / "one" / "percentiles.parquet")
    np.testing.assert_array_equal(frame["tage_p16_weighted"], one.data.percentiles_weighted.values[:, 3, 1])
    np.testing.assert_array_equal(frame["log_evidence"], one.data.log_evidence)
    schema = parquet.read_schema(tmp_path / "one" / "percentiles.parquet" / "part-00000000.parquet")
    assert (
        b"16 % quantile of the posterior's draws with importance weights"
        in (schema.field("tage_p16_weighted").metadata[b"description"])
    )
    assert b"(128 draws)" in schema.field("importance_ess").metadata[b"description"]
    plain = pd.read_parquet(tmp_path / "none" / "percentiles.parquet")
    assert set(frame) - set(plain) == {c for c in frame if "weighted" in c or "importance" in c or "evidence" in c}


@pytest.mark.slow
def test_rows_of_a_catalog_have_their_own_likelihood(posterior_folder, catalog, model):
    """Against the definition, evaluated one by one; masked elements and rows without a posterior do not count."""
    posterior, config = FrozenPosterior.load(posterior_folder), settings()
    rows = prepare(Catalog.open(catalog).rows(0, ROWS), "rest", MODEL.zred, 0.8)
    weigher = Weigher(posterior, SpectrumLikelihood.of_posterior(posterior), DRAWS, config.map.quantiles)
    result = infer_rows(posterior, rows, config.map, weigher)
    for row in (4, 7):
        theta = posterior.sample(rows.flux[row : row + 1], DRAWS)
        good = rows.good[row]
        assert (~good).sum() == (3 if row == 4 else 0)
        sigma = 0.05 * model.spectra(theta[0])[:, good]
        log_w = norm.logpdf(rows.flux[row, good], sigma / 0.05, sigma).sum(axis=1)
        log_w += PRIOR.log_prob(theta[0]) - posterior.log_prob(theta, rows.flux[row : row + 1])[0]
        weight = np.exp(log_w - log_w.max())
        assert result.importance.ess[row] == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-3)
        assert result.importance.log_evidence[row] == pytest.approx(np.log(weight.mean()) + log_w.max(), abs=1e-3)
    few = infer_rows(posterior, rows, config.map, Weigher(posterior, weigher.likelihood, 100, (0.5,)))
    assert few.percentiles.tobytes() == result.percentiles.tobytes()
    assert few.importance.percentiles.shape == (ROWS, PRIOR.ndim, 1)
    assert not np.array_equal(few.importance.ess, result.importance.ess)
    assert rows.quality[BAD] & NO_POSTERIOR


@pytest.mark.slow
def test_another_model_than_the_posteriors_is_refused(ray_cores, posterior_folder, catalog, model, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)model.gas_logu: posterior -2.0, configuration -2.5.*new --run-dir"):
        mapped(tmp_path, catalog, posterior_folder, "model.gas_logu=-2.5")
    assert not (tmp_path / "posterior.zarr").exists()
    with pytest.raises(ConfigError, match="model.gas_logu"):
        mapped(tmp_path, catalog, posterior_folder, "model.gas_logu=-2.5", "importance.rows='none'")
    posterior, theta = FrozenPosterior.load(posterior_folder), draw_theta(PRIOR, 3, "test", 0, 4)
    flux = model.spectra(theta)
    assert simulated_importance(posterior, theta, flux, posterior.noise, 100).ess.shape == (4,)
    with pytest.raises(ConfigError, match=r"simulation 2: .* differs by .* \(1 of 4"):
        simulated_importance(
            posterior, theta, np.where(np.arange(4)[:, None] == 2, 1.5 * flux, flux), posterior.noise, 100
        )


@pytest.mark.slow
def test_the_audit_weighs_simulations_and_rows(posterior_folder, catalog, model, tmp_path, monkeypatch):
    posterior = FrozenPosterior.load(posterior_folder)
    config = settings("importance.rows='audit'", "importance.simulations=12", "seed=5")
    theta = draw_theta(PRIOR, 4, "test", 0, 30)
    flux = model.spectra(theta).astype(np.float32)
    arrays = {
        "theta": ArraySpec(("simulation", "parameter"), theta.shape, "float64"),
        "flux": ArraySpec(("simulation", "wavelength"), flux.shape, "float32"),
    }
    create_dataset(tmp_path / "calibration.zarr", arrays, {"theta": theta, "flux": flux})
    simulated, _ = weigh_calibration(posterior, tmp_path / "calibration.zarr", config)
    assert simulated.ess.shape == (12,)
    monkeypatch.setattr("digs_survey.audit.weighing._BLOCK", 5)
    spread, used_s = weigh_calibration(posterior, tmp_path / "calibration.zarr", config, workers=2)
    assert used_s > 0
    for field in fields(Importance):
        assert getattr(spread, field.name).tobytes() == getattr(simulated, field.name).tobytes()
    again = simulated_importance(posterior, theta[:12], flux[:12], posterior.noise, DRAWS, seed=5)
    np.testing.assert_allclose(simulated.ess, again.ess, rtol=1e-6)

    rows = prepare(Catalog.open(catalog).rows(0, 5), "rest", MODEL.zred, 0.8)
    weighed = weigh_rows(posterior, rows, posterior.sample(rows.flux, DRAWS), config)
    afresh = weigh_rows(posterior, rows, posterior.sample(rows.flux, 16), config)
    for field in fields(Importance):
        assert getattr(weighed, field.name).tobytes() == getattr(afresh, field.name).tobytes()
    theta = posterior.sample(rows.flux, DRAWS)
    log_weight = smoothed_log_weights(posterior, rows, theta)
    np.testing.assert_allclose(np.exp(log_weight).sum(axis=1), 1)
    found = [weighted_quantiles(theta[i], log_weight[i], config.map.quantiles) for i in range(5)]
    np.testing.assert_allclose(found, weighed.percentiles, rtol=1e-5)
    theta[2, 7] = np.nan
    assert np.isnan(smoothed_log_weights(posterior, rows, theta)).any(axis=1).tolist() == [k == 2 for k in range(5)]
    summary = json.loads(json.dumps(importance_summary(weighed, DRAWS)))
    assert summary["ess_share_median"] == pytest.approx(np.median(weighed.ess) / DRAWS, rel=1e-5)
    assert (summary["rows"], summary["draws"], summary["without_weights"]) == (5, DRAWS, 0)


def test_summary_of_known_figures():
    figures = Importance.unknown(5, 2, 3)
    figures.ess[:4], figures.pareto_k[:4] = [100, 200, 300, 1000], [0.1, 0.9, np.inf, 0.7]
    figures.log_evidence_error[:4] = [0.1, 0.2, 0.3, 0.4]
    summary = importance_summary(figures, 1000)
    assert summary["ess_share_median"] == pytest.approx(0.25)
    assert summary["pareto_k_above"] == pytest.approx(3 / 5)
    assert summary["without_weights"] == 1
    assert summary["log_evidence_error_median"] == pytest.approx(0.25)
    nothing = importance_summary(Importance.unknown(0, 2, 3), 1000)
    assert nothing["ess_share_median"] is nothing["pareto_k_above"] is None
