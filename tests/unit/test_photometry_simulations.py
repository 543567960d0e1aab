"""Simulations with photometry on disk: what they hold, and what they are read as."""

from __future__ import annotations

import numpy as np
import zarr
from astropy import units

from digs_survey.config import load_config
from digs_survey.estimator.training.training_data import Simulations
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import clean_spectra
from digs_survey.simulate.simulation_set import engine_check, simulate
from digs_survey.spectra import WavelengthGrid
from digs_survey.store.ledger import Ledger

COUNT, FILTERS = 24, ("sdss_g0", "sdss_r0", "twomass_Ks")
OVERRIDES = [
    "noise.kind=row",
    "train.whitening=least_squares",
    "grid.start_angstrom=4000",
    "grid.stop_angstrom=5000",
    "simulate.rows_per_shard=8",
    "noise.observing.redshift=[0.05,0.5]",
]

PRIOR = load_config(None, OVERRIDES).make_prior()


def simulated(folder, filters=FILTERS, engine="auto"):
    config = load_config(None, [*OVERRIDES, f"simulate.engine={engine}", f"photometry.filters={list(filters)}"])
    noise = NoiseModel.from_config(config.noise)
    grid, ledger, calls = WavelengthGrid.from_config(config.grid), Ledger(folder / "ledger"), []
    path = folder / "simulations.zarr"
    what = {"count": COUNT, "stream": "simulate", "ledger": ledger, "workers": 0, "advance": calls.append}
    simulate(config, grid, path, noise=noise, **what)
    return zarr.open_group(str(path), mode="r"), noise, calls, engine_check(ledger)


def test_simulations_have_light_and_the_maggies_of_their_redshift(tmp_path):
    group, noise, calls, check = simulated(tmp_path)
    bands = noise.photometry_bands
    assert calls[0] == 0
    assert check["prospector_checked"] == COUNT
    assert check["prospector_max_difference"] < 2e-3
    assert units.Unit(group["photometry"].attrs["units"]) == units.Unit("mgy")
    np.testing.assert_array_equal(group["coarse_wavelength"][:], bands.grid.wavelength)
    assert group["band"][:].tolist() == list(FILTERS)
    expected = bands.maggies(group["light"][:].astype(float), group["redshift"][:])
    np.testing.assert_allclose(group["photometry"][:], expected, rtol=1e-6)
    # Bands of the same galaxy are as bright as its spectrum: f_nu over 3631 Jy, at about 4700 Angstrom observed.
    flat = group["flux"][:].mean(axis=1) * 4700.0**2 / 2.998e18 / 3.631e-20
    assert (np.abs(np.log(group["photometry"][:, 0] / flat)) < 1).all()
    clean = clean_spectra(group)
    assert clean.shape == (COUNT, group["flux"].shape[1] + len(FILTERS) + 1)
    read = clean[slice(4, 9)]
    assert read.shape == (5, clean.shape[1])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[:, -1 - len(FILTERS) : -1], group["photometry"][4:9])
    rows = np.array([2, 9, 20])
    np.testing.assert_array_equal(Simulations(group["theta"], clean, PRIOR).light(rows), group["light"][:][rows])
    assert np.isfinite(
        noise.on(WavelengthGrid.from_array(group["wavelength"])).draw(read, np.random.default_rng(1))
    ).all()


def test_a_finished_set_is_kept_and_one_of_other_filters_is_made_anew(tmp_path):
    first = simulated(tmp_path, engine="batched")[0]["flux"][:]
    assert simulated(tmp_path, engine="batched")[2] == [COUNT]
    group, _, calls, _ = simulated(tmp_path, FILTERS[:1], "batched")
    assert calls[0] == 0
    assert group["photometry"].shape == (COUNT, 1)
    plain, _, calls, _ = simulated(tmp_path, (), "batched")
    assert calls[0] == 0
    assert not {"photometry", "light", "band", "coarse_wavelength"} & set(plain)
    # The spectra are the same with and without photometry beside them.
    np.testing.assert_array_equal(plain["flux"][:], first)
