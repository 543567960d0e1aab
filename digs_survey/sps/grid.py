"""Simple stellar populations on a grid of metallicity and age, and the dust before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.sps.free_gas import FreeGas

__all__ = ["SSPGrid", "calzetti_curve", "check_coverage"]


@dataclass(frozen=True, eq=False)
class SSPGrid:
    """Spectra of simple stellar populations, per solar mass formed.

    Attributes
    ----------
    log_z : ndarray, shape (metallicity,)
        Nodes of log10 Z/Zsun, increasing.
    log_age : ndarray, shape (age,)
        Nodes of log10 age/yr, increasing.
    wavelength : ndarray, shape (wavelength,)
        Rest-frame vacuum wavelengths in Angstrom, increasing.
    spectra : ndarray, shape (metallicity, age, wavelength)
        Stellar luminosity density in Lsun/Angstrom/Msun.
    living_fraction : ndarray, shape (metallicity, age)
        Stellar mass that survives of each solar mass formed; the files of ``bc03`` leave remnants out.
    gas_log_z : ndarray, shape (gas metallicity,)
        Nodes of the gas, increasing. From every ``gas_degree``-th to the next lies a panel of equal steps.
    gas_degree : int
        In log10 Z the gas is a polynomial of this degree through the nodes of a panel; 1 is linear, as the stars are.
    nebular : ndarray, shape (gas metallicity, young age, wavelength)
        Nebular continuum and lines of the first ages in Lsun/Angstrom/Msun. A line is a feature of a few
        elements which holds the line's luminosity. No ages (size 0) if the grid has no gas.
    line_wavelength : ndarray, shape (line,)
        Vacuum wavelengths of the lines in Angstrom.
    line_luminosity : ndarray, shape (gas metallicity, young age, line)
        Luminosities of the lines in Lsun/Msun.
    free_gas : FreeGas, optional
        Gas of a metallicity and log U of its own, in the place of ``nebular``, which then has no ages.
    """

    log_z: NDArray[np.float64]
    log_age: NDArray[np.float64]
    wavelength: NDArray[np.float64]
    spectra: NDArray[np.floating]
    living_fraction: NDArray[np.float64]
    gas_log_z: NDArray[np.float64]
    gas_degree: int
    nebular: NDArray[np.floating]
    line_wavelength: NDArray[np.float64]
    line_luminosity: NDArray[np.float64]
    free_gas: FreeGas | None = None

    def __post_init__(self) -> None:  # noqa: D105
        z, age, wave = self.log_z.size, self.log_age.size, self.wavelength.size
        gas, young = self.gas_log_z.size, self.nebular.shape[1]
        expected = {
            "spectra": (z, age, wave),
            "living_fraction": (z, age),
            "nebular": (gas, young, wave),
            "line_luminosity": (gas, young, self.line_wavelength.size),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, found {getattr(self, name).shape}")

    @property
    def gas_follows_stars(self) -> bool:
        """Whether stars and gas have the same nodes and are both linear between them."""
        return self.gas_degree == 1 and np.array_equal(self.gas_log_z, self.log_z)

    def lnu(self) -> NDArray[np.floating]:
        """Stars and gas (metallicity, age, wavelength) together, in Lsun/Hz/Msun as Prospector has it.

        Raises
        ------
        ValueError
            If the gas has nodes of its own.
        """
        if not self.gas_follows_stars:
            raise ValueError("expected a grid whose gas has the nodes of the stars")
        total = self.spectra.copy()
        total[:, : self.nebular.shape[1]] += self.nebular
        return total * self.lnu_factor().astype(total.dtype)

    def lnu_factor(self) -> NDArray[np.float64]:
        """What brings each wavelength (wavelength,) from Lsun/Angstrom to Lsun/Hz, with Prospector's speed of light."""
        # Not at the top: whether Prospector can be imported is found out where it is first needed.
        from prospect.sources.constants import lightspeed

        return self.wavelength**2 / lightspeed

    def metallicity_weights(self, logzsol: float) -> tuple[int, float]:
        """Return the lower node and the weight of the upper one for log10 Z/Zsun = ``logzsol``.

        Raises
        ------
        ValueError
            If ``logzsol`` lies outside the nodes.
        """
        if not self.log_z[0] <= logzsol <= self.log_z[-1]:
            raise ValueError(f"logzsol: expected {self.log_z[0]:g} to {self.log_z[-1]:g}, found {logzsol:g}")
        lower = min(int(np.searchsorted(self.log_z, logzsol, side="right")) - 1, self.log_z.size - 2)
        return lower, float((logzsol - self.log_z[lower]) / (self.log_z[lower + 1] - self.log_z[lower]))


def check_coverage(prior: Prior, log_z: NDArray[np.float64], log_age: NDArray[np.float64], source: str) -> None:
    """Refuse a prior that reaches beyond the populations, whose nodes are given as in :class:`SSPGrid`.

    Raises
    ------
    ConfigError
        Naming the parameter, what the source covers and what was found.
    """
    for name, low, high in (("logzsol", log_z[0], log_z[-1]), ("tage", 0.0, 10 ** (log_age[-1] - 9))):
        i = prior.index(name)
        if prior.low[i] < low - 1e-6 or prior.high[i] > high + 1e-6 or (name == "tage" and prior.low[i] <= 0):
            raise ConfigError(
                f"prior.{name}: source {source!r} covers {low:.4g} to {high:.4g}, "
                f"found {prior.low[i]:g} to {prior.high[i]:g}"
            )


def calzetti_curve(wavelength: ArrayLike) -> NDArray[np.float64]:
    """Optical depth at each wavelength (Angstrom) for unit ``dust2``, the optical depth at 5500 Angstrom.

    The starburst curve of Calzetti et al. 2000, ApJ 533, 682, eq. 4, divided by its R_V of 4.05, and
    continued beyond its ends. The coefficients are rounded as in FSPS's ``dust_type=2`` (0.1 % of the optical
    depth; it is 0.9983 at 5500 Angstrom), so that both sources have the same dust.
    """
    x = 1e4 / np.asarray(wavelength, dtype=float)
    blue = -2.156 + x * (1.509 + x * (-0.198 + x * 0.011))
    red = -1.857 + 1.040 * x
    return np.maximum(1.17 * np.where(x > 1e4 / 6300, blue, red) + 1.78, 0.0) / (0.44 * 4.05)
