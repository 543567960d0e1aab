"""The smallest survey that goes through every stage, and the commands to run it as a user would."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np

from digs_survey.catalog import write_catalog
from digs_survey.cli import main
from digs_survey.config import SurveyConfig, load_config
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.simulate.simulation_set import FLUX_UNIT
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.prospector import ProspectorSimulator

ROWS = 48

TOML = """
seed = 11
[grid]
start_angstrom = 4000.0
stop_angstrom = 6000.0
step_angstrom = 100.0
[simulate]
simulations = 240
rows_per_shard = 12
engine = "prospector"
[train]
hidden_features = 10
transforms = 2
embedding_features = 8
embedding_layers = 1
components = 10
batch_size = 16
epochs = 40
threads_per_worker = 1
device = "cpu"
[map]
draws = 200
rows_per_shard = 8
[importance]
rows = "all"
draws = 200
[audit]
galaxies = 1
calibration_simulations = 120
calibration_draws = 100
predictive_draws = 8
sensitivity_rows = 8
[audit.mcmc]
walkers = 12
burn_in = [4]
steps = 6
max_steps = 6
"""

ROW_NETWORK = """
[train]
whitening = "least_squares"
components = 12
amplitude = "equivariant"
embedding = "mlp"
embedding_features = 16
embedding_layers = 1
hidden_features = 16
transforms = 2
batch_size = 128
epochs = 4
threads_per_worker = 1
device = "cpu"
"""
"""The smallest network for rows that differ in their noise."""


def make_survey(folder: Path, text: str = TOML) -> tuple[Path, Path, SurveyConfig]:
    """Write a catalog and a configuration; returns catalog, TOML and the configuration."""
    toml = folder / "survey.toml"
    toml.write_text(text)
    config = load_config(toml)
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    noiseless = ProspectorSimulator(config.model, prior, grid).spectra(draw_theta(prior, 1, "test", 0, ROWS))
    flux = NoiseModel.from_config(config.noise).draw(noiseless, np.random.default_rng(1))
    catalog = folder / "catalog.zarr"
    write_catalog(
        catalog,
        grid=grid,
        flux=flux,
        ivar=(0.05 * flux) ** -2.0,
        mask=np.zeros(flux.shape, dtype=np.uint8),
        redshift=np.full(ROWS, config.model.zred),
        galaxy_id=np.arange(ROWS) + 1000,
        flux_unit=FLUX_UNIT,
    )
    return catalog, toml, config


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "digs_survey", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "DASK_SCHEDULER_ADDRESS")}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


def run(*arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(**extra), capture_output=True, text=True, timeout=600, check=False
    )


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, and on the Ray session that is open in it.

    For tests of what a command does, not of its process: a process of its own takes seconds to import and to start Ray.
    """
    output, errors = io.StringIO(), io.StringIO()
    argv = ["digs-survey", *map(str, arguments)]
    code: object = 0
    with (
        mock.patch.dict(os.environ, environment(), clear=True),
        mock.patch.object(sys, "argv", argv),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return subprocess.CompletedProcess(argv, code, output.getvalue(), errors.getvalue())


def kill_when(reached: Callable[[], bool], *arguments: object, timeout_s: float = 240.0) -> None:
    """Start a command and SIGKILL it as soon as it has come far enough."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert process.poll() is None, f"ended by itself with code {process.returncode} before it was killed"
            assert time.monotonic() < deadline, "did not come far enough in time"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
