"""A survey whose line spread is a parameter, from simulations to audit, with noise that is a share of the flux."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from survey import TOML, make_survey, run_here

import digs_survey as ds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cores")]

GRID = """start_angstrom = 6450.0
stop_angstrom = 6650.0
step_angstrom = 10.0
[prior]
sigma_smooth = { low = 80.0, high = 500.0 }
"""


@pytest.fixture(scope="module")
def made(shared_ray, build_once):
    def build(folder):
        shared_ray.open()
        text = TOML[: TOML.index("start_angstrom")] + GRID + TOML[TOML.index("[simulate]") :]
        text = text.replace('engine = "prospector"', 'engine = "auto"').replace("walkers = 12", "walkers = 14")
        catalog, toml, _ = make_survey(folder, text)
        finished = run_here("run", catalog, "-c", toml, "-o", folder / "run")
        assert finished.returncode == 0, finished.stderr

    return build_once("free-spread-run", build)


def test_the_line_spread_is_inferred_as_other_parameters_are(made):
    table = pq.read_table(made / "run" / "percentiles.parquet")
    sigma = table["sigma_smooth_p50"].to_numpy()
    assert ((sigma > 80) & (sigma < 500)).all()
    assert table.schema.field("sigma_smooth_p50").metadata[b"unit"] == b"km / s"
    assert np.isfinite(table["sigma_smooth_p50_weighted"].to_numpy()).any()
    draws = ds.open_run(made / "run").posterior(1003)
    assert draws.parameters[-1] == "sigma_smooth"
    assert "80 to 500 km/s" in (made / "run" / "report.html").read_text()


def test_batches_were_checked_against_prospector(made):
    simulated = json.loads((made / "run" / "manifest.json").read_text())["stages"]["simulate"]
    assert simulated["prospector_checked"] >= 200
    assert 0 < simulated["prospector_max_difference"] < 1e-3


def test_prospectors_emcee_has_it_too(made):
    summary = json.loads((made / "run" / "audit.json").read_text())
    assert summary["mcmc"]["engine"] == "prospector"
    with xr.open_zarr(made / "run" / "audit.zarr", group="galaxies", consolidated=False) as stored:
        data = stored.load()
    assert data["parameter"].values.tolist()[-1] == "sigma_smooth"
    drawn = data["mcmc"].values[0, :, -1]
    assert ((drawn > 80) & (drawn < 500)).all()
    assert np.unique(drawn).size > 20
