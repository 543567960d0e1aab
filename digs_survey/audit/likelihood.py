"""Prospector's likelihood of one galaxy under our prior, as emcee calls it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

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
    """Log posterior density of one galaxy: ``prospect.likelihood.lnlike_spec`` plus the prior.

    Prospector's likelihood takes one uncertainty for an element; here it is set, for each theta, from
    the noise about the *model's* flux, so that it is the density that simulations were drawn from. Noise
    that is Gaussian in log10 flux is passed in log10 quantities.

    Parameters
    ----------
    simulator : Simulator
    noise : NoiseModel
    prior : Prior
    wavelength, flux : array_like, shape (wavelength,)
        The observation, in the simulator's unit.
    good : array_like of bool, shape (wavelength,)
        Elements that count; positive flux is expected of them where noise is Gaussian in log10 flux.
    relative : array_like, shape (wavelength,), optional
        For catalog noise: the observation's 1-sigma error over its flux.
    """

    def __init__(
        self,
        simulator: Simulator,
        noise: NoiseModel,
        prior: Prior,
        wavelength: ArrayLike,
        flux: ArrayLike,
        good: ArrayLike,
        relative: ArrayLike | None = None,
    ) -> None:
        from prospect.likelihood import lnlike_spec

        self._lnlike_spec = lnlike_spec
        self._predict, self._noise = simulator.spectrum, noise
        self._low, self._high = prior.low, prior.high
        self._log_prior = float(prior.log_prob(0.5 * (prior.low + prior.high)))
        self._good = np.flatnonzero(np.asarray(good, dtype=bool))
        observed = np.asarray(flux, dtype=float)[self._good]
        self._relative = None if relative is None else np.asarray(relative, dtype=float)[self._good]
        self._obs: dict[str, Any] = {
            "wavelength": np.asarray(wavelength, dtype=float)[self._good],
            "mask": slice(None),
        }
        self._constant = 0.0
        if noise.space == "log10":
            self._obs["spectrum"] = np.log10(observed)
            self._obs["unc"] = np.full(observed.size, math.log10(1 + noise.fraction))
            # From a density per dex to one per unit of flux, as NoiseModel.log_likelihood has it.
            self._constant = -float(np.log(observed * math.log(10)).sum())
        else:
            self._obs["spectrum"] = observed

    def __call__(self, theta: NDArray[np.float64]) -> float:
        """Log density at theta (parameter,); -inf outside the prior, where the model is not asked."""
        if (theta < self._low).any() or (theta > self._high).any():
            return -math.inf
        return self._log_prior + self.log_likelihood(self._predict(theta))

    def log_likelihood(self, spectrum: NDArray[np.float64]) -> float:
        """Log-likelihood of a model's spectrum (wavelength,); -inf where it is not positive and finite."""
        model = spectrum[self._good]
        if not (np.isfinite(model).all() and (model > 0).all()):
            return -math.inf
        if self._noise.space == "log10":
            return self._constant + float(self._lnlike_spec(np.log10(model), obs=self._obs))
        unc = self._noise.sigma(model, self._relative)
        return float(self._lnlike_spec(model, obs={**self._obs, "unc": unc}))
