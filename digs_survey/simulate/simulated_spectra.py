"""Noiseless simulations that are made at hand, and not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import join_clean
from digs_survey.prior import Prior
from digs_survey.simulate.prior_draws import draw_redshift, draw_theta
from digs_survey.sps.paired import predict

if TYPE_CHECKING:
    from digs_survey.sps.batched import BatchedModel
    from digs_survey.sps.paired import PairedModel

__all__ = ["simulated_spectra"]


def simulated_spectra(
    model: BatchedModel | PairedModel, prior: Prior, noise: NoiseModel, seed: int, stream: str, start: int, stop: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Simulate the rows ``start`` to ``stop`` of a stream, as they would be read from disk.

    Parameters
    ----------
    model : BatchedModel or PairedModel
    prior : Prior
        That theta are drawn from.
    noise : NoiseModel
        With row noise, simulations have redshifts.
    seed : int
        Of the run.
    stream : str
        Such as "calibration"; streams are independent of each other.
    start, stop : int
        Range of rows; any range is a slice of the whole.

    Returns
    -------
    theta : ndarray, shape (stop - start, ndim)
    clean : ndarray, shape (stop - start, wavelength), or (stop - start, wavelength + 1) with redshifts
        Bands count as elements. In single precision, as on disk.
    """
    theta = draw_theta(prior, seed, stream, start, stop)
    if noise.redshifts is None:
        clean = predict(model, prior, theta, np.nan)
    else:
        redshift = draw_redshift(noise.redshifts, seed, stream, start, stop)
        clean = join_clean(predict(model, prior, theta, redshift), redshift)
    return theta, clean.astype(np.float32).astype(float)
