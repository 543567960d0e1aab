"""Batches from FSPS's populations against FSPS's own composites, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("fsps") is None,
        reason="python-fsps is not installed (pip install 'fsps==0.4.8')",
    ),
]

SCRIPT = """
import itertools, sys, time
import numpy as np
import prospect.sources
from digs_survey.config import load_config
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.noise.model import NoiseModel
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel, _luminosity_to_flux
from digs_survey.sps.fsps_grid import read_fsps
from digs_survey.sps.history import bin_weights
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.sampling import GridSampling
from digs_survey.sps.universe import physical_theta

FSPS = {}

def both(count, *overrides):
    config = load_config("digs2022", ["model.source=fsps", *overrides])
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    rng = np.random.default_rng(1)
    cube = rng.random((count, prior.ndim))
    corners = rng.permutation(list(itertools.product((1e-9, 1 - 1e-9), repeat=prior.ndim)))[:32]
    theta = prior.from_unit_cube(np.concatenate([cube, corners]))
    what = config.model, prior, grid
    prospector = ProspectorSimulator(*what)
    # FSPS computes the populations of every metallicity for each object that it has: one is enough.
    prospector.sps.ssp = FSPS.setdefault("ssp", prospector.sps.ssp)
    return config, theta, BatchedModel.from_config(*what), prospector

TABLE = ("model.line_spread=table", "model.line_spread_angstrom=[2900,5000,10500]",
         "model.line_spread_resolving_power=[60,100,300]")
