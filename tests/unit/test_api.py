"""The public names: they are what the documentation says, they come when asked for, and they work."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

import digs_survey as ds
from digs_survey.errors import RunDirectoryError


def test_every_public_name_is_there():
    for name in ds.__all__:
        assert getattr(ds, name) is not None
    assert set(ds.__all__) <= set(dir(ds))
    with pytest.raises(AttributeError, match="no attribute 'surveys'"):
        _ = ds.surveys


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, digs_survey; print(sorted({'torch', 'ray', 'dask', 'zarr', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_package_runs_as_a_module():
    found = subprocess.run(
        [sys.executable, "-m", "digs_survey", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == f"digs-survey {ds.__version__}"


def test_a_catalog_is_written_and_opened(tmp_path):
    grid = ds.Catalog.open("catalogs/sample.zarr").grid
    flux = np.full((2, len(grid)), 2.0)
    ds.write_catalog(
        tmp_path / "catalog.zarr",
        grid=grid,
        flux=flux,
        ivar=flux,
        mask=np.zeros(flux.shape, dtype=int),
        redshift=[0.1, 0.2],
        galaxy_id=["a", "b"],
        flux_unit="1e-17 erg / (s cm2 Angstrom)",
    )
    assert ds.Catalog.open(tmp_path / "catalog.zarr").n_rows == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no manifest.json there; expected a run directory, which"):
        ds.open_run(tmp_path)


def test_a_survey_opens_with_a_configuration_object(tmp_path):
    config = ds.load_config("quick", ["seed=5"])
    with ds.Survey.open(tmp_path / "run", config, quiet=True) as survey:
        assert survey.config == config
    shutil.rmtree(tmp_path / "run")
