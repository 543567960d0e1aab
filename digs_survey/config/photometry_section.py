"""The photometry section of the configuration: filters, and what the bands of simulated rows are like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from digs_survey.config.types import Interval, Positive, Section, Share
from digs_survey.distributions import Distribution, Fixed, Given
from digs_survey.errors import ConfigError
from digs_survey.filters import REST_ANGSTROM, unknown_filter
from digs_survey.parameters import SPEC_NORM

__all__ = ["PhotometryConfig", "check_spec_norm"]


class PhotometryConfig(Section):
    """Fluxes through filters beside the spectrum; none without filters."""

    filters: tuple[str, ...] = ()
    """sedpy's names; the catalog's columns are ``phot_`` with the name, and the same with ``_ivar``."""
    floor: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.05,)
    """Error floor as a share of the band's flux, in quadrature with its error: one number, or one for each filter."""
    rest_angstrom: tuple[Positive, Positive] = REST_ANGSTROM
    """Wavelengths at rest that bands may see; a band that reaches beyond them is left out of a row. By default, what
    the models describe."""
    snr: Interval = (2.0, 200.0)
    """Least and greatest signal-to-noise ratio of simulated rows, the geometric mean over the bands, without the floor;
    its logarithm is uniform."""
    snr_scatter: Annotated[float, Field(ge=0, le=3)] = 0.7
    """Standard deviation of the natural logarithm of a band's signal-to-noise ratio about the row's."""
    missing_band: Share = 0.1
    """That a simulated row lacks a band, for each band by itself."""
    without_photometry: Share = 0.2
    """Share of the simulated rows that have a spectrum alone."""
    without_spectrum: Share = 0.2
    """Share of the simulated rows that have photometry alone."""

    @field_validator("floor", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("filters")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if problem := unknown_filter(name):
                raise ValueError(problem)
            if value.count(name) > 1:
                raise ValueError(f"expected each filter once, found {name!r} {value.count(name)} times")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> PhotometryConfig:
        if not self.filters:
            fields = type(self).model_fields
            for name in fields:
                if getattr(self, name) != fields[name].get_default():
                    raise ValueError(f"{name}: there is no photometry without filters; expected their names in filters")
        if self.filters and len(self.floor) not in (1, len(self.filters)):
            raise ValueError(
                f"floor: expected one number or {len(self.filters)}, one for each filter, found {len(self.floor)}"
            )
        for name in ("rest_angstrom", "snr"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name}: expected the least value first, found {low:g} and {high:g}")
        if self.without_photometry + self.without_spectrum >= 1:
            raise ValueError(
                "without_photometry and without_spectrum: expected a sum below 1, so that some rows have both, found "
                f"{self.without_photometry:g} and {self.without_spectrum:g}"
            )
        return self

    @property
    def floors(self) -> tuple[float, ...]:
        """Error floor of each filter."""
        return self.floor * len(self.filters) if len(self.floor) == 1 else self.floor


def check_spec_norm(priors: Mapping[str, Given]) -> None:
    """Refuse a spectrum without any of the galaxy's light.

    Raises
    ------
    ConfigError
    """
    prior = priors.get(SPEC_NORM)
    low = prior.value if isinstance(prior, Fixed) else prior.low if isinstance(prior, Distribution) else None
    if low is not None and not low > 0:
        raise ConfigError(f"prior.{SPEC_NORM}: expected values above 0, found {low:g}")
