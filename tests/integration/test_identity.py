"""Every stage takes the posterior, the model, the noise and the distance from one place: what the map recorded."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import tomli_w
import xarray as xr
from mapping import GRID, PRIOR, ZRED, flux_of, make_catalog, make_model, spectra

import digs_survey as ds
from digs_survey import formats
from digs_survey.catalog import Catalog
from digs_survey.catalog.prepare import prepare
from digs_survey.cli import main
from digs_survey.config import ModelConfig, NoiseConfig, SurveyConfig, TrainConfig, load_config
from digs_survey.errors import RunDirectoryError
from digs_survey.estimator.features import Features
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.network import build_estimator
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.infer.quantiles import ordered_quantiles
from digs_survey.noise.model import NoiseModel
from digs_survey.report.load import load_run
from digs_survey.store.storage import read_json

pytestmark = pytest.mark.slow

NETWORK = TrainConfig(hidden_features=12, transforms=2, embedding_features=8, embedding_layers=1, components=6)
OTHER_ZRED = 2e-5
SHORT = [
    f"--set={setting}"
    for setting in (
        "map.draws=200",
        "audit.galaxies=2",
        "audit.calibration_simulations=40",
        "audit.calibration_draws=100",
        "audit.predictive_draws=4",
        "audit.checked_galaxies=0",
        "audit.sensitivity_rows=0",
        "audit.mcmc.engine=batched",
        "audit.mcmc.walkers=12",
        "audit.mcmc.burn_in=[2]",
        "audit.mcmc.steps=4",
        "audit.mcmc.max_steps=4",
    )
]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; return its exit code and what it wrote to stderr."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["digs-survey", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, capsys.readouterr().err

    return called


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def catalog(folder):
    return make_catalog(folder / "catalog.zarr")


@pytest.fixture(scope="module")
def model(folder):
    return make_model(folder / "model")


@pytest.fixture(scope="module")
def other(folder):
    """Another posterior: of another network, noise and reference distance."""
    config = SurveyConfig(
        train=NETWORK, model=ModelConfig(zred=OTHER_ZRED), noise=NoiseConfig(fraction=0.08), seed=2022
    )
    flux, theta = flux_of(2000, seed=4)
    features = Features(len(GRID), NETWORK, PRIOR)
    features.fit(flux, spectra(theta), theta)
    noise = NoiseModel.from_config(config.noise, flux_transform="log10")
    freeze_posterior(folder / "other", [build_estimator(NETWORK, features, seed=8)], config, GRID, noise, training={})
    return folder / "other"


def test_the_reference_distance_is_the_posteriors(call, catalog, other, tmp_path):
    """A configuration that says nothing of the distance gets the posterior's, not the default."""
    code, told = call("map", catalog, "--model", other, "-o", tmp_path / "run", "--set=map.draws=200", "-q")
    assert code == 0, told
    posterior = FrozenPosterior.load(other)
    rows = prepare(Catalog.open(catalog).rows(0, 10), "rest", OTHER_ZRED, 0.8)
    u = posterior.sample_unconstrained(rows.flux, 200, ordered=True)
    expected = ordered_quantiles(u, (0.5,), posterior.prior)[..., 0]
    with xr.open_zarr(tmp_path / "run" / "posterior.zarr", consolidated=False) as data:
        np.testing.assert_allclose(data.percentiles.values[:10, :, 2], expected, rtol=1e-5)
    # At the default distance, 2e-5 over 1e-5, masses would be 0.6 dex lower.
    assert abs(np.log10(OTHER_ZRED / ZRED) * 2) > 0.6


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("model.zred=2e-5", "model.zred: posterior 1e-05, configuration 2e-05"),
        ("model.gas_logu=-2.5", "model.gas_logu: posterior -2.0, configuration -2.5"),
        ("noise.fraction=0.1", "noise.fraction: posterior 0.05, configuration 0.1"),
        ("noise.missing.probability=0.2", "noise.missing.probability: posterior 0.0, configuration 0.2"),
        ("prior.tage={low=0.01, high=3}", "prior.tage.high: posterior 4.0, configuration 3.0"),
    ],
)
def test_a_configuration_that_differs_from_the_posterior_is_refused_before_any_work(
    call, catalog, model, tmp_path, setting, line
):
    code, told = call("map", catalog, "--model", model, "-o", tmp_path / "run", "--set", setting, "-q")
    assert code == 3
    assert line in told
    assert not (tmp_path / "run" / "posterior.zarr").exists()


