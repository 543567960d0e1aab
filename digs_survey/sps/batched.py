r"""Spectra of many galaxies at once, as matrix products, equal to what Prospector predicts one at a time.

A spectrum is linear in the populations: weights(history) times populations, times attenuation, smoothed and
averaged onto the grid by a fixed matrix. Only the attenuation stands between the two matrices. It varies
little over one element, so that

.. math:: e^{-\tau k(\lambda)} = e^{-\tau k_e} \sum_j \frac{(-\tau)^j}{j!} (k(\lambda) - k_e)^j

to as many terms as the prior's largest ``dust2`` needs (two to four), and the populations times each power
of :math:`k - k_e` are brought onto the grid once. What is left for a galaxy is its weights times a few
hundred short rows.

The same code runs on numpy arrays and on torch tensors, on whichever device they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.config import ModelConfig
from digs_survey.errors import ConfigError
from digs_survey.parameters import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.grid import (
    HistoryWeights,
    SSPGrid,
    as_like,
    calzetti_curve,
    check_coverage,
    delayed_tau,
    namespace,
)
from digs_survey.sps.prospector import import_prospector
from digs_survey.sps.sampling import GridSampling

__all__ = ["BatchedModel"]

_ROWS = 1_024
"""Galaxies computed together: many enough for the matrix products, few enough to stay in cache."""
_TOLERANCE = 1e-6
_MOST_TERMS = 8


def _luminosity_to_flux(zred: float) -> float:
    """Return f_lambda per rest-frame Angstrom (times 1 + z) in erg/s/cm2 for one Lsun, as the simulator has it."""
    from prospect.sources.constants import cosmo, lsun, pc

    distance = cosmo.luminosity_distance(zred).to_value("pc") * pc
    return float(lsun / (4 * np.pi * distance**2))


class BatchedModel:
    """Noiseless spectra of the delayed-tau model for batches of theta.

    Parameters
    ----------
    populations : SSPGrid
    sampling : GridSampling
        How a smoothed spectrum is brought onto the grid.
    model : ModelConfig
    prior : Prior
        Names and order of the parameters; nothing outside its ranges may be asked.

    Raises
    ------
    ConfigError
        If the prior reaches beyond the populations.

    Notes
    -----
    Spectra are in the unit of :class:`~digs_survey.sps.prospector.ProspectorSimulator`, from which they differ
    by less than 0.1 % in every element.
    """

    def __init__(self, populations: SSPGrid, sampling: GridSampling, model: ModelConfig, prior: Prior) -> None:
        check_coverage(prior, populations.log_z, populations.log_age, model.source)
        self.prior, self.grid = prior, sampling.grid
        self._columns = [prior.index(name) for name in ("logmass", "logzsol", "dust2", "tage", "logtau")]
        self._history = HistoryWeights(populations.log_age, 10 ** prior.low[prior.index("logtau")])
        matrix = sampling.matrix(populations.wavelength)
        curve = calzetti_curve(populations.wavelength)
        self._curve = (curve @ matrix) / matrix.sum(axis=0)
        offset = curve[:, None] - self._curve
        self._terms = _terms(offset, matrix, prior.high[prior.index("dust2")])
        lnu = populations.lnu()
        basis = np.stack(
            [lnu @ (matrix * offset**j / math.factorial(j)).astype(lnu.dtype) for j in range(self._terms)], axis=2
        )
        # In single precision the flux of a solar mass far away would be lost; the unit is put back at the end.
        unit = float(np.median(basis[:, :, 0]))
        self._unit = unit * _luminosity_to_flux(model.zred)
        # (metallicity, age, term * element)
        self._basis = (basis / unit).reshape(*basis.shape[:2], -1).astype(np.float32)
        self._log_z = populations.log_z

    @classmethod
    def from_config(cls, model: ModelConfig, prior: Prior, grid: WavelengthGrid) -> BatchedModel:
        """Read the populations of the configured source and build the model for a catalog's grid.

        Raises
        ------
        ConfigError
            If the source is not offered in batches, or does not cover the prior.
        MissingDependencyError
            If the source's data are missing.
        """
        if model.source != "bc03":
            raise ConfigError(f"simulate.engine = 'batched' has source 'bc03', found {model.source!r}")
        import_prospector()
        from digs_survey.sps.bc03 import read_bc03

        sampling = GridSampling(model, grid)
        populations = read_bc03(
            sampling.wavelength,
            gas_logu=model.gas_logu,
            nebular=model.nebular,
            max_age_gyr=prior.high[prior.index("tage")],
        )
        return cls(populations, sampling, model, prior)

    def spectra(self, theta: Any) -> Any:
        """Predict spectra (n, wavelength) in erg/s/cm2/Angstrom for theta (n, ndim), inside the prior.

        Parameters
        ----------
        theta : ndarray or torch.Tensor of float64, shape (n, ndim)

        Returns
        -------
        ndarray or torch.Tensor of float64, shape (n, wavelength)
            On theta's device.

        Raises
        ------
        ValueError
            If a theta lies outside the prior.
        """
        low, high = as_like(self.prior.low, theta), as_like(self.prior.high, theta)
        outside = ((theta < low) | (theta > high)).any(-1)
        if outside.any():
            raise ValueError(f"theta: expected rows inside the prior, found {theta[outside][0]}")
        xp = namespace(theta)
        blocks = [self._block(xp, theta[start : start + _ROWS]) for start in range(0, len(theta), _ROWS)]
        return xp.concatenate(blocks) if blocks else theta[:, :1] * as_like(self._curve, theta)

    def _block(self, xp: Any, theta: Any) -> Any:
        logmass, logzsol, dust2, tage, logtau = xp.stack([theta[:, i] for i in self._columns])
        nodes = as_like(self._log_z, theta)
        cell = xp.clip(xp.searchsorted(nodes, logzsol, side="right") - 1, 0, len(nodes) - 2)
        share = (logzsol - nodes[cell]) / (nodes[cell + 1] - nodes[cell])
        # All that is large is computed in single precision.
        share, dust, tage, tau = xp.asarray(xp.stack([share, dust2, tage, 10**logtau]), dtype=xp.float32)
        weights = self._history(delayed_tau(tau), tage)
        basis = as_like(self._basis, tage)
        terms = xp.zeros((len(theta), basis.shape[-1]), dtype=xp.float32, device=basis.device)
        for k in range(len(nodes) - 1):
            (rows,) = xp.where(cell == k)
            if len(rows):
                rich = share[rows][:, None] * weights[rows]
                terms[rows] = (weights[rows] - rich) @ basis[k] + rich @ basis[k + 1]
        elements, dust = len(self._curve), dust[:, None]
        flux = terms[:, -elements:]
        for j in range(self._terms - 2, -1, -1):
            flux = terms[:, j * elements : (j + 1) * elements] - dust * flux
        flux = flux * xp.exp(-dust * as_like(self._curve, dust))
        return flux * (self._unit * 10**logmass)[:, None]


def _terms(offset: NDArray[np.float64], matrix: NDArray[np.float64], dust2: float) -> int:
    """Return how many powers of the attenuation's offset within an element the largest ``dust2`` needs."""
    seen = np.abs(matrix) > 1e-6 * np.abs(matrix).max(axis=0)
    largest = dust2 * float(np.abs(offset[seen]).max())
    for terms in range(1, _MOST_TERMS):
        if largest**terms / math.factorial(terms) < _TOLERANCE:
            return terms
    return _MOST_TERMS
