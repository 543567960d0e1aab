"""Line-spread functions: the widths asked for, no light lost, and the same spectrum in batches and from Prospector."""

from __future__ import annotations

import numpy as np
import pytest
from prospect.utils.smoothing import smooth_fft, smooth_lsf_fft, smooth_vel

from digs_survey.config import GridConfig, ModelConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.spectra import C_KMS, WavelengthGrid
from digs_survey.sps import sampling
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.bc03 import BC03Basis, read_bc03
from digs_survey.sps.linespread import FWHM, check_line_spread, constant_sigma_kms, describe
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.sampling import GridSampling

GRID = WavelengthGrid.from_config(GridConfig())
PRIOR = Prior()
LIGHTSPEED = 2.998e18
"""In Angstrom/s, as Prospector has it."""

PRISM_MICRON = np.array([0.6, 0.8, 1.0, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0])
PRISM_POWER = np.array([85.0, 47.0, 32.0, 30.0, 38.0, 55.0, 85.0, 120.0, 225.0, 370.0])
"""Like NIRSpec prism's: falls to 30 at 1.2 micron and rises to some 300 at 4.5 micron (after the curves in JDox)."""

VELOCITY = ModelConfig(smoothing_kms=350.0)
POWER = ModelConfig(line_spread="resolving_power", resolving_power=100.0)
PRISM = ModelConfig(
    line_spread="table",
    line_spread_angstrom=tuple(1e4 * PRISM_MICRON),
    line_spread_resolving_power=tuple(PRISM_POWER),
    zred=2.0,
)
KINDS = pytest.mark.parametrize("model", [VELOCITY, POWER, PRISM], ids=["velocity", "resolving_power", "table"])
RESAMPLINGS = pytest.mark.parametrize("resampling", ["mean", "point"])


def table(wavelength, power, **others):
    return ModelConfig(
        line_spread="table", line_spread_angstrom=wavelength, line_spread_resolving_power=power, **others
    )


def wanted_sigma(model, wavelength):
    """Sigma in Angstrom of a line at a rest-frame wavelength; the table's entries only."""
    if model.line_spread == "velocity":
        return wavelength * model.smoothing_kms / C_KMS
    if model.line_spread == "resolving_power":
        return wavelength / (2.354820045 * model.resolving_power)
    entries = dict(zip(model.line_spread_angstrom, model.line_spread_resolving_power, strict=True))
    return wavelength / (2.354820045 * entries[wavelength * (1 + model.zred)])


def moments(wavelength, flux):
    """Flux, mean and standard deviation of a line on an even grid."""
    total = flux.sum() * (wavelength[1] - wavelength[0])
    mean = (flux * wavelength).sum() / flux.sum()
    return total, mean, np.sqrt((flux * (wavelength - mean) ** 2).sum() / flux.sum())


def full_width(wavelength, flux):
    """Full width at half maximum of a line."""
    half, top = 0.5 * flux.max(), int(flux.argmax())
    rise = np.interp(half, flux[: top + 1], wavelength[: top + 1])
    return np.interp(-half, -flux[top:], wavelength[top:]) - rise


def flux_of_one_lsun(simulator):
    """The simulator's unit: f_lambda times 1 + zred of 1 Lsun/Angstrom at its distance."""
    centimetres = simulator.model.params["lumdist"].item() * 3.085677581467192e24
    return 3.846e33 / (4 * np.pi * centimetres**2)


class Lines(BC03Basis):
    """A galaxy of nothing but one sample's light, 1 Lsun/Angstrom, and otherwise all that Prospector asks for."""

    at = 0

    def get_galaxy_spectrum(self, **params):
        wave, lnu, living = super().get_galaxy_spectrum(**params)
        lnu = np.zeros(wave.size)
        lnu[self.at] = wave[self.at] ** 2 / LIGHTSPEED
        return wave, lnu, living


