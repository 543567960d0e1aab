r"""Importance weights: how far draws of the neural posterior are from the exact one, galaxy by galaxy.

A draw :math:`\theta_i \sim q(\theta | x)` gets the weight

.. math:: w_i = L(x | \theta_i)\, p(\theta_i) / q(\theta_i | x).

If q is the posterior, all weights are the same, the evidence. In general their mean is an unbiased estimate of
it, weighted averages tend to those of the exact posterior, and the effective sample size
:math:`(\sum w)^2 / \sum w^2` (Kong 1992) says how many draws of that posterior the N draws are worth. It cannot
show what q misses altogether, least of all with a small N, so that N and the shape k of the weights' tail
(:mod:`~digs_survey.importance.psis`) belong to it.

Sample size and evidence are those of the raw weights: the literature's definitions, and unbiased. Percentiles take
the smoothed ones, since they are what a few huge weights would spoil.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.errors import ConfigError
from digs_survey.importance.psis import smooth_tail
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.noise.observation import split_clean
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.sps.paired import predict

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior
    from digs_survey.noise.model import NoiseModel

__all__ = [
    "Importance",
    "Weigher",
    "effective_sample_size",
    "log_evidence",
    "log_ratios",
    "simulated_importance",
    "weigh",
    "weighted_quantiles",
]

_BLOCK_ROWS = 64
"""Galaxies whose draws are held at the same time."""
_SAME_FLUX = 0.01
"""Largest difference of a simulation's flux from the model's."""


@dataclass(frozen=True)
class Importance:
    """What the importance weights of galaxies say; NaN for a galaxy that has no weights.

    Attributes
    ----------
    ess : ndarray of float32, shape (galaxy,)
        Effective sample size, 1 to the number of draws.
    pareto_k : ndarray of float32, shape (galaxy,)
        Shape of the weights' tail; above 0.7 neither the percentiles nor the evidence are to be trusted.
    log_evidence, log_evidence_error : ndarray of float64, shape (galaxy,)
        Natural log of the density of the good elements' flux in erg/s/cm2/Angstrom, and its standard error for
        independent draws. (Draws from Sobol points, as the frozen posterior's, do at least as well.)
    percentiles : ndarray of float32, shape (galaxy, parameter, quantile)
        Of the smoothed weights, in the parameters' units.
    """

    ess: NDArray[np.float32]
    pareto_k: NDArray[np.float32]
    log_evidence: NDArray[np.float64]
    log_evidence_error: NDArray[np.float64]
    percentiles: NDArray[np.float32]

    @classmethod
    def unknown(cls, rows: int, ndim: int, quantiles: int) -> Importance:
        """Return NaN for every galaxy."""
        single, double = np.full(rows, np.nan, dtype=np.float32), np.full(rows, np.nan)
        nothing = np.full((rows, ndim, quantiles), np.nan, dtype=np.float32)
        return cls(single, single.copy(), double, double.copy(), nothing)

    def put(self, rows: NDArray[np.int64], some: Importance) -> None:
        """Write the figures of some galaxies to their rows."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(some, field.name)


def effective_sample_size(log_weights: ArrayLike) -> NDArray[np.float64]:
    """Effective sample size (...) of log weights (..., draws), known up to a constant."""
    log_w = np.asarray(log_weights, dtype=float)
    weight = np.exp(log_w - log_w.max(axis=-1, keepdims=True))
    return weight.sum(axis=-1) ** 2 / (weight**2).sum(axis=-1)


def log_evidence(log_weights: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Natural log (...) of the mean of weights (..., draws), and its standard error to first order."""
    log_w = np.asarray(log_weights, dtype=float)
    largest = log_w.max(axis=-1, keepdims=True)
    draws = log_w.shape[-1]
    mean = np.exp(log_w - largest).mean(axis=-1)
    variance = (draws / effective_sample_size(log_w) - 1) / (draws - 1)
    return largest[..., 0] + np.log(mean), np.sqrt(np.maximum(variance, 0))


def weighted_quantiles(theta: ArrayLike, log_weights: ArrayLike, quantiles: ArrayLike) -> NDArray[np.float64]:
    """Quantiles of weighted draws.

    The estimator of Akinshin (2023), arXiv:2304.07265: a quantile of n values is a mean over a window of width 1/n
    in probability; with weights, n is the effective sample size. Draws without weight play no part.

    Parameters
    ----------
    theta : array_like, shape (draws, ndim)
    log_weights : array_like, shape (draws,)
        Known up to a constant.
    quantiles : array_like, shape (quantile,)
        Between 0 and 1.

    Returns
    -------
    ndarray, shape (ndim, quantile)
        With equal weights, those of :func:`~digs_survey.infer.quantiles.draw_quantiles`.
    """
    values, log_w = np.asarray(theta, dtype=float), np.asarray(log_weights, dtype=float)
    weight = np.exp(log_w - log_w.max())
    weight /= weight.sum()
    count = 1 / (weight**2).sum()
    low = np.asarray(quantiles, dtype=float) * (count - 1) / count
    out = np.empty((values.shape[1], low.size))
    for k, column in enumerate(values.T):
        order = np.argsort(column, kind="stable")
        reach = np.append(0.0, np.cumsum(weight[order]))
        # From the middle value: the integrals are then small, and little is lost in their difference.
        middle = column[order[order.size // 2]]
        integral = np.append(0.0, np.cumsum(weight[order] * (column[order] - middle)))
        ends = np.interp([low, low + 1 / count], reach, integral)
        out[k] = middle + count * (ends[1] - ends[0])
    return out


def log_ratios(
    posterior: FrozenPosterior,
    likelihood: SpectrumLikelihood,
    theta: NDArray[np.float64],
    flux: NDArray[np.float64],
    good: NDArray[np.bool_],
    errors: NDArray[np.float64] | None = None,
    *,
    normalised: bool = True,
) -> NDArray[np.float64]:
    """Natural logs (n, draws) of the weights of draws from a posterior: log L + log p - log q.

    Parameters
    ----------
    posterior : FrozenPosterior
    likelihood : SpectrumLikelihood
    theta : ndarray, shape (n, draws, ndim)
        Draws of the posterior for ``flux``.
    flux, good, errors : ndarray
        As :class:`SpectrumLikelihood` takes them; what the posterior sees is ``flux``.
    normalised : bool
        Without it a constant of each galaxy is left out, as in the posterior's ``log_prob``.
    """
    proposal = posterior.log_prob(theta, flux, normalised=normalised)
    return likelihood(theta, flux, good, errors) + posterior.prior.log_prob(theta) - proposal


def weigh(theta: NDArray[np.float64], log_weights: NDArray[np.float64], quantiles: tuple[float, ...]) -> Importance:
    """Condense the weighted draws of each galaxy; its figures depend on that galaxy alone.

    Parameters
    ----------
    theta : ndarray, shape (n, draws, ndim)
    log_weights : ndarray, shape (n, draws)
        A galaxy all of whose weights are zero, or one of whose is NaN or infinite, has no figures.
    quantiles : tuple of float
    """
    result = Importance.unknown(len(theta), theta.shape[2], len(quantiles))
    for row in np.flatnonzero(np.isfinite(log_weights.max(axis=1))):
        raw = log_weights[row]
        smoothed, result.pareto_k[row] = smooth_tail(raw)
        result.ess[row] = effective_sample_size(raw)
        result.log_evidence[row], result.log_evidence_error[row] = log_evidence(raw)
        result.percentiles[row] = weighted_quantiles(theta[row], smoothed, quantiles)
    return result


@dataclass(frozen=True)
class Weigher:
    """Weighs the draws of a frozen posterior.

    Attributes
    ----------
    posterior : FrozenPosterior
    likelihood : SpectrumLikelihood
    draws : int
        For each galaxy.
    quantiles : tuple of float
        Of the weighted percentiles.
    """

    posterior: FrozenPosterior
    likelihood: SpectrumLikelihood
    draws: int
    quantiles: tuple[float, ...] = (0.16, 0.5, 0.84)

    def __call__(
        self,
        flux: NDArray[np.float64],
        good: NDArray[np.bool_],
        errors: NDArray[np.float64] | None = None,
        theta: NDArray[np.float64] | None = None,
    ) -> Importance:
        """Weigh galaxies, a block at a time; the figures of each depend on that galaxy alone.

        A galaxy for which the posterior has no finite draws has no figures.

        Parameters
        ----------
        flux, good, errors : ndarray
            As :class:`SpectrumLikelihood` takes them, every element of ``flux`` filled as the posterior wants it.
        theta : ndarray, shape (n, draws, ndim), optional
            The posterior's draws, if they were made before: used where they are as many as are wanted.
        """
        known = theta is not None and theta.shape[1] == self.draws
        result = Importance.unknown(len(flux), self.posterior.prior.ndim, len(self.quantiles))
        for start in range(0, len(flux), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            drawn = theta[rows] if known else self.posterior.sample(flux[rows], self.draws)  # type: ignore[index]
            # Far outside the simulations the network may give no finite draws.
            kept = np.flatnonzero(np.isfinite(drawn).all(axis=(1, 2)))
            drawn, kept = drawn[kept], kept + start
            own = None if errors is None else errors[:, kept]
            log_weights = log_ratios(self.posterior, self.likelihood, drawn, flux[kept], good[kept], own)
            result.put(kept, weigh(drawn, log_weights, self.quantiles))
        return result


def simulated_importance(
    posterior: FrozenPosterior,
    theta: NDArray[np.float64],
    flux: NDArray[np.floating],
    noise: NoiseModel,
    draws: int,
    seed: int = 0,
    *,
    start: int = 0,
    likelihood: SpectrumLikelihood | None = None,
) -> Importance:
    """Importance weights for simulated spectra, each with one draw of noise.

    Parameters
    ----------
    posterior : FrozenPosterior
    theta : ndarray, shape (n, ndim)
        The truth.
    flux : ndarray, shape (n, wavelength)
        Its noiseless spectra in erg/s/cm2/Angstrom.
    noise : NoiseModel
        With which they are observed, and which the likelihood assumes. The noise of a row depends on the seed and
        the row, and is that of the calibration for the run's seed.
    draws : int
        Posterior draws for each spectrum.
    seed : int
    start : int
        Row of the first spectrum, whose noise it gets.
    likelihood : SpectrumLikelihood, optional
        Of the posterior's model, if it was made before.

    Raises
    ------
    ConfigError
        If the posterior's model does not give these spectra for these theta.
    """
    known = SpectrumLikelihood.of_posterior(posterior) if likelihood is None else likelihood
    likelihood = SpectrumLikelihood(known.model, noise, known.prior)
    weigher = Weigher(posterior, likelihood, draws)
    clean, truth = np.asarray(flux, dtype=float), np.asarray(theta, dtype=float)
    spectra, redshift = split_clean(clean) if noise.config.by_row else (clean, np.nan)
    _check_spectra(predict(likelihood.model, posterior.prior, truth, redshift), spectra)
    random = row_uniforms(seed, "noise/calibration", start, start + len(clean), noise.columns(clean.shape[1]))
    return weigher(*noise.observe(clean, random))


def _check_spectra(predicted: NDArray[np.float64], flux: NDArray[np.float64]) -> None:
    difference = np.abs(predicted / flux - 1).max(axis=1)
    wrong = np.flatnonzero(~(difference < _SAME_FLUX))
    if wrong.size:
        raise ConfigError(
            f"simulation {wrong[0]}: expected the spectrum of the model that the posterior was trained for, found one "
            f"that differs by {difference[wrong[0]]:.1%} ({wrong.size} of {len(flux)} differ by more than "
            f"{_SAME_FLUX:.0%}); weigh simulations of that model, with their own theta"
        )
