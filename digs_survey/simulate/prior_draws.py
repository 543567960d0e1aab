"""Draws of the parameters from the prior, which belong to rows: any range of rows is a slice of the whole."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from digs_survey.noise.donors import Redshifts
from digs_survey.prior import Prior
from digs_survey.simulate.seeding import row_uniforms, stream_key

__all__ = ["draw_redshift", "draw_theta", "sobol_uniforms"]

_SOBOL_BITS = 30


def draw_theta(
    prior: Prior, seed: int, stream: str, start: int, stop: int, draws: Literal["random", "sobol"] = "random"
) -> NDArray[np.float64]:
    """Draw the parameters of the simulations ``start`` to ``stop`` from the prior.

    Parameters
    ----------
    prior : Prior
    seed : int
        Seed of the run.
    stream : str
        "simulate" or "calibration"; draws of different streams are independent.
    start, stop : int
        Range of rows; any range is a slice of the whole.
    draws : {"random", "sobol"}
        Independent draws, or a scrambled Sobol sequence, which fills the prior more evenly.

    Returns
    -------
    ndarray of float64, shape (stop - start, ndim)
        In the units of the parameters.
    """
    uniforms = sobol_uniforms if draws == "sobol" else row_uniforms
    return prior.from_unit_cube(uniforms(seed, f"theta/{stream}", start, stop, prior.ndim))


def draw_redshift(redshifts: Redshifts, seed: int, stream: str, start: int, stop: int) -> NDArray[np.float64]:
    """Draw the redshifts (stop - start,) of simulations; see :func:`draw_theta`."""
    return redshifts.from_uniform(row_uniforms(seed, f"redshift/{stream}", start, stop, redshifts.columns))


def sobol_uniforms(seed: int, stream: str, start: int, stop: int, columns: int) -> NDArray[np.float64]:
    """Rows ``start`` to ``stop`` of a Sobol sequence, scrambled by the seed and the stream.

    Each row is uniform by itself, but the rows are not independent of each other: nothing that counts on
    independent draws may take them. The scrambling is Matousek's (1998, J. Complexity 14, 527), scipy's.

    Parameters
    ----------
    seed : int
        Seed of the run.
    stream : str
        Name of the use.
    start, stop : int
        Range of rows; a sequence has 2**30.
    columns : int
        Numbers for each row.

    Returns
    -------
    ndarray of float64, shape (stop - start, columns)
        Strictly between 0 and 1.
    """
    engine = qmc.Sobol(columns, bits=_SOBOL_BITS, rng=np.random.default_rng(stream_key(seed, stream)))
    if start:
        engine.fast_forward(start)
    with warnings.catch_warnings():
        # The whole sequence is what is balanced, and its length is the user's.
        warnings.filterwarnings("ignore", message="The balance properties of Sobol' points")
        points = engine.random(stop - start)
    return points + 0.5 ** (_SOBOL_BITS + 1)