def test_resolving_power_is_over_fwhm():
    assert constant_sigma_kms(POWER) == pytest.approx(1273.1, abs=0.1)
    assert constant_sigma_kms(VELOCITY) == 350.0
    assert C_KMS / 350.0 == pytest.approx(857, abs=0.5)
    assert C_KMS / 350.0 / FWHM == pytest.approx(364, abs=0.5)


@KINDS
@RESAMPLINGS
@pytest.mark.parametrize("centre", [10000 / 3, 4000.0, 16000 / 3, 20000 / 3, 25000 / 3])
def test_a_line_has_the_width_asked_for_and_keeps_its_flux(model, resampling, centre):
    """Through the whole simulator, Prospector's part included, and through the matrix of the batched model."""
    sigma = wanted_sigma(model, centre)
    grid = WavelengthGrid(np.arange(centre - 9 * sigma, centre + 9 * sigma, sigma / 15))
    model = model.model_copy(update={"resampling": resampling})
    simulator = ProspectorSimulator(model, PRIOR, grid)
    simulator.sps = Lines(simulator.sps.grid)
    wave = simulator.sps.wavelengths
    at = simulator.sps.at = int(np.abs(wave - centre).argmin())
    light = wave[at] * np.log(wave[1] / wave[0])
    theta = np.array([0.0, 0.0, 0.5, 1.0, 0.0])
    by_prospector = simulator.spectrum(theta) / flux_of_one_lsun(simulator)
    by_matrix = wave[at] ** 2 / LIGHTSPEED * GridSampling(model, grid).matrix(wave)[at]
    wanted = wanted_sigma(model, centre) * wave[at] / centre
    for flux in (by_prospector, by_matrix):
        total, mean, width = moments(grid.wavelength, flux)
        assert total == pytest.approx(light, rel=1e-4)
        assert mean == pytest.approx(wave[at], abs=0.03 * wanted)
        box = sigma / 15 / np.sqrt(12) if resampling == "mean" else 0.0
        assert np.sqrt(width**2 - box**2) == pytest.approx(wanted, rel=1e-3)
        assert full_width(grid.wavelength, flux) == pytest.approx(2.3548 * wanted, rel=5e-3)


HISTORIES = np.array([(-0.41, 0.65, 1.63, 0.11), (0.0, 0.1, 0.02, 1.0), (-1.5, 0.3, 0.3, 5.0)])
"""logzsol, dust2, tage, tau of galaxies old and young (with strong lines)."""


def galaxies(wave):
    """Spectra (galaxy, wavelength) in Lsun/Hz that nothing has smoothed yet, at log-spaced wavelengths."""
    basis = BC03Basis(read_bc03(wave, max_age_gyr=4.0))
    names = ("logzsol", "dust2", "tage", "tau")
    return np.array([basis.get_galaxy_spectrum(**dict(zip(names, h, strict=True)))[1] for h in HISTORIES], dtype=float)


def prism_power(observed):
    """A smooth resolving power, with a minimum of 30 at 12000 Angstrom and both slopes as steep as the prism's."""
    return 30 * np.exp(0.5 * np.log(observed / 12000) ** 2 / np.log(2)) * (observed / 12000) ** 0.3


def smooth_table(resampling):
    """A model with a dense table of that curve, at redshift 2."""
    angstrom = np.geomspace(6000.0, 50000.0, 100)
    return table(tuple(angstrom), tuple(prism_power(angstrom)), zred=2.0, resampling=resampling)


