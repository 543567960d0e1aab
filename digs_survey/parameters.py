"""The registry of what describes a galaxy: parameters of its model, and what follows from them.

Names, units, default bounds and labels live here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from digs_survey.distributions import Distribution, Uniform

__all__ = [
    "BINNED",
    "BINS",
    "BURST",
    "DERIVED",
    "MAX_REDSHIFT",
    "OPTIONAL",
    "PARAMETERS",
    "SIGMA_KMS",
    "SPEC_NORM",
    "Parameter",
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
SPEC_NORM = "spec_norm"
"""Prospector's name of what multiplies the spectrum, and not the photometry: the share of the light that a fibre or a
slit takes. With it the mass is that of the whole galaxy."""
BINS = (4, 14)
"""Least and most bins of age of a history in bins."""
BINNED = {"continuity": "logsfr_ratios", "dirichlet": "z_fraction"}
"""Histories in bins of age, and Prospector's name of what they have for each bin but the last."""
_RATE = re.compile(r"sfr_at_(\d+(?:_\d+)?)gyr")


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
            "dust1 over dust2, where dust1 is tied to both",
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
        Parameter("fburst", 0.0, 0.5, "", r"$f_{\rm burst}$", "share of the mass that formed in a burst"),
        Parameter(
            "fage_burst",
            0.5,
            1.0,
            "",
            r"$t_{\rm burst}/t_{\rm age}$",
            "time from the onset of star formation to the burst over the age of the galaxy",
        ),
        Parameter(
            "sigma_smooth",
            60.0,
            400.0,
            "km / s",
            r"$\sigma\;[{\rm km\,s^{-1}}]$",
            "velocity dispersion of galaxy and spectrograph beyond that of the populations",
        ),
        Parameter(
            SPEC_NORM,
            0.05,
            2.0,
            "",
            r"$f_{\rm spec}$",
            "flux of the spectrum over that of the galaxy as photometry sees it",
        ),
        *(
            Parameter(
                name,
                -5.0,
                5.0,
                "dex",
                rf"$\log_{{10}} r_{{{k}}}$",
                f"star formation rate in bin {k} over that in bin {k + 1}, the next older",
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
                f"share that older bins have of the rates from bin {k} of age on",
            )
            for k, name in enumerate(binned_names("dirichlet", BINS[1]), 1)
        ),
    )
}
"""The parameters of the galaxy model with the bounds of the preset ``digs2022``. A model has ``tage`` or
``tage_tuniv``, the age itself or its share of the age of the universe at the galaxy's redshift; both names are
Prospector's, and so are ``dust1``, ``dust_index``, ``gas_logz``, ``gas_logu``, ``fburst``, ``fage_burst``,
``sigma_smooth`` and ``spec_norm``, which a model has only where they are given a prior. A history in bins of age has
numbered parameters in the place of age and e-folding time."""
BURST = ("fburst", "fage_burst")
"""The parameters of a burst on top of a history; a model has both or none."""
_NUMBERED = [name for sfh in BINNED for name in binned_names(sfh, BINS[1])]
_DUST_AND_GAS = ("dust1", "dust1_fraction", "dust_index", "gas_logz", "gas_logu")
OPTIONAL = (*_DUST_AND_GAS, *BURST, "sigma_smooth", SPEC_NORM, *_NUMBERED)
"""Parameters that a model has only where they are given a prior or a value."""


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
