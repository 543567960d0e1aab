"""Every column of the results: its name, type, unit, UCD, description, and when it is there.

The layout of ``posterior.zarr``, the tables, their exports, the names that a survey cannot give to its own columns, and
``docs/columns.md`` come from here. UCDs are words of the IVOA (UCD1+, https://www.ivoa.net/documents/UCD1+/): one
primary word, and secondary words after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from digs_survey.parameters import (
    BINS,
    DERIVED,
    PARAMETERS,
    SPEC_NORM,
    Parameter,
    Quantity,
    binned_names,
    percent,
    rate_at,
    time_of_rate,
)

__all__ = [
    "ARRAYS",
    "COLUMNS",
    "DIMENSIONS",
    "QUANTITIES",
    "RENAMED",
    "TIERS",
    "Column",
    "When",
    "find_column",
    "percentile",
    "percentile_name",
    "quantity_of",
    "taken_by",
    "ucd",
]

TIERS = ("neural posterior", "importance weights", "emcee")
"""Whose percentiles a row has, by its ``tier``."""

QUANTITIES: Mapping[str, Parameter | Quantity] = {**PARAMETERS, **DERIVED}
"""What has percentiles, besides star formation rates at lookback times."""
_RATE = "sfr_at_<time>gyr"
"""Any of them."""


class When(Enum):
    """When a column is there, in the words of ``docs/columns.md``."""

    ALWAYS = "always"
    DERIVED = "with `map.derived`"
    HISTORY = "with `map.history_lookback_gyr`"
    SAMPLES = "with `map.samples`"
    WEIGHTED = 'with `importance.rows = "all"`'
    PREDICTIVE = "with `map.predictive_draws`"
    FINAL = "in `results.parquet` only"
    REPRIOR = "in the table of `digs-survey reprior` only"


@dataclass(frozen=True)
class Column:
    """One column of the tables, or one array of ``posterior.zarr``, or both.

    Attributes
    ----------
    name : str
        ``<percent>`` in it stands for any percentile: ``logmass_p<percent>``.
    dtype : str
        As numpy spells it; "catalog" for the catalog's own type, "str" for text.
    unit : str
        A unit that :mod:`astropy.units` reads ("" if dimensionless).
    ucd : str or None
        None where the IVOA has no word for it.
    description : str
        One line for people.
    when : When
    dims : tuple of str
        Of the array in ``posterior.zarr``; a column of a table has one value a galaxy.
    in_dataset : bool
        Whether ``posterior.zarr`` has an array of this name.
    """

    name: str
    dtype: str
    unit: str
    ucd: str | None
    description: str
    when: When = When.ALWAYS
    dims: tuple[str, ...] = ("galaxy",)
    in_dataset: bool = True


_QUANTITY_UCDS = {
    "logmass": "phys.mass",
    "logzsol": "phys.abund.Z",
    "dust2": "phys.absorption.opticalDepth;phys.dust",
    "dust1": "phys.absorption.opticalDepth;phys.dust",
    "dust1_fraction": "phys.absorption.opticalDepth;phys.dust;arith.ratio",
    "dust_index": "phys.absorption;phys.dust;spect.index",
    "gas_logz": "phys.abund.Z",
    "gas_logu": "phys.ionizParam",
    "fburst": "phys.mass;arith.ratio",
    "fage_burst": "time.age;arith.ratio",
    "tage": "time.age",
    "tage_tuniv": "time.age;arith.ratio",
    "logtau": "time.scale",
    "sigma_smooth": "phys.veloc.dispersion",
    SPEC_NORM: "phot.flux;arith.ratio",
    "surviving_mass": "phys.mass",
    "mass_weighted_age": "time.age;stat.mean",
    "sfr_10": "phys.SFR",
    "sfr_100": "phys.SFR",
    "ssfr_10": "phys.SFR",
    "ssfr_100": "phys.SFR",
    "t50": "time.age",
    "t90": "time.age",
    **{name: "phys.SFR;arith.ratio" for name in binned_names("continuity", BINS[1])},
    **{name: "phys.SFR;arith.ratio" for name in binned_names("dirichlet", BINS[1])},
}
"""Without the word for the percentile."""


def percentile(
    quantity: str,
    quantile: float | None = None,
    *,
    weighted: bool = False,
    recalibrated: bool = False,
    new_prior: bool = False,
    known: Parameter | None = None,
) -> Column:
    """Return the column of one percentile of a quantity: ``tage_p50``, ``tage_p2_5``, ``tage_p50_weighted``.

    Parameters
    ----------
    quantity : str
        Of :data:`QUANTITIES`, or a star formation rate at a lookback time.
    quantile : float, optional
        Between 0 and 1; left out, the column stands for all percentiles.
    weighted : bool
        Of the draws with importance weights.
    recalibrated : bool
        Of the draws at corrected levels.
    new_prior : bool
        Of the draws with the weights of another prior.
    known : Parameter, optional
        What the quantity is, where it is a parameter that only a parameter file knows.
    """
    of_file = known is not None and quantity not in QUANTITIES
    about = _QUANTITY_UCDS[quantity] if quantity in QUANTITIES else "phys.SFR"
    described = known if known is not None and of_file else quantity_of(quantity)
    shown = "<percent>" if quantile is None else percent(quantile)
    draws = "the recalibrated posterior" if recalibrated else "the posterior"
    draws += " under another prior" * new_prior
    when = When.ALWAYS if quantity in PARAMETERS or of_file else When.DERIVED if quantity in DERIVED else When.HISTORY
    if weighted:
        draws, when = "the posterior's draws with importance weights", When.WEIGHTED
    return Column(
        percentile_name(quantity, quantile) + "_weighted" * weighted,
        "float32",
        described.unit,
        # A mean or a rate has a median too: the words add up.
        None if of_file else f"{about};{'stat.median' if shown == '50' else 'stat.percentile'}",
        f"{described.description}: {shown} % quantile of {draws}",
        when,
        in_dataset=False,
    )


def percentile_name(quantity: str, quantile: float | None) -> str:
    """Return the name of the column of one percentile of a quantity, or of all: ``tage_p2_5``, ``tage_p<percent>``."""
    shown = "<percent>" if quantile is None else percent(quantile)
    return f"{quantity}_p{shown.replace('.', '_')}"


def quantity_of(name: str) -> Parameter | Quantity:
    """Return what has percentiles by its name: of :data:`QUANTITIES`, or a star formation rate at a lookback time."""
    if name == _RATE:
        return Quantity(name, "solMass / yr", "star formation rate <time> Gyr ago; 0 before the galaxy began")
    time = time_of_rate(name)
    if time is not None:
        return rate_at(time)
    return QUANTITIES[name]


COLUMNS: tuple[Column, ...] = (
    Column("galaxy_id", "catalog", "", "meta.id;meta.main", "identifier in the survey"),
    Column("redshift", "float64", "", "src.redshift", "redshift in the catalog", in_dataset=False),
    *(percentile(name) for name in (*QUANTITIES, _RATE)),
    *(percentile(name, weighted=True) for name in PARAMETERS),
    Column(
        "importance_ess",
        "float32",
        "",
        None,
        "effective sample size of the importance weights of the row's draws",
        When.WEIGHTED,
    ),
    Column(
        "importance_pareto_k",
        "float32",
        "",
        "stat.fit.param",
        "shape of the weights' tail; above 0.7 the weighted quantities are not to be trusted",
        When.WEIGHTED,
    ),
    Column(
        "log_evidence",
        "float64",
        "",
        "stat.likelihood",
        "natural log of the density of the good elements' flux (in erg/s/cm2/Angstrom) under the model",
        When.WEIGHTED,
    ),
    Column("log_evidence_error", "float64", "", "stat.error", "standard error of log_evidence", When.WEIGHTED),
    Column(
        "feature_distance",
        "float32",
        "",
        None,
        "root mean square of the spectrum's features in units of the training simulations'",
        When.PREDICTIVE,
    ),
    Column(
        "predictive_reduced_chi2",
        "float32",
        "",
        "stat.fit.chi2",
        "chi-square over the number of good elements, median over spectra of the row's draws",
        When.PREDICTIVE,
    ),
    Column(
        "predictive_pvalue",
        "float64",
        "",
        "stat.probability",
        "posterior predictive p-value of chi-square; near 0 where model and noise do not fit",
        When.PREDICTIVE,
    ),
    Column(
        "shift_pvalue",
        "float64",
        "",
        "stat.probability",
        "p-value of score tests for an error of the redshift, up to 4500 km/s; near 0 where there is one",
        When.PREDICTIVE,
    ),
    Column(
        "velocity_offset",
        "float32",
        "km / s",
        "spect.dopplerVeloc",
        "redshift of the spectrum less the catalog's, times c / (1 + z); to first order, up to some 500 km/s",
        When.PREDICTIVE,
    ),
    Column(
        "velocity_offset_error",
        "float32",
        "km / s",
        "stat.error;spect.dopplerVeloc",
        "standard error of velocity_offset",
        When.PREDICTIVE,
    ),
    Column(
        "step_pvalue",
        "float64",
        "",
        "stat.probability",
        "p-value of score tests for a step in the flux calibration; near 0 where there is one",
        When.PREDICTIVE,
    ),
    Column(
        "weight_scatter",
        "float32",
        "",
        None,
        "scatter of ln importance weights of the row's draws; 0 if its posterior is the exact one",
        When.PREDICTIVE,
    ),
    Column("n_good", "int32", "", "meta.number", "wavelength elements that were used"),
    Column(
        "quality",
        "int64",
        "",
        "meta.code.qual",
        "why the row is not to be trusted, as bits; 0 if nothing was found wrong",
    ),
    Column(
        "agreement",
        "float32",
        "",
        "stat.probability",
        "chance that the neural posterior agrees with the exact posterior of the same model; it does not say that the "
        "model is right; NaN where nothing is known",
        When.FINAL,
        in_dataset=False,
    ),
    Column(
        "tier",
        "uint8",
        "",
        "meta.code",
        "whose percentiles: " + ", ".join(f"{number} {name}" for number, name in enumerate(TIERS)),
        When.FINAL,
        in_dataset=False,
    ),
    Column(
        "reprior_ess",
        "float32",
        "",
        None,
        "effective sample size of the row's kept draws under another prior; 0 if none is possible, NaN if none is kept",
        When.REPRIOR,
        in_dataset=False,
    ),
    Column(
        "reprior_share",
        "float32",
        "",
        None,
        "reprior_ess over the number of kept draws",
        When.REPRIOR,
        in_dataset=False,
    ),
)
"""Columns of the tables in their order; the survey's own stand after ``redshift``."""

