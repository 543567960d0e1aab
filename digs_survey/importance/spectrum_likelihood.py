"""The likelihood of many theta for each of many observed spectra, with the batched model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.config import ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.noise.model import NoiseModel
from digs_survey.sps.arrays import one_thread
from digs_survey.sps.batched import BatchedModel

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["SpectrumLikelihood", "check_model"]


class SpectrumLikelihood:
    """Log density of observed spectra given theta: that of the noise about the model's flux.

    Parameters
    ----------
    model : BatchedModel
        What predicts spectra; anything with ``spectra(theta)`` will do.
    noise : NoiseModel
        The distribution that simulations were drawn from.
    """

    def __init__(self, model: BatchedModel, noise: NoiseModel) -> None:
        self.model, self.noise = model, noise

    @classmethod
    def of_posterior(cls, posterior: FrozenPosterior) -> SpectrumLikelihood:
        """Build the likelihood that a frozen posterior was trained for: its card's model, its grid and its noise.

        Raises
        ------
        ConfigError, MissingDependencyError
            If the populations do not cover the prior or are not there.
        """
        model = ModelConfig.model_validate(posterior.card["model"])
        return cls(BatchedModel.from_config(model, posterior.prior, posterior.grid), posterior.noise)

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
                spectra = self.model.spectra(np.ascontiguousarray(draws))
                out[row] = self.noise.log_likelihood(flux[row], spectra, good[row], own)
        return out


def check_model(card: Mapping[str, Any], model: ModelConfig) -> None:
    """Refuse to use a posterior with this card with another model than the one that it was trained for.

    Raises
    ------
    ConfigError
        Naming every setting that differs.
    """
    trained = ModelConfig.model_validate(card["model"]).model_dump()
    other = {name: value for name, value in model.model_dump().items() if value != trained[name]}
    if other:
        lines = "\n".join(f"  - model.{name}: posterior {trained[name]!r}, here {other[name]!r}" for name in other)
        raise ConfigError(
            "model: expected the one that the posterior was trained for, found other settings:\n"
            f"{lines}\nUse that model or train again for this one; importance weights (importance.rows), derived "
            "quantities (map.derived) and recalibration (map.recalibrate) need it."
        )