def spread_directly(wave, lnu, resampling):
    """Spread the light of each wavelength by itself, as a Gaussian of its own width, without any matrix of ours."""
    sigma, step = 1 / (2.354820045 * prism_power(3 * wave)), np.log(wave[1] / wave[0])
    x, weights = np.polynomial.legendre.leggauss(12) if resampling == "mean" else (np.zeros(1), np.full(1, 2.0))
    flux = np.zeros((len(lnu), len(GRID)))
    for k, centre in enumerate(GRID.wavelength):
        for at, weight in zip(centre + 25.0 * x, weights / 2, strict=True):
            kernel = np.exp(-0.5 * (np.log(at / wave) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
            # Convolving f_nu would make a line brighter by s**2/2, which is taken out.
            flux[:, k] += weight * LIGHTSPEED / at**2 * step * (lnu @ (kernel * np.exp(-0.5 * sigma**2)))
    return flux


@RESAMPLINGS
def test_table_is_the_direct_convolution(resampling):
    wave = np.geomspace(2400.0, 12500.0, 2**14)
    direct = spread_directly(wave, galaxies(wave), resampling)
    theta = np.column_stack([np.zeros(len(HISTORIES)), HISTORIES[:, :3], np.log10(HISTORIES[:, 3])])
    simulator = ProspectorSimulator(smooth_table(resampling), PRIOR, GRID)
    np.testing.assert_allclose(simulator.spectra(theta) / flux_of_one_lsun(simulator), direct, rtol=1e-4)


def test_prospectors_own_smoothing_by_a_table_would_not_do():
    """If this fails Prospector has become better, and may smooth the tables too."""
    smoothing = GridSampling(POWER, GRID)
    wave, sigma = smoothing.wavelength, 1 / (FWHM * 100.0)
    young = galaxies(wave)[1]
    exact = smooth_vel(wave, young, GRID.wavelength, sigma * 2.998e5)
    default = smooth_lsf_fft(wave, young, GRID.wavelength, lsf=lambda w, **_: sigma * w)
    assert np.abs(default / exact - 1).max() > 1

    def lsf(wavelength, **_):
        return wavelength / (2.354820045 * prism_power(3 * wavelength))

    wave = np.geomspace(2400.0, 12500.0, 2**14)
    line = np.exp(-0.5 * (np.log(wave / 20000 * 3) / 2e-4) ** 2)
    smoothed = smooth_lsf_fft(wave, line, wave, lsf=lsf, pix_per_sigma=64)
    assert abs(np.trapezoid(smoothed / wave**2, wave) / np.trapezoid(line / wave**2, wave) - 1) > 1e-3


def test_samples_need_not_be_the_models_own():
    """FSPS's are uneven, with lines a few samples wide; the spectrum is linear between them."""
    wave = np.geomspace(2400.0, 12500.0, 2**15)
    lnu = np.array([smooth_fft(C_KMS * np.log(wave[1] / wave[0]), row, 80.0) for row in galaxies(wave)])
    uneven = np.concatenate([np.arange(2400.0, 3600, 5.0), np.arange(3600, 7400, 0.9), np.arange(7400, 12490, 9.0)])
    values = np.array([np.interp(uneven, wave, row) for row in lnu])
    dense = np.geomspace(2401.0, 12480.0, 2**18)
    direct = spread_directly(dense, np.array([np.interp(dense, uneven, row) for row in values]), "point")
    np.testing.assert_allclose(values @ GridSampling(smooth_table("point"), GRID).matrix(uneven), direct, rtol=2e-4)


@RESAMPLINGS
@pytest.mark.parametrize(("power", "rtol"), [(364.0, 3e-4), (100.0, 1e-4), (30.0, 2e-4)])
def test_a_constant_table_is_that_resolving_power(power, rtol, resampling):
    """Two ways to smooth: Prospector's in Fourier space, and shares of each wavelength's light."""
    theta = PRIOR.from_unit_cube(np.random.default_rng(4).random((50, 5)))
    constant = ModelConfig(line_spread="resolving_power", resolving_power=power, resampling=resampling)
    tabulated = table((3000.0, 5000.0, 10000.0), (power,) * 3, resampling=resampling)
    expected, found = (ProspectorSimulator(model, PRIOR, GRID).spectra(theta) for model in (constant, tabulated))
    np.testing.assert_allclose(found, expected, rtol=rtol)


@RESAMPLINGS
@pytest.mark.parametrize(
    ("model", "grid"),
    [
        (VELOCITY, GRID),
        (POWER, GRID),
        (PRISM, GRID),
        (PRISM, WavelengthGrid(np.geomspace(4500.0, 7000.0, 300), medium="air")),
        (table((3000.0, 6000.0, 10000.0), (800.0, 1500.0, 2500.0)), WavelengthGrid(np.arange(5000.0, 7000.0, 4.0))),
    ],
    ids=["velocity", "resolving_power", "table", "table in air", "narrow table"],
)
def test_batches_are_prospectors(model, grid, resampling):
    model = model.model_copy(update={"resampling": resampling})
    theta = PRIOR.from_unit_cube(np.random.default_rng(5).random((100, 5)))
    batched = BatchedModel.from_config(model, PRIOR, grid).spectra(theta)
    np.testing.assert_allclose(batched, ProspectorSimulator(model, PRIOR, grid).spectra(theta), rtol=1e-4)


@KINDS
def test_flux_of_a_spectrum_is_conserved(model):
    """Of a stretch of spectrum with nothing around it: what leaves one element is in another."""
    grid = WavelengthGrid(np.arange(3500.0, 9500.0, 20.0))
    smoothing = GridSampling(model, grid)
    wave = smoothing.wavelength
    stretch = np.where(np.abs(wave - 6500) < 2000, np.cos(0.5 * np.pi * (wave - 6500) / 2000) ** 2, 0.0)
    lnu = galaxies(wave) * stretch
    before = (lnu * LIGHTSPEED / wave * np.log(wave[1] / wave[0])).sum(axis=1)
    np.testing.assert_allclose((lnu @ smoothing.matrix(wave)).sum(axis=1) * 20.0, before, rtol=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (ModelConfig(smoothing_kms=300.0), ModelConfig(smoothing_kms=400.0), ModelConfig(smoothing_kms=500.0)),
        (
            ModelConfig(line_spread="resolving_power", resolving_power=500.0),
            ModelConfig(line_spread="resolving_power", resolving_power=375.0),
            ModelConfig(line_spread="resolving_power", resolving_power=300.0),
        ),
        (
            table((2000.0, 12000.0), (500.0, 500.0)),
            table((2000.0, 12000.0), (375.0, 375.0)),
            table((2000.0, 12000.0), (300.0, 300.0)),
        ),
    ],
    ids=["velocity", "resolving_power", "table"],
)
def test_smoothing_twice_adds_in_quadrature(first, second, both):
    """On galaxies with their lines; the spectrum between the two is sampled as the second wants it."""
    grid = WavelengthGrid(np.arange(4500.0, 7000.0, 25.0))
    again, at_once = GridSampling(second, grid), GridSampling(both, grid)
    between = again.wavelength
    once = GridSampling(first.model_copy(update={"resampling": "point"}), WavelengthGrid(between))
    lnu = galaxies(once.wavelength) @ once.matrix(once.wavelength) * between**2 / LIGHTSPEED
    expected = galaxies(at_once.wavelength) @ at_once.matrix(at_once.wavelength)
    np.testing.assert_allclose(lnu @ again.matrix(between), expected, rtol=2e-4)


@KINDS
def test_widths_add_to_the_librarys(model):
    """A line that has MILES's 2.5 Angstrom FWHM already, as the stars' own have."""
    centre, library = 16000 / 3, 2.5 / 2.354820045
    wave = np.geomspace(4000.0, 7000.0, 2**15)
    line = np.exp(-0.5 * ((wave - centre) / library) ** 2) * wave**2 / LIGHTSPEED
    sigma = wanted_sigma(model, centre)
    grid = WavelengthGrid(np.arange(centre - 9 * sigma, centre + 9 * sigma, 1.0))
    _, _, width = moments(grid.wavelength, line @ GridSampling(model, grid).matrix(wave))
    expected = np.sqrt(sigma**2 + library**2)
    assert np.sqrt(width**2 - 1 / 12) == pytest.approx(expected, rel=1e-3)
    assert expected > sigma * (1.01 if model is VELOCITY else 1.0)


def test_converged_in_wavelength_sampling(monkeypatch):
    theta = PRIOR.from_unit_cube(np.random.default_rng(2).random((12, 5)))
    coarse = ProspectorSimulator(PRISM, PRIOR, GRID)
    monkeypatch.setattr(sampling, "_POINTS_PER_SIGMA", 15.0)
    monkeypatch.setattr(sampling, "_MAX_STEP_KMS", 20.0)
    finer = ProspectorSimulator(PRISM, PRIOR, GRID)
    assert finer.obs["wavelength"].size > 4 * coarse.obs["wavelength"].size
    np.testing.assert_allclose(coarse.spectra(theta), finer.spectra(theta), rtol=1e-4)


def test_the_table_is_in_the_observed_frame_of_zred():
    theta = PRIOR.from_unit_cube(np.random.default_rng(6).random((3, 5)))
    near = table(tuple(1e4 / 3 * PRISM_MICRON), tuple(PRISM_POWER), zred=1e-9)
    ratio = ProspectorSimulator(PRISM, PRIOR, GRID).spectra(theta) / ProspectorSimulator(near, PRIOR, GRID).spectra(
        theta
    )
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)