_OF_PARAMETERS = ("galaxy", "parameter", "quantile")

ARRAYS: tuple[Column, ...] = (
    Column(
        "percentiles",
        "float32",
        "",
        None,
        "quantiles of the posterior of each parameter; NaN for rows without one",
        dims=_OF_PARAMETERS,
    ),
    Column(
        "derived",
        "float32",
        "",
        None,
        "quantiles of what follows from the posterior's draws; NaN for rows without a posterior",
        When.DERIVED,
        ("galaxy", "quantity", "quantile"),
    ),
    Column(
        "samples",
        "float32",
        "",
        None,
        "draws of the posterior, evenly thinned; NaN for rows of which none are kept",
        When.SAMPLES,
        ("galaxy", "parameter", "sample"),
    ),
    Column(
        "percentiles_weighted",
        "float32",
        "",
        None,
        "quantiles of the draws with importance weights, tail smoothed",
        When.WEIGHTED,
        _OF_PARAMETERS,
    ),
    Column("parameter", "str", "", None, "names of the parameters", dims=("parameter",)),
    Column("quantile", "float64", "", None, "levels of the quantiles, between 0 and 1", dims=("quantile",)),
    Column("quantity", "str", "", None, "names of the derived quantities", When.DERIVED, ("quantity",)),
)
"""Arrays of ``posterior.zarr`` that are no column of a table."""

