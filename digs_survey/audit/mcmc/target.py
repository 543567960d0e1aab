"""The posterior of one galaxy as emcee calls it: the model's spectra, the survey's noise and our prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.prior import Prior
from digs_survey.sps.paired import PairedModel, predict

if TYPE_CHECKING:
    from digs_survey.noise.model import NoiseModel

__all__ = ["AtRedshift", "GalaxyPosterior", "Simulator"]


class Simulator(Protocol):
    """What predicts spectra.

    :class:`~digs_survey.sps.prospector.ProspectorSimulator`, one after the other, or
    :class:`~digs_survey.sps.batched.BatchedModel`, all at once.
    """

    def spectra(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict noiseless spectra (n, wavelength) for theta (n, parameter) inside the prior."""
        ...


class AtRedshift:
    """A simulator of galaxies at one redshift, for theta of a prior that may depend on it.

    Parameters
    ----------
    simulator : Simulator or PairedModel
        The latter predicts fluxes through filters too, behind the elements of the spectrum.
    prior : Prior
        That theta are of.
    redshift : float or ndarray of shape ()
    """

    def __init__(self, simulator: Simulator | PairedModel, prior: Prior, redshift: ArrayLike) -> None:
        self._simulator, self._prior, self._redshift = simulator, prior, redshift

    def spectra(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict noiseless spectra (n, wavelength) for theta (n, parameter) inside the prior."""
        return np.asarray(predict(self._simulator, self._prior, theta, self._redshift))


class GalaxyPosterior:
    """Log posterior density of one galaxy, for the walkers of an ensemble together.

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
        self._predict, self._noise, self._prior = simulator.spectra, noise, prior
        self._flux, self._good, self._errors = flux, good, errors
        self._asked = self._inside = 0

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log density (n,) at theta (n, parameter); -inf outside the prior, where the model is not asked."""
        density = self._prior.log_prob(theta)
        (inside,) = np.isfinite(density).nonzero()
        self._asked += density.size
        self._inside += inside.size
        if inside.size:
            density[inside] += self.log_likelihood(self._predict(theta[inside]))
        return density

    @property
    def inside_share(self) -> float:
        """Share of all theta so far that were inside the prior, and so took a spectrum; 1 before the first."""
        return self._inside / self._asked if self._asked else 1.0

    def log_likelihood(self, spectra: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-likelihood (n,) of a model's spectra (n, wavelength); -inf where one is not positive and finite."""
        return self._noise.log_likelihood(self._flux, spectra, self._good, self._errors)
