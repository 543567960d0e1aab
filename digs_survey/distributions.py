r"""Prior distributions of single parameters, each between two finite ends.

Each kind is a section of the configuration, and knows its density, its cumulative distribution F and the inverse of
F. Every distribution is cut at ``low`` and ``high`` and integrates to one between them, so that the model is never
asked for a galaxy that the stellar populations do not cover.

The names are those of Prospector's priors (``prospect.models.priors``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_serializer,
    model_validator,
)
from scipy import special

__all__ = [
    "CONDITIONAL",
    "KINDS",
    "PRIORS",
    "AnyPrior",
    "Beta",
    "Distribution",
    "Fixed",
    "Given",
    "LogNormal",
    "LogUniform",
    "Normal",
    "StudentT",
    "Tied",
    "Uniform",
]

Positive = Annotated[float, Field(gt=0)]
Array = NDArray[np.float64]
_FAR = 8.0
"""Sigmas from the middle at which a normal prior that names no ends is cut: beyond lies a share of 1e-15."""

_FROM_END = 1e-9
"""Distance to an end, as a share of the range, from which :meth:`Distribution.within` takes values."""


class Distribution(BaseModel, ABC):
    """A prior of one parameter, cut at ``low`` and ``high``; both are in the parameter's own unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prior: str
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Distribution:
        if not self.low < self.high:
            raise ValueError(f"expected finite low < high, found [{self.low:g}, {self.high:g}]")
        return self

    @abstractmethod
    def cdf(self, value: ArrayLike) -> Array:
        """Cumulative distribution F at values (...): 0 at ``low``, 1 at ``high``."""

    @abstractmethod
    def ppf(self, share: ArrayLike) -> Array:
        """Inverse of :meth:`cdf`: values (...) between the ends for shares (...) between 0 and 1."""

    @abstractmethod
    def log_pdf(self, value: ArrayLike) -> Array:
        """Log density at values (...) between the ends; what it gives elsewhere has no meaning."""

    def __str__(self) -> str:
        """Return the kind and its numbers, as people read them: ``normal, mean 0.3, sigma 1``."""
        numbers = self.model_dump(exclude={"prior", "low", "high"})
        return ", ".join([self.prior.replace("_", " "), *(f"{name} {value:g}" for name, value in numbers.items())])

    def within(self, value: ArrayLike) -> Array:
        """Values (...) between the ends, and a little off them, where some densities are infinite."""
        step = _FROM_END * (self.high - self.low)
        return np.clip(np.asarray(value, dtype=float), self.low + step, self.high - step)

    def _clipped(self, value: Any) -> Array:
        return np.clip(np.asarray(value, dtype=float), self.low, self.high)


class Uniform(Distribution):
    """The same density everywhere between the ends."""

    prior: Literal["uniform"] = "uniform"

    @model_serializer(mode="plain")
    def _as_before(self) -> dict[str, Any]:
        """Leave out the kind, so that a uniform prior is written as it was when there was no other."""
        return {"low": self.low, "high": self.high}

    def __str__(self) -> str:
        return "uniform"

    def cdf(self, value: ArrayLike) -> Array:  # noqa: D102
        return (self._clipped(value) - self.low) / (self.high - self.low)

    def ppf(self, share: ArrayLike) -> Array:  # noqa: D102
        return self._clipped(self.low + (self.high - self.low) * np.asarray(share, dtype=float))

    def log_pdf(self, value: ArrayLike) -> Array:  # noqa: D102
        return np.full(np.shape(value), -math.log(self.high - self.low))


class LogUniform(Distribution):
    """The same density everywhere in the logarithm of the parameter; both ends are positive."""

    prior: Literal["log_uniform"]

    @model_validator(mode="after")
    def _positive(self) -> LogUniform:
        if self.low <= 0:
            raise ValueError(f"prior = 'log_uniform': expected a positive low, found {self.low:g}")
        return self

    def cdf(self, value: ArrayLike) -> Array:  # noqa: D102
        return np.log(self._clipped(value) / self.low) / math.log(self.high / self.low)

    def ppf(self, share: ArrayLike) -> Array:  # noqa: D102
        return self._clipped(self.low * np.exp(np.asarray(share, dtype=float) * math.log(self.high / self.low)))

    def log_pdf(self, value: ArrayLike) -> Array:  # noqa: D102
        return -np.log(np.asarray(value, dtype=float)) - math.log(math.log(self.high / self.low))


