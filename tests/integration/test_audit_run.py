"""The audit stage from a run directory to audit.zarr and audit.json, with a stand-in for Prospector."""

import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import xarray as xr
from identities import identity_of

from digs_survey.audit import run_audit as run
from digs_survey.audit.calibration.calibrate import calibrate_posterior
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyJob, fit_with
from digs_survey.catalog import write_catalog
from digs_survey.cluster.ray_session import ray_session
from digs_survey.config import MCMCConfig, NoiseConfig, SurveyConfig, TrainConfig
from digs_survey.errors import RunDirectoryError
from digs_survey.estimator.features import Features
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import build_estimator
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.storage import ArraySpec, checksum, create_dataset

pytestmark = pytest.mark.slow

GRID, PRIOR, ROWS, SIMULATIONS = WavelengthGrid(np.arange(4000.0, 7001.0, 150.0)), Prior(), 12, 60
CONFIG = SurveyConfig.model_validate(
    {
        "map": {"draws": 64},
        "audit": {
            "galaxies": 5,
            "calibration_simulations": SIMULATIONS,
            "calibration_draws": 100,
            "predictive_draws": 8,
            "checked_galaxies": 8,
            "sensitivity_rows": 8,
            "mcmc": {
                "walkers": 12,
                "burn_in": [10],
                "steps": 80,
                "max_steps": 80,
                "autocorrelation_times": 0.1,
                "moves": "stretch",
            },
        },
    }
)
STAGES = [
    {"stage": "simulate", "wall_s": 1.0, "core_s": 1.0, "rows": 10},
    {"stage": "train", "wall_s": 1.0, "core_s": 1.0, "rows": 10},
    {"stage": "map", "wall_s": 1.0, "core_s": 1e-6, "rows": ROWS},
]
FAILING = 7
NETWORK = TrainConfig(hidden_features=12, transforms=2, embedding_features=8, embedding_layers=1, components=6)


class Smooth:
    def spectra(self, theta):
        x, (mass, slope, dust, second, third) = GRID.wavelength / 5000, theta.T[..., None]
        return 10 ** (mass - 18) * x**slope * np.exp(-dust / x) * (1 + second * x**2 + third * x**3 / 9)


def fit(setup, job):
    if job.row == FAILING:
        raise ValueError("planted")
    return fit_with(Smooth(), setup, job)


def write_posterior(folder, noise, seed):
    """Freeze a network with random weights, whose features know the simulations."""
    config = CONFIG.model_copy(update={"noise": noise.config, "train": NETWORK})
    theta = PRIOR.from_unit_cube(np.random.default_rng(seed).uniform(size=(2000, 5)))
    features = Features(len(GRID), NETWORK, PRIOR)
    flux = Smooth().spectra(theta)
    features.fit(noise.draw(flux, np.random.default_rng(seed)), flux, theta)
    freeze_posterior(folder, [build_estimator(NETWORK, features, seed=seed)], config, GRID, noise, training={})


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray_session():
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield


@pytest.fixture
def inputs(tmp_path, monkeypatch, request):
    """A run directory, its catalog, and the identity of a posterior that is not that of the run directory."""
    noise = getattr(request, "param", NoiseModel.from_config(CONFIG.noise, flux_transform="log10"))
    monkeypatch.setattr(run, "fit_galaxies", partial(run.fit_galaxies, fit=fit))
    monkeypatch.setattr(SpectrumLikelihood, "of_posterior", lambda known: SpectrumLikelihood(Smooth(), known.noise))
    rng = np.random.default_rng(5)
    theta = PRIOR.from_unit_cube(rng.uniform(0.3, 0.7, (ROWS, 5)))
    flux = Smooth().spectra(theta)
    flux *= 1 + 0.05 * rng.normal(size=flux.shape)
    mask = np.zeros_like(flux, dtype=int)
    mask[0] = 1
    write_catalog(
        tmp_path / "catalog.zarr",
        grid=GRID,
        flux=flux * 1e17,
        ivar=(0.05 * flux * 1e17) ** -2,
        mask=mask,
        redshift=np.full(ROWS, 1e-5),
        galaxy_id=[f"g{row}" for row in range(ROWS)],
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
        columns={"true_logmass": (theta[:, 0], {"units": "dex(solMass)"})},
    )
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    write_posterior(elsewhere, noise, seed=3)
    # Another one than the table was made with, as after `map --model`: to take it would be a fault.
    write_posterior(run_dir / "model", noise, seed=4)
    percentiles = np.repeat(theta[:, :, None], 5, axis=2).astype("f4")
    quality = np.where(np.arange(ROWS) == 0, int(QualityFlag.FEW_GOOD_ELEMENTS), 0)
    percentiles[0] = np.nan
    xr.Dataset(
        {
            "percentiles": (("galaxy", "parameter", "quantile"), percentiles),
            "quality": ("galaxy", quality),
            "n_good": ("galaxy", np.where(quality == 0, len(GRID), 0)),
        },
        {"quantile": list(CONFIG.map.quantiles)},
    ).to_zarr(run_dir / "posterior.zarr", zarr_format=3, consolidated=False)
    truth = PRIOR.from_unit_cube(rng.uniform(0.3, 0.7, (SIMULATIONS + 9, 5)))
    spectra = Smooth().spectra(truth)
    arrays = {
        "theta": ArraySpec(("simulation", "parameter"), truth.shape, "float64"),
        "flux": ArraySpec(("simulation", "wavelength"), spectra.shape, "float32"),
    }
    create_dataset(run_dir / "calibration.zarr", arrays, {"theta": truth, "flux": spectra})
    catalog = tmp_path / "catalog.zarr"
    return SimpleNamespace(
        run_dir=run_dir, catalog=catalog, theta=theta, identity=identity_of(elsewhere, catalog, seed=5)
    )


