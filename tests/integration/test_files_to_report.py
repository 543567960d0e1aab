"""Files of each kind of survey become a report by two commands: ingest, and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from survey import ROW_NETWORK, run_here

from digs_survey.quality import NO_POSTERIOR

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cores")]

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
SDSS = Path(__file__).resolve().parents[2] / "catalogs" / "sdss"
TOML = """
seed = 5
[model]
age = "tage_tuniv"
[grid]
start_angstrom = 3025.0
stop_angstrom = 7475.0
step_angstrom = 50.0
[noise]
kind = "row"
calibration_order = 2
[noise.observing]
redshift = [0.005, 5.0]
red_end_angstrom = [9000.0, 45000.0]
[simulate]
simulations = 1500
rows_per_shard = 500
"""
TOML += ROW_NETWORK
TOML += """
[map]
draws = 256
min_good_fraction = 0.1
[importance]
rows = "none"
[audit]
galaxies = 1
calibration_simulations = 120
calibration_draws = 100
predictive_draws = 8
checked_galaxies = 4
sensitivity_rows = 0
[audit.mcmc]
engine = "batched"
walkers = 16
steps = 40
max_steps = 40
burn_in = [20]
"""
MAP = """
layout = "pixels"
medium = "vacuum"
hdu = 1
wavelength = "loglam"
wavelength_log10 = true
wavelength_unit = "Angstrom"
flux = "flux"
flux_unit = "1e-17 erg / (s cm2 Angstrom)"
ivar = "ivar"
mask = "and_mask"
redshift = { table = "redshifts.csv" }
"""


def desi(_):
    return [*sorted((REAL / "desi").glob("*-4-80613-*.fits"))], []


def sdss(_):
    return sorted(SDSS.glob("*.fits"))[:3], []


def jwst(_):
    return [REAL / "jwst" / "ceers-1345_933-prism.spec.fits"], ["--redshift", "4.234"]


def table(folder):
    files = sorted(SDSS.glob("*.fits"))[:2]
    lines = "".join(f"{file.name},0.05\n" for file in files)
    (folder / "redshifts.csv").write_text(f"file,z\n{lines}")
    (folder / "map.toml").write_text(MAP)
    return files, ["--map", folder / "map.toml"]


@pytest.mark.parametrize("kind", [desi, sdss, jwst, table], ids=lambda kind: kind.__name__)
def test_two_commands_from_files_to_a_report(kind, tmp_path):
    if kind in (desi, jwst) and not REAL.is_dir():
        pytest.skip(f"needs the public spectra of {REAL}, which are not here")
    files, options = kind(tmp_path)
    catalog, out, toml = tmp_path / "catalog.zarr", tmp_path / "run", tmp_path / "tiny.toml"
    toml.write_text(TOML)
    first = run_here("ingest", kind.__name__, *files, catalog, *options)
    assert first.returncode == 0, first.stderr
    second = run_here("run", catalog, "-c", toml, "-o", out)
    assert second.returncode == 0, second.stderr
    found = pq.read_table(out / "results.parquet")
    assert found.num_rows == (len(files) if kind is not desi else 1)
    assert (found["quality"].to_numpy() & int(NO_POSTERIOR) == 0).all()
    assert np.isfinite(found["logmass_p50"].to_numpy()).all()
    assert Path(found["source_file"][0].as_py()).name == files[0].name
    assert "<h1" in (out / "report.html").read_text()
