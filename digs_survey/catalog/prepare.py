"""From rows of a catalog to the fluxes that the frozen posterior takes.

Simulated spectra have the amplitude of a galaxy at the luminosity distance of ``model.zred``. A row in
the rest frame holds ``f_lambda * (1 + z)``, which falls with distance as :math:`d_L^{-2}`, and is brought
to that amplitude by :func:`reference_factor`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.catalog import CatalogRows
from digs_survey.catalog.gaps import fill_flux
from digs_survey.catalog.schema import redshift_quality, usable_elements
from digs_survey.errors import CatalogError
from digs_survey.quality import NO_POSTERIOR, QualityFlag

__all__ = ["PreparedRows", "prepare", "reference_factor", "require_rest_frame"]


@dataclass(frozen=True)
class PreparedRows:
    """Rows at the amplitude of the simulations.

    Attributes
    ----------
    flux : ndarray of float64, shape (galaxy, wavelength)
        What the posterior is shown. Finite throughout, and positive unless negative flux is kept: elements that are
        not good hold a fill, and rows without a posterior hold ones. With row noise, observations
        (galaxy, 2 wavelength + 1) as :mod:`~digs_survey.noise.observation` lays them out.
    ivar : ndarray of float64, shape (galaxy, wavelength)
        Inverse variance at the same amplitude; 0 where not good.
    good : ndarray of bool, shape (galaxy, wavelength)
        Unmasked elements with positive inverse variance and, unless negative flux is kept, positive flux.
    quality : ndarray of int64, shape (galaxy,)
        Bits of :class:`~digs_survey.quality.QualityFlag`.
    bands : int
        How many of the last elements are fluxes through filters, and none of the spectrum.
    """

    flux: NDArray[np.float64]
    ivar: NDArray[np.float64]
    good: NDArray[np.bool_]
    quality: NDArray[np.int64]
    bands: int = 0

    @property
    def elements(self) -> int:
        """How many elements the spectrum has."""
        return self.good.shape[1] - self.bands

    @property
    def spectrum(self) -> NDArray[np.float64]:
        """The flux of the spectrum alone (galaxy, wavelength)."""
        return self.flux[:, : self.elements]

    @property
    def spectrum_good(self) -> NDArray[np.bool_]:
        """Good elements of the spectrum alone (galaxy, wavelength)."""
        return self.good[:, : self.elements]

    def take(self, rows: Any) -> PreparedRows:
        """Return the rows that an index or a slice chooses."""
        arrays = {name: getattr(self, name)[rows] for name in ("flux", "ivar", "good", "quality")}
        return replace(self, **arrays)

    @property
    def n_good(self) -> NDArray[np.int32]:
        """Number of good elements of each row's spectrum (galaxy,)."""
        return self.spectrum_good.sum(axis=1, dtype=np.int32)


def reference_factor(redshift: ArrayLike, zred: float) -> NDArray[np.float64]:
    """Return the factor from the amplitude at a redshift to that of the simulations.

    Parameters
    ----------
    redshift : array_like, shape (galaxy,)
        Positive and finite.
    zred : float
        Redshift whose luminosity distance the simulations have.

    Returns
    -------
    ndarray, shape (galaxy,)
        ``(d_L(redshift) / d_L(zred))**2`` in the WMAP9 cosmology (Hinshaw et al. 2013, ApJS 208, 19),
        which is Prospector's; exactly 1 at ``redshift == zred``.
    """
    from astropy.cosmology import WMAP9

    values, where = np.unique(np.append(np.asarray(redshift, dtype=float), zred), return_inverse=True)
    distance = WMAP9.luminosity_distance(values).value[where]
    return (distance[:-1] / distance[-1]) ** 2


def require_rest_frame(frame: str) -> None:
    """Refuse a catalog in the observed frame: its elements mean another rest wavelength in each row.

    Raises
    ------
    CatalogError
        If ``frame`` is not "rest".
    """
    if frame != "rest":
        raise CatalogError(
            f"wavelength: expected frame 'rest' for inference, found {frame!r}; bring the spectra to the "
            "rest frame first (wavelength / (1 + z), flux * (1 + z), ivar / (1 + z)^2), or take the preset survey, "
            "whose posterior is for both frames"
        )


def prepare(
    rows: CatalogRows, frame: str, zred: float, min_good_fraction: float, *, keeps_negative: bool = False
) -> PreparedRows:
    """Bring rows to the amplitude of the simulations, fill what is masked and set their quality bits.

    Masked and unusable elements are filled by interpolation along the elements of the row (the nearest good
    value beyond the last good one), linear in log flux, or in flux where negative flux is kept. Every row is
    treated by itself.

    Parameters
    ----------
    rows : CatalogRows
    frame : {"rest", "observed"}
        Frame of the catalog's grid.
    zred : float
        ``model.zred`` of the simulations.
    min_good_fraction : float
        Share of good elements below which a row gets FEW_GOOD_ELEMENTS and no posterior.
    keeps_negative : bool
        :attr:`~digs_survey.noise.model.NoiseModel.keeps_negative` of the posterior's noise: whether flux that
        is not positive is data, or gets NONPOSITIVE_FLUX and a fill.

    Raises
    ------
    CatalogError
        The catalog is in the observed frame.
    """
    require_rest_frame(frame)
    quality = rows.quality | redshift_quality(rows.redshift)
    factor = np.ones(rows.redshift.size)
    at_redshift = (quality & QualityFlag.BAD_REDSHIFT) == 0
    factor[at_redshift] = reference_factor(rows.redshift[at_redshift], zred)
    with np.errstate(over="ignore", invalid="ignore"):
        flux = rows.flux * factor[:, None]
        ivar = rows.ivar / factor[:, None] ** 2
    usable, bits = usable_elements(flux, ivar, rows.good)
    quality = quality | bits
    good = usable if keeps_negative else usable & (flux > 0)
    quality[(usable & ~good).any(axis=1)] |= QualityFlag.NONPOSITIVE_FLUX
    few = ~good.any(axis=1) | (good.mean(axis=1) < min_good_fraction)
    quality[few] |= QualityFlag.FEW_GOOD_ELEMENTS
    lost = (quality & NO_POSTERIOR) != 0
    quality[~lost & ~good.all(axis=1)] |= QualityFlag.FILLED_ELEMENTS
    flux[lost] = 1.0
    filled = (quality & QualityFlag.FILLED_ELEMENTS) != 0
    flux[filled] = fill_flux(flux[filled], good[filled], linear=keeps_negative)
    return PreparedRows(flux, np.where(good, ivar, 0.0), good, quality)