def test_a_table_that_does_not_cover_the_grid_is_refused():
    short = table((3000.0, 9000.0), (100.0, 100.0))
    with pytest.raises(ConfigError, match=r"cover the grid, 3035.0 to 9935.1 .*zred = 1e-05, found 3000 to 9000"):
        check_line_spread(short, GRID)
    with pytest.raises(ConfigError, match="cover the grid"):
        ProspectorSimulator(short, PRIOR, GRID)
    with pytest.raises(ConfigError, match="cover the grid"):
        BatchedModel.from_config(short, PRIOR, GRID)
    check_line_spread(table((3000.0, 9936.0), (100.0, 100.0)), GRID)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["line_spread=gaussian"], r"model.line_spread: .*'velocity', 'resolving_power' or 'table'.*found 'gaussian'"),
        (["line_spread=table"], "line_spread = 'table': expected two wavelengths or more .*found 0"),
        (
            ["line_spread_angstrom=[3000, 9000]", "line_spread_resolving_power=[100]"],
            "expected equal lengths, found 2 and 1",
        ),
        (
            ["line_spread_angstrom=[9000, 3000]", "line_spread_resolving_power=[100, 100]"],
            "line_spread_angstrom: expected increasing wavelengths",
        ),
        (
            ["line_spread_angstrom=[3000, 9000]", "line_spread_resolving_power=[100, -1]"],
            r"model.line_spread_resolving_power.1: .*greater than or equal to 10, found -1",
        ),
        (["resolving_power=3"], r"model.resolving_power: .*greater than or equal to 10, found 3"),
        (["smoothing_kms=50000"], r"model.smoothing_kms: .*less than or equal to 12000, found 50000"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [f"model.{override}" for override in overrides])


def test_the_table_is_part_of_the_hash():
    base = ["model.line_spread=table", "model.line_spread_angstrom=[3000, 10000]"]
    one, other = (load_config(None, [*base, f"model.line_spread_resolving_power=[100, {r}]"]) for r in (100, 101))
    assert one.hash("model") != other.hash("model")


def test_described_for_the_report():
    assert describe(VELOCITY, PRIOR) == "smoothed by σ = 350 km/s"
    assert describe(POWER, PRIOR) == "smoothed to λ/FWHM = 100"
    assert describe(PRISM, PRIOR) == "smoothed by a tabulated line-spread function, λ/FWHM = 30 to 370"