def audited(inputs, config=CONFIG, **options):
    return run.run_audit(inputs.run_dir, inputs.identity, config, inputs.catalog, **options)


TABLE = np.full((1, 2, len(GRID)), 0.05)
NOISES = [NoiseModel.from_config(NoiseConfig(kind=kind), TABLE, "log10") for kind in ("fractional", "catalog")]


@pytest.mark.parametrize(("inputs", "width"), zip(NOISES, (0.05, 0.05 * 2**0.5), strict=True), indirect=["inputs"])
def test_audit_writes_what_the_report_reads_and_does_it_once(inputs, width):
    run_dir, theta = inputs.run_dir, inputs.theta
    config = CONFIG.model_copy(update={"audit": CONFIG.audit.model_copy(update={"galaxies": 50})})
    counted = []
    summary = audited(inputs, config, stages=STAGES, advance=counted.append)
    assert summary == json.loads((run_dir / "audit.json").read_text())
    assert summary["galaxies"] == sum(counted) == ROWS - 1
    assert (summary["agreement"]["failed"], summary["agreement"]["converged"]) == (1, ROWS - 2)
    assert summary["calibration"]["simulations"] == SIMULATIONS
    assert summary["calibration"]["ks_pvalue"]["logzsol"] < 1
    assert not summary["calibration"]["ranks_uniform"]
    assert set(summary["calibration"]["coverage_error"]) == {"0.5", "0.68", "0.9", "0.95"}
    assert summary["mcmc"]["engine"] == "prospector"
    assert summary["mcmc"]["likelihoods"] == (ROWS - 2) * 12 * 91
    assert summary["mcmc"]["max_log_likelihood_difference"] == 0
    assert summary["agreement"]["mean_width_ratio_error"]["all"] > 0
    cost = summary["cost"]
    assert cost["galaxies_per_mcmc_fit_map_only"] > 1000
    assert cost["cores"] >= 1

    with xr.open_zarr(run_dir / "audit.zarr", group="galaxies", consolidated=False) as stored:
        data = stored.load()
    assert data.sizes == {
        "galaxy": 11,
        "parameter": 5,
        "draw": 64,
        "mcmc_draw": 960,
        "wavelength": len(GRID),
        "band": 3,
    }
    assert data["row"].values.tolist() == list(range(1, ROWS))
    assert data["galaxy_id"].values.tolist() == [f"g{row}" for row in range(1, ROWS)]
    assert data["parameter"].values.tolist() == list(PRIOR.names)
    np.testing.assert_allclose(data["truth"][:, 0], theta[1:, 0])
    assert np.isnan(data["truth"][:, 1:]).all()
    np.testing.assert_allclose(data["snr"], 20, rtol=0.2)
    np.testing.assert_allclose(data["weight"], 1)
    failed = data["row"].values == FAILING
    assert np.isnan(data["mcmc"].values).any(axis=(1, 2)).tolist() == failed.tolist()
    assert (data["converged"].values == ~failed).all()
    assert np.isfinite(data["sigma"].values).all()
    best, observed = data["best_npe"].values[0], data["flux"].values[0]
    np.testing.assert_allclose(data["sigma"].values[0], width * best, rtol=1e-5)
    chi2 = (((observed - best) / (width * best)) ** 2).sum()
    np.testing.assert_allclose(data["chi2"].values[0], chi2, rtol=1e-5)
    shift = np.median(data["npe"], axis=1) - np.median(data["mcmc"], axis=1)
    assert (np.sign(shift[~failed]) == np.sign(data["shift_sigma"].values[~failed])).all()
    with xr.open_zarr(run_dir / "audit.zarr", group="calibration", consolidated=False) as calibration:
        assert calibration["rank"].shape == (SIMULATIONS, 5)
        assert calibration["percentiles"].shape == (SIMULATIONS, 5, 5)
        assert calibration.attrs["draws"] == 100
        share = (calibration["credibility"].values <= 0.9).mean()
        tarp = summary["calibration"]["tarp"]
        assert tarp["coverage"][tarp["levels"].index(0.9)] == pytest.approx(share)
        level = calibration["level"].values.tolist().index(0.9)
        reported = summary["calibration"]["coverage"]["0.9"]
        assert calibration["coverage"].values[level].tolist() == list(reported.values())

    inside = summary["domain"]
    assert (inside["rows"], inside["simulations"]) == (8, 8)
    with xr.open_zarr(run_dir / "audit.zarr", group="survey", consolidated=False) as survey:
        assert set(survey["row"].values) < set(range(1, ROWS))
        assert survey["population"].values.tolist() == ["survey", "simulations", "replicated"]
        assert survey["residual_sigma"].shape == (3, len(GRID))
        assert (survey["count"].values == 8).all()
        assert np.median(survey["chi2"].values) == pytest.approx(inside["chi2_median"]["survey"])

    chains = xr.open_datatree(
        run_dir / "audit.zarr", group=f"chains/{data['row'].values[0]}", engine="zarr", consolidated=False
    )["posterior"]
    assert set(chains.data_vars) == set(PRIOR.names)
    assert dict(chains.sizes) == {"chain": 12, "draw": 80}
    assert chains["tage"].attrs["units"] == "Gyr"
    np.testing.assert_array_equal(
        np.sort(chains["tage"].values.ravel()), np.sort(data["mcmc"].values[0, :, PRIOR.index("tage")].astype("f4"))
    )
    assert not (run_dir / "audit.zarr" / "chains" / str(FAILING)).exists()
    assert np.isnan(data["r_hat"].values).all()
    assert ((data["c2st"].values[~failed] > 0.4) & (data["c2st"].values[~failed] <= 1)).all()
    assert (data["wasserstein_sigma"].values[~failed] > 0).all()
    agreement = summary["agreement"]
    assert agreement["median_c2st"] == pytest.approx(np.median(data["c2st"].values[~failed]))
    # Every row was taken, so that the survey is the sample.
    assert agreement["survey"]["mean_abs_shift_sigma"] == pytest.approx(agreement["mean_abs_shift_sigma"])
    assert summary["calibration"]["verdict"]["calibrated"] is False

    first = checksum(*(data[name].values for name in ("mcmc", "core_s", "best_mcmc")))
    counted.clear()
    again = audited(inputs, config, stages=STAGES, advance=counted.append)
    assert counted == [ROWS - 2, 1]
    assert {**again, "core_s": 0} == {**summary, "core_s": 0}
    with xr.open_zarr(run_dir / "audit.zarr", group="galaxies", consolidated=False) as stored:
        assert checksum(*(stored[name].values for name in ("mcmc", "core_s", "best_mcmc"))) == first


