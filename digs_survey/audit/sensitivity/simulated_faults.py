"""Simulated rows of a posterior, as they are and with faults of the data or of the model put into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from digs_survey.audit.calibration.calibrate import observe_rows
from digs_survey.catalog.gaps import fill_flux
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.distributions import Uniform
from digs_survey.noise.observation import join_clean, join_observed, split_observed
from digs_survey.parameters import SIGMA_KMS
from digs_survey.prior import Prior
from digs_survey.quality import QualityFlag
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.spectra import C_KMS, WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.paired import PairedModel, batched_model, predict

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["ALL_FAULTS", "BEYOND_PRIOR", "FAULTS", "SIGMA", "Simulator", "Truth", "faulty_rows"]

_STEP_ANGSTROM, _SLOPE_ANGSTROM = 6000.0, 3900.0
"""Where the step lies and the slope begins, if the grid has it, and how far the slope reaches."""
_BROADER = 1.75
_OUTSIDE = 0.5
"""How far beyond its prior a parameter reaches, as a share of the upper end."""
SIGMA = "sigma_smooth"
"""The free line spread, where a prior has one."""
_LARGEST = {"tage": 13.5, SIGMA: SIGMA_KMS[1]}
"""What a parameter can be at most."""
_STREAM = "faults"


@dataclass(frozen=True)
class Truth:
    """Rows, and the parameters that they were made of.

    Attributes
    ----------
    rows : PreparedRows
    theta : ndarray, shape (row, ndim)
    """

    rows: PreparedRows
    theta: NDArray[np.float64]


@dataclass(frozen=True)
class Simulator:
    """Simulates rows of a posterior's own prior, model and noise, or of others.

    Attributes
    ----------
    posterior : FrozenPosterior
    model : BatchedModel or PairedModel
        The posterior's own.
    count : int
    seed : int
    min_good_fraction : float
    """

    posterior: FrozenPosterior
    model: BatchedModel | PairedModel
    count: int
    seed: int
    min_good_fraction: float

    @cached_property
    def uniform(self) -> NDArray[np.float64]:
        """Random numbers of the noise; the same with each fault."""
        grid, noise = self.posterior.grid, self.posterior.noise
        elements = len(grid) + noise.band_count + noise.config.by_row
        return row_uniforms(self.seed, f"noise/{_STREAM}", 0, self.count, noise.columns(elements))

    @cached_property
    def drawn(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Theta (row, ndim) of the prior, and noiseless spectra as the noise takes them."""
        return self._simulate(self.model, self.posterior.prior)

    def spectra(self, velocity_kms: float = 0.0, **settings: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return theta and noiseless spectra, of another model or with redshifts that are off."""
        grid = self.posterior.grid
        seen = WavelengthGrid(grid.wavelength * (1 + velocity_kms / C_KMS), grid.frame, grid.medium)
        prior = _of_one_spread(self.posterior.prior)
        other, bands = self.posterior.model.model_copy(update=settings), self.posterior.noise.photometry_bands
        model = batched_model(other, prior, seen, bands)
        return self._simulate(model, prior)

    def _simulate(
        self, model: BatchedModel | PairedModel, prior: Prior
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return simulated_spectra(model, prior, self.posterior.noise, self.seed, _STREAM, 0, self.count)

    def observe(self, clean: NDArray[np.float64], noise_factor: float = 1.0) -> PreparedRows:
        """Observe noiseless spectra, with noise that is so many times what the posterior takes it for."""
        noise, uniform = self.posterior.noise, self.uniform
        if noise_factor != 1.0 and not noise.config.by_row:
            normals = slice(1, 1 + noise.normals(clean.shape[1]))
            uniform = uniform.copy()
            uniform[:, normals] = np.clip(ndtr(noise_factor * ndtri(uniform[:, normals])), 1e-300, 1 - 1e-16)
        rows = observe_rows(noise, clean, uniform, self.min_good_fraction)[0]
        return rows if noise_factor == 1.0 or not noise.config.by_row else self._changed(rows, 1.0, noise_factor)

    @cached_property
    def plain(self) -> Truth:
        """Rows without a fault."""
        theta, clean = self.drawn
        return Truth(self.observe(clean), theta)

    def wavelength(self, rows: PreparedRows) -> NDArray[np.float64]:
        """Observed wavelengths (row, wavelength), as far as the posterior is shown redshifts."""
        wave = np.asarray(self.posterior.grid.wavelength)
        if not self.posterior.noise.config.by_row:
            return np.broadcast_to(wave, rows.spectrum_good.shape)
        return wave * (1 + self.posterior.noise.redshift_of(rows.flux)[:, None])

    def times(self, factor: NDArray[np.float64]) -> PreparedRows:
        """Return the plain rows with flux and errors times a factor (row, wavelength)."""
        # Photometry does not share the faults of a spectrum.
        whole = np.pad(factor, [(0, 0), (0, self.plain.rows.bands)], constant_values=1.0)
        return self._changed(self.plain.rows, whole, 1 / whole)

    def without(self, lost: NDArray[np.bool_]) -> PreparedRows:
        """Return the plain rows without some elements (row, wavelength)."""
        rows, noise = self.plain.rows, self.posterior.noise
        good = rows.good & ~np.pad(lost, [(0, 0), (0, rows.bands)])
        before, after = (part[:, : rows.elements].mean(axis=1) for part in (rows.good, good))
        # A row without a spectrum has none to lose.
        some = (after >= self.min_good_fraction) | (before == 0)
        quality = rows.quality | np.where(some, 0, int(QualityFlag.FEW_GOOD_ELEMENTS))
        if noise.config.by_row:
            return replace(self._changed(rows, good, good), good=good, quality=quality)
        flux = rows.flux.copy()
        flux[some] = fill_flux(rows.flux[some], good[some], linear=noise.keeps_negative)
        return PreparedRows(flux, np.where(good, rows.ivar, 0.0), good, quality)

    def _changed(self, rows: PreparedRows, factor: Any, inverse_factor: Any) -> PreparedRows:
        if self.posterior.noise.config.by_row:
            flux, inverse, redshift = split_observed(rows.flux)
            inverse = inverse * inverse_factor
            return replace(rows, flux=join_observed(flux * factor, inverse, redshift), ivar=inverse**2)
        return replace(rows, flux=rows.flux * factor, ivar=rows.ivar * np.square(inverse_factor))

    def beyond(self, name: str) -> Truth:
        """Return rows whose parameter ``name`` lies above the end of its prior, where nothing was simulated."""
        posterior, prior = self.posterior, self.posterior.prior
        if name != SIGMA:
            prior = _of_one_spread(prior)
        theta, column = self.drawn[0].copy(), prior.index(name)
        if name != SIGMA and (spread := prior.bounds(SIGMA)):
            theta[:, prior.index(SIGMA)] = spread[0]
        end = float(prior.high[column])
        far = min(end * (1 + _OUTSIDE), _LARGEST.get(name, np.inf))
        share = row_uniforms(self.seed, f"beyond/{_STREAM}", 0, self.count, 1)[:, 0]
        theta[:, column] = end + (far - end) * share
        wide = Prior.of(prior.priors | {name: Uniform(low=end, high=far)})
        model = batched_model(posterior.model, wide, posterior.grid, posterior.noise.photometry_bands)
        if not posterior.noise.config.by_row:
            return Truth(self.observe(predict(model, wide, theta, np.nan)), theta)
        redshift = self.drawn[1][:, -1]
        clean = join_clean(predict(model, wide, theta, redshift), redshift)
        return Truth(self.observe(clean), theta)


FAULTS = (
    "calibration step of 10 %",
    "calibration slope of 10 %",
    "redshift off by 300 km/s",
    "redshift off by 500 km/s",
    "errors said to be half of what they are",
    "errors said to be twice what they are",
    "15 % masked at the blue end",
    "line spread 1.75 times as wide",
    "line spread wider than the prior",
    "dustier than the prior",
    "older than the prior",
)
"""Those of an audit, as far as a posterior's model can have them."""
BEYOND_PRIOR = {
    "line spread wider than the prior": SIGMA,
    "dustier than the prior": "dust2",
    "older than the prior": "tage",
}
"""Those of galaxies that lie where nothing was simulated, with the parameter that does; none where the prior ends near
what is possible.
"""
ALL_FAULTS = (*FAULTS, "redshift off by 3000 km/s", "gas of another ionisation")


def faulty_rows(simulator: Simulator, names: tuple[str, ...] = FAULTS) -> Iterator[tuple[str, Truth]]:
    """Yield the simulated rows with each fault that can be put into them, by its name.

    The step multiplies flux and errors by 0.9 from 6000 Angstrom (observed) on, and the slope takes them there from 1
    to 0.9 at 9900 Angstrom; on grids that do not have it, from their middle on.
    """
    if unknown := set(names) - set(ALL_FAULTS):
        raise ValueError(f"faults: expected some of {', '.join(ALL_FAULTS)}, found {', '.join(sorted(unknown))}")
    known = _known(simulator)
    for name in names:
        if name in known:
            yield name, known[name]()


def _known(simulator: Simulator) -> dict[str, Callable[[], Truth]]:
    posterior, model = simulator.posterior, simulator.posterior.model
    elements, prior = len(posterior.grid), posterior.prior

    def own(rows: PreparedRows) -> Truth:
        return Truth(rows, simulator.drawn[0])

    def made(noise_factor: float = 1.0, **settings: Any) -> Truth:
        theta, clean = simulator.spectra(**settings) if settings else simulator.drawn
        return Truth(simulator.observe(clean, noise_factor), theta)

    def times(shape: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Truth:
        wave = simulator.wavelength(simulator.plain.rows)
        low, high = float(posterior.grid.wavelength[0]), float(posterior.grid.wavelength[-1])
        inside = low + 0.1 * (high - low) < _STEP_ANGSTROM < high - 0.1 * (high - low)
        start, reach = (_STEP_ANGSTROM, _SLOPE_ANGSTROM) if inside else (0.5 * (low + high), 0.5 * (high - low))
        return own(simulator.times(shape((wave - start) / reach)))

    def gap() -> Truth:
        first = np.argmax(simulator.plain.rows.spectrum_good, axis=1)
        return own(simulator.without(np.arange(elements) < (first + 0.15 * elements)[:, None]))

    spreads: dict[str, dict[str, Any]] = {
        "velocity": {"smoothing_kms": _BROADER * model.smoothing_kms},
        "resolving_power": {"resolving_power": max(10.0, model.resolving_power / _BROADER)},
        "table": {
            "line_spread_resolving_power": tuple(max(10.0, r / _BROADER) for r in model.line_spread_resolving_power)
        },
    }
    found: dict[str, Callable[[], Truth]] = {
        "calibration step of 10 %": lambda: times(lambda x: np.where(x > 0, 0.9, 1.0)),
        "calibration slope of 10 %": lambda: times(lambda x: 1 - 0.1 * np.clip(x, 0, 1)),
        "redshift off by 300 km/s": lambda: made(velocity_kms=300.0),
        "redshift off by 500 km/s": lambda: made(velocity_kms=500.0),
        "redshift off by 3000 km/s": lambda: made(velocity_kms=3000.0),
        "errors said to be half of what they are": lambda: made(2.0),
        "errors said to be twice what they are": lambda: made(0.5),
        "15 % masked at the blue end": gap,
    }
    if SIGMA not in prior.names:
        found["line spread 1.75 times as wide"] = lambda: made(**spreads[model.line_spread])
    if model.nebular and "gas_logu" not in prior.names:
        found["gas of another ionisation"] = lambda: made(gas_logu=-3.5 if model.gas_logu > -2.75 else -2.0)
    for fault, name in BEYOND_PRIOR.items():
        if (ends := prior.bounds(name)) and ends[1] < 0.9 * _LARGEST.get(name, np.inf):
            found[fault] = partial(simulator.beyond, name)
    return found


def _of_one_spread(prior: Prior) -> Prior:
    """Return the prior with one line spread where it has many: a model of all of them takes long to build."""
    if (ends := prior.bounds(SIGMA)) is None:
        return prior
    middle = float(np.sqrt(np.prod(ends)))
    return Prior.of(prior.priors | {SIGMA: Uniform(low=middle, high=1.001 * middle)})
