r"""Noise of fluxes through filters, for simulations that are rows of a survey with photometry.

A row has a signal-to-noise ratio, the geometric mean over its bands, and each band one of its own about it
(``photometry.snr``, ``photometry.snr_scatter``). Errors are those relative to the mean of the row's bands: so mass
stays a pure scale, and an error does not tell the flux of its band. A band's variance is
:math:`\sigma_b^2 = 1 / \mathrm{ivar}_b + (s_b m)^2`, with the floor :math:`s_b`, a share of the flux m: of the model's
when noise is drawn, and of the observed one, as far as this is positive, in the errors that a posterior is shown.

Rows lack a band where its filter reaches beyond what models describe (:class:`~digs_survey.sps.bands.Bands`), at random
(``photometry.missing_band``), or all of them (``photometry.without_photometry``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.noise.numbers import log_uniform, standard_normal
from digs_survey.sps.arrays import as_like, as_numpy, namespace
from digs_survey.sps.bands import Bands

__all__ = ["BandNoise", "with_band_floor", "without_band_floor"]

_OF_ROW = 2
"""Random numbers of a row: what it has of spectrum and photometry, and its signal-to-noise ratio."""


@dataclass(frozen=True, eq=False)
class BandNoise:
    """Noise of the bands of simulations.

    Attributes
    ----------
    config : PhotometryConfig
    bands : Bands
    """

    config: PhotometryConfig
    bands: Bands

    @classmethod
    def of(cls, config: PhotometryConfig, redshift: tuple[float, float]) -> BandNoise:
        """Return the noise of the configured filters for simulations of a range of redshifts."""
        return cls(config, _bands(config.filters, redshift, config.rest_angstrom))

    @property
    def conditions(self) -> int:
        """Random numbers of a row."""
        return _OF_ROW + 2 * len(self.bands)

    def with_spectrum(self, uniform: Any) -> Any:
        """Return which rows (n,) have a spectrum, for random numbers (n, self.conditions)."""
        return uniform[:, 0] >= self.config.without_spectrum

    def observe(self, maggies: Any, redshift: Any, uniform: Any, normal: Any) -> tuple[Any, Any]:
        """Observe noiseless fluxes, for numpy arrays and torch tensors alike.

        Parameters
        ----------
        maggies : (n, band)
        redshift : (n,)
        uniform : (n, self.conditions)
            Between 0 and 1.
        normal : (n, band)

        Returns
        -------
        flux, inverse_error : (n, band)
            0 where a row lacks the band.
        """
        xp, config, bands = namespace(maggies), self.config, len(self.bands)
        counted = as_like(self.bands.counted(as_numpy(redshift)).astype(float), maggies) > 0
        scatter, chosen = uniform[:, _OF_ROW : _OF_ROW + bands], uniform[:, _OF_ROW + bands :]
        good = counted & (chosen >= config.missing_band)
        # Rows without a spectrum are others than those without photometry.
        good = good & (uniform[:, 0] <= 1 - config.without_photometry)[:, None]
        some = xp.where(counted, maggies, xp.ones_like(maggies))
        number = xp.clip(xp.asarray(counted, dtype=maggies.dtype).sum(-1), 1, None)
        level = xp.exp(xp.where(counted, xp.log(some), xp.zeros_like(some)).sum(-1) / number)[:, None]
        snr = log_uniform(config.snr, uniform[:, 1]) * xp.exp(config.snr_scatter * standard_normal(scatter))
        sigma = level / snr
        floors = as_like(np.array(config.floors), maggies)
        noisy = maggies + xp.sqrt(sigma**2 + (floors * maggies) ** 2) * normal
        nothing = xp.zeros_like(maggies)
        flux = xp.where(good, noisy, nothing)
        return flux, with_band_floor(flux, xp.where(good, 1 / sigma, nothing), floors)


def with_band_floor(flux: Any, inverse_error: Any, floors: Any) -> Any:
    """Inverse errors (n, band) with a share of the observed flux added in quadrature to the errors.

    Parameters
    ----------
    flux, inverse_error : ndarray or torch.Tensor, shape (n, band)
    floors : ndarray or torch.Tensor, shape (band,)
    """
    xp = namespace(flux)
    share = floors * xp.clip(flux, 0, None) * inverse_error
    return inverse_error / xp.sqrt(1 + share**2)


def without_band_floor(flux: Any, inverse_error: Any, floors: Any) -> Any:
    """Inverse errors (n, band) from which the floor is taken that :func:`with_band_floor` added."""
    xp = namespace(flux)
    share = floors * xp.clip(flux, 0, None) * inverse_error
    return inverse_error / xp.sqrt(1 - share**2)


@lru_cache(maxsize=4)
def _bands(filters: tuple[str, ...], redshift: tuple[float, float], rest: tuple[float, float]) -> Bands:
    return Bands(filters, redshift, rest)