def test_what_the_budget_had_no_room_for_is_stood_for_by_the_rest(inputs, monkeypatch, caplog):
    run_dir = inputs.run_dir
    mcmc = CONFIG.audit.mcmc.model_copy(update={"starts": ("posterior", "prior"), "max_r_hat": 10.0})
    update = {"galaxies": 50, "core_hours": 1e-9, "mcmc": mcmc}
    config = CONFIG.model_copy(update={"audit": CONFIG.audit.model_copy(update=update)})
    summary = audited(inputs, config, stages=STAGES)
    assert 0 < summary["galaxies"] < ROWS - 1
    assert "audit.core_hours had room for" in caplog.text
    with xr.open_zarr(run_dir / "audit.zarr", group="galaxies", consolidated=False) as stored:
        assert stored["weight"].values.sum() == pytest.approx(ROWS - 1)
        assert stored["row"].values.tolist() == sorted(stored["row"].values.tolist())
        done = np.isfinite(stored["mcmc"].values).all(axis=(1, 2))
        assert np.isfinite(stored["r_hat"].values[done]).all()
        assert (stored["job_core_s"].values[done] > stored["core_s"].values[done]).all()


def test_recalibrated_intervals_are_tested_on_the_audits_own_simulations(inputs):
    run_dir = inputs.run_dir
    assert "recalibration" not in audited(inputs)
    levels = {name: [0.0, 0.3, 0.5, 0.6, 1.0] for name in PRIOR.names}
    attributes = json.loads((run_dir / "posterior.zarr" / "zarr.json").read_text())
    attributes["attributes"]["recipe"] = {"levels": levels}
    (run_dir / "posterior.zarr" / "zarr.json").write_text(json.dumps(attributes))
    told = audited(inputs)["recalibration"]
    with xr.open_zarr(run_dir / "audit.zarr", group="calibration", consolidated=False) as stored:
        ranks, draws = stored["rank"].values, stored.attrs["draws"]
    fraction = (ranks + 0.5) / (draws + 1)
    assert told["simulations"] == SIMULATIONS
    for k, name in enumerate(PRIOR.names):
        place, rank = fraction[:, k], ranks[:, k]
        among = (rank > 0) & (rank < draws)
        assert told["coverage_after"][name] == [among.mean(), ((place >= 0.3) & (place <= 0.6)).mean()]
        assert told["coverage_before"][name][1] == ((place >= 0.16) & (place <= 0.84)).mean()


