"""What the benchmarks of the posterior for rows of any noise share: its option, how it is found, and simulated rows."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digs_survey.audit.calibration.calibrate import observe_rows
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import load_config
from digs_survey.errors import ConfigError
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.importance.psis import smooth_tail
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import effective_sample_size, log_ratios, weighted_quantiles
from digs_survey.quality import NO_POSTERIOR
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.sps.batched import BatchedModel

__all__ = [
    "MIN_ESS",
    "SNR_EDGES",
    "WeighedDraws",
    "add_model_option",
    "simulated_rows",
    "survey_folder",
    "survey_posterior",
]

SNR_EDGES = (0.0, 5.0, 10.0, 15.0, 30.0, np.inf)
"""Of the bins in the median S/N of an element."""
MIN_ESS = 50
"""Draws that weights must be worth for percentiles of the exact posterior."""


def add_model_option(options: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    options.add_argument("--model", type=Path, help="folder of a posterior (default: the shipped one of survey)")


def survey_folder(folder: Path | None) -> Path:
    """Return the folder that ``--model`` names, or that of the shipped posterior of the preset survey."""
    found = folder or shipped().get("survey")
    if found is None:
        raise ConfigError("no posterior of the preset survey ships with this version; give --model")
    return found


def survey_posterior(folder: Path | None) -> FrozenPosterior:
    """Read the posterior that ``--model`` names, or the shipped one of the preset survey."""
    return FrozenPosterior.load(survey_folder(folder))


def simulated_rows(
    posterior: FrozenPosterior, seed: int, stream: str, count: int
) -> tuple[NDArray[np.float64], PreparedRows]:
    """Simulate rows as the posterior's noise describes them, without those that get no posterior.

    Parameters
    ----------
    posterior : FrozenPosterior
        Whose model is simulated.
    seed : int
    stream : str
    count : int

    Returns
    -------
    theta : ndarray, shape (n, parameter)
    rows : PreparedRows
        As the map of the preset prepares rows of a catalog. The simulations have an error floor of their own.
    """
    model, noise = BatchedModel.from_config(posterior.model, posterior.prior, posterior.grid), posterior.noise
    theta, clean = simulated_spectra(model, posterior.prior, noise, seed, stream, 0, count)
    uniform = row_uniforms(seed, f"noise/{stream}", 0, count, noise.columns(clean.shape[1]))
    rows, _ = observe_rows(noise, clean, uniform, load_config("survey").map.min_good_fraction)
    kept = (rows.quality & NO_POSTERIOR) == 0
    return theta[kept], rows.take(kept)


class WeighedDraws:
    """Draws of the neural posterior of each row, and the exact posterior by their importance weights.

    Parameters
    ----------
    theta : ndarray, shape (row, draw, parameter)
    log_weights : ndarray, shape (row, draw)

    Attributes
    ----------
    theta : ndarray, shape (row, draw, parameter)
    ess : ndarray, shape (row,)
        How many draws of the exact posterior they are worth.
    median, width : ndarray, shape (row, parameter)
        Median and half the 16-84 % width of the exact posterior; NaN where they are worth less than :data:`MIN_ESS`.
    """

    def __init__(self, theta: NDArray[np.float64], log_weights: NDArray[np.float64]) -> None:
        self.theta, self.ess = theta, effective_sample_size(log_weights)
        self.median, self.width = (np.full((len(theta), theta.shape[2]), np.nan) for _ in range(2))
        for row in np.flatnonzero(self.ess >= MIN_ESS):
            low, middle, high = weighted_quantiles(theta[row], smooth_tail(log_weights[row])[0], (0.16, 0.5, 0.84)).T
            self.median[row], self.width[row] = middle, 0.5 * (high - low)

    @classmethod
    def of(cls, posterior: FrozenPosterior, rows: PreparedRows, draws: int) -> WeighedDraws:
        """Draw from the posterior of each row, and weigh the draws."""
        theta, likelihood = posterior.sample(rows.flux, draws), SpectrumLikelihood.of_posterior(posterior)
        return cls(theta, log_ratios(posterior, likelihood, theta, rows.flux, rows.good))