class _Cut(Distribution):
    """A symmetric distribution of a place z = z(value), cut at both ends."""

    @abstractmethod
    def _place(self, value: Any) -> Any:
        """Return z of values (...), which increases with them."""

    @abstractmethod
    def _value(self, place: Any) -> Any:
        """Inverse of :meth:`_place`."""

    @abstractmethod
    def _log_slope(self, value: Any) -> Any:
        """Log of dz / d value."""

    @abstractmethod
    def _below(self, place: Any) -> Any:
        """Share of the whole distribution below z."""

    @abstractmethod
    def _place_below(self, share: Any) -> Any:
        """Inverse of :meth:`_below`."""

    @abstractmethod
    def _log_density(self, place: Any) -> Any:
        """Log density of the whole distribution in z."""

    @cached_property
    def _turned(self) -> bool:
        # Above the middle, shares near 1 have few digits left, and those of the distribution turned around have all.
        return bool(self._place(self.low) > 0)

    @cached_property
    def _shares(self) -> tuple[float, float]:
        """Shares of the whole below the ends, and between them, of the distribution as it is turned."""
        sign = -1.0 if self._turned else 1.0
        ends = [float(self._below(sign * self._place(end))) for end in (self.low, self.high)]
        return min(ends), max(ends) - min(ends)

    @model_validator(mode="after")
    def _some_is_inside(self) -> _Cut:
        if not self._shares[1] > 0:
            raise ValueError(
                f"expected low and high with some of the distribution between them, found [{self.low:g}, {self.high:g}]"
            )
        return self

    def cdf(self, value: ArrayLike) -> Array:  # noqa: D102
        first, whole = self._shares
        place = self._place(self._clipped(value))
        share = np.clip((self._below(-place if self._turned else place) - first) / whole, 0.0, 1.0)
        return 1 - share if self._turned else share

    def ppf(self, share: ArrayLike) -> Array:  # noqa: D102
        first, whole = self._shares
        share = np.asarray(share, dtype=float)
        place = self._place_below(first + whole * (1 - share if self._turned else share))
        return self._clipped(self._value(-place if self._turned else place))

    def log_pdf(self, value: ArrayLike) -> Array:  # noqa: D102
        value = np.asarray(value, dtype=float)
        density = self._log_density(self._place(value)) + self._log_slope(value)
        return np.asarray(density - math.log(self._shares[1]))


class _Gaussian(_Cut):
    """What is normal in z."""

    def _below(self, place: Any) -> Any:
        return special.ndtr(place)

    def _place_below(self, share: Any) -> Any:
        return special.ndtri(share)

    def _log_density(self, place: Any) -> Any:
        return -0.5 * np.square(place) - 0.5 * math.log(2 * math.pi)


class Normal(_Gaussian):
    """A normal distribution: ``normal`` is cut at 8 sigma, ``clipped_normal`` at the ends that are given."""

    prior: Literal["normal", "clipped_normal"]
    mean: float
    sigma: Positive

    @model_validator(mode="before")
    @classmethod
    def _ends(cls, data: Any) -> Any:
        return _far_ends(data, "normal", "mean", lambda mean, sigma: (mean - _FAR * sigma, mean + _FAR * sigma))

    def _place(self, value: Any) -> Any:
        return (value - self.mean) / self.sigma

    def _value(self, place: Any) -> Any:
        return self.mean + self.sigma * place

    def _log_slope(self, value: Any) -> Any:
        return -math.log(self.sigma)


class LogNormal(_Gaussian):
    """A normal distribution of the natural logarithm, about that of ``median`` and of standard deviation ``sigma``.

    Without ends it is cut at 8 sigma.
    """

    prior: Literal["log_normal"]
    median: Positive
    sigma: Positive
    low: Positive

    @model_validator(mode="before")
    @classmethod
    def _ends(cls, data: Any) -> Any:
        def ends(median: float, sigma: float) -> tuple[float, float]:
            return median * math.exp(-_FAR * sigma), median * math.exp(_FAR * sigma)

        return _far_ends(data, "log_normal", "median", ends)

    def _place(self, value: Any) -> Any:
        return np.log(value / self.median) / self.sigma

    def _value(self, place: Any) -> Any:
        return self.median * np.exp(self.sigma * place)

    def _log_slope(self, value: Any) -> Any:
        return -np.log(self.sigma * value)


class StudentT(_Cut):
    """Student's t distribution of ``df`` degrees of freedom about ``mean``, in units of ``scale``.

    Its tails have no end that could be left out, so that ``low`` and ``high`` must be given.
    """

    prior: Literal["student_t"]
    mean: float
    scale: Positive
    df: Positive

    def _place(self, value: Any) -> Any:
        return (value - self.mean) / self.scale

    def _value(self, place: Any) -> Any:
        return self.mean + self.scale * place

    def _log_slope(self, value: Any) -> Any:
        return -math.log(self.scale)

    def _below(self, place: Any) -> Any:
        return special.stdtr(self.df, place)

    def _place_below(self, share: Any) -> Any:
        if self.df == 2:
            # The closed form is some fifty times faster than the general one.
            return (2 * share - 1) / np.sqrt(2 * share * (1 - share))
        return special.stdtrit(self.df, share)

    def _log_density(self, place: Any) -> Any:
        half = 0.5 * (self.df + 1)
        size = special.gammaln(half) - special.gammaln(0.5 * self.df) - 0.5 * math.log(self.df * math.pi)
        return size - half * np.log1p(np.square(place) / self.df)


