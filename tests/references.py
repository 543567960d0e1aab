"""Independent computations that simulated spectra are compared with.

A galaxy composed from the files of ``bc03`` by adaptive quadrature and direct convolution, a galaxy of one line, the
balance of ionising photons, and spectral indices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from astropy.io import fits
from prospect.sources.constants import cosmo, lsun, pc
from scipy.integrate import quad_vec
from scipy.ndimage import gaussian_filter1d

from digs_survey.config import ModelConfig
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid, air_to_vacuum, vacuum_to_air
from digs_survey.sps.bc03 import BC03Basis, _line_profiles, bc03_files, read_bc03
from digs_survey.sps.grid import SSPGrid
from digs_survey.sps.prospector import ProspectorSimulator

METALLICITIES = np.array([0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0])
"""Nodes of the grids in solar units; between them bagpipes is linear in Z, and Prospector in log Z."""
LSUN_BC03 = 3.826e33
C_KMS = 299_792.458
HALPHA, HBETA, OIII = 6564.61, 4862.68, 5008.24
"""Vacuum wavelengths in Angstrom: NIST Atomic Spectra Database."""
# Dn(4000) of simple populations, column B4_VN of bc2003_lr_m42 and m62_chab_ssp.3color as the authors distribute them:
# the same tracks with BaSeL spectra (20 Angstrom) and the Chabrier IMF. Rows of log age/yr.
PUBLISHED_DN4000 = {
    -0.7: {8.0: 1.119, 8.5: 1.219, 9.0: 1.376, 9.51: 1.564, 10.0: 1.732},
    0.0: {8.0: 1.114, 8.5: 1.267, 9.0: 1.550, 9.51: 1.924, 10.0: 2.336},
}


def sphere(zred: float) -> float:
    """Area in cm2 over which the light of a galaxy has spread: 4 pi times the luminosity distance (WMAP9) squared."""
    return float(4 * np.pi * (cosmo.luminosity_distance(zred).to_value("pc") * pc) ** 2)


def as_tabulated(simulator: ProspectorSimulator) -> ProspectorSimulator:
    """Give a simulator the gas that the files have for metal-rich stars, as bagpipes has it."""
    oldest = simulator.prior.high[simulator.prior.index("tage")]
    wave, nebular = simulator.sps.grid.wavelength, simulator.config.nebular
    simulator.sps = BC03Basis(read_bc03(wave, nebular=nebular, max_age_gyr=oldest, richest_gas=np.inf))
    return simulator


def one_line(grid: SSPGrid, centre: float) -> tuple[BC03Basis, Callable[[np.ndarray], float]]:
    """A basis whose galaxies shine in one emission line alone, and its luminosity in erg/s for theta (5,)."""
    chosen = int(np.abs(grid.line_wavelength - centre).argmin())
    position, strength = grid.line_wavelength[[chosen]], grid.line_luminosity[..., [chosen]]
    profile = _line_profiles(grid.wavelength, position).toarray()[:, 0]
    basis = BC03Basis(
        replace(
            grid,
            spectra=np.zeros_like(grid.spectra),
            nebular=(strength * profile).astype(np.float32),
            line_wavelength=position,
            line_luminosity=strength,
        )
    )

    def luminosity(row: np.ndarray) -> float:
        logmass, logzsol, dust2, tage, logtau = row
        basis.get_galaxy_spectrum(logzsol=logzsol, dust2=dust2, tage=tage, tau=10**logtau)
        return float(basis.get_galaxy_elines()[1][0]) * lsun * 10**logmass

    return basis, luminosity


def share_of_a_line(resampling: str, offset: float) -> float:
    """Share of the flux of a galaxy which shines in Hbeta alone that a grid of 50 Angstrom holds.

    One of its centres lies ``offset`` Angstrom from the line.
    """
    grid = WavelengthGrid(HBETA + offset + 50.0 * np.arange(-2, 3))
    model, row = ModelConfig.model_validate({"resampling": resampling}), np.array([10.0, 0.0, 0.3, 0.02, 0.0])
    simulator = ProspectorSimulator(model, Prior(), grid)
    simulator.sps, luminosity = one_line(simulator.sps.grid, HBETA)
    return float(simulator.spectrum(row).sum() * 50 * sphere(model.zred) / luminosity(row))


def composed_galaxy(row: np.ndarray, grid: WavelengthGrid, *, sigma_kms: float = 350.0) -> np.ndarray:
    """Spectrum (element,) in erg/s/Angstrom of theta (5,), composed from the files by other means than the package's.

    The integral over age is adaptive; smoothing is a direct convolution, and lines are Gaussians; the attenuation is
    Calzetti et al. 2000, ApJ 533, 682, eqs. 2 to 4. Vacuum grid, gas_logu = -2.
    """
    logmass, logzsol, dust2, tage, logtau = row
    nodes = np.log10(METALLICITIES)
    upper = int(np.clip(np.searchsorted(nodes, logzsol), 1, nodes.size - 1))
    share = (logzsol - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1])
    low, high = grid.edges[0] - 300, grid.edges[-1] + 300
    wave, line_wave, *poor = _composed(upper - 1, tage, 10**logtau, low, high)
    _, _, *rich = _composed(upper, tage, 10**logtau, low, high)
    spectrum, lines = ((1 - share) * a + share * b for a, b in zip(poor, rich, strict=True))
    smooth_wave = np.exp(np.arange(np.log(wave[0]), np.log(wave[-1]), 10 / C_KMS))
    smooth = gaussian_filter1d(
        np.interp(smooth_wave, wave, spectrum * np.exp(-dust2 * calzetti_2000(wave))), sigma_kms / 10, truncate=8
    )
    for centre, luminosity in zip(line_wave, lines * np.exp(-dust2 * calzetti_2000(line_wave)), strict=True):
        sigma = centre * sigma_kms / C_KMS
        smooth += luminosity * np.exp(-0.5 * ((smooth_wave - centre) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    ends = grid.edges
    means = [mean_between(smooth_wave, smooth, a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return np.array(means) * 10**logmass * LSUN_BC03


def _composed(node: int, tage: float, tau: float, low: float, high: float) -> tuple[np.ndarray, ...]:
    """Wavelengths, wavelengths of the lines, spectrum and luminosities of the lines at one metallicity, no dust."""
    wave, line_wave, ages, table, young, gas, glow = _populations(node, low, high)
    edges = np.unique(np.concatenate([[0.0], ages[ages < tage], young[young < tage], [tage]]))

    def rate(age: float) -> float:
        return (tage - age) * np.exp(-(tage - age) / tau)

    def integral(population: Callable[[float], Any]) -> Any:
        pieces = zip(edges[:-1], edges[1:], strict=True)
        return sum(
            quad_vec(lambda age: rate(age) * population(age), *ends, epsrel=1e-6, quadrature="gk15")[0]
            for ends in pieces
        )

    formed = integral(lambda age: 1.0)
    spectrum = integral(lambda age: _at(age, ages, table) + _at(age, young, gas))
    return wave, line_wave, spectrum / formed, integral(lambda age: _at(age, young, glow)) / formed


def _populations(node: int, low: float, high: float) -> tuple[np.ndarray, ...]:
    """Stars and gas of one metallicity: wavelengths (vacuum), lines, ages in Gyr, and luminosities in Lsun/Msun."""
    files = bc03_files()
    with fits.open(files["stars"], memmap=True) as hdus:
        wave = np.asarray(hdus["WAVELENGTHS_AA"].data, dtype=float)
        wave = np.where(wave > 2000, air_to_vacuum(np.maximum(wave, 2000)), wave)
        cut = slice(*np.searchsorted(wave, [low, high]))
        ages = hdus["STELLAR_AGE_YR"].data[1:] / 1e9
        table = np.asarray(hdus[node + 1].data[1:, cut], dtype=float)
    extension = METALLICITIES.size * 4 + node + 1  # log U = -2 is the fifth of nine
    with fits.open(files["continuum"], memmap=True) as hdus:
        young = hdus[extension].data[1:, 0] / 1e9
        gas = np.asarray(hdus[extension].data[1:, cut.start + 1 : cut.stop + 1], dtype=float)
    with fits.open(files["lines"]) as hdus:
        line_wave = air_to_vacuum(np.maximum(hdus[extension].data[0, 1:], 2000))
        inside = (line_wave > low) & (line_wave < high)
        glow = np.asarray(hdus[extension].data[1:, 1:][:, inside], dtype=float)
    # Interpolated in log age, the gas is gone at the next age of the stars.
    young = np.append(young, ages[ages > young[-1] * 1.001][0])
    gas, glow = (np.vstack([part, 0 * part[:1]]) for part in (gas, glow))
    return wave[cut], line_wave[inside], ages, table, young, gas, glow


def _at(age: float, ages: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Row of a table at an age, linear in log age; the first row below the first age."""
    position = np.interp(np.log(age), np.log(ages), np.arange(ages.size)) if age > 0 else 0.0
    lower = min(int(position), ages.size - 2)
    return table[lower] * (lower + 1 - position) + table[lower + 1] * (position - lower)


