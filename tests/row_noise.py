"""Rows, noise and random numbers for tests of row noise."""

from __future__ import annotations

import numpy as np

from digs_survey.config import NoiseConfig
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import join_clean, join_observed, split_observed
from digs_survey.noise.row_noise import RowNoise
from digs_survey.spectra import WavelengthGrid

GRID = WavelengthGrid(np.arange(3000.0, 9000.0, 20.0))
ELEMENTS = len(GRID)
QUIET = {
    "blue_end_angstrom": (1000.0, 1001.0),
    "red_end_angstrom": (2e4, 2.1e4),
    "error_slope": 0.0,
    "sky_errors": 1.0,
    "gaps": 0,
    "bad_elements": 0.0,
    "masked_lines": 0.0,
    "floor": (1e-9, 1e-9),
}
"""Every element of every row has data, with errors that are all the same."""


def row_noise(observing: dict[str, object] | None = None, **settings: object) -> RowNoise:
    noise = NoiseModel.from_config(NoiseConfig(kind="row", observing=observing or {}, **settings)).on(GRID)
    assert isinstance(noise, RowNoise)
    return noise


def spectra(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Flux (n, wavelength) over four decades, and redshifts (n,)."""
    rng = np.random.default_rng(seed)
    wave = np.sin(GRID.wavelength / rng.uniform(300, 900, (rows, 1)))
    return 10 ** rng.uniform(-8, -4, (rows, 1)) * (1 + 0.5 * wave), rng.uniform(0.001, 0.6, rows)


def draw(noise: RowNoise, flux: np.ndarray, redshift: np.ndarray, seed: int = 1) -> np.ndarray:
    return noise.draw(join_clean(flux, redshift), np.random.default_rng(seed))


def numbers(noise: RowNoise, rows: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((rows, noise.conditions + ELEMENTS)), rng.standard_normal((rows, noise.normals(ELEMENTS)))


def runs_of(missing: np.ndarray) -> np.ndarray:
    """Lengths of the contiguous stretches of a row (wavelength,)."""
    change = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
    return change[1::2] - change[::2]


# -- the likelihood ------------------------------------------------------------------------------------------


def small_row(elements: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An observation, the models (3, wavelength) that it is held against, and which elements have data."""
    rng = np.random.default_rng(4)
    model = rng.uniform(1, 3, (3, elements))
    inverse = rng.uniform(3, 30, elements)
    inverse[[2, 7, 8]] = 0.0
    flux = np.where(inverse > 0, model[0] * rng.normal(1, 0.1, elements), 0.0)
    return join_observed(flux, inverse, np.array(0.2)), model, inverse > 0


def dense_covariance(observed: np.ndarray, model: np.ndarray, good: np.ndarray, config: NoiseConfig) -> np.ndarray:
    inverse = split_observed(observed)[1][good]
    place = np.linspace(-1, 1, len(good))
    orders = range(1, config.calibration_order + 1)
    terms = [model[good] * np.polynomial.Chebyshev.basis(p)(place)[good] for p in orders]
    return np.diag(inverse**-2.0) + config.calibration_width**2 * sum(np.outer(t, t) for t in terms)