class Beta(Distribution):
    """A beta distribution from ``low`` to ``high``, by default from 0 to 1."""

    prior: Literal["beta"]
    alpha: Positive
    beta: Positive
    low: float = 0.0
    high: float = 1.0

    def _place(self, value: Any) -> Any:
        return (self._clipped(value) - self.low) / (self.high - self.low)

    def cdf(self, value: ArrayLike) -> Array:  # noqa: D102
        return np.asarray(special.betainc(self.alpha, self.beta, self._place(value)))

    def ppf(self, share: ArrayLike) -> Array:  # noqa: D102
        share = np.asarray(share, dtype=float)
        # Of a Dirichlet's fractions, whose second number is 1, the inverse is a power.
        place = share ** (1 / self.alpha) if self.beta == 1 else special.betaincinv(self.alpha, self.beta, share)
        return self._clipped(self.low + (self.high - self.low) * place)

    def log_pdf(self, value: ArrayLike) -> Array:  # noqa: D102
        place = self._place(value)
        shape = special.xlogy(self.alpha - 1, place) + special.xlog1py(self.beta - 1, -place)
        return np.asarray(shape - special.betaln(self.alpha, self.beta) - math.log(self.high - self.low))


class Fixed(BaseModel):
    """A parameter that is not free, in its own unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float


class Tied(BaseModel):
    """A parameter that follows another: ``factor`` times it, and times a third where ``times`` names one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tied: str
    factor: float = 1.0
    times: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it follows."""
        return (self.tied,) if self.times is None else (self.tied, self.times)

    def value(self, known: Mapping[str, Any]) -> Any:
        """Its value for those of the parameters that it follows."""
        return self.factor * math.prod(known[name] for name in self.names)

    def __str__(self) -> str:
        factor = [] if self.factor == 1 else [f"{self.factor:g}"]
        return " x ".join([*factor, *self.names])


def _far_ends(data: Any, kind: str, middle: str, ends: Callable[[float, float], tuple[float, float]]) -> Any:
    """Give the distribution of this kind the ends that it does not name."""
    if not isinstance(data, dict) or data.get("prior") != kind or {"low", "high"} <= data.keys():
        return data
    try:
        low, high = ends(float(data[middle]), float(data["sigma"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return data
    return {"low": low, "high": high} | data


def _number_fixes(data: Any) -> Any:
    """Return what a number alone stands for."""
    return {"value": data} if isinstance(data, int | float) else data


def _kind(data: Any) -> str:
    """Return the kind of a prior: what it says, or uniform."""
    for kind, key, tag in ((Fixed, "value", "fixed"), (Tied, "tied", "tied")):
        if isinstance(data, kind) or (isinstance(data, dict) and key in data):
            return tag
    return str(data.get("prior", "uniform") if isinstance(data, dict) else getattr(data, "prior", "uniform"))


Given = Distribution | Fixed | Tied
"""What a parameter is given."""
PRIORS = (Uniform, LogUniform, Normal, LogNormal, StudentT, Beta, Fixed, Tied)
"""What a parameter may have."""
KINDS = ("uniform", "log_uniform", "normal", "clipped_normal", "log_normal", "student_t", "beta")
"""What the key ``prior`` of a parameter may say."""
CONDITIONAL = "mass_metallicity"
"""What it may say besides in the file of ``digs-survey reprior``, and nowhere else: it depends on another parameter."""

AnyPrior = Annotated[
    Annotated[
        Annotated[Uniform, Tag("uniform")]
        | Annotated[LogUniform, Tag("log_uniform")]
        | Annotated[Normal, Tag("normal")]
        | Annotated[Normal, Tag("clipped_normal")]
        | Annotated[LogNormal, Tag("log_normal")]
        | Annotated[StudentT, Tag("student_t")]
        | Annotated[Beta, Tag("beta")]
        | Annotated[Fixed, Tag("fixed")]
        | Annotated[Tied, Tag("tied")],
        Discriminator(
            _kind,
            custom_error_type="kind_of_prior",
            custom_error_message="expected one of the priors " + ", ".join(KINDS),
        ),
    ],
    BeforeValidator(_number_fixes),
]
"""Any of them; one that does not say which is uniform. A number, or ``value``, fixes the parameter; ``tied``
ties it to another."""
