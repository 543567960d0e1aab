"""The noise sections of the configuration; :mod:`digs_survey.noise.model` says what they mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.config.types import Count, Interval, Positive, Section, Share
from digs_survey.errors import ConfigError
from digs_survey.parameters import MAX_REDSHIFT

__all__ = ["MissingConfig", "NoiseConfig"]

_MIN_RESPONSE = 0.01
"""Of a noise kernel to a wave over the elements, relative to the largest: keeps likelihoods well conditioned."""


class MissingConfig(Section):
    """Contiguous stretches of elements that simulated spectra lack, filled as masked elements of a catalog are."""

    probability: Share = 0.0
    """That a spectrum lacks any."""
    stretches: Count = 1
    """Most stretches that such a spectrum lacks; from one to this number are equally likely."""
    elements: tuple[Count, Count] = (1, 10)
    """Shortest and longest stretch; all lengths between are equally likely."""

    @model_validator(mode="after")
    def _ordered(self) -> MissingConfig:
        if self.elements[1] < self.elements[0]:
            raise ValueError("elements: expected the shortest stretch before the longest")
        return self

    @property
    def columns(self) -> int:
        """Random numbers that choose a spectrum's stretches; 0 where no spectrum lacks any."""
        return 1 + 2 * self.stretches if self.probability > 0 else 0


class ObservingConfig(Section):
    """For noise of kind "row": what the simulated rows are like. Each simulation draws a row of its own kind."""

    added = frozenset({"donors", "donor_snr_factor", "arms", "missing_arm"})

    donors: Literal["none", "catalog"] = "none"
    """Where errors, gaps and redshift of simulations come from: the settings below, or, together, rows of the survey's
    catalog. Of the settings below such simulations use redshift (rows elsewhere are no donors), floor and
    masked_lines."""
    donor_snr_factor: Interval = (0.5, 2.0)
    """Least and greatest factor on a donor's signal-to-noise ratio, so that the posterior serves deeper and shallower
    rows of the same survey; its logarithm is uniform."""
    redshift: Interval = (0.001, 0.6)
    """Least and greatest redshift; all between are equally likely."""
    snr: Interval = (2.0, 60.0)
    """Least and greatest signal-to-noise ratio, the geometric mean over a row's elements, without the error floor; its
    logarithm is uniform."""
    blue_end_angstrom: Interval = (3550.0, 3900.0)
    red_end_angstrom: Interval = (9000.0, 9900.0)
    """Ranges of the observed wavelengths at which spectra begin and end."""
    error_slope: Annotated[float, Field(ge=0)] = 0.3
    """Standard deviation of the coefficients of a cubic in wavelength that the log of the errors follows."""
    sky_angstrom: Positive = 6800.0
    sky_errors: Annotated[float, Field(ge=1)] = 4.0
    """Beyond this observed wavelength sky lines multiply the errors of elements by up to this factor."""
    gaps: Annotated[int, Field(ge=0)] = 3
    """Most contiguous gaps; from none to this number are equally likely."""
    gap_share: Share = 0.14
    """Widest gap, as a share of the grid's elements; all widths below are equally likely."""
    bad_elements: Share = 0.02
    """Largest share of single elements that are masked; all shares below are equally likely."""
    floor: Interval = (0.005, 0.05)
    """Least and greatest error floor, as a share of the flux; its logarithm is uniform."""
    masked_lines: Share = 0.5
    """Share of the rows whose emission lines are masked, as map.mask_lines does it."""
    arms: tuple[Interval, ...] = ()
    """Observed wavelengths at which each arm of the spectrograph begins and ends; they may overlap."""
    missing_arm: Share = 0.0
    """Share of the rows that lack one of the arms, whichever it is: what no other arm covers has no data."""

    @model_validator(mode="after")
    def _whole_arms(self) -> ObservingConfig:
        for low, high in self.arms:
            if not low < high:
                raise ValueError(f"arms: expected each to begin before it ends, found {low:g} to {high:g}")
        if self.missing_arm and len(self.arms) < 2:
            raise ValueError(f"missing_arm: expected two arms or more in arms, found {len(self.arms)}")
        if self.donors != "none" and self.arms:
            raise ValueError("arms: expected none with donors = 'catalog', whose rows lack what they lack")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> ObservingConfig:
        for name in ("redshift", "donor_snr_factor", "snr", "blue_end_angstrom", "red_end_angstrom", "floor"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name}: expected the least value first, found {low:g} and {high:g}")
        if self.redshift[1] > MAX_REDSHIFT:
            raise ValueError(
                f"redshift: expected at most {MAX_REDSHIFT:g}, as in a catalog, found {self.redshift[1]:g}"
            )
        if self.blue_end_angstrom[1] >= self.red_end_angstrom[0]:
            raise ValueError("blue_end_angstrom: expected spectra to begin before they end (red_end_angstrom)")
        return self


