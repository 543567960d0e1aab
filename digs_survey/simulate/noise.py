r"""The survey's noise: one distribution that simulations draw from and every likelihood evaluates.

With :math:`f` the noiseless flux of an element, :math:`n` a standard normal and :math:`r` the setting
``fraction``:

- fractional, in flux: :math:`x = f\,(1 + r\,n)`;
- fractional, in log10 flux: :math:`x = f\,(1 + r)^n`, that is
  :math:`\log_{10} x = \log_{10} f + n \log_{10}(1 + r)`;
- catalog: :math:`x = f\,(1 + n \sqrt{r^2 + s^2})`, with :math:`s` the 1-sigma error relative to the flux
  that an observed row has in that element.

The width depends on the model's flux, so that the normalisation is part of the likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digs_survey.config import NoiseConfig
from digs_survey.errors import CatalogError

__all__ = ["NoiseModel", "catalog_noise_table"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_MIN_KNOWN = 0.5
"""Share of a row's elements whose error must be known for the row to stand for the catalog's noise."""


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Gaussian noise, independent between elements.

    Attributes
    ----------
    kind : {"fractional", "catalog"}
    fraction : float
        1-sigma as a fraction of the flux; added in quadrature if ``kind`` is "catalog".
    space : {"flux", "log10"}
        Where the noise is Gaussian; "catalog" noise is Gaussian in flux.
    relative : ndarray of float64, shape (rows, wavelength), or None
        For ``kind="catalog"``: the table of 1-sigma errors relative to the flux that draws pick rows from.
    """

    kind: str
    fraction: float
    space: str
    relative: NDArray[np.float64] | None = None

    @classmethod
    def from_config(cls, config: NoiseConfig, relative: ArrayLike | None = None) -> NoiseModel:
        """Build the noise that a configuration describes.

        Parameters
        ----------
        config : NoiseConfig
        relative : array_like, shape (rows, wavelength), optional
            For ``kind="catalog"``: relative errors, as :func:`catalog_noise_table` gives them.
        """
        if config.kind == "fractional" or relative is None:
            return cls(config.kind, config.fraction, config.space)
        table = np.array(relative, dtype=np.float64)
        if table.ndim != 2 or table.size == 0 or not (np.isfinite(table) & (table >= 0)).all():
            raise ValueError(
                "relative: expected (rows, wavelength) finite errors >= 0, found an array of shape "
                f"{table.shape}; catalog_noise_table makes such a table"
            )
        table.setflags(write=False)
        return cls(config.kind, config.fraction, config.space, table)

    def to_dict(self) -> dict[str, Any]:
        """Return what a :class:`~digs_survey.config.NoiseConfig` holds; the table is an array of its own."""
        return {"kind": self.kind, "fraction": self.fraction, "space": self.space}

    def perturb(self, flux: Any, normal: Any, relative: Any = None) -> Any:
        """Add noise to spectra: arithmetic only, for numpy arrays and torch tensors alike.

        Parameters
        ----------
        flux : (..., wavelength)
            Noiseless flux.
        normal : (..., wavelength)
            Independent standard normals.
        relative : (..., wavelength), optional
            For ``kind="catalog"``: 1-sigma error over flux of each row.

        Returns
        -------
        (..., wavelength)
            Noisy flux in the unit of ``flux``; it may be negative where noise is Gaussian in flux.
        """
        if self.space == "log10":
            return flux * (1.0 + self.fraction) ** normal
        return flux * (1.0 + self._width(relative) * normal)

    def sigma(self, flux: Any, relative: Any = None) -> Any:
        """Half the width of the noise's central 68.27 % about a model's flux, for arrays and tensors alike.

        Parameters
        ----------
        flux : (..., wavelength)
            Flux of the model, not of the observation.
        relative : (..., wavelength), optional
            For ``kind="catalog"``: 1-sigma error over flux of each row.

        Returns
        -------
        (..., wavelength)
            In the unit of ``flux``; the standard deviation where noise is Gaussian in flux.
        """
        if self.space == "log10":
            upper = 1.0 + self.fraction
            return flux * (0.5 * (upper - 1.0 / upper))
        return flux * self._width(relative)

    def pick(self, uniform: ArrayLike) -> NDArray[np.float64] | None:
        """Rows (..., wavelength) of the table for numbers (...) in [0, 1); None for fractional noise."""
        if self.kind == "fractional":
            return None
        if self.relative is None:
            raise ValueError(
                "noise of kind 'catalog' has no table of relative errors to draw from; "
                "pass the one of catalog_noise_table to NoiseModel.from_config"
            )
        return self.relative[(np.asarray(uniform, dtype=float) * len(self.relative)).astype(int)]

    def draw(self, flux: ArrayLike, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return noisy copies of spectra (..., wavelength); catalog noise takes a random row for each."""
        flux = np.asarray(flux, dtype=float)
        relative = self.pick(rng.random(flux.shape[:-1])) if self.kind == "catalog" else None
        return self.perturb(flux, rng.standard_normal(flux.shape), relative)

    def log_likelihood(
        self,
        observed: ArrayLike,
        model: ArrayLike,
        good: ArrayLike | None = None,
        relative: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Log density of observed flux given the model's: the one that :meth:`perturb` draws from.

        Parameters
        ----------
        observed, model : array_like, shape (..., wavelength)
            Flux in the same unit; they broadcast against each other.
        good : array_like of bool, shape (..., wavelength), optional
            Elements that count; what the others hold does not matter.
        relative : array_like, shape (..., wavelength), optional
            For ``kind="catalog"``: 1-sigma error over flux of the observed row.

        Returns
        -------
        ndarray, shape (...)
            Natural log of the density per unit of flux in each element, normalised, summed over the elements;
            -inf where the model's flux is not positive, or the noise cannot reach the observed flux.
        """
        observed, model = np.asarray(observed, dtype=float), np.asarray(model, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.space == "log10":
                scale = math.log1p(self.fraction)
                z = (np.log(observed) - np.log(model)) / scale
                log_density = -0.5 * z**2 - np.log(scale * observed) - _LOG_SQRT_2PI
                log_density = np.where((model > 0) & ~(observed <= 0), log_density, -np.inf)
            else:
                sigma = self.sigma(model, None if relative is None else np.asarray(relative, dtype=float))
                log_density = -0.5 * ((observed - model) / sigma) ** 2 - np.log(sigma) - _LOG_SQRT_2PI
                log_density = np.where(model > 0, log_density, -np.inf)
        if good is not None:
            log_density = np.where(np.asarray(good, dtype=bool), log_density, 0.0)
        return log_density.sum(axis=-1)

    def relative_of(self, flux: ArrayLike, ivar: ArrayLike, good: ArrayLike) -> NDArray[np.float64] | None:
        """Errors of observed rows relative to their flux, as ``relative`` of the other methods takes them.

        Parameters
        ----------
        flux, ivar : array_like, shape (n, wavelength)
            Observed flux and its inverse variance.
        good : array_like of bool, shape (n, wavelength)
            Elements that count.

        Returns
        -------
        ndarray of float64, shape (n, wavelength), or None
            Elements that are not good, or have no positive flux, are filled from their neighbours in the
            row (NaN if the row has no other); None for fractional noise.
        """
        if self.kind == "fractional":
            return None
        flux, ivar = np.asarray(flux, dtype=float), np.asarray(ivar, dtype=float)
        known = np.asarray(good, dtype=bool) & (flux > 0) & (ivar > 0)
        error = 1.0 / np.sqrt(np.where(known, ivar, 1.0)) / np.where(known, flux, 1.0)
        return _fill(error, known)

    def _width(self, relative: Any) -> Any:
        if self.kind == "fractional":
            return self.fraction
        if relative is None:
            raise ValueError(
                "noise of kind 'catalog' needs the rows' relative errors; NoiseModel.relative_of gives them"
            )
        return (self.fraction**2 + relative**2) ** 0.5


def catalog_noise_table(relative: ArrayLike, good: ArrayLike, seed: int, limit: int = 4096) -> NDArray[np.float64]:
    """Choose rows of a catalog whose relative errors stand for the survey's noise.

    Whole rows are kept, so that the errors of neighbouring elements stay together; masked elements are
    filled by linear interpolation along the row.

    Parameters
    ----------
    relative : array_like, shape (n, wavelength)
        1-sigma errors over flux.
    good : array_like of bool, shape (n, wavelength)
        Elements whose error is known.
    seed : int
        Chooses the rows if there are more than ``limit``.
    limit : int
        Most rows in the table.

    Returns
    -------
    ndarray of float64, shape (rows, wavelength)
        In the order of the catalog.

    Raises
    ------
    CatalogError
        If no row has half its elements good.
    """
    relative = np.asarray(relative, dtype=float)
    known = np.asarray(good, dtype=bool) & np.isfinite(relative) & (relative > 0)
    usable = np.flatnonzero(known.mean(axis=1) >= _MIN_KNOWN)
    if usable.size == 0:
        raise CatalogError(
            f"noise.kind = 'catalog': expected rows with at least {_MIN_KNOWN:.0%} of their elements good, "
            f"found none among {len(relative)}; set noise.kind = 'fractional' or repair ivar and mask"
        )
    if usable.size > limit:
        usable = np.sort(np.random.default_rng(seed).choice(usable, size=limit, replace=False))
    return _fill(relative[usable], known[usable])


def _fill(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Interpolate the unknown elements of each row along it; ends take the nearest, empty rows NaN."""
    filled = np.where(known, values, np.nan)
    element = np.arange(values.shape[1])
    for row in np.flatnonzero(known.any(axis=1) & ~known.all(axis=1)):
        use = known[row]
        filled[row] = np.interp(element, element[use], values[row, use])
    return filled