def test_the_time_of_the_workers_that_calibrate_is_counted(inputs, monkeypatch):
    def calibrate(*args, workers, **kwargs):
        assert workers is None, "the audit leaves the calibration to Ray"
        return replace(calibrate_posterior(*args, workers=0, **kwargs), core_s=1e6)

    monkeypatch.setattr(run, "calibrate_posterior", calibrate)
    assert 1e6 < audited(inputs)["core_s"] < 1.001e6


def test_no_row_with_a_posterior_still_gives_a_calibration(inputs):
    run_dir = inputs.run_dir
    with xr.open_zarr(run_dir / "posterior.zarr", consolidated=False) as stored:
        posterior = stored.load()
    posterior["quality"][:] = int(QualityFlag.BAD_REDSHIFT)
    posterior.to_zarr(run_dir / "posterior.zarr", mode="w", zarr_format=3, consolidated=False)
    summary = audited(inputs)
    assert (summary["galaxies"], summary["calibration"]["simulations"]) == (0, SIMULATIONS)
    assert summary["agreement"]["mean_abs_shift_sigma"]["all"] is None
    assert summary["predictive"]["reduced_chi2_median"] is None
    assert (summary["domain"]["verdict"], summary["domain"]["rows"]) == ("unknown", 0)
    with xr.open_zarr(run_dir / "audit.zarr", group="galaxies", consolidated=False) as stored:
        assert stored.sizes["galaxy"] == 0


def test_posterior_of_another_catalog_is_refused(inputs):
    run_dir = inputs.run_dir
    with xr.open_zarr(run_dir / "posterior.zarr", consolidated=False) as stored:
        posterior = stored.load().isel(galaxy=slice(0, 4))
    posterior.to_zarr(run_dir / "posterior.zarr", mode="w", zarr_format=3, consolidated=False)
    with pytest.raises(RunDirectoryError, match="expected the 12 rows of .* found 4"):
        audited(inputs)


def test_moves_through_the_neural_posterior_lead_to_the_same_posterior(inputs):
    identity, theta = inputs.identity, inputs.theta[1:2]
    flux = identity.noise.draw(Smooth().spectra(theta), np.random.default_rng(1))[0]
    job = GalaxyJob(1, flux, np.ones(len(GRID), dtype=bool), None, start=theta.repeat(64, axis=0), predictive=theta)
    found = {}
    for moves in ("kde", "neural"):
        settings = MCMCConfig(walkers=32, burn_in=(600,), steps=3_000, max_steps=3_000, moves=moves, starts=("prior",))
        found[moves] = fit_with(Smooth(), FitSetup(identity, settings), job, neural=FrozenPosterior.of(identity)).draws
    low, middle, high = np.quantile(found["kde"], [0.16, 0.5, 0.84], axis=0)
    np.testing.assert_array_less(np.abs(np.median(found["neural"], axis=0) - middle), 0.15 * (high - low))
    np.testing.assert_allclose(found["neural"].std(axis=0), found["kde"].std(axis=0), rtol=0.15)


def test_a_fit_is_of_the_posterior_only_where_its_moves_are(inputs):
    identity = inputs.identity
    other = replace(identity, posterior_hash="another")
    same = {moves: MCMCConfig(moves=moves) for moves in ("kde", "neural")}
    digests = {moves: [FitSetup(which, mcmc).digest() for which in (identity, other)] for moves, mcmc in same.items()}
    assert digests["kde"][0] == digests["kde"][1]
    assert digests["neural"][0] != digests["neural"][1]