class NoiseConfig(Section):
    """The survey's noise, drawn on simulations and used by every likelihood."""

    added = frozenset({"calibration_order", "calibration_width", "observing", "photometry"})

    kind: Literal["fractional", "constant", "catalog", "row"] = "fractional"
    """A fraction of the flux; the same absolute error for every spectrum; the catalog's own ivar (rows drawn
    at random), over which the posterior averages; or each row's own ivar, gaps and redshift, which the posterior is
    shown."""
    calibration_order: Annotated[int, Field(ge=0, le=12)] = 6
    """Of row noise: order of the polynomial in wavelength that may multiply the model's flux; 0 for none. It is
    marginalised."""
    calibration_width: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    """Of row noise: standard deviation of each of the polynomial's Chebyshev coefficients."""
    observing: ObservingConfig = ObservingConfig()
    photometry: PhotometryConfig = PhotometryConfig()
    """Of row noise: fluxes through filters beside the spectrum. A file has it as a section of its own,
    ``[photometry]``."""
    fraction: Annotated[float, Field(ge=0)] = 0.05
    """Standard deviation as a fraction of the flux. The other kinds add it in quadrature, for what the model itself
    gets wrong; 0 leaves it out there."""
    space: Literal["flux", "log10"] = "flux"
    """Where fractional noise is Gaussian: in flux, or (the paper's code) in log10 flux."""
    sigma_flam: tuple[Positive, ...] = ()
    """Of constant noise: standard deviation in erg/s/cm2/Angstrom at the distance of model.zred, one number or
    one for each element; without it, the catalog's median error in each element, brought to that distance."""
    poisson_share: Share | None = None
    """Of catalog noise: share of a row's variance that is Poisson and grows with the flux, the rest (read-out,
    sky) being the same at any flux. Without it, a row's error relative to its flux holds at any flux."""
    kernel: tuple[float, ...] = (1.0,)
    """Weights by which an element and its neighbours on either side share noise; sigma does not change."""
    missing: MissingConfig = MissingConfig()

    @field_validator("sigma_flam", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _consistent(self) -> NoiseConfig:
        if self.kind == "fractional" and self.fraction == 0:
            raise ValueError("kind = 'fractional' needs noise.fraction > 0, found 0")
        if self.kind != "fractional" and self.space != "flux":
            raise ValueError(f"kind = {self.kind!r} is Gaussian in flux; expected space = 'flux'")
        if self.kind != "constant" and self.sigma_flam:
            raise ValueError(f"sigma_flam belongs to kind = 'constant', found kind = {self.kind!r}")
        if self.by_row and (self.kernel != (1.0,) or self.missing.probability):
            raise ValueError("kind = 'row' has its gaps in noise.observing, and knows no kernel and no noise.missing")
        if self.by_row and self.fraction not in (0, type(self).model_fields["fraction"].default):
            raise ValueError(
                "kind = 'row' does not use fraction; the error floor of simulations is noise.observing.floor, and that "
                "of a catalog's rows map.error_floor"
            )
        if not self.by_row and (unused := sorted(self.added & self.model_dump().keys())):
            raise ValueError(f"{unused[0]} belongs to kind = 'row', found kind = {self.kind!r}")
        if self.kind != "catalog" and self.poisson_share is not None:
            raise ValueError(f"poisson_share belongs to kind = 'catalog', found kind = {self.kind!r}")
        angle = np.linspace(0, np.pi, 721)
        response = np.abs(sum(k * (2 - (j == 0)) * np.cos(j * angle) for j, k in enumerate(self.kernel)))
        if not np.max(response) > 0 or np.min(response) < _MIN_RESPONSE * np.max(response):
            raise ValueError(
                f"kernel = {list(self.kernel)} leaves some pattern of elements without noise, in which no model would "
                "be good enough; expected a first weight above twice the sum of the others, such as [1.0, 0.3]"
            )
        return self

    @property
    def by_row(self) -> bool:
        """Whether each row has its own errors, gaps and redshift, and simulations a column with their redshift."""
        return self.kind == "row"

    @property
    def has_donors(self) -> bool:
        """Whether simulations take errors, gaps and redshift of a catalog's rows."""
        return self.by_row and self.observing.donors == "catalog"

    @property
    def needs_catalog(self) -> bool:
        """Whether a catalog's inverse variances are part of the noise."""
        return self.kind == "catalog" or self.has_donors or (self.kind == "constant" and not self.sigma_flam)

    @property
    def scales_with_flux(self) -> bool:
        """Whether a spectrum that is twice as bright has noise that is just twice as large."""
        return self.kind != "constant" and self.poisson_share is None

    def check_elements(self, elements: int) -> None:
        """Refuse settings that do not fit a grid of so many elements, with a :class:`ConfigError`."""
        if len(self.sigma_flam) not in (0, 1, elements):
            raise ConfigError(
                f"noise.sigma_flam: expected one number or {elements}, one for each element of the grid, "
                f"found {len(self.sigma_flam)}"
            )
        lost = self.missing.stretches * self.missing.elements[1]
        if self.missing.probability > 0 and lost >= elements:
            raise ConfigError(
                f"noise.missing: up to {self.missing.stretches} stretches of up to {self.missing.elements[1]} elements "
                f"may take all {elements} of the grid; expected fewer or shorter ones"
            )
