"""One shard of the simulations: its draws, its spectra and their check."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from digs_survey.config import ModelConfig, SurveyConfig
from digs_survey.errors import StageError
from digs_survey.noise.donors import Redshifts
from digs_survey.prior import Prior
from digs_survey.simulate.prior_draws import draw_redshift, draw_theta
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.shard_work import Made, ShardWriter
from digs_survey.simulate.trial import TRIAL_ROWS, TRIAL_S, Trial
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import one_thread
from digs_survey.sps.bands import BandKey, Bands
from digs_survey.sps.universe import physical_names, physical_theta

if TYPE_CHECKING:
    from digs_survey.sps.batched import BatchedModel
    from digs_survey.sps.paired import PairedModel
    from digs_survey.sps.param_file import FileSimulator, ParamFile
    from digs_survey.sps.prospector import ProspectorSimulator

__all__ = ["SpectrumShards", "checked_rows"]

_CHECK_EVERY, _CHECK_AT_LEAST, _CHECK_LIMIT = 100, 200, 0.005
"""With engine "auto", Prospector computes one row in so many, at least so many; and what ends the run."""


class _Key(NamedTuple):
    """What decides a simulator, which is built once for each process."""

    model: str
    prior: Prior
    wavelength: tuple[float, ...]
    frame: str
    medium: str
    bands: BandKey | None
    param_file: ParamFile | None

    def parts(self) -> tuple[ModelConfig, Prior, WavelengthGrid]:
        """Return the model, the prior and the grid."""
        grid = WavelengthGrid(np.array(self.wavelength), self.frame, self.medium)
        return ModelConfig.model_validate_json(self.model), self.prior, grid

    def filters(self) -> Bands | None:
        """Return the filters of photometry."""
        return None if self.bands is None else Bands(*self.bands)


@dataclass(frozen=True)
class SpectrumShards(ShardWriter):
    """What a worker needs to make any shard of a set of simulations, given its number.

    Attributes
    ----------
    config : SurveyConfig
    grid : WavelengthGrid
    redshifts : Redshifts or None
        Of simulations that have one.
    bands : Bands or None
        Filters of simulations that have photometry.
    param_file : ParamFile or None
        The model's, where it has one.
    """

    stage: ClassVar[str] = "simulate"

    config: SurveyConfig
    grid: WavelengthGrid
    redshifts: Redshifts | None
    bands: Bands | None = None
    param_file: ParamFile | None = None

    def compute(self, parts: Sequence[slice]) -> Iterator[Made]:
        """Draw parameters, and compute and check their spectra."""
        recipe, prior = self.recipe, self.config.make_prior()
        for rows in parts:
            theta = draw_theta(prior, recipe["seed"], recipe["stream"], rows.start, rows.stop, recipe["sampling"])
            redshift = self._redshift(rows)
            both, check = self._spectra(prior, physical_theta(prior, theta, redshift), rows)
            _check(theta, both, prior, rows.start)
            flux, light = both[:, : len(self.grid)], both[:, len(self.grid) :]
            made: dict[str, NDArray[Any]] = {"theta": theta, "flux": flux}
            if self.bands is not None:
                made |= {"light": light, "photometry": self.bands.maggies(light.astype(float), redshift)}
            yield made | ({} if self.redshifts is None else {"redshift": redshift}), check

    def trial(self) -> Trial:
        """Time a few spectra of Prospector's, for an estimate of what all will take."""
        began, prior = time.monotonic(), self.config.make_prior()
        rows = slice(0, min(TRIAL_ROWS, self.total))
        theta = draw_theta(prior, self.recipe["seed"], "trial", rows.start, rows.stop)
        theta = physical_theta(prior, theta, self._redshift(rows))
        simulator = _simulator(self._key(prior))
        # FSPS reads each metallicity when it is first asked for, and keeps it: only a second pass takes what others do.
        last = 0
        for last, row in enumerate(theta, 1):
            _all_of(simulator, row[None])
            if last > 1 and time.monotonic() - began > TRIAL_S:
                break
        ends = [time.monotonic()]
        for row in theta[:last]:
            _all_of(simulator, row[None])
            ends.append(time.monotonic())
        return Trial(ends[0] - began, float(np.median(np.diff(ends))), last)

    def _key(self, prior: Prior) -> _Key:
        grid, bands = self.grid, None if self.bands is None else self.bands.key
        shape = tuple(grid.wavelength), grid.frame, grid.medium
        return _Key(self.config.model.model_dump_json(), prior, *shape, bands, self.param_file)

    def _redshift(self, rows: slice) -> NDArray[np.float64]:
        """Redshifts of some rows; NaN where simulations have none."""
        if self.redshifts is None:
            return np.full(rows.stop - rows.start, np.nan)
        recipe = self.recipe
        return draw_redshift(self.redshifts, recipe["seed"], recipe["stream"], rows.start, rows.stop)

    def _spectra(
        self, prior: Prior, theta: NDArray[np.float64], rows: slice
    ) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Compute the spectra of some rows, with the light that photometry sees behind them, and what the ledger keeps
        of their check.
        """
        key = self._key(prior)
        if self.recipe["engine"] == "prospector":
            return _all_of(_simulator(key), theta).astype(np.float32), {}
        batched = _batched(key)
        with one_thread():
            flux = _all_of(batched, theta)
        if self.config.simulate.engine == "batched":
            return flux.astype(np.float32), {}
        some = checked_rows(self.recipe["seed"], self.recipe["stream"], self.recipe["count"], rows) - rows.start
        difference = np.abs(flux[some] / _all_of(_simulator(key), theta[some]) - 1).max(axis=1, initial=0.0)
        if (difference > _CHECK_LIMIT).any():
            worst = int(some[difference.argmax()])
            values = _values(physical_names(prior), theta[worst])
            raise StageError(
                f"simulation {rows.start + worst} ({values}): the batched spectrum and Prospector's differ by "
                f"{difference.max():.2%}, more than {_CHECK_LIMIT:.1%}; "
                "use simulate.engine = 'prospector', and report it"
            )
        return flux.astype(np.float32), {"checked": len(some), "max_difference": float(difference.max(initial=0.0))}


def checked_rows(seed: int, stream: str, count: int, rows: slice) -> NDArray[np.int64]:
    """Return which of some rows Prospector computes too: a random one of each hundred, or more if they are few.

    Every so many-th row would not do: of a Sobol sequence they lie together in a corner of the prior.
    """
    every = max(1, min(_CHECK_EVERY, count // _CHECK_AT_LEAST))
    first, last = rows.start // every, -(-rows.stop // every)
    uniform = row_uniforms(seed, f"check/{stream}", first, last, 1)[:, 0]
    found = np.arange(first, last) * every + (uniform * every).astype(np.int64)
    return found[(found >= rows.start) & (found < rows.stop)]


def _all_of(model: Any, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spectra (n, wavelength), with the light of :class:`PairedModel` (n, wavelength + coarse element) behind them."""
    if not hasattr(model, "parts"):
        return np.asarray(model.spectra(theta))
    return np.concatenate(model.parts(theta), axis=1)


