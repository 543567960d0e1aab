r"""Whether a row's spectrum looks like those of its own posterior: predictive chi-square and its p-value.

For draws :math:`\theta_k` of a row's posterior, :math:`\chi^2_k` is the sum over the n good elements of the squared
residuals from the model's spectrum, in units of the noise about it, what neighbours share taken out. A spectrum that
the model and the noise could have made has :math:`\chi^2_k` from the chi-square distribution with n degrees of
freedom, were it not that the posterior has seen it. The posterior predictive p-value combines the draws' chances of a
larger one (Gelman, Meng & Stern 1996, Stat. Sinica 6, 733). It is their median: a mean over 64 draws stays near 1/64 or
above if a single draw fits. Since the spectrum is used twice it gathers around 1/2 where all is well, and near 0 it is
not too bold: the share of good rows below a small p is at most 2 p. (Each chance is uniform if the
posterior is right. Where the median is below p, half of them are, and that happens in at most 2 p of the rows; Meng
1994, Ann. Stat. 22, 1142, has the like for the mean.)

Chi-square spreads over all elements. :mod:`~digs_survey.importance.score_tests` looks with the same spectra for errors
of the redshift and of the flux calibration.

The same spectra give the likelihoods of these draws, and so their importance weights, the exact posterior's density
over the neural one's. The scatter of the logs of a few dozen weights says little about tails (that takes more draws:
:mod:`~digs_survey.importance.weights`), but well which rows have a posterior unlike the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import chdtrc

from digs_survey.importance.score_tests import ScoreTests
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.quality import QualityFlag
from digs_survey.sps.arrays import one_thread

if TYPE_CHECKING:
    from digs_survey.estimator.posterior import FrozenPosterior

__all__ = ["Checker", "PredictiveCheck", "judge"]


@dataclass(frozen=True)
class PredictiveCheck:
    """What the predictive spectra of rows say; NaN for rows without a posterior.

    Attributes
    ----------
    distance : ndarray of float32, shape (galaxy,)
        From :meth:`~digs_survey.estimator.posterior.FrozenPosterior.feature_distance`.
    chi2 : ndarray of float32, shape (galaxy,)
        Median over the draws of chi-square over the number of good elements.
    pvalue : ndarray of float64, shape (galaxy,)
        Posterior predictive p-value; exact down to the least double.
    scatter : ndarray of float32, shape (galaxy,)
        Of the natural logs of the draws' importance weights: median absolute deviation, scaled to be the standard
        deviation of a Gaussian. 0 if the posterior is the exact one.
    velocity, velocity_error : ndarray of float32, shape (galaxy,)
        In km/s, as :class:`~digs_survey.importance.score_tests.Scores` has them.
    shift_pvalue, step_pvalue : ndarray of float64, shape (galaxy,)
        Of the score tests for an error of the redshift and for a step in the flux calibration.
    """

    distance: NDArray[np.float32]
    chi2: NDArray[np.float32]
    pvalue: NDArray[np.float64]
    scatter: NDArray[np.float32]
    velocity: NDArray[np.float32]
    velocity_error: NDArray[np.float32]
    shift_pvalue: NDArray[np.float64]
    step_pvalue: NDArray[np.float64]

    @classmethod
    def unknown(cls, rows: int) -> PredictiveCheck:
        """Return NaN for every galaxy."""
        kinds = (float if one.name.endswith("pvalue") else np.float32 for one in fields(cls))
        return cls(*(np.full(rows, np.nan, dtype=kind) for kind in kinds))

    def quality(self, min_pvalue: float) -> NDArray[np.int64]:
        """Return the bits (galaxy,) of p-values below a limit: POOR_FIT and CALIBRATION_STEP."""
        poor = (self.pvalue < min_pvalue) | (self.shift_pvalue < min_pvalue)
        return poor * int(QualityFlag.POOR_FIT) | (self.step_pvalue < min_pvalue) * int(QualityFlag.CALIBRATION_STEP)

    def put(self, rows: NDArray[np.int64], some: PredictiveCheck) -> None:
        """Write the figures of some galaxies to their rows."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(some, field.name)


@dataclass(frozen=True)
class Checker:
    """Checks rows against spectra of evenly thinned draws of their posteriors.

    Attributes
    ----------
    posterior : FrozenPosterior
    likelihood : SpectrumLikelihood
        Whose model and noise predict.
    draws : int
        Spectra for each row.
    """

    posterior: FrozenPosterior
    likelihood: SpectrumLikelihood
    draws: int

    def __call__(
        self,
        flux: NDArray[np.float64],
        good: NDArray[np.bool_],
        errors: NDArray[np.float64] | None,
        theta: NDArray[np.float64],
    ) -> PredictiveCheck:
        """Check rows; each is computed by itself, so that its values depend on nothing else.

        Parameters
        ----------
        flux : ndarray, shape (n, wavelength)
            f_lambda in erg/s/cm2/Angstrom on the model's grid, at its distance.
        good : ndarray of bool, shape (n, wavelength)
        errors : ndarray, shape (terms, n, wavelength), or None
            For catalog noise, as :meth:`~digs_survey.noise.model.NoiseModel.errors_of` gives them.
        theta : ndarray, shape (n, draws, ndim)
            Draws of each row's posterior.
        """
        found = PredictiveCheck.unknown(len(theta))
        found.distance[:] = self.posterior.feature_distance(flux)
        noise, some = self.likelihood.noise, np.ascontiguousarray(theta[:, self.thinned(theta.shape[1])])
        log_weight = np.empty(some.shape[:2])
        # Of the weights' logs their scatter counts, to which a constant adds nothing.
        proposal = self.posterior.log_prob(some, flux, normalised=False) - self.posterior.prior.log_prob(some)
        spectra = self.likelihood.spectra_of_rows(some, flux)
        with one_thread():
            for row, predicted in enumerate(spectra):
                own = None if errors is None else errors[:, row]
                chi2, log_weight[row] = noise.goodness(flux[row], predicted, good[row], own)
                found.chi2[row], found.pvalue[row] = judge(chi2, int(good[row].sum()))
                scores = self.scores(flux[row], good[row], own, predicted)
                found.velocity[row], found.velocity_error[row] = scores.velocity, scores.velocity_error
                found.shift_pvalue[row], found.step_pvalue[row] = scores.shift_pvalue, scores.step_pvalue
        found.scatter[:] = stats.median_abs_deviation(log_weight - proposal, axis=1, scale="normal")
        return found

    def thinned(self, draws: int) -> NDArray[np.intp]:
        """Places of the draws, of so many, that are looked at."""
        return np.linspace(0, draws - 1, self.draws).round().astype(int)

    def spectra(self, theta: NDArray[np.float64], observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Noiseless spectra (self.draws, wavelength) of evenly thinned draws (draws, ndim) of one row."""
        return self.likelihood.spectra(theta[self.thinned(len(theta))], observed)

    @cached_property
    def scores(self) -> ScoreTests:
        """Tests along the directions of single faults."""
        return ScoreTests(self.posterior.grid, self.likelihood.noise, self.posterior.prior.ndim)


def judge(chi2: NDArray[np.float64], count: int) -> tuple[float, float]:
    """Return chi-square over the number of good elements, and the p-value, of one row.

    Parameters
    ----------
    chi2 : ndarray, shape (draws,)
        From the spectra of draws.
    count : int
        Of good elements.
    """
    return float(np.median(chi2) / count), float(np.median(chdtrc(count, chi2)))
