"""One noise of every kind on a grid of any size, with the covariance that its definition states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import toeplitz

from digs_survey.config import NoiseConfig
from digs_survey.noise.model import NoiseModel

KERNELS = {"white": [1.0], "correlated": [1.0, 0.4, -0.05]}
SETTINGS = {
    "flux": {"fraction": 0.1},
    "log10": {"fraction": 0.1, "space": "log10"},
    "constant": {"kind": "constant", "fraction": 0.02},
    "catalog": {"kind": "catalog", "fraction": 0.05},
    "poisson": {"kind": "catalog", "fraction": 0.02, "poisson_share": 0.6},
}
KINDS = [f"{kind}-{kernel}" for kind in SETTINGS for kernel in KERNELS]


class Case:
    """A noise, spectra to put it on, and a row of a catalog that it has errors of.

    Attributes
    ----------
    noise : NoiseModel
    flux : ndarray, shape (elements,)
        Over five decades; not the flux of the catalog's row.
    row_flux, row_sigma : ndarray, shape (elements,)
        The catalog's only row.
    errors : ndarray, shape (terms, elements), or None
    width : ndarray, shape (elements,)
        1-sigma of the noise on ``flux``; of its natural log where ``logarithmic``.
    correlation : ndarray, shape (elements, elements)
    """

    def __init__(self, name: str, elements: int = 3, features: str | None = None, **settings: object) -> None:
        kind, kernel = name.split("-")
        self.flux = np.geomspace(3e-9, 2e-4, elements)
        self.row_flux = self.flux * np.linspace(0.4, 3, elements)
        self.row_sigma = self.row_flux * np.linspace(0.02, 0.2, elements)
        given = SETTINGS[kind] | {"kernel": KERNELS[kernel]} | settings
        if kind == "constant":
            given["sigma_flam"] = self.row_sigma
        config = NoiseConfig(**given)
        bare = NoiseModel.from_config(config, flux_transform=features)
        row = bare.errors_of(self.row_flux[None], self.row_sigma[None] ** -2.0, np.ones((1, elements), dtype=bool))
        self.noise = bare if row is None else NoiseModel.from_config(config, row, features)
        self.errors = None if row is None else row[:, 0]
        self.logarithmic = config.space == "log10"
        self.width = self._width(config)
        self.correlation = self._correlation(config.kernel, elements)

    def covariance(self) -> NDArray[np.float64]:
        """Of the flux (elements, elements), or of its natural log where ``logarithmic``."""
        return self.width[:, None] * self.correlation * self.width

    def observe(self, standard: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fluxes that lie so many widths from the model's."""
        if self.logarithmic:
            return self.flux * np.exp(self.width * standard)
        return self.flux + self.width * standard

    def _width(self, config: NoiseConfig) -> NDArray[np.float64]:
        f, flux, sigma = self.flux, self.row_flux, self.row_sigma
        own = (config.fraction * f) ** 2
        if config.kind == "constant":
            own = own + sigma**2
        elif config.poisson_share is not None:
            own = own + sigma**2 * (1 - config.poisson_share + config.poisson_share * f / flux)
        elif config.kind == "catalog":
            own = own + (f * sigma / flux) ** 2
        return np.full(f.shape, np.log1p(config.fraction)) if self.logarithmic else np.sqrt(own)

    @staticmethod
    def _correlation(kernel: tuple[float, ...], elements: int) -> NDArray[np.float64]:
        """Of kernel times white noise that goes on beyond both ends, as a full matrix product."""
        reach = len(kernel) - 1
        padded = np.zeros(elements + 2 * reach)
        padded[: len(kernel)] = kernel
        rows = toeplitz(padded)[reach : reach + elements]
        return rows @ rows.T / (rows[0] ** 2).sum()
