"""The likelihood of many theta for each of many observed spectra, with the batched model."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.sps.arrays import one_thread
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.paired import PairedModel, batched_model, predict

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["SpectrumLikelihood"]


@lru_cache(maxsize=1)
def _model_of(posterior: FrozenPosterior) -> BatchedModel | PairedModel:
    return batched_model(posterior.model, posterior.prior, posterior.grid, posterior.noise.photometry_bands)


class SpectrumLikelihood:
    """Log density of observed spectra given theta: that of the noise about the model's flux.

    Parameters
    ----------
    model : BatchedModel or PairedModel
        What predicts spectra, with photometry behind their elements; anything with ``spectra(theta)`` will do.
    noise : NoiseModel
        The distribution that simulations were drawn from.
    prior : Prior, optional
        That theta are of, where that is not the model's own: one that has ``tage_tuniv``. A :class:`PairedModel` needs
        it.
    """

    def __init__(self, model: BatchedModel | PairedModel, noise: NoiseModel, prior: Prior | None = None) -> None:
        self.model: Any = model
        self.noise, self.prior = noise, prior

    @classmethod
    def of_posterior(cls, posterior: FrozenPosterior) -> SpectrumLikelihood:
        """Build the likelihood that a frozen posterior was trained for: its card's model, its grid and its noise.

        That of the last posterior is kept: a model of many line spreads takes long to build.

        Raises
        ------
        ConfigError, MissingDependencyError
            If the populations do not cover the prior or are not there.
        """
        return cls(_model_of(posterior), posterior.noise, posterior.prior)

    def spectra(self, theta: NDArray[np.float64], observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict noiseless spectra (draws, wavelength) for theta (draws, ndim) of one galaxy.

        ``observed`` (column,) is what the posterior was shown of it.
        """
        if self.prior is None:
            return np.asarray(self.model.spectra(np.ascontiguousarray(theta)))
        return np.asarray(
            predict(self.model, self.prior, np.ascontiguousarray(theta), self.noise.redshift_of(observed))
        )

    def spectra_of_rows(
        self, theta: NDArray[np.float64], observed: NDArray[np.float64]
    ) -> NDArray[np.float64] | list[NDArray[np.float64]]:
        """Predict noiseless spectra (n, draws, wavelength) for theta (n, draws, ndim) of galaxies (n, column).

        Together where the model computes each theta by itself, which takes less time, else galaxy by galaxy.
        """
        if not getattr(self.model, "by_itself", False):
            with one_thread():
                return [self.spectra(draws, row) for draws, row in zip(theta, observed, strict=True)]
        flat = np.ascontiguousarray(theta).reshape(-1, theta.shape[-1])
        if self.prior is None:
            spectra = self.model.spectra(flat)
        else:
            spectra = predict(self.model, self.prior, flat, self.noise.redshift_of(observed).repeat(theta.shape[1]))
        return spectra.reshape(*theta.shape[:2], spectra.shape[1])

    def __call__(
        self,
        theta: NDArray[np.float64],
        flux: NDArray[np.float64],
        good: NDArray[np.bool_],
        errors: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Log-likelihood (n, draws) of each galaxy's own theta.

        A galaxy is computed by itself, on one thread, so that its values depend on nothing but that galaxy (how a
        matrix product is blocked, or shared among threads, changes its last digits); memory is bounded by the
        spectra of one galaxy.

        Parameters
        ----------
        theta : ndarray, shape (n, draws, ndim)
            Inside the prior.
        flux : ndarray, shape (n, wavelength)
            f_lambda in erg/s/cm2/Angstrom on the model's grid, at its distance.
        good : ndarray of bool, shape (n, wavelength)
            Elements that count.
        errors : ndarray, shape (terms, n, wavelength), optional
            For catalog noise, as :meth:`~digs_survey.noise.model.NoiseModel.errors_of` gives them.
        """
        out = np.empty(theta.shape[:2])
        with one_thread():
            for row, draws in enumerate(theta):
                own = None if errors is None else errors[:, row]
                spectra = self.spectra(draws, flux[row])
                out[row] = self.noise.log_likelihood(flux[row], spectra, good[row], own)
        return out
