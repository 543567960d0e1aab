r"""The prior of the parameters of the galaxy model.

Prospector, sbi, emcee and the importance weights all take their prior from here. A prior is of one of the kinds of
:mod:`digs_survey.distributions`, uniform by default, in the named coordinate (``logmass`` uniform means log-uniform in
mass). Training happens in the unconstrained coordinates :math:`u = \mathrm{logit}\,F(\theta)`, with :math:`F` the
prior's cumulative distribution, whose range is all of :math:`R^D`: no posterior draw can fall outside the prior.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError
from scipy.special import expit, log_expit, logit

from digs_survey.distributions import AnyPrior, Distribution, Fixed, Given, Tied
from digs_survey.errors import ConfigError
from digs_survey.parameters import OPTIONAL, PARAMETERS, SIGMA_KMS, Parameter

if TYPE_CHECKING:
    from torch.distributions import Distribution as TorchDistribution

__all__ = ["Prior"]

_EDGE = 1e-9
"""Distance from 0 and 1, in the prior's CDF, to which values are drawn before the logit."""
_PRIOR: TypeAdapter[Given] = TypeAdapter(AnyPrior)


class Prior:
    """Independent priors on the parameters of the model.

    Parameters
    ----------
    priors : mapping of str to (low, high), Distribution, Fixed or Tied, optional
        Priors that replace the uniform ones between the bounds in :data:`PARAMETERS`; bounds alone are a uniform prior.
        One of ``sigma_smooth``, or of what a history in bins has, makes it a parameter. A parameter that is fixed or
        tied is none of the columns of theta.
    left_out : sequence of str, optional
        Parameters that the model does not have.
    age : {"tage", "tage_tuniv"}
        Which of the two it has.
    """

    def __init__(
        self,
        priors: Mapping[str, Any] | None = None,
        left_out: Sequence[str] = (),
        age: Literal["tage", "tage_tuniv"] = "tage",
    ) -> None:
        priors = dict(priors or {})
        other = "tage" if age == "tage_tuniv" else "tage_tuniv"
        absent = {*left_out, other, *(name for name in OPTIONAL if name not in priors)}
        chosen = [p for p in PARAMETERS.values() if p.name not in absent]
        names = [p.name for p in chosen]
        unknown = sorted(set(priors) - set(names))
        if unknown:
            near = difflib.get_close_matches(unknown[0], PARAMETERS, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"prior: unknown parameter {unknown[0]!r}{meant}; the model has {', '.join(names)}")
        given = {p: _prior(priors.get(p.name, (p.low, p.high)), p.name) for p in chosen}
        self.parameters = tuple(p.with_prior(prior) for p, prior in given.items() if isinstance(prior, Distribution))
        self.constants = {p.name: prior.value for p, prior in given.items() if isinstance(prior, Fixed)}
        self.ties = {p.name: prior for p, prior in given.items() if isinstance(prior, Tied)}
        if not self.parameters:
            raise ConfigError("prior: no parameter is free; leave one of them free")
        self._order_ties()
        for p in self.parameters:
            if p.name == "sigma_smooth" and not SIGMA_KMS[0] <= p.low < p.high <= SIGMA_KMS[1]:
                raise ConfigError(
                    f"prior.sigma_smooth: expected {SIGMA_KMS[0]:g} to {SIGMA_KMS[1]:g} km/s, "
                    f"found [{p.low:g}, {p.high:g}]"
                )
        if "sigma_smooth" in self.constants:
            raise ConfigError("prior.sigma_smooth: a line spread that is fixed is model.smoothing_kms")
        self._prepare()

    from_file = False
    """Whether the parameters are those of a parameter file, whose model takes them as they are."""

    def _order_ties(self) -> None:
        """Bring the ties into an order in which each follows what is known."""
        known, left, ordered = {*self.names, *self.constants}, dict(self.ties), {}
        for name, tie in left.items():
            for other in tie.names:
                if other not in known and other not in left:
                    raise ConfigError(
                        f"prior.{name}: tied to {other!r}, which the model does not have; it has "
                        f"{', '.join([*self.names, *self.constants])}"
                    )
        if "dust1_fraction" in known and not any("dust1_fraction" in tie.names for tie in left.values()):
            raise ConfigError(
                "prior.dust1_fraction: no parameter is tied to it; expected "
                "dust1 = { tied = 'dust2', times = 'dust1_fraction' } beside it"
            )
        while left:
            ready = [name for name, tie in left.items() if known.issuperset(tie.names)]
            if not ready:
                circle = ", ".join(f"{name} to {tie}" for name, tie in left.items())
                raise ConfigError(f"prior: parameters are tied in a circle: {circle}; give one of them a prior")
            for name in ready:
                ordered[name] = left.pop(name)
                known.add(name)
        self.ties = ordered

    def complete(self, free: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of all parameters, for arrays (...) of those that are free."""
        values = dict(free)
        like = next(iter(free.values()))
        values |= {name: np.full(np.shape(like), value) for name, value in self.constants.items()}
        for name, tie in self.ties.items():
            values[name] = tie.value(values)
        return values

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the least and the greatest value of each parameter, free or not."""
        found = {p.name: (p.low, p.high) for p in self.parameters}
        found |= {name: (value, value) for name, value in self.constants.items()}
        for name, tie in self.ties.items():
            ends = [
                tie.value(dict(zip(tie.names, corner, strict=True)))
                for corner in product(*(found[other] for other in tie.names))
            ]
            found[name] = min(ends), max(ends)
        return found

    def _prepare(self) -> None:
        self.low = np.array([p.low for p in self.parameters])
        self.high = np.array([p.high for p in self.parameters])
        self._shaped = [(i, p.prior) for i, p in enumerate(self.parameters) if p.prior is not None]

    def __repr__(self) -> str:
        inside = ", ".join(f"{p.name}={p.prior or (p.low, p.high)}" for p in self.parameters)
        fixed = "".join(f", {name}={value:g}" for name, value in self.constants.items())
        tied = "".join(f", {name}={tie}" for name, tie in self.ties.items())
        return f"Prior({inside}{fixed}{tied})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prior) and self.priors == other.priors and self.names == other.names

    def __hash__(self) -> int:
        return hash((self.parameters, *self.constants.items(), *self.ties.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the columns of theta."""
        return tuple(p.name for p in self.parameters)

    @property
    def ndim(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    def index(self, name: str) -> int:
        """Column of the parameter ``name`` in theta."""
        return self.names.index(name)

    def bounds(self, name: str) -> tuple[float, float] | None:
        """Bounds of the parameter ``name``; None if it is not one."""
        found = [(p.low, p.high) for p in self.parameters if p.name == name]
        return found[0] if found else None

    @property
    def priors(self) -> dict[str, Given]:
        """The prior, or the value, of each parameter; :meth:`of` makes the same prior of them."""
        free: dict[str, Given] = {p.name: p.distribution for p in self.parameters}
        return free | {name: Fixed(value=value) for name, value in self.constants.items()} | self.ties

    def without(self, name: str) -> Prior:
        """Return the prior of all parameters but ``name``."""
        return Prior.of({other: prior for other, prior in self.priors.items() if other != name})

    def from_unit_cube(self, cube: ArrayLike) -> NDArray[np.float64]:
        """Map points (..., ndim) of the unit cube to theta."""
        cube = np.asarray(cube, dtype=float)
        theta = self.low + (self.high - self.low) * cube
        for i, shape in self._shaped:
            theta[..., i] = shape.ppf(cube[..., i])
        return theta

    def cdf(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Cumulative distribution of each parameter at theta (..., ndim); below 0 or above 1 outside."""
        theta = np.asarray(theta, dtype=float)
        share = (theta - self.low) / (self.high - self.low)
        for i, shape in self._shaped:
            inside = (share[..., i] >= 0) & (share[..., i] <= 1)
            share[..., i] = np.where(inside, shape.cdf(theta[..., i]), share[..., i])
        return share

    def log_prob(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Log density of the prior at theta (..., ndim); -inf outside the bounds or where theta is NaN."""
        theta = np.asarray(theta, dtype=float)
        inside = np.all((theta >= self.low) & (theta <= self.high), axis=-1)
        size = np.log(self.high - self.low)
        density = -size.sum()
        for i, shape in self._shaped:
            density = density + size[i] + shape.log_pdf(np.clip(theta[..., i], self.low[i], self.high[i]))
        return np.where(inside, density, -np.inf)

    def to_unconstrained(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Map theta (..., ndim) to the unconstrained coordinates, u = logit of the prior's CDF."""
        return logit(np.clip(self.cdf(theta), _EDGE, 1 - _EDGE))

    def from_unconstrained(self, u: ArrayLike) -> NDArray[np.float64]:
        """Inverse of :meth:`to_unconstrained`; always inside the prior's bounds."""
        return np.clip(self.from_unit_cube(expit(np.asarray(u, dtype=float))), self.low, self.high)

    def log_abs_det_jacobian(self, u: ArrayLike, without: int | None = None) -> NDArray[np.float64]:
        """Log |d theta / d u| at u (..., ndim), summed over the parameters but for the column ``without``."""
        u = np.asarray(u, dtype=float)
        terms = log_expit(u) + log_expit(-u) + np.log(self.high - self.low)
        for i, shape in self._shaped:
            terms[..., i] -= np.log(self.high[i] - self.low[i]) + shape.log_pdf(shape.ppf(expit(u[..., i])))
        return terms.sum(axis=-1, where=np.arange(self.ndim) != without)

    def prospector_priors(self) -> dict[str, Any]:
        """Return each parameter's prior as one of Prospector's, by name: a ``TopHat`` where it is uniform."""
        from digs_survey.prior_forms import prospector_prior

        return {p.name: prospector_prior(p.distribution) for p in self.parameters}

    def torch_distribution(self) -> TorchDistribution:
        """Return the prior as the torch distribution that sbi takes: box-uniform where all of it is uniform."""
        from digs_survey.prior_forms import torch_prior

        return torch_prior(self, uniform=not self._shaped)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the parameters as plain values, for cards and manifests."""
        fixed = [{"name": name, "value": value} for name, value in self.constants.items()]
        tied = [{"name": name, **tie.model_dump(exclude_defaults=True)} for name, tie in self.ties.items()]
        of_file = {"from_file": True} if self.from_file else {}
        return [*(p.to_dict() | of_file for p in self.parameters), *fixed, *tied]

    @classmethod
    def from_dict(cls, items: list[dict[str, Any]]) -> Prior:
        """Rebuild a prior from :meth:`to_dict`."""
        if any(item.get("from_file") for item in items):
            priors = {item["name"]: _prior(_plain_prior(item), item["name"]) for item in items}
            return cls.of_file(priors, list(priors), [item["unit"] for item in items])
        return cls.of({item["name"]: _plain_prior(item) for item in items})

    @classmethod
    def of(cls, priors: Mapping[str, Any]) -> Prior:
        """Return the prior that has the parameters named, and no others; their priors as in the class's parameters."""
        age: Literal["tage", "tage_tuniv"] = "tage_tuniv" if "tage_tuniv" in priors else "tage"
        return cls(priors, [name for name in PARAMETERS if name not in priors], age)

    @classmethod
    def of_file(cls, priors: Mapping[str, Given], names: Sequence[str], units: Sequence[str]) -> Prior:
        """Return the prior of a parameter file's model: of any names, in their order."""
        made = cls.__new__(cls)
        known = {name: PARAMETERS.get(name, _unknown(name, unit)) for name, unit in zip(names, units, strict=True)}
        of_each = {name: priors[name] for name in names}
        made.parameters = tuple(
            known[name].with_prior(one) for name, one in of_each.items() if isinstance(one, Distribution)
        )
        if len(made.parameters) < len(names):
            raise ConfigError("prior: expected a prior of each parameter of the parameter file; a value fixes it there")
        made.constants, made.ties, made.from_file = {}, {}, True
        made._prepare()
        return made

    @classmethod
    def of_ranges(cls, ranges: Mapping[str, tuple[float, float]]) -> Prior:
        """Return uniform priors of the parameters named; a parameter that has one value has it at both ends."""
        made = cls.__new__(cls)
        known = [p for p in PARAMETERS.values() if p.name in ranges]
        made.parameters = tuple(replace(p, low=ranges[p.name][0], high=ranges[p.name][1]) for p in known)
        made.constants, made.ties = {}, {}
        made._prepare()
        return made


def _unknown(name: str, unit: str) -> Parameter:
    """Describe a parameter that only a parameter file knows."""
    return Parameter(name, 0.0, 1.0, unit, name.replace("_", " "), "parameter of the run's parameter file")


def _plain_prior(item: Mapping[str, Any]) -> Any:
    """Return what :class:`Prior` takes, of one item of :meth:`Prior.to_dict`."""
    if "value" in item or "tied" in item:
        return {key: value for key, value in item.items() if key != "name"}
    return item.get("prior", (item["low"], item["high"]))


def _prior(prior: Any, name: str) -> Given:
    """Return a prior for its bounds, its plain values, or itself."""
    if isinstance(prior, Given):
        return prior
    try:
        return _PRIOR.validate_python(prior if isinstance(prior, Mapping) else {"low": prior[0], "high": prior[1]})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"prior.{name}: {message}") from error