@pytest.fixture(scope="module")
def mapped_elsewhere(folder, catalog, model, other):
    """A run whose table was made with `map --model`, and which has another posterior of its own."""
    run_dir = folder / "run"
    arguments = ["digs-survey", "map", str(catalog), "--model", str(other), "-o", str(run_dir), *SHORT, "-q"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match="0"):
            main()
    for name in ("card.json", "model.safetensors"):
        (run_dir / "model").mkdir(exist_ok=True)
        (run_dir / "model" / name).write_bytes((model / name).read_bytes())
    return run_dir


def test_all_stages_use_the_posterior_of_the_table(call, catalog, model, other, mapped_elsewhere):
    run_dir = mapped_elsewhere
    for setting, line in (
        ("model.zred=1e-5", "model.zred: posterior 2e-05, configuration 1e-05"),
        ("noise.fraction=0.05", "noise.fraction: posterior 0.08, configuration 0.05"),
    ):
        code, told = call("audit", "-o", run_dir, *SHORT, "--set", setting, "-q")
        assert code == 3
        assert line in told
        assert not (run_dir / "audit.json").exists()

    code, told = call("audit", "-o", run_dir, "-q")
    assert code == 0, told
    posterior = FrozenPosterior.load(other)
    assert read_json(run_dir / "audit.json")["posterior"] == posterior.hash
    with xr.open_zarr(run_dir / "audit.zarr", group="galaxies", consolidated=False) as data:
        rows = [Catalog.open(catalog).rows(row, row + 1) for row in data["row"].values.tolist()]
        seen = np.concatenate([prepare(block, "rest", OTHER_ZRED, 0.8).flux for block in rows])
        np.testing.assert_array_equal(data["flux"].values, seen)
        np.testing.assert_array_equal(data["npe"].values, posterior.sample(seen, 200))
        np.testing.assert_allclose(data["sigma"].values, 0.08 * data["best_npe"].values, rtol=1e-6)
    simulations = read_json(run_dir / "calibration.zarr" / "zarr.json")["attributes"]["recipe"]
    assert simulations["model"]["zred"] == OTHER_ZRED
    # Whose calibration that is, its own card says; the posterior of others is theirs.
    assert "calibration" not in read_json(other / "card.json")
    assert "calibration" not in read_json(run_dir / "model" / "card.json")

    code, told = call("escalate", "-o", run_dir, "-q")
    assert code == 0, told
    code, told = call("report", "-o", run_dir, "-q")
    assert code == 0, told
    assert load_run(run_dir).card["hash"] == posterior.hash
    assert "8 % of the flux" in (run_dir / "report.html").read_text()
    code, told = call("replay", "J00003+", "-o", run_dir)
    assert code == 0, told


def test_another_model_for_a_finished_table_changes_nothing(call, catalog, model, mapped_elsewhere):
    """The refused command must not leave its own posterior or catalog behind as the run's."""
    before = (mapped_elsewhere / "manifest.json").read_text()
    code, told = call("map", catalog, "--model", model, "-o", mapped_elsewhere, "-q")
    assert code in (3, 6), told
    assert (mapped_elsewhere / "manifest.json").read_text() == before