def calzetti_2000(wavelength: np.ndarray) -> np.ndarray:
    """Attenuation over that of the V band, by the published coefficients: Calzetti et al. 2000, eq. 4."""
    x = 1e4 / np.asarray(wavelength, dtype=float)
    blue = 2.659 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 * x) + 4.05
    return np.where(x > 1e4 / 6300, blue, red) / 4.05


def mean_between(wave: np.ndarray, values: np.ndarray, low: float, high: float) -> float:
    """Mean over a band of values that are linear between their samples."""
    inner = wave[(wave > low) & (wave < high)]
    x = np.concatenate([[low], inner, [high]])
    return float(np.trapezoid(np.interp(x, wave, values), x) / (high - low))


def dn4000(vacuum: np.ndarray, flux: np.ndarray) -> float:
    """Balogh et al. 1999, ApJ 527, 54: mean f_nu of 4000-4100 over that of 3850-3950 Angstrom (air)."""
    wave, fnu = vacuum_to_air(vacuum), flux * vacuum**2
    return mean_between(wave, fnu, 4000, 4100) / mean_between(wave, fnu, 3850, 3950)


def hdelta_a(vacuum: np.ndarray, flux: np.ndarray) -> float:
    """Equivalent width in Angstrom of Worthey & Ottaviani 1997, ApJS 111, 377, table 1 (air)."""
    wave = vacuum_to_air(vacuum)
    blue, red = (4041.60, 4081.50), (4128.50, 4161.00)
    level = [mean_between(wave, flux, *band) for band in (blue, red)]
    continuum = np.interp(wave, [np.mean(blue), np.mean(red)], level)
    return (4122.25 - 4083.50) * mean_between(wave, 1 - flux / continuum, 4083.50, 4122.25)


