"""Where training gets noisy spectra: fresh noise on simulations for every batch, or pairs that lie on disk.

Either says which rows no weight is trained on. Of pairs these are all copies of some simulations: a copy in the
training split would tell the network the validation spectra's theta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from digs_survey.config import SurveyConfig
from digs_survey.errors import StageError
from digs_survey.estimator.training.fresh_noise import noisy_rows
from digs_survey.estimator.training.training_data import HELD_AT_MOST, Pairs, Simulations, held_rows
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.seeding import stream_key

__all__ = ["FreshNoise", "Prepared", "Source", "StoredPairs"]

_FEATURE_ROWS = 50_000


@dataclass(frozen=True)
class Prepared:
    """Rows that are read once, before training.

    Attributes
    ----------
    theta : ndarray of float64, shape (held, ndim)
        Of the validation rows.
    flux : ndarray of float32, shape (held, wavelength)
        Their spectra, which :meth:`Source.noisy` has not seen yet.
    noisy : ndarray, shape (n, wavelength)
        Spectra of the training split that the features' statistics are those of.
    noiseless : ndarray of float32, shape (n, wavelength)
    statistics_theta : ndarray of float64, shape (n, ndim)
    light : ndarray of float32, shape (n, coarse element), or None
        What filters see of the same galaxies, where rows have photometry.
    """

    theta: NDArray[np.float64]
    flux: NDArray[np.float32]
    noisy: NDArray[np.floating]
    noiseless: NDArray[np.float32]
    statistics_theta: NDArray[np.float64]
    light: NDArray[np.float32] | None = None


class Source(Protocol):
    """Noisy spectra for training."""

    @property
    def rows(self) -> Simulations:
        """What is streamed."""

    @property
    def held(self) -> NDArray[np.int64]:
        """Sorted rows that no weight is trained on."""

    def prepare(self) -> Prepared:
        """Read and check all rows once; return those for validation and for the features' statistics."""

    def noisy(self, flux: Tensor, stream: str, first: int = 0) -> Tensor:
        """Return what the network is shown (n, wavelength) of the rows from ``first`` on of the batch ``stream``."""


class FreshNoise:
    """Noiseless simulations, on which every batch gets noise of its own.

    Parameters
    ----------
    config : SurveyConfig
    simulations : Simulations
    noise : NoiseModel
    """

    def __init__(self, config: SurveyConfig, simulations: Simulations, noise: NoiseModel) -> None:
        self.seed, self.rows, self.noise = config.seed, simulations, noise
        self.held = held_rows(len(simulations), config.train.validation_fraction, config.seed)

    def prepare(self) -> Prepared:
        """Read and check all rows once; return those for validation and for the features' statistics."""
        chosen = _statistics_rows(self.rows, self.held, self.seed)
        validation, (theta, flux) = self.rows.gather(self.held, chosen)
        rng = np.random.default_rng(stream_key(self.seed, "features/noise"))
        return Prepared(*validation, self.noise.draw(flux, rng), flux, theta, self.rows.light(chosen))

    def noisy(self, flux: Tensor, stream: str, first: int = 0) -> Tensor:
        """Put noise on rows of a batch."""
        return noisy_rows(flux, self.noise, self.seed, stream, first)


class StoredPairs:
    """Noisy copies of simulations, as the augment stage wrote them.

    Parameters
    ----------
    config : SurveyConfig
    simulations : Simulations
        The noiseless ones that were copied.
    pairs : Pairs

    Raises
    ------
    StageError
        If there are not as many pairs as the simulations have copies.
    """

    def __init__(self, config: SurveyConfig, simulations: Simulations, pairs: Pairs) -> None:
        if len(pairs) != len(simulations) * pairs.copies:
            raise StageError(
                f"train: expected {pairs.copies} pairs of each of {len(simulations)} simulations, found {len(pairs)} "
                "pairs; make them again (digs-survey augment --redo)"
            )
        self.seed, self.rows, self.simulations = config.seed, pairs, simulations
        held = held_rows(len(simulations), config.train.validation_fraction, config.seed)
        self.held = _copies(held, pairs.copies, pairs.copies)
        # Of many copies some are enough for the validation loss; the others are not trained on either.
        self.validated = _copies(held, pairs.copies, min(pairs.copies, max(1, HELD_AT_MOST // len(held))))

    def prepare(self) -> Prepared:
        """Read and check all pairs and simulations once; return those for validation and for statistics."""
        chosen = _statistics_rows(self.rows, self.held, self.seed)
        validation, (theta, noisy) = self.rows.gather(self.validated, chosen)
        copied, which = np.unique(chosen // self.rows.copies, return_inverse=True)
        ((_, noiseless),) = self.simulations.gather(copied)
        return Prepared(*validation, noisy, noiseless[which], theta)

    def noisy(self, flux: Tensor, stream: str, first: int = 0) -> Tensor:
        """Return the spectra as they are: they have their noise."""
        return flux


def _statistics_rows(rows: Simulations, held: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return at most 50,000 rows of the training split, sorted."""
    rng = np.random.default_rng(stream_key(seed, "features"))
    chosen = rng.choice(len(rows), min(len(rows), _FEATURE_ROWS), replace=False, shuffle=False)
    return np.setdiff1d(chosen, held)


def _copies(simulations: NDArray[np.int64], copies: int, some: int) -> NDArray[np.int64]:
    """Return the rows of the first ``some`` copies of each of some simulations."""
    return (simulations[:, None] * copies + np.arange(some)).ravel()
