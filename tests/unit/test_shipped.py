"""Posteriors that ship with the package: whole, small, and used only where they fit."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.catalog import write_catalog
from digs_survey.config import load_config
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import find_shipped, mismatches, shipped, why_none
from digs_survey.run.survey import Survey
from digs_survey.spectra import WavelengthGrid

CONFIG = load_config("digs2022")
GRID = WavelengthGrid.from_config(CONFIG.grid)


@pytest.mark.parametrize("name", shipped())
def test_each_is_whole_and_small(name):
    folder = shipped()[name]
    posterior = FrozenPosterior.load(folder)
    assert posterior.card["calibration"]["simulations"] >= 5_000
    assert posterior.card["cost"]["train_core_s"] > 0
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2 * 2**20


def test_digs2022_fits_its_preset_and_a_preset_that_differs_in_training_alone():
    assert find_shipped(CONFIG, GRID) == shipped()["digs2022"]
    assert find_shipped(load_config("quick"), GRID) == shipped()["digs2022"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("noise.fraction=0.1", "noise.fraction (0.05, not 0.1)"),
        ("model.smoothing_kms=200.0", "model.smoothing_kms (350.0, not 200.0)"),
        ("prior.tage.high=3.0", "prior.tage ([0.01, 4.0], not [0.01, 3.0])"),
        ("noise.kind='catalog'", "noise (the catalog's own)"),
    ],
)
def test_another_survey_is_told_what_differs(override, named):
    config = load_config("digs2022", [override])
    card = FrozenPosterior.load(shipped()["digs2022"]).card
    assert named in mismatches(card, config, GRID)
    assert find_shipped(config, GRID) is None


def test_why_none_is_taken_is_told_for_each():
    air = WavelengthGrid(GRID.wavelength, medium="air")
    told = why_none(CONFIG, air)
    assert "digs2022 has another grid (medium vacuum, not air)" in told
    assert all(f"{name} has another" in told for name in shipped())


def test_a_run_says_why_none_is_taken_before_it_simulates(tmp_path, monkeypatch, capsys):
    class Simulated(Exception):
        """Where the simulations would begin."""

    def simulate(*arguments, **settings):
        raise Simulated

    flux, path = np.ones((2, len(GRID))), tmp_path / "air.zarr"
    grid = WavelengthGrid(GRID.wavelength, medium="air")
    spectra = {"flux": flux, "ivar": flux, "mask": flux == 0, "flux_unit": "1e-17 erg / (s cm2 Angstrom)"}
    write_catalog(path, grid=grid, redshift=[0.1, 0.1], galaxy_id=[1, 2], **spectra)
    monkeypatch.setattr(Survey, "simulate", simulate)
    with pytest.raises(Simulated), Survey.open(tmp_path / "run", CONFIG, catalog=path) as survey:
        survey.run(path)
    told = capsys.readouterr().err
    assert "digs2022 has another grid (medium vacuum, not air)" in told
    assert f"{CONFIG.simulate.simulations:,} spectra are simulated" in told


def test_another_grid_does_not_fit():
    assert find_shipped(CONFIG, WavelengthGrid(GRID.wavelength[:-1])) is None
    assert find_shipped(CONFIG, WavelengthGrid(GRID.wavelength, medium="air")) is None
    assert find_shipped(CONFIG, WavelengthGrid(GRID.wavelength + np.float64(1e-8))) == shipped()["digs2022"]
