"""``digs-survey run`` with the posterior that ships with the package, and with one that is trained in its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from survey import run_here

from digs_survey.catalog import write_catalog
from digs_survey.config import load_config
from digs_survey.estimator.shipped import shipped
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.simulate.simulation_set import FLUX_UNIT
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.prospector import ProspectorSimulator

pytestmark = pytest.mark.slow

ROWS = 24
SMALL = [
    *("--set", "map.draws=200", "--set", "audit.galaxies=1", "--set", "audit.calibration_simulations=100"),
    *("--set", "audit.calibration_draws=100", "--set", "audit.mcmc.walkers=12", "--set", "audit.mcmc.burn_in=[4]"),
    *("--set", "audit.mcmc.steps=6", "--set", "audit.mcmc.max_steps=6", "--set", "simulate.simulations=240"),
    *("--set", "train.epochs=2", "--set", "train.batch_size=64", "--set", "simulate.engine=batched"),
    *("--set", "audit.sensitivity_rows=0", "--set", "audit.checked_galaxies=12"),
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    config = load_config("digs2022")
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    noiseless = ProspectorSimulator(config.model, prior, grid).spectra(draw_theta(prior, 3, "test", 0, ROWS))
    flux = NoiseModel.from_config(config.noise).draw(noiseless, np.random.default_rng(1))
    path = tmp_path_factory.mktemp("shipped") / "catalog.zarr"
    write_catalog(
        path,
        grid=grid,
        flux=flux,
        ivar=(0.05 * flux) ** -2.0,
        mask=np.zeros(flux.shape, dtype=np.uint8),
        redshift=np.full(ROWS, config.model.zred),
        galaxy_id=np.arange(ROWS),
        flux_unit=FLUX_UNIT,
    )
    return path


def test_shipped_then_trained_here(ray_cores, catalog, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["run", catalog, "-c", "digs2022", "-o", run_dir, *SMALL]

    def stages() -> dict:
        return json.loads((run_dir / "manifest.json").read_text())["stages"]

    first = run_here(*arguments)
    assert first.returncode == 0, first.stderr
    assert "--retrain" in first.stderr
    assert "simulate" not in stages()
    assert not (run_dir / "simulations.zarr").exists()
    model = "model.safetensors"
    assert (run_dir / "model" / model).read_bytes() == (shipped()["digs2022"] / model).read_bytes()
    assert "ships with digs-survey" in (run_dir / "report.html").read_text()

    again = run_here(*arguments)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr

    trained = run_here(*arguments, "--retrain")
    assert trained.returncode == 0, trained.stderr
    assert stages()["simulate"]["rows"] == 240
    assert "pretrained" not in stages()["train"]["key"]
    assert (run_dir / "model" / model).read_bytes() != (shipped()["digs2022"] / model).read_bytes()

    without = run_here(*arguments)
    assert without.returncode == 0, without.stderr
    assert "nothing to do" in without.stderr
