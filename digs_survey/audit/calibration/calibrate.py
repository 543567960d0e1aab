"""A posterior calibrated on simulations: blocks of these are observed, drawn for and counted, here or by Ray's workers.

A block depends on the run's seed and its place alone, so that the outcome is the same bytes on any number of workers.
Its spectra go the way of a catalog's rows: :func:`~digs_survey.catalog.prepare.prepare` fills what is missing, or not
positive where such flux is no data, and leaves out whatever has too few good elements.
:meth:`~digs_survey.estimator.posterior.FrozenPosterior.sample` gives the draws that
:meth:`~digs_survey.estimator.posterior.FrozenPosterior.draw_and_judge` gives the map, from the same points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from digs_survey.audit.calibration.blocks import SimulationBlocks, run_blocks
from digs_survey.audit.calibration.calibration import RECOVERY, Calibration, calibrate
from digs_survey.audit.calibration.faults import standard_faults
from digs_survey.audit.calibration.uniformity import verdict
from digs_survey.catalog import CatalogRows
from digs_survey.catalog.prepare import PreparedRows, prepare
from digs_survey.config import MapConfig
from digs_survey.errors import ConfigError, RunDirectoryError
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import RowBands, observed_rows
from digs_survey.noise.row_noise import RowNoise
from digs_survey.quality import NO_POSTERIOR
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.sps.arrays import one_thread

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior
    from digs_survey.noise.model import NoiseModel

__all__ = ["Observer", "calibrate_model", "calibrate_posterior", "observe_rows"]

_BLOCK = 256
"""Simulations whose draws are held at the same time."""
_PLANTED_DRAWS = 250
"""Draws of each simulation in which faults are planted: enough for the sizes of these."""
_AGAIN = 8
"""Draws of each simulation that stand for truths, to tell what the exact posterior would show."""
_ANY_REDSHIFT = 1.0
"""Simulations are at the distance of ``model.zred`` already, wherever that is."""
_Figures = dict[str, Calibration]
"""Of the posterior, under "", and of the posterior with each fault."""


def observe_rows(
    noise: NoiseModel, clean: ArrayLike, uniform: NDArray[np.float64], min_good_fraction: float
) -> tuple[PreparedRows, NDArray[np.float64] | None]:
    """Observe noiseless spectra, and prepare them as rows of a catalog are prepared for the posterior.

    Parameters
    ----------
    noise : NoiseModel
    clean : array_like, shape (n, wavelength)
        At the distance of ``model.zred``.
    uniform : ndarray, shape (n, noise.columns(wavelength))
        As :meth:`~digs_survey.noise.model.NoiseModel.observe` takes it.
    min_good_fraction : float
        Share of good elements below which a row gets no posterior.

    Returns
    -------
    rows : PreparedRows
    errors : ndarray, shape (terms, n, wavelength), or None
        As :meth:`~digs_survey.noise.model.NoiseModel.observe` gives them.
    """
    noisy, good, errors = noise.observe(clean, uniform)
    if isinstance(noise, RowNoise):
        flux, inverse, redshift = split_observed(noisy)
        # The simulations have their own error floor.
        settings = MapConfig(error_floor=0.0, min_good_fraction=min_good_fraction)
        elements, quality = flux.shape[1] - noise.band_count, np.zeros(len(noisy), dtype=np.int64)
        some, rest = slice(elements), slice(elements, None)
        # The floors of photometry are in its errors already, as that of the spectrum is.
        bands = RowBands.of(noise, flux[:, rest], inverse[:, rest]) if noise.band_count else None
        rows = observed_rows(flux[:, some], inverse[:, some], redshift, quality, settings, bands)
        return rows, errors
    # Of what is observed only: one that knows the noiseless flux would know of the truth.
    with np.errstate(divide="ignore", invalid="ignore"):
        ivar = noise.sigma(np.abs(noisy), errors) ** -2.0
    count = len(noisy)
    catalog_rows = CatalogRows(
        flux=noisy,
        ivar=ivar,
        good=good,
        redshift=np.full(count, _ANY_REDSHIFT),
        galaxy_id=np.arange(count),
        quality=np.zeros(count, dtype=np.int64),
        maggies=np.zeros((count, 0)),
        maggies_ivar=np.zeros((count, 0)),
    )
    return prepare(catalog_rows, "rest", _ANY_REDSHIFT, min_good_fraction, keeps_negative=noise.keeps_negative), errors


@dataclass(frozen=True)
class Observer:
    """Calibrates blocks of simulations that are at hand.

    Attributes
    ----------
    posterior : FrozenPosterior
    noise : NoiseModel
        From which each simulation gets one draw, which depends on the seed and its row alone.
    seed : int
        The run's seed.
    draws : int
        Posterior draws for each simulation.
    quantiles : tuple of float
        At which percentiles are kept.
    min_good_fraction : float
        Share of good elements below which a row gets no posterior.
    plant : bool
        Also calibrate the posterior with each of the standard faults.
    """

    posterior: FrozenPosterior
    noise: NoiseModel
    seed: int
    draws: int
    quantiles: tuple[float, ...]
    min_good_fraction: float
    plant: bool

    def block(self, start: int, theta: NDArray[np.float64], clean: NDArray[np.float64]) -> _Figures:
        """Calibrate theta (n, parameter) with noiseless flux (n, wavelength) of the rows from ``start`` on."""
        # How a product is shared among threads changes its last digits.
        with one_thread():
            return self._block(start, theta, clean)

    def _block(self, start: int, theta: NDArray[np.float64], clean: NDArray[np.float64]) -> _Figures:
        stop, noise, prior = start + len(theta), self.noise, self.posterior.prior
        uniform = row_uniforms(self.seed, "noise/calibration", start, stop, noise.columns(clean.shape[1]))
        rows, _ = observe_rows(noise, clean, uniform, self.min_good_fraction)
        references = row_uniforms(self.seed, "tarp/calibration", start, stop, theta.shape[1] + 1)
        again = row_uniforms(self.seed, "edges/calibration", start, stop, _AGAIN)
        kept = np.flatnonzero((rows.quality & NO_POSTERIOR) == 0)
        theta, references, flux = theta[kept], references[kept], rows.flux[kept]
        snr = _typical_snr(rows.take(kept))
        right, rng = self.posterior.sample(flux, self.draws), np.random.default_rng([self.seed, start])
        about: dict[str, NDArray[np.float64]] = {"snr": snr}
        if noise.config.by_row:
            about |= {"redshift": noise.redshift_of(flux), "good_share": rows.spectrum_good[kept].mean(axis=1)}
        whole = calibrate(theta, right, self.quantiles, prior, references, again=again[kept], **about)
        found = {"": replace(whole, without_posterior=stop - start - kept.size)}
        for fault in standard_faults(prior.names) if self.plant else ():
            wrong = fault.plant(right[:, :_PLANTED_DRAWS], rng)
            found[fault.name] = calibrate(theta, wrong, (), prior, references, **about)
        return found


def _typical_snr(rows: PreparedRows) -> NDArray[np.float64]:
    """Median signal-to-noise ratio (row,) of the good elements, or of the bands of a row that has no spectrum."""
    elements, every = rows.elements, rows.good.shape[1]
    snr = np.where(rows.good, rows.flux[:, :every] * np.sqrt(rows.ivar), np.nan)
    alone = ~rows.spectrum_good.any(axis=1)
    snr[~alone, elements:] = np.nan
    return np.asarray(np.nanmedian(snr, axis=1))


@dataclass(frozen=True)
class _Calibrated(SimulationBlocks[_Figures]):
    """Simulations to be calibrated on."""

    observer: Observer
    doing: ClassVar[str] = "calibration on"

    def work(self, start: int, theta: NDArray[np.float64], flux: NDArray[np.float64]) -> _Figures:
        return self.observer.block(start, theta, flux)


def calibrate_posterior(
    posterior: FrozenPosterior,
    path: Path,
    noise: NoiseModel,
    seed: int,
    draws: int,
    quantiles: Sequence[float] = RECOVERY,
    limit: int | None = None,
    *,
    min_good_fraction: float | None = None,
    workers: int | None = 0,
    address: str | None = None,
) -> Calibration:
    """Calibrate a frozen posterior on simulations on disk, a block of rows at a time.

    Parameters
    ----------
    posterior : FrozenPosterior
    path : Path
        ``calibration.zarr``: theta and noiseless flux, drawn independently of the training set; with a cluster, a path
        that its workers see too.
    noise : NoiseModel
        From which each simulation gets one draw.
    seed : int
        The run's seed. The noise of a simulation depends on it and on its row alone.
    draws : int
        Posterior draws for each simulation.
    quantiles : sequence of float
        At which percentiles are kept.
    limit : int, optional
        Use the first rows only.
    min_good_fraction : float, optional
        Share of good elements below which a row gets no posterior; by default that of ``map``.
    workers : int or None
        Ray actors of one core that the blocks are spread over: none at all (0: this process does the work), so many, or
        (None) as many as there are cores. The figures are the same bytes.
    address : str, optional
        A running Ray cluster; without it, this machine's cores are used.

    Raises
    ------
    RunDirectoryError
        There are no simulations at ``path``.
    StageError
        A block failed twice, or worker after worker died on it.
    """
    arrays = dict(zarr.open_group(str(path), mode="r").arrays())
    if not {"theta", "flux"} <= set(arrays):
        raise RunDirectoryError(f"{path}: expected arrays theta and flux, found {sorted(arrays)}; simulate it again")
    count = arrays["theta"].shape[0] if limit is None else min(limit, arrays["theta"].shape[0])
    if count == 0:
        raise RunDirectoryError(f"{path}: expected at least one simulation, found none; simulate it again")
    observer = Observer(posterior, noise, seed, draws, tuple(quantiles), _good_fraction(min_good_fraction), plant=True)
    blocks, used_s = run_blocks(_Calibrated(path, count, _BLOCK, observer), workers=workers, address=address)
    return replace(_joined(blocks, posterior.prior.names), core_s=used_s)


def calibrate_model(
    posterior: FrozenPosterior,
    count: int,
    seed: int,
    *,
    draws: int = 1_000,
    quantiles: Sequence[float] = RECOVERY,
    min_good_fraction: float | None = None,
    plant: bool = False,
    noise: NoiseModel | None = None,
) -> Calibration:
    """Calibrate a frozen posterior on simulations that are made here, in batches, and not kept.

    They are those of the audit stage of a run with this seed: the same theta and the same noise, and the spectra
    that ``simulate.engine = "batched"`` gives. Memory does not grow with their number.

    Parameters
    ----------
    posterior : FrozenPosterior
        Its own model is simulated, and its own noise applied.
    count : int
        Simulations.
    seed : int
    draws : int
        Posterior draws for each simulation.
    quantiles : sequence of float
        At which percentiles are kept.
    min_good_fraction : float, optional
        Share of good elements below which a row gets no posterior; by default that of ``map.min_good_fraction``.
    plant : bool
        Also tell which planted faults these simulations would show.
    noise : NoiseModel, optional
        In the place of the posterior's own, such as that of other conditions.

    Raises
    ------
    ConfigError
        If ``count`` is not positive.
    MissingDependencyError
        If the data of the model's stellar populations are missing.
    """
    from digs_survey.sps.paired import batched_model

    if count < 1:
        raise ConfigError(f"expected at least one simulation to calibrate on, found {count}")
    noise = posterior.noise if noise is None else noise
    model = batched_model(posterior.model, posterior.prior, posterior.grid, noise.photometry_bands)
    least = _good_fraction(min_good_fraction)
    observer = Observer(posterior, noise, seed, draws, tuple(quantiles), least, plant)

    def block(start: int) -> _Figures:
        what = model, posterior.prior, noise, seed, "calibration"
        return observer.block(start, *simulated_spectra(*what, start, min(start + _BLOCK, count)))

    return _joined([block(start) for start in range(0, count, _BLOCK)], posterior.prior.names)


def _good_fraction(asked: float | None) -> float:
    return MapConfig().min_good_fraction if asked is None else asked


def _joined(blocks: Sequence[_Figures], names: Sequence[str]) -> Calibration:
    """Join blocks in their order; of those with faults only what the tests say is kept."""
    whole = Calibration.join([block[""] for block in blocks])
    faults = [name for name in blocks[0] if name]
    if len(whole.theta) < 2:
        return whole
    planted = {name: verdict(Calibration.join([b[name] for b in blocks]).tests(names))[0] for name in faults}
    return replace(whole, planted=planted)