@lru_cache(maxsize=1)
def _simulator(key: _Key) -> ProspectorSimulator | PairedModel | FileSimulator:
    from digs_survey.sps.paired import prospector_model
    from digs_survey.sps.param_file import simulator_of

    model, prior, grid = key.parts()
    if model.param_file is not None:
        return simulator_of(model, prior, grid, key.param_file)
    return prospector_model(model, prior, grid, key.filters())


@lru_cache(maxsize=1)
def _batched(key: _Key) -> BatchedModel | PairedModel:
    from digs_survey.sps.paired import batched_model

    return batched_model(*key.parts(), key.filters())


def _values(names: Sequence[str], theta: NDArray[np.float64]) -> str:
    return ", ".join(f"{name}={value:.6g}" for name, value in zip(names, theta, strict=True))


def _check(theta: NDArray[np.float64], flux: NDArray[np.float32], prior: Prior, first: int) -> None:
    good = np.isfinite(flux) & (flux > 0)
    bad = np.flatnonzero(~good.all(axis=1))
    if bad.size:
        row = int(bad[0])
        wrong = flux[row][~good[row]]
        raise StageError(
            f"simulation {first + row} ({_values(prior.names, theta[row])}): expected finite, positive flux in every "
            f"element, found {wrong[0]} ({bad.size} such spectra in the shard); "
            "narrow the prior or the grid to what the stellar populations cover"
        )
