"""The posterior of one galaxy as emcee calls it: Prospector's spectrum, the survey's noise and our prior."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.parameters import Prior

if TYPE_CHECKING:
    from digs_survey.simulate.noise import NoiseModel

__all__ = ["ProspectorPosterior", "Simulator"]


class Simulator(Protocol):
    """What predicts a spectrum: :class:`~digs_survey.sps.prospector.ProspectorSimulator`."""

    def spectrum(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict a noiseless spectrum (wavelength,) for theta (parameter,)."""
        ...


class ProspectorPosterior:
    """Log posterior density of one galaxy.

    The likelihood is that of the noise about the *model's* flux, the density that simulations were drawn
    from. Where noise is white it is also what ``prospect.likelihood.lnlike_spec`` gives for that uncertainty
    (in log10 quantities, if it is Gaussian there); a test holds the two together.

    Parameters
    ----------
    simulator : Simulator
    noise : NoiseModel
    prior : Prior
    flux : array_like, shape (wavelength,)
        The observation, in the simulator's unit.
    good : array_like of bool, shape (wavelength,)
        Elements that count; positive flux is expected of them where noise is Gaussian in log10 flux.
    errors : array_like, shape (terms, wavelength), optional
        For catalog noise: the observation's own.
    """

    def __init__(
        self,
        simulator: Simulator,
        noise: NoiseModel,
        prior: Prior,
        flux: ArrayLike,
        good: ArrayLike,
        errors: ArrayLike | None = None,
    ) -> None:
        self._predict, self._noise = simulator.spectrum, noise
        self._low, self._high = prior.low, prior.high
        self._log_prior = float(prior.log_prob(0.5 * (prior.low + prior.high)))
        self._flux, self._good, self._errors = flux, good, errors

    def __call__(self, theta: NDArray[np.float64]) -> float:
        """Log density at theta (parameter,); -inf outside the prior, where the model is not asked."""
        if (theta < self._low).any() or (theta > self._high).any():
            return -math.inf
        return self._log_prior + self.log_likelihood(self._predict(theta))

    def log_likelihood(self, spectrum: NDArray[np.float64]) -> float:
        """Log-likelihood of a model's spectrum (wavelength,); -inf where it is not positive and finite."""
        return float(self._noise.log_likelihood(self._flux, spectrum, self._good, self._errors))
