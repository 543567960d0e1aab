r"""The parameters of the galaxy model and their prior: the one place where names, units and bounds live.

Prospector, sbi, emcee and the importance weights all take their prior from here. A prior is of one of the kinds of
:mod:`digs_survey.distributions`, uniform by default, in the named coordinate (``logmass`` uniform means log-uniform in
mass). Training happens in the unconstrained coordinates :math:`u = \mathrm{logit}\,F(\theta)`, with :math:`F` the
prior's cumulative distribution, whose range is all of :math:`R^D`: no posterior draw can fall outside the prior.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError
from scipy.special import expit, log_expit, logit

from digs_survey.distributions import AnyPrior, Distribution, Fixed, Given, Tied, Uniform
from digs_survey.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributions import Distribution as TorchDistribution

__all__ = [
    "BINNED",
    "BINS",
    "DERIVED",
    "MAX_REDSHIFT",
    "PARAMETERS",
    "SIGMA_KMS",
    "Parameter",
    "Prior",
    "Quantity",
    "binned_names",
    "percent",
    "rate_at",
    "time_of_rate",
]

MAX_REDSHIFT = 20.0
"""A greater redshift in a catalog is taken for a failed measurement, and simulations have none."""
SIGMA_KMS = (10.0, 12_000.0)
"""Least and largest sigma of a free line spread. A smaller one cannot be measured: the populations are about 60 km/s
wide themselves."""
BINS = (4, 14)
"""Least and most bins of age of a history in bins."""
BINNED = {"continuity": "logsfr_ratios", "dirichlet": "z_fraction"}
"""Histories in bins of age, and Prospector's name of what they have for each bin but the last."""
_RATE = re.compile(r"sfr_at_(\d+(?:_\d+)?)gyr")
_EDGE = 1e-9
"""Distance from 0 and 1, in the prior's CDF, to which values are drawn before the logit."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the galaxy model with its prior.

    Attributes
    ----------
    name : str
        The field's name of the parameter, as Prospector spells it where it has one.
    low, high : float
        Bounds of the prior, in ``unit``.
    unit : str
        A unit that :mod:`astropy.units` reads ("" if dimensionless).
    label : str
        Label of figures, with TeX.
    description : str
        One line for people.
    prior : Distribution, optional
        Its prior between these bounds; uniform if None.
    """

    name: str
    low: float
    high: float
    unit: str
    label: str
    description: str
    prior: Distribution | None = None

    @property
    def distribution(self) -> Distribution:
        """Its prior."""
        return self.prior or Uniform(low=self.low, high=self.high)

    def with_prior(self, prior: Distribution) -> Parameter:
        """Return the parameter with another prior and its bounds."""
        shape = None if isinstance(prior, Uniform) else prior
        return replace(self, low=float(prior.low), high=float(prior.high), prior=shape)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; those of a uniform prior are its bounds alone."""
        plain = asdict(replace(self, prior=None))
        del plain["prior"]
        return plain if self.prior is None else plain | {"prior": self.prior.model_dump()}


def binned_names(sfh: str, bins: int) -> tuple[str, ...]:
    """Return the parameters of a history in so many bins of age, youngest bin first.

    Examples
    --------
    >>> binned_names("continuity", 4)
    ('logsfr_ratios_1', 'logsfr_ratios_2', 'logsfr_ratios_3')
    """
    return tuple(f"{BINNED[sfh]}_{k}" for k in range(1, bins))


PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("logmass", 8.0, 13.0, "dex(solMass)", r"$\log_{10} M/M_\odot$", "total stellar mass formed"),
        Parameter("logzsol", -2.0, 0.2, "dex", r"$\log_{10} Z/Z_\odot$", "stellar metallicity"),
        Parameter("dust2", 0.1, 1.0, "", r"$\hat\tau_{2}$", "diffuse-dust optical depth at 5500 Angstrom"),
        Parameter("dust1", 0.0, 2.0, "", r"$\hat\tau_{1}$", "birth-cloud optical depth at 5500 Angstrom"),
        Parameter(
            "dust1_fraction",
            0.0,
            2.0,
            "",
            r"$\hat\tau_{1}/\hat\tau_{2}$",
            "birth-cloud optical depth over that of the diffuse dust, where dust1 is tied to both",
        ),
        Parameter("dust_index", -1.0, 0.4, "", r"$n_{\rm dust}$", "slope of the diffuse dust's attenuation curve"),
        Parameter("gas_logz", -2.0, 0.5, "dex", r"$\log_{10} Z_{\rm gas}/Z_\odot$", "metallicity of the gas"),
        Parameter("gas_logu", -4.0, -1.0, "dex", r"$\log_{10} U$", "ionisation parameter of the gas"),
        Parameter("tage", 0.01, 4.0, "Gyr", r"$t_{\rm age}\;[{\rm Gyr}]$", "age of the galaxy"),
        Parameter(
            "tage_tuniv", 0.01, 1.0, "", r"$t_{\rm age}/t_{\rm univ}$", "age of the galaxy over that of the universe"
        ),
        Parameter(
            "logtau",
            -1.0,
            1.0,
            "dex(Gyr)",
            r"$\log_{10}\tau/{\rm Gyr}$",
            "e-folding time of the star formation history",
        ),
        Parameter(
            "sigma_smooth",
            60.0,
            400.0,
            "km / s",
            r"$\sigma\;[{\rm km\,s^{-1}}]$",
            "velocity dispersion of stars, gas and spectrograph together, beyond the resolution of the populations",
        ),
        *(
            Parameter(
                name,
                -5.0,
                5.0,
                "dex",
                rf"$\log_{{10}} r_{{{k}}}$",
                f"star formation rate in bin {k} of age, counted from the youngest, over that in the next older bin",
            )
            for k, name in enumerate(binned_names("continuity", BINS[1]), 1)
        ),
        *(
            Parameter(
                name,
                0.0,
                1.0,
                "",
                rf"$z_{{{k}}}$",
                f"share of the rates in bins of age from bin {k} on, counted from the youngest, that older bins have",
            )
            for k, name in enumerate(binned_names("dirichlet", BINS[1]), 1)
        ),
    )
}
"""The parameters of the galaxy model with the bounds of the preset ``digs2022``. A model has ``tage`` or
``tage_tuniv``, the age itself or its share of the age of the universe at the galaxy's redshift; both names are
Prospector's, and so are ``dust1``, ``dust_index``, ``gas_logz``, ``gas_logu`` and ``sigma_smooth``, which a model has
only where they are given a prior. A history in bins of age has numbered parameters in the place of age and e-folding
time."""
_NUMBERED = [name for sfh in BINNED for name in binned_names(sfh, BINS[1])]
_OPTIONAL = ("dust1", "dust1_fraction", "dust_index", "gas_logz", "gas_logu", "sigma_smooth", *_NUMBERED)


@dataclass(frozen=True)
class Quantity:
    """What follows from the parameters of a galaxy.

    Attributes
    ----------
    name : str
    unit : str
        A unit that :mod:`astropy.units` reads.
    description : str
        One line for people.
    """

    name: str
    unit: str
    description: str


DERIVED: dict[str, Quantity] = {
    q.name: q
    for q in (
        Quantity("surviving_mass", "solMass", "mass of the stars that are left"),
        Quantity("mass_weighted_age", "Gyr", "mean age of the stellar mass formed"),
        Quantity("sfr_10", "solMass / yr", "mean star formation rate over the last 10 Myr"),
        Quantity("sfr_100", "solMass / yr", "mean star formation rate over the last 100 Myr"),
        Quantity("ssfr_10", "1 / yr", "sfr_10 over surviving_mass"),
        Quantity("ssfr_100", "1 / yr", "sfr_100 over surviving_mass"),
        Quantity("t50", "Gyr", "lookback time at which half of the stellar mass had formed"),
        Quantity("t90", "Gyr", "lookback time at which 90 % of the stellar mass had formed; less than t50"),
    )
}
"""What the map stage can derive from posterior draws, besides :func:`rate_at`."""


def rate_at(lookback_gyr: float) -> Quantity:
    """Return the star formation rate at a lookback time as a quantity: ``sfr_at_0_1gyr``."""
    shown = f"{lookback_gyr:.6g}"
    name = f"sfr_at_{shown.replace('.', '_')}gyr"
    return Quantity(name, "solMass / yr", f"star formation rate {shown} Gyr ago; 0 before the galaxy began")


def time_of_rate(name: str) -> float | None:
    """Return the lookback time in Gyr of a quantity of :func:`rate_at` by its name; None for other names."""
    found = _RATE.fullmatch(name)
    return float(found[1].replace("_", ".")) if found else None


def percent(quantile: float) -> str:
    """Return a quantile in percent, as descriptions and names of percentiles have it: ``2.5``."""
    return f"{100 * quantile:.6g}"


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
        absent = {*left_out, other, *(name for name in _OPTIONAL if name not in priors)}
        chosen = [p for p in PARAMETERS.values() if p.name not in absent]
        names = [p.name for p in chosen]
        unknown = sorted(set(priors) - set(names))
        if unknown:
            raise ConfigError(f"prior: unknown parameter {unknown[0]!r}; the model has {', '.join(names)}")
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

    def place(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Where theta (..., ndim) lies between the bounds: 0 at the lower, 1 at the upper, less or more outside."""
        return (np.asarray(theta, dtype=float) - self.low) / (self.high - self.low)

    def cdf(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Cumulative distribution of each parameter at theta (..., ndim); below 0 or above 1 outside."""
        share = self.place(theta)
        for i, shape in self._shaped:
            inside = (share[..., i] >= 0) & (share[..., i] <= 1)
            share[..., i] = np.where(inside, shape.cdf(np.asarray(theta)[..., i]), share[..., i])
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
        return [*(p.to_dict() for p in self.parameters), *fixed, *tied]

    @classmethod
    def from_dict(cls, items: list[dict[str, Any]]) -> Prior:
        """Rebuild a prior from :meth:`to_dict`."""
        return cls.of({item["name"]: _plain_prior(item) for item in items})

    @classmethod
    def of(cls, priors: Mapping[str, Any]) -> Prior:
        """Return the prior that has the parameters named, and no others; their priors as in the class's parameters."""
        age: Literal["tage", "tage_tuniv"] = "tage_tuniv" if "tage_tuniv" in priors else "tage"
        return cls(priors, [name for name in PARAMETERS if name not in priors], age)

    @classmethod
    def of_ranges(cls, ranges: Mapping[str, tuple[float, float]]) -> Prior:
        """Return uniform priors of the parameters named; a parameter that has one value has it at both ends."""
        made = cls.__new__(cls)
        known = [p for p in PARAMETERS.values() if p.name in ranges]
        made.parameters = tuple(replace(p, low=ranges[p.name][0], high=ranges[p.name][1]) for p in known)
        made.constants, made.ties = {}, {}
        made._prepare()
        return made


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