def of_line(gas: SSPGrid, centre: float) -> np.ndarray:
    """Luminosity (metallicity, young age) of the line next to a wavelength, in Lsun/Msun."""
    return gas.line_luminosity[:, :, int(np.abs(gas.line_wavelength - centre).argmin())]


def photon_balance(gas: SSPGrid, node: int) -> tuple[np.ndarray, np.ndarray]:
    """Luminosity of Hbeta over what the ionising photons of the stars give in case B at 10^4 K.

    4.76e-13 erg a photon: Osterbrock & Ferland 2006, Astrophysics of Gaseous Nebulae, section 5.10. At Cloudy's ages up
    to 10 Myr: between them, 0.1 dex apart, the lines are interpolated while the photons fall steeply.

    Returns
    -------
    log_age, balance : ndarray, shape (age,)
    """
    with fits.open(bc03_files()["stars"], memmap=True) as hdus:
        wave = np.asarray(hdus["WAVELENGTHS_AA"].data, dtype=float)
        cut = wave < 912
        log_age = np.log10(hdus["STELLAR_AGE_YR"].data[1:])
        chosen = (log_age > 5.99) & (log_age < 7.01) & (np.abs(10 * log_age - np.round(10 * log_age)) < 1e-3)
        stars = np.asarray(hdus[node + 1].data[1:][chosen][:, cut], dtype=float)
    energy = 6.62607e-27 * 2.99792458e18 / wave[cut]
    photons = np.trapezoid(stars * LSUN_BC03 / energy, wave[cut])
    hbeta = of_line(gas, HBETA)[node][chosen[: gas.nebular.shape[1]]] * lsun
    return log_age[chosen], hbeta / (4.76e-13 * photons)
