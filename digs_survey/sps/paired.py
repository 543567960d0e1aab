"""A galaxy's spectrum and the light that photometry sees of it, predicted together."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from digs_survey.config import ModelConfig
from digs_survey.parameters import SPEC_NORM
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import as_numpy, namespace
from digs_survey.sps.bands import Bands
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.hat_sampling import HatSampling
from digs_survey.sps.prospector import ProspectorSimulator, import_prospector
from digs_survey.sps.universe import physical_names, physical_theta

__all__ = ["PairedModel", "batched_model", "light_model", "predict", "prospector_model"]

_OF_SPECTRUM = ("sigma_smooth", SPEC_NORM)
"""Parameters that photometry does not depend on."""


class _Predicts(Protocol):
    prior: Prior

    def spectra(self, theta: Any) -> Any: ...


class PairedModel:
    """Two samplings of one model: the elements of a spectrum, and the coarse grid of photometry.

    Parameters
    ----------
    spectrum, light : BatchedModel or ProspectorSimulator
        On the spectrum's grid and on the coarse one.
    names : tuple of str
        Columns of theta as spectra take it, ``spec_norm`` among them where it is free.
    bands : Bands
        Whose grid the coarse one is.
    """

    def __init__(self, spectrum: _Predicts, light: _Predicts, names: tuple[str, ...], bands: Bands) -> None:
        self.spectrum, self.light, self.names, self.bands = spectrum, light, names, bands
        self._of_spectrum, self._of_light = (
            [names.index(name) for name in model.prior.names] for model in (spectrum, light)
        )
        self._norm = names.index(SPEC_NORM) if SPEC_NORM in names else None

    @classmethod
    def from_config(cls, model: ModelConfig, prior: Prior, grid: WavelengthGrid, bands: Bands) -> PairedModel:
        """Build the model that predicts in batches.

        Parameters
        ----------
        model : ModelConfig
        prior : Prior
        grid : WavelengthGrid
            Of the spectrum.
        bands : Bands

        Raises
        ------
        ConfigError
            If the source does not cover the prior.
        MissingDependencyError
            If the source's data are missing.
        """
        of_spectrum, of_light = _priors(prior)
        light = light_model(model, of_light, bands.grid)
        return cls(BatchedModel.from_config(model, of_spectrum, grid), light, physical_names(prior), bands)

    @classmethod
    def of_prospector(cls, model: ModelConfig, prior: Prior, grid: WavelengthGrid, bands: Bands) -> PairedModel:
        """Build the model of Prospector's own spectra; see :meth:`from_config`."""
        of_spectrum, of_light = _priors(prior)
        light = ProspectorSimulator.of_light(model, of_light, bands.grid)
        return cls(ProspectorSimulator(model, of_spectrum, grid), light, physical_names(prior), bands)

    @property
    def by_itself(self) -> bool:
        """Whether a row of :meth:`spectra` for numpy arrays is the same bytes in any batch."""
        return all(getattr(model, "by_itself", True) for model in (self.spectrum, self.light))

    def parts(self, theta: Any) -> tuple[Any, Any]:
        """Predict spectra (n, wavelength) and light (n, coarse element) for theta (n, parameter), inside the prior.

        Both are in erg/s/cm2 per rest-frame Angstrom at the distance of ``model.zred``, the spectrum times
        ``spec_norm``.
        """
        spectrum = self.spectrum.spectra(theta[:, self._of_spectrum])
        if self._norm is not None:
            spectrum = spectrum * theta[:, self._norm, None]
        return spectrum, self.light.spectra(theta[:, self._of_light])

    def spectra(self, theta: Any, redshift: Any) -> Any:
        """Predict spectra and fluxes through the filters.

        Parameters
        ----------
        theta : ndarray or torch.Tensor, shape (n, parameter)
        redshift : float, ndarray or torch.Tensor, shape () or (n,)

        Returns
        -------
        ndarray or torch.Tensor, shape (n, wavelength + band)
            The spectrum as in :meth:`parts`, then maggies at the same distance.
        """
        spectrum, light = self.parts(theta)
        shifted = np.broadcast_to(as_numpy(redshift) if np.ndim(redshift) else float(redshift), len(theta))
        return namespace(spectrum).concatenate([spectrum, self.bands.maggies(light, shifted)], -1)


def light_model(model: ModelConfig, prior: Prior, coarse: WavelengthGrid) -> BatchedModel:
    """Build the model of what photometry sees alone, for a prior without ``sigma_smooth``."""
    import_prospector()
    return BatchedModel.from_sampling(HatSampling(coarse), model, prior)


def batched_model(
    model: ModelConfig, prior: Prior, grid: WavelengthGrid, bands: Bands | None
) -> BatchedModel | PairedModel:
    """Build the model that predicts in batches: spectra, with fluxes through filters where there are bands."""
    if bands is None:
        return BatchedModel.from_config(model, prior, grid)
    return PairedModel.from_config(model, prior, grid, bands)


def prospector_model(
    model: ModelConfig, prior: Prior, grid: WavelengthGrid, bands: Bands | None
) -> ProspectorSimulator | PairedModel:
    """Build the model of Prospector's own spectra, as :func:`batched_model` does that in batches."""
    if bands is None:
        return ProspectorSimulator(model, prior, grid)
    return PairedModel.of_prospector(model, prior, grid, bands)


def predict(model: Any, prior: Prior, theta: Any, redshift: Any) -> Any:
    """Predict what is observed, without noise, of galaxies at redshifts.

    Parameters
    ----------
    model : PairedModel, or what has ``spectra(theta)``
    prior : Prior
        That theta are of.
    theta : ndarray, shape (n, ndim)
    redshift : ndarray, shape () or (n,)
        NaN where there is none.

    Returns
    -------
    ndarray, shape (n, wavelength), or (n, wavelength + band) of a :class:`PairedModel`
    """
    theta = physical_theta(prior, theta, redshift)
    return model.spectra(theta, redshift) if isinstance(model, PairedModel) else model.spectra(theta)


def _priors(prior: Prior) -> tuple[Prior, Prior]:
    """Priors of what the spectrum and the light depend on."""
    given, of_light = prior.ranges(), prior
    of_spectrum = prior.without(SPEC_NORM) if SPEC_NORM in given else prior
    for name in _OF_SPECTRUM:
        of_light = of_light.without(name) if name in given else of_light
    return of_spectrum, of_light
