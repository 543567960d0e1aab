r"""The survey's noise: one distribution that simulations draw from and every likelihood evaluates.

With :math:`f` the noiseless flux of an element, :math:`e` a normal of unit variance and :math:`r` the setting
``fraction``:

- fractional, in log10 flux: :math:`x = f\,(1 + r)^e`, that is
  :math:`\log_{10} x = \log_{10} f + e \log_{10}(1 + r)`;
- all others, in flux: :math:`x = f + \sigma(f)\,e`, with :math:`\sigma^2 = (r f)^2` and, in addition,

  - constant: :math:`s^2`, with :math:`s` the same for every spectrum at the distance of ``model.zred``;
  - catalog: :math:`(f\,S/F)^2`, with :math:`F` and :math:`S` the flux and 1-sigma error that an observed row
    has in that element;
  - catalog with ``poisson_share`` :math:`p`: :math:`(1 - p)\,S^2 + p\,S^2 f / \max(F, S)`, read-out and sky at
    any flux and photons in proportion to it. An :math:`F` below its own error tells nothing of the photons.

:math:`e` is white, or correlated between elements by a short ``kernel``
(:class:`~digs_survey.noise.correlation.Correlation`). The width depends on the model's flux, so that the
normalisation is part of the likelihood.

Rows of a catalog are brought to the distance of ``model.zred``, :math:`S` with them. Constant noise therefore
describes galaxies at one distance, or simulations as such; over a range of redshifts ``S`` is smaller for
nearer galaxies, and catalog noise keeps that. Where errors do not shrink with the flux, noise makes the faint
end of a wide mass prior negative: :meth:`NoiseModel.negative_share` tells how often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from digs_survey.catalog.gaps import fill_flux
from digs_survey.config import NoiseConfig
from digs_survey.noise.correlation import Correlation
from digs_survey.noise.donors import Redshifts
from digs_survey.noise.error_table import row_errors
from digs_survey.noise.missing import missing_elements
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bands import Bands
from digs_survey.store.storage import checksum

__all__ = ["NoiseModel"]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Gaussian noise, in flux or in log10 flux.

    Attributes
    ----------
    config : NoiseConfig
    table : ndarray of float64, shape (terms, rows, wavelength), or None
        Errors that draws pick rows from, as :func:`~digs_survey.noise.error_table.noise_table` gives them;
        one row for constant noise, None for fractional noise. With donors that of
        :class:`~digs_survey.noise.donors.Donors`, of one term and a column more.
    keeps_negative : bool
        Whether flux that is not positive is shown to the posterior as it is, or filled like a masked element.
    """

    config: NoiseConfig
    table: NDArray[np.float64] | None = None
    keeps_negative: bool = True

    @classmethod
    def from_config(
        cls,
        config: NoiseConfig,
        table: ArrayLike | None = None,
        flux_transform: Literal["log10", "asinh"] | None = None,
    ) -> NoiseModel:
        """Build the noise that a configuration describes.

        Parameters
        ----------
        config : NoiseConfig
        table : array_like, shape (terms, rows, wavelength), optional
            Where ``config.needs_catalog``: what :func:`~digs_survey.noise.error_table.noise_table` gives, or the
            table of donors. Without it the noise cannot be drawn.
        flux_transform : {"log10", "asinh"}, optional
            ``train.flux_transform`` of the posterior that is shown the noisy spectra: with log10, which does not know
            negative flux, it is filled; so it is where noise is Gaussian in log10 flux and no model gives it. Without a
            posterior spectra are as they were measured.
        """
        if config.by_row:
            from digs_survey.noise.row_noise import RowNoise

            return RowNoise(config, _checked(table, 1) if config.has_donors and table is not None else None)
        keeps_negative = flux_transform != "log10" and config.space == "flux"
        if config.sigma_flam:
            table = np.reshape(config.sigma_flam, (1, 1, -1))
        if config.kind == "fractional" or table is None:
            return cls(config, keeps_negative=keeps_negative)
        return cls(config, _checked(table, 1 if config.poisson_share is None else 2), keeps_negative)

    def on(self, grid: WavelengthGrid) -> NoiseModel:
        """Return this noise for spectra on a grid, which matters only where it knows of wavelengths."""
        return self

    @property
    def redshifts(self) -> Redshifts | None:
        """Which redshifts simulations have; None where they have none."""
        return None

    @property
    def redshift_key(self) -> dict[str, Any]:
        """What decides the redshifts of simulations, for keys and recipes; empty where they have none."""
        return {} if self.redshifts is None else {"redshift": self.redshifts.key}

    @property
    def photometry_bands(self) -> Bands | None:
        """Filters that simulations have fluxes through; None where they have none."""
        return None

    @property
    def band_count(self) -> int:
        """How many of the last elements of what is observed are bands; 0 where there is no photometry."""
        return 0

    def redshift_of(self, observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Redshifts (...) of what is observed (..., column); NaN where it does not tell."""
        return np.full(observed.shape[:-1], np.nan)

    def spectrum_of(self, observed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Flux (..., wavelength) of what is observed (..., column)."""
        return observed

    def calibrated(self, observed: NDArray[Any], model: NDArray[Any]) -> NDArray[Any]:
        """Return a model's flux (..., wavelength) with the likeliest errors of the calibration; here there are none."""
        return model

    def redraw(
        self,
        clean: NDArray[np.float64],
        observed: NDArray[np.float64],
        normal: NDArray[np.float64],
        errors: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """Observe noiseless flux (n, wavelength) as rows were observed: with their errors (terms, n, wavelength).

        ``normal`` has shape (n, self.normals(wavelength)).
        """
        return np.asarray(self.perturb(clean, normal, errors))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration, with the checksum of the table in place of its numbers."""
        return {
            **self.config.model_dump(mode="json"),
            "table": None if self.table is None else checksum(self.table),
            "keeps_negative": self.keeps_negative,
        }

    # -- drawing ---------------------------------------------------------------------------------------

    def perturb(self, flux: Any, normal: Any, errors: Any = None) -> Any:
        """Add noise to spectra: arithmetic only, for numpy arrays and torch tensors alike.

        Parameters
        ----------
        flux : (..., wavelength)
            Noiseless flux.
        normal : (..., self.normals(wavelength))
            Independent standard normals.
        errors : (terms, ..., wavelength), optional
            Errors of each row, as :meth:`pick` gives them; needed unless the noise is fractional.

        Returns
        -------
        (..., wavelength)
            Noisy flux in the unit of ``flux``; it may be negative where noise is Gaussian in flux.
        """
        normal = self.correlation.smooth(normal)
        if self.config.space == "log10":
            return flux * (1.0 + self.config.fraction) ** normal
        return flux * (1.0 + self._width(flux, errors) * normal)

    def normals(self, elements: int) -> int:
        """Independent normals that the noise of so many elements takes: the kernel reaches beyond the ends."""
        return elements + 2 * self.correlation.reach

    def pick(self, uniform: ArrayLike) -> NDArray[np.float64] | None:
        """Rows (terms, ..., wavelength) of the table for numbers (...) in [0, 1); None for fractional noise."""
        if self.config.kind == "fractional":
            return None
        if self.table is None:
            raise ValueError(
                f"noise of kind {self.config.kind!r} has no table of a catalog's errors to draw from; "
                "pass the one of noise_table to NoiseModel.from_config"
            )
        return self.table[:, (np.asarray(uniform, dtype=float) * self.table.shape[1]).astype(int)]

    def apply_missing(self, noisy: NDArray[Any], uniform: ArrayLike) -> NDArray[Any]:
        """Take stretches out of noisy spectra (..., wavelength), and fill them as a catalog's rows are filled.

        ``uniform`` (..., config.missing.columns) chooses them. As in a catalog's rows, elements that are not
        positive are filled too, unless negative flux is kept.
        """
        return fill_flux(noisy, self._kept(noisy, uniform), linear=self.keeps_negative)

    def columns(self, elements: int) -> int:
        """Random numbers that :meth:`from_uniform` takes for a spectrum of so many elements."""
        return 1 + self.normals(elements) + self.config.missing.columns

    def from_uniform(self, flux: ArrayLike, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return noisy copies, with stretches lost, of spectra (n, wavelength) for given random numbers.

        ``uniform`` has shape (n, self.columns(wavelength)) and values strictly between 0 and 1; with
        :func:`~digs_survey.simulate.seeding.row_uniforms`, noise belongs to the row.
        """
        return self.observe(flux, uniform)[0]

    def observe(
        self, flux: ArrayLike, uniform: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64] | None]:
        """Observe spectra (n, wavelength), and tell what a catalog's row would tell of its noise.

        Takes what :meth:`from_uniform` takes.

        Returns
        -------
        noisy : ndarray, shape (n, wavelength)
            What :meth:`from_uniform` gives.
        good : ndarray of bool, shape (n, wavelength)
            Elements that were not filled.
        errors : ndarray, shape (terms, n, wavelength), or None
            With ``good``, what :meth:`log_likelihood` takes.
        """
        flux = np.asarray(flux, dtype=float)
        row, normal, missing = np.split(uniform, [1, 1 + self.normals(flux.shape[-1])], axis=-1)
        errors = self.pick(row[..., 0])
        noisy = self.perturb(flux, ndtri(normal), errors)
        return self.apply_missing(noisy, missing), self._kept(noisy, missing), errors

    def draw(self, flux: ArrayLike, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return noisy copies, with stretches lost, of spectra (..., wavelength)."""
        noisy = self._noisy(np.asarray(flux, dtype=float), rng)
        return self.apply_missing(noisy, rng.random((*noisy.shape[:-1], self.config.missing.columns)))

    def negative_share(self, flux: ArrayLike) -> float:
        """Share of the elements of spectra (n, wavelength) whose noisy flux is not positive: one draw."""
        return float((self._noisy(np.asarray(flux, dtype=float), np.random.default_rng(0)) <= 0).mean())

    # -- evaluating ------------------------------------------------------------------------------------

    def sigma(self, flux: Any, errors: Any = None) -> Any:
        """Half the width of the noise's central 68.27 % about a model's flux, for arrays and tensors alike.

        Parameters
        ----------
        flux : (..., wavelength)
            Flux of the model, not of the observation.
        errors : (terms, ..., wavelength), optional
            For catalog noise: errors of each row.

        Returns
        -------
        (..., wavelength)
            In the unit of ``flux``; the standard deviation where noise is Gaussian in flux.
        """
        if self.config.space == "log10":
            upper = 1.0 + self.config.fraction
            return flux * (0.5 * (upper - 1.0 / upper))
        return flux * self._width(flux, errors)

    def residuals(
        self, observed: ArrayLike, model: ArrayLike, good: ArrayLike | None = None, errors: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Residuals in units of the noise about the model: independent standard normals if the model is the truth.

        Takes what :meth:`log_likelihood` takes.

        Returns
        -------
        ndarray of float64, shape (..., wavelength)
            NaN where not good. Where noise is correlated, each residual is what the elements before it do not
            foretell.
        """
        white, _, _, counts = self._standardise(observed, model, good, errors)
        return np.where(counts, white, np.nan)

    def linearised(
        self,
        change: NDArray[np.float64],
        observed: NDArray[np.float64],
        model: NDArray[np.float64],
        good: NDArray[np.bool_],
        errors: NDArray[np.float64] | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return a row's residual and small changes of its flux, between which the noise has products.

        Parameters
        ----------
        change : ndarray, shape (n, wavelength)
        observed : ndarray, shape (column,)
        model : ndarray, shape (wavelength,)
            Flux about which the noise is taken.
        good, errors
            As :meth:`log_likelihood` takes them.

        Returns
        -------
        residual : ndarray, shape (wavelength,)
            0 where not good.
        change : ndarray, shape (n, wavelength)
            The same.
        shared : ndarray, shape (k, wavelength)
            In units of the noise x and y have the product :math:`x y - (U x) (U y)`, for U of these rows: what elements
            share is taken out.
        """
        if self.config.space == "log10":
            scaled = change / (model * math.log1p(self.config.fraction))
        else:
            scaled = change / self.sigma(model, errors)
        scaled, counts = np.broadcast_arrays(scaled, good)
        white = np.where(counts, self.correlation.whiten(scaled, counts)[0], 0.0)
        residual = self.residuals(observed, model, good, errors)
        return np.where(good, residual, 0.0), white, np.empty((0, white.shape[-1]))

    def log_likelihood(
        self, observed: ArrayLike, model: ArrayLike, good: ArrayLike | None = None, errors: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Log density of observed flux given the model's: the one that simulations are drawn from.

        Parameters
        ----------
        observed, model : array_like, shape (..., wavelength)
            Flux in the same unit; they broadcast against each other.
        good : array_like of bool, shape (..., wavelength), optional
            Elements that count; what the others hold does not matter.
        errors : array_like, shape (terms, ..., wavelength), optional
            For catalog noise: errors of the observed row, as :meth:`errors_of` gives them.

        Returns
        -------
        ndarray, shape (...)
            Natural log of the density per unit of flux in each element, normalised, summed over the elements;
            -inf where the model's flux is not positive and finite, or the noise cannot reach the observed flux.
        """
        return self._density(observed, model, *self._standardise(observed, model, good, errors))

    def _density(
        self, observed: ArrayLike, model: ArrayLike, white: Any, log_width: Any, log_det: Any, counts: Any
    ) -> NDArray[np.float64]:
        """Log density (...) of what :meth:`_standardise` gives."""
        with np.errstate(invalid="ignore", over="ignore"):
            log_density = -0.5 * (white**2 + _LOG_2PI) - log_width
        possible = np.isfinite(model) & (np.asarray(model) > 0)
        if self.config.space == "log10":
            possible = possible & ~(np.asarray(observed) <= 0)
        total = np.where(counts, log_density, 0.0).sum(axis=-1) - 0.5 * log_det
        return np.where((possible | ~counts).all(axis=-1), total, -np.inf)

    def goodness(
        self,
        observed: NDArray[Any],
        models: NDArray[Any],
        good: NDArray[np.bool_] | None = None,
        errors: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return chi-square and log density (draws,) of one observation (column,) for models (draws, wavelength).

        Chi-square is the sum of the squares of :meth:`residuals`; the density is that of :meth:`log_likelihood`.
        """
        standard = self._standardise(observed, models, good, errors)
        chi2 = np.nansum(np.where(standard[3], np.square(standard[0]), 0.0), axis=-1)
        return chi2, self._density(observed, models, *standard)

    def errors_of(self, flux: ArrayLike, ivar: ArrayLike, good: ArrayLike) -> NDArray[np.float64] | None:
        """Errors (terms, n, wavelength) of observed rows, as ``errors`` of the other methods takes them.

        None where every row has the same noise. See :func:`~digs_survey.noise.error_table.row_errors`.
        """
        return row_errors(self.config, flux, ivar, good) if self.config.kind == "catalog" else None

    @cached_property
    def correlation(self) -> Correlation:
        """Of the noise in different elements."""
        return Correlation(self.config.kernel)

    def _kept(self, noisy: NDArray[Any], uniform: ArrayLike) -> NDArray[np.bool_]:
        """Elements (..., wavelength) that :meth:`apply_missing` leaves as they are."""
        kept = np.ones(noisy.shape, dtype=bool) if self.keeps_negative else noisy > 0
        if self.config.missing.probability:
            kept &= ~missing_elements(self.config.missing, uniform, noisy.shape[-1])
        return kept

    def _noisy(self, flux: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        rows, elements = flux.shape[:-1], flux.shape[-1]
        errors = None if self.config.kind == "fractional" else self.pick(rng.random(rows))
        return self.perturb(flux, rng.standard_normal((*rows, self.normals(elements))), errors)

    def _width(self, flux: Any, errors: Any) -> Any:
        """1-sigma over flux, a number or (..., wavelength); as a ratio it stays clear of float32's limits."""
        if self.config.kind == "fractional":
            return self.config.fraction
        if errors is None and self.config.kind == "constant" and self.table is not None:
            errors = self.table[:, 0]
        if errors is None:
            raise ValueError(
                f"noise of kind {self.config.kind!r} needs the rows' errors; NoiseModel.errors_of gives them"
            )
        variance = self.config.fraction**2
        if self.config.kind == "constant":
            return (variance + (errors[0] / flux) ** 2) ** 0.5
        if self.config.poisson_share is None:
            return (variance + errors[0] ** 2) ** 0.5
        return (variance + (errors[0] / flux) ** 2 + errors[1] ** 2 / flux) ** 0.5

    def _standardise(
        self, observed: ArrayLike, model: ArrayLike, good: ArrayLike | None, errors: ArrayLike | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """White residuals, log of the width per unit of flux, log determinant of the correlation, what counts."""
        x, f = np.asarray(observed, dtype=float), np.asarray(model, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.config.space == "log10":
                scale = math.log1p(self.config.fraction)
                residual, log_width = (np.log(x) - np.log(f)) / scale, np.log(scale * x)
            else:
                sigma = self.sigma(f, None if errors is None else np.asarray(errors, dtype=float))
                residual, log_width = (x - f) / sigma, np.log(sigma)
        mask = np.asarray(True if good is None else good, dtype=bool)
        residual, counts = np.broadcast_arrays(residual, mask)
        white, log_det = self.correlation.whiten(residual, counts)
        return white, log_width, log_det, counts


def _checked(table: ArrayLike, terms: int) -> NDArray[np.float64]:
    """Return a table (terms, rows, column), which nobody can write to; refuse another one."""
    values = np.array(table, dtype=np.float64)
    if values.ndim != 3 or len(values) != terms or not values.size or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"table: expected ({terms}, rows, wavelength) finite errors >= 0, found an array of shape {values.shape}; "
            "noise_table makes such a table"
        )
    values.setflags(write=False)
    return values