DIMENSIONS = ("galaxy", "wavelength", "parameter", "quantile", "quantity", "sample")
"""Of the catalog and of ``posterior.zarr``."""

RENAMED = {"predictive_chi2": "predictive_reduced_chi2", "trust": "agreement"}
"""Columns of earlier versions, and what they are called now."""

_SURVEY_UCDS = {
    "ra": "pos.eq.ra",
    "dec": "pos.eq.dec",
    "mjd": "time.epoch",
    "z_err": "stat.error;src.redshift",
    "zwarning": "meta.code.qual",
    "class": "src.class",
    "subclass": "src.class",
    "sn_median": "stat.snr",
    "ebv": "phot.color.excess",
}
"""Columns that surveys name alike."""

_BY_NAME = {column.name: column for column in (*COLUMNS, *ARRAYS)}
_PERCENTILE = re.compile(
    rf"(?P<quantity>{'|'.join(QUANTITIES)}|sfr_at_\d+(_\d+)?gyr)_p(?P<percent>\d+(_\d+)?(e[-+]?\d+)?)(?P<weighted>_weighted)?"
)


def find_column(name: str) -> Column | None:
    """Return the result column or array that has a name, upper and lower case being the same; None if there is none."""
    folded = name.casefold()
    if found := _PERCENTILE.fullmatch(folded):
        quantile = float(found["percent"].replace("_", ".")) / 100
        return percentile(found["quantity"], quantile, weighted=bool(found["weighted"]))
    return _BY_NAME.get(folded)


def taken_by(name: str) -> str | None:
    """Say what of the results has a name, upper and lower case being the same; None if the survey can use it."""
    column = find_column(name)
    if column is not None:
        return f"the {'result column' if column.dims == ('galaxy',) else 'array of posterior.zarr'} {column.name!r}"
    folded = name.casefold()
    if folded in RENAMED:
        return f"{folded!r}, as earlier versions call the result column {RENAMED[folded]!r}"
    return f"the dimension {folded!r}" if folded in DIMENSIONS else None


def ucd(name: str) -> str | None:
    """Return the UCD of a column of the results, or of a survey's own, by its name; None where no word fits."""
    column = find_column(name)
    return _SURVEY_UCDS.get(name.casefold()) if column is None else column.ucd
