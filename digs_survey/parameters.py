r"""The parameters of the galaxy model and their prior: the one place where names, units and bounds live.

Prospector, sbi and emcee all take their prior from here. Every prior is uniform in the named
coordinate (``logmass`` uniform means log-uniform in mass). Training happens in the unconstrained
coordinates :math:`u = \mathrm{logit}\,F(\theta)`, with :math:`F` the prior's cumulative distribution,
whose range is all of :math:`R^D`: no posterior draw can fall outside the prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit, logit

from digs_survey.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributions import Distribution

__all__ = ["DERIVED", "MAX_REDSHIFT", "PARAMETERS", "SIGMA_KMS", "Parameter", "Prior", "Quantity", "percent"]

MAX_REDSHIFT = 20.0
"""A greater redshift in a catalog is taken for a failed measurement, and simulations have none."""
SIGMA_KMS = (10.0, 12_000.0)
"""Least and largest sigma of a free line spread. A smaller one cannot be measured: the populations are about 60 km/s
wide themselves."""
_EDGE = 1e-9
"""Distance from 0 and 1, in the prior's CDF, to which values are drawn before the logit."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the galaxy model with its uniform prior.

    Attributes
    ----------
    name : str
        The field's name of the parameter, as Prospector spells it where it has one.
    low, high : float
        Bounds of the uniform prior, in ``unit``.
    unit : str
        A unit that :mod:`astropy.units` reads ("" if dimensionless).
    label : str
        Label of figures, with TeX.
    description : str
        One line for people.
    """

    name: str
    low: float
    high: float
    unit: str
    label: str
    description: str


PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("logmass", 8.0, 13.0, "dex(solMass)", r"$\log_{10} M/M_\odot$", "total stellar mass formed"),
        Parameter("logzsol", -2.0, 0.2, "dex", r"$\log_{10} Z/Z_\odot$", "stellar metallicity"),
        Parameter("dust2", 0.1, 1.0, "", r"$\hat\tau_{2}$", "diffuse-dust optical depth at 5500 Angstrom"),
        Parameter("dust1", 0.0, 2.0, "", r"$\hat\tau_{1}$", "birth-cloud optical depth at 5500 Angstrom"),
        Parameter("dust_index", -1.0, 0.4, "", r"$n_{\rm dust}$", "slope of the diffuse dust's attenuation curve"),
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
    )
}
"""The parameters of the galaxy model with the bounds of the preset ``digs2022``. A model has ``tage`` or
``tage_tuniv``, the age itself or its share of the age of the universe at the galaxy's redshift; both names are
Prospector's, and so are ``dust1``, ``dust_index`` and ``sigma_smooth``, which a model has only where a prior gives
their bounds."""
_OPTIONAL = ("dust1", "dust_index", "sigma_smooth")


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
    )
}
"""What the map stage can derive from posterior draws."""


def percent(quantile: float) -> str:
    """Return a quantile in percent, as descriptions and names of percentiles have it: ``2.5``."""
    return f"{100 * quantile:.6g}"


class Prior:
    """Independent uniform priors on the parameters of the model.

    Parameters
    ----------
    bounds : mapping of str to (low, high), optional
        Bounds that replace the defaults in :data:`PARAMETERS`. Bounds of ``sigma_smooth`` make it a parameter.
    left_out : sequence of str, optional
        Parameters that the model does not have.
    age : {"tage", "tage_tuniv"}
        Which of the two it has.
    """

    def __init__(
        self,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        left_out: Sequence[str] = (),
        age: Literal["tage", "tage_tuniv"] = "tage",
    ) -> None:
        bounds = dict(bounds or {})
        other = "tage" if age == "tage_tuniv" else "tage_tuniv"
        absent = {*left_out, other, *(name for name in _OPTIONAL if name not in bounds)}
        chosen = [p for p in PARAMETERS.values() if p.name not in absent]
        names = [p.name for p in chosen]
        unknown = sorted(set(bounds) - set(names))
        if unknown:
            raise ConfigError(f"prior: unknown parameter {unknown[0]!r}; the model has {', '.join(names)}")
        self.parameters = tuple(
            Parameter(**{**asdict(p), "low": float(lo), "high": float(hi)})
            for p in chosen
            for lo, hi in [bounds.get(p.name, (p.low, p.high))]
        )
        for p in self.parameters:
            if not (np.isfinite([p.low, p.high]).all() and p.low < p.high):
                raise ConfigError(f"prior.{p.name}: expected finite low < high, found [{p.low}, {p.high}]")
            if p.name == "sigma_smooth" and not SIGMA_KMS[0] <= p.low < p.high <= SIGMA_KMS[1]:
                raise ConfigError(
                    f"prior.sigma_smooth: expected {SIGMA_KMS[0]:g} to {SIGMA_KMS[1]:g} km/s, "
                    f"found [{p.low:g}, {p.high:g}]"
                )
        self.low = np.array([p.low for p in self.parameters])
        self.high = np.array([p.high for p in self.parameters])

    def __repr__(self) -> str:
        inside = ", ".join(f"{p.name}=({p.low:g}, {p.high:g})" for p in self.parameters)
        return f"Prior({inside})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prior) and self.parameters == other.parameters

    def __hash__(self) -> int:
        return hash(self.parameters)

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

    def without(self, name: str) -> Prior:
        """Return the prior of all parameters but ``name``."""
        return Prior.from_dict([item for item in self.to_dict() if item["name"] != name])

    def from_unit_cube(self, cube: ArrayLike) -> NDArray[np.float64]:
        """Map points (..., ndim) of the unit cube to theta."""
        return self.low + (self.high - self.low) * np.asarray(cube, dtype=float)

    def cdf(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Cumulative distribution of each parameter at theta (..., ndim); below 0 or above 1 outside."""
        return (np.asarray(theta, dtype=float) - self.low) / (self.high - self.low)

    def log_prob(self, theta: ArrayLike) -> NDArray[np.float64]:
        """Log density of the prior at theta (..., ndim); -inf outside the bounds or where theta is NaN."""
        theta = np.asarray(theta, dtype=float)
        inside = np.all((theta >= self.low) & (theta <= self.high), axis=-1)
        return np.where(inside, -np.log(self.high - self.low).sum(), -np.inf)

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
        return terms.sum(axis=-1, where=np.arange(self.ndim) != without)

    def prospector_priors(self) -> dict[str, Any]:
        """Return each parameter's prior as a Prospector ``TopHat``, by name."""
        from prospect.models import priors

        return {p.name: priors.TopHat(mini=p.low, maxi=p.high) for p in self.parameters}

    def torch_distribution(self) -> Distribution:
        """Return the prior as the box-uniform torch distribution that sbi takes."""
        import torch
        from sbi.utils import BoxUniform

        return BoxUniform(
            torch.as_tensor(self.low, dtype=torch.float32), torch.as_tensor(self.high, dtype=torch.float32)
        )

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the parameters as plain values, for cards and manifests."""
        return [asdict(p) for p in self.parameters]

    @classmethod
    def from_dict(cls, items: list[dict[str, Any]]) -> Prior:
        """Rebuild a prior from :meth:`to_dict`."""
        return cls.of_bounds({item["name"]: (item["low"], item["high"]) for item in items})

    @classmethod
    def of_bounds(cls, bounds: Mapping[str, tuple[float, float]]) -> Prior:
        """Return the prior that has the parameters named, and no others."""
        age: Literal["tage", "tage_tuniv"] = "tage_tuniv" if "tage_tuniv" in bounds else "tage"
        return cls(bounds, [name for name in PARAMETERS if name not in bounds], age)
