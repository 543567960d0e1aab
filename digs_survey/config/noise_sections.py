"""The noise sections of the configuration; :mod:`digs_survey.noise.model` says what they mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from digs_survey.config.types import Count, Positive, Section, Share
from digs_survey.errors import ConfigError

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


class NoiseConfig(Section):
    """The survey's noise, drawn on simulations and used by every likelihood."""

    kind: Literal["fractional", "constant", "catalog"] = "fractional"
    """A fraction of the flux; the same absolute error for every spectrum; or the catalog's own ivar (rows drawn
    at random)."""
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
    def needs_catalog(self) -> bool:
        """Whether a catalog's inverse variances are part of the noise."""
        return self.kind == "catalog" or (self.kind == "constant" and not self.sigma_flam)

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
