"""A problem whose posterior is known: standard-normal parameters seen through a matrix, with normal noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

__all__ = ["NAMES", "NOISE", "LinearGaussian"]

NAMES = ("a", "b", "c", "d", "e")
NOISE = 0.3


class LinearGaussian:
    """Five parameters and four data, so that the posterior is correlated and one direction is the prior's alone."""

    def __init__(self) -> None:
        self.design = np.random.default_rng(8).normal(size=(4, len(NAMES)))
        self.covariance = np.linalg.inv(self.design.T @ self.design / NOISE**2 + np.eye(len(NAMES)))
        self.root = np.linalg.cholesky(self.covariance)

    def simulate(
        self, rng: np.random.Generator, count: int, draws: int, noise: float = NOISE
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Truths (count, parameter), and draws (count, draws, parameter) of the posterior for the known noise.

        The data have ``noise``, whatever the posterior believes.
        """
        theta = rng.normal(size=(count, len(NAMES)))
        x = theta @ self.design.T + noise * rng.normal(size=(count, len(self.design)))
        mean = x @ self.design @ self.covariance / NOISE**2
        return theta, mean[:, None] + rng.normal(size=(count, draws, len(NAMES))) @ self.root.T

    def cdf(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distribution function of the prior."""
        return ndtr(theta)