def test_a_patch_release_leaves_a_finished_table_as_it_is(call, catalog, model, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    command = ("map", catalog, "--model", model, "-o", run_dir, "--set=map.draws=200", "--set=map.rows_per_shard=40")
    assert call(*command)[0] == 0
    marks = sorted((run_dir / "ledger" / "map").glob("*.json"))
    times = [mark.stat().st_mtime_ns for mark in marks]
    for module in [m for name, m in sys.modules.items() if name.partition(".")[0] == "digs_survey"]:
        if hasattr(module, "__version__"):
            monkeypatch.setattr(module, "__version__", "0.1.99")
    code, told = call(*command)
    assert code == 0
    assert "map: done already" in told
    assert [mark.stat().st_mtime_ns for mark in marks] == times
    # And one that was interrupted goes on from its shards.
    marks[1].unlink()
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["stages"]["map"]["status"] = "running"
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    code, told = call(*command)
    assert code == 0, told
    assert [mark.stat().st_mtime_ns == time for mark, time in zip(marks, times, strict=True)].count(False) == 1


def test_a_posterior_that_was_replaced_is_not_taken(call, catalog, model, other, tmp_path):
    kept = tmp_path / "posterior"
    kept.mkdir()
    for name in ("card.json", "model.safetensors"):
        (kept / name).write_bytes((model / name).read_bytes())
    assert call("map", catalog, "--model", kept, "-o", tmp_path / "run", "--set=map.draws=200", "-q")[0] == 0
    for name in ("card.json", "model.safetensors"):
        (kept / name).write_bytes((other / name).read_bytes())
    for command in (("audit", "-o", tmp_path / "run", "-q"), ("replay", "J00003+", "-o", tmp_path / "run")):
        code, told = call(*command)
        assert code == RunDirectoryError.exit_code
        assert "is not the posterior of these results any more" in told


def test_other_map_settings_than_the_tables_are_refused_by_what_follows(call, mapped_elsewhere):
    code, told = call("audit", "-o", mapped_elsewhere, *SHORT, "--set=map.draws=150", "-q")
    assert code == RunDirectoryError.exit_code
    assert "map.draws: was 200, now 150" in told
    code, told = call("audit", "-o", mapped_elsewhere, *SHORT, "--set=seed=5", "-q")
    assert code == RunDirectoryError.exit_code
    assert "seed: was 2022, now 5" in told


def test_reading_a_table_does_not_ask_the_last_commands_configuration(call, catalog, model, tmp_path):
    run_dir = tmp_path / "run"
    assert call("map", catalog, "--model", model, "-o", run_dir, "--set=map.draws=200", "-q")[0] == 0
    # What a later `simulate` with settings of its own leaves there.
    later = load_config(
        run_dir / "config.toml", ["noise.fraction=0.3", "map.draws=64", "prior.logmass.low=9", "seed=4"]
    )
    (run_dir / "config.toml").write_text(tomli_w.dumps(later.model_dump(mode="json", exclude_none=True)))
    for config in (load_run(run_dir).config, ds.open_run(run_dir).config):
        assert (config.seed, config.map.draws, config.noise.fraction) == (2022, 200, 0.05)
        assert config.make_prior() == PRIOR
    assert call("replay", "J00003+", "-o", run_dir)[0] == 0
    assert ds.open_run(run_dir).posterior("J00003+").theta.shape == (200, 5)


@pytest.mark.parametrize("name", ["POSTERIOR", "RESULTS"])
def test_a_table_of_another_format_is_named(call, catalog, model, tmp_path, monkeypatch, name):
    run_dir = tmp_path / "run"
    assert call("map", catalog, "--model", model, "-o", run_dir, "--set=map.draws=200", "-q")[0] == 0
    written = getattr(formats, name)
    monkeypatch.setattr(formats, name, 99)
    with pytest.raises(RunDirectoryError, match=f"'{name.lower()}': 99"):
        ds.open_run(run_dir).table()
    code, told = call("map", catalog, "--model", model, "-o", run_dir, "--set=map.draws=200", "-q")
    assert code == RunDirectoryError.exit_code
    assert f"formats.{name.lower()}: was {written}, now 99" in told


def test_the_runs_own_posterior_is_recorded_by_its_place_in_the_run(call, catalog, model, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "model").mkdir(parents=True)
    for name in ("card.json", "model.safetensors"):
        (run_dir / "model" / name).write_bytes((model / name).read_bytes())
    own = run_dir / "model"
    assert call("map", catalog, "--model", own, "-o", run_dir, "--set=map.draws=200", "-q")[0] == 0
    moved = run_dir.rename(tmp_path / "moved")
    assert call("replay", "J00003+", "-o", moved)[0] == 0