SPECTRA_ALONE = ("bare", "power", "table", "burst", "free_gas")
found = {}
for name, count, overrides in (
    ("delayed_tau", 500, ()),
    ("tau", 20, ("model.sfh=tau",)),
    ("constant", 20, ("model.sfh=constant",)),
    ("bare", 10, ("model.nebular=false", "model.resampling=point")),
    ("other_gas", 20, ("model.gas_logu=-3.3",)),
    ("power", 10, ("model.line_spread=resolving_power",)),
    ("table", 10, TABLE),
    ("burst", 10, ("model.parameters.fburst={low=0.0, high=0.5}",
                   "model.parameters.fage_burst={low=0.1, high=1.0}")),
    ("free_gas", 12, ("model.parameters.gas_logz={low=-2.0, high=0.2}",
                      "model.parameters.gas_logu={low=-4.0, high=-1.0}")),
):
    config, theta, batched, prospector = both(count, *overrides)
    found[name] = batched.spectra(theta), prospector.spectra(theta)
    if name not in SPECTRA_ALONE:
        some = theta[:: max(1, len(theta) // 40)]
        own = []
        for row in some:
            _, _, living = prospector.model.predict(row, obs=prospector.obs, sps=prospector.sps)
            ssp, mass = prospector.sps.ssp, 10 ** row[0]
            own.append([mass * living, *(mass * float(ssp.sfr_avg(dt=dt)) for dt in (0.01, 0.1))])
        derived = batched.derived(some)
        columns = [derived[k] for k in ("surviving_mass", "sfr_10", "sfr_100")]
        found[f"derived_{name}"] = np.stack(columns, axis=1), np.array(own)
        found[f"age_{name}"] = some[:, 3]

# Likelihoods of theta near the truth.
config, _, batched, prospector = both(1)
noise, rng = NoiseModel.from_config(config.noise), np.random.default_rng(2)
near = 0.5 + 0.008 * rng.normal(size=(40, batched.prior.ndim))
near = batched.prior.from_unit_cube(near)
spectra = prospector.spectra(near)
observed = noise.draw(spectra[0], rng)
found["likelihood"] = (
    SpectrumLikelihood(batched, noise)(near[None], observed[None], np.ones((1, observed.size), bool))[0],
    noise.log_likelihood(observed, spectra),
)

# The light of warm dust, which both leave out.
params = prospector.model.params
wave = prospector.sps.wavelengths
dark, lit = (prospector.sps.get_galaxy_spectrum(**{**params, "dust2": 1.0, "add_dust_emission": e})[1].copy()
             for e in (False, True))
found["dust"] = wave, lit / dark - 1

# Constant rates in bins of age: Prospector's own.
config, _, batched, _ = both(1)
sampling = GridSampling(config.model, batched.grid)
agebins = np.array([[0.0, 7.0], [7.0, 8.0], [8.0, 8.7], [8.7, 9.3], [9.3, 9.6]])
masses = np.array([[0.05, 0.1, 0.2, 0.3, 0.35], [0.0, 0.001, 0.009, 0.19, 0.8], [0.9, 0.1, 0.0, 0.0, 0.0]])
basis = prospect.sources.FastStepBasis(zcontinuous=1)
basis.ssp = FSPS["ssp"]
history = ("sfh", "const", "tau", "tage")
fixed = {k: v for k, v in prospector.model.params.items() if k in basis.ssp.params.all_params and k not in history}
rows, logzsol, dust2 = [], np.array([-1.3, -0.4, 0.1]), np.array([0.2, 0.5, 0.9])
for mass, z, d in zip(masses, logzsol, dust2):
    wave, spectrum, _ = basis.get_galaxy_spectrum(
        agebins=agebins, mass=np.maximum(mass, 1e-12), **{**fixed, "logzsol": z, "gas_logz": z, "dust2": d,
        "gas_logu": -2.0, "add_dust_emission": False, "add_neb_emission": True, "add_neb_continuum": True})
    rows.append(spectrum @ sampling.matrix(wave) * _luminosity_to_flux(config.model.zred) * 1e10)
weights = masses @ bin_weights(read_fsps().log_age, agebins)
found["bins"] = batched.composite(weights.astype(np.float32), np.full(3, 10.0), logzsol, dust2), np.array(rows)

# The same by the whole simulator, with bins that follow the redshift.
for sfh in ("continuity", "dirichlet"):
    config = load_config(None, ["model.source=fsps", f"model.sfh={sfh}"])
    what = config.model, config.make_prior(), batched.grid
    theta = what[1].from_unit_cube(np.random.default_rng(1).random((50, what[1].ndim)))
    theta = physical_theta(what[1], theta, np.append(np.full(10, np.nan), np.linspace(0.0, 6.0, 40)))
    prospector = ProspectorSimulator(*what)
    prospector.sps.ssp = FSPS["ssp"]
    found[sfh] = BatchedModel.from_config(*what).spectra(theta), prospector.spectra(theta)

start = time.perf_counter()
read_fsps()
found["again"] = time.perf_counter() - start
np.savez(sys.argv[1], **{f"{k}_{i}": x for k, v in found.items() if isinstance(v, tuple) for i, x in enumerate(v)},
         **{k: v for k, v in found.items() if not isinstance(v, tuple)})
"""


@pytest.fixture(scope="session")
def results(sps_home, build_once):
    def build(folder):
        environment = {**os.environ, "SPS_HOME": str(sps_home), "DIGS_SURVEY_CACHE": str(folder / "cache")}
        subprocess.run([sys.executable, "-c", SCRIPT, folder / "fsps.npz"], env=environment, check=True, timeout=900)
        assert [path.suffix for path in sorted((folder / "cache").iterdir())].count(".npz") == 4

    return np.load(build_once("fsps-batched", build) / "fsps.npz")


@pytest.mark.parametrize("case", ["delayed_tau", "tau", "constant", "bare", "other_gas", "power", "table", "burst"])
def test_spectra_are_prospectors(results, case):
    """All over the prior and at its corners; the case delayed_tau has 500 theta and 32 corners."""
    np.testing.assert_allclose(results[f"{case}_0"], results[f"{case}_1"], rtol=1e-4)


def test_spectra_with_gas_of_its_own_are_prospectors(results):
    """Metallicity and log U of the gas are free; at the corners too."""
    np.testing.assert_allclose(results["free_gas_0"], results["free_gas_1"], rtol=1e-3)


def test_likelihoods_are_prospectors(results):
    ours, theirs = results["likelihood_0"], results["likelihood_1"]
    likely = theirs > theirs.max() - 50
    assert likely.sum() > 10
    assert np.ptp(theirs[likely]) > 3
    assert np.ptp((ours - theirs)[likely]) < 0.01


@pytest.mark.parametrize("case", ["bins", "continuity", "dirichlet"])
def test_bins_of_constant_rate_are_prospectors(results, case):
    """Prospector hands FSPS a table whose steps are not quite sharp."""
    np.testing.assert_allclose(results[f"{case}_0"], results[f"{case}_1"], rtol=1e-3)


@pytest.mark.parametrize("sfh", ["delayed_tau", "tau", "constant"])
def test_derived_quantities_are_fspss(results, sfh):
    ours, theirs = results[f"derived_{sfh}_0"], results[f"derived_{sfh}_1"]
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], rtol=1e-5)
    for column, span in ((1, 0.01), (2, 0.1)):
        old = results[f"age_{sfh}"] > span  # FSPS has none for galaxies younger than the span
        assert old.sum() > 5
        np.testing.assert_allclose(
            ours[old, column], theirs[old, column], rtol=1e-4, atol=1e-9 * ours[old, 0].max() / 1e9
        )


def test_warm_dust_shines_beyond_a_micron_alone(results):
    """It is left out; its templates (Draine & Li 2007) begin at 1 micron."""
    wave, excess = results["dust_0"], results["dust_1"]
    assert np.abs(excess[(wave > 1500) & (wave < 9_990)]).max() < 1e-6
    assert excess[(wave > 100_000) & (wave < 200_000)].max() > 1


def test_populations_are_computed_once(results):
    assert results["again"] < 5
