"""What a column of the result table holds, in the words of the IVOA: UCD1+, list of words 1.5 and later.

A UCD is one primary word and secondary words after it (https://www.ivoa.net/documents/UCD1+/).
"""

from __future__ import annotations

import re

__all__ = ["ucd"]

_QUANTITIES = {
    "logmass": "phys.mass",
    "logzsol": "phys.abund.Z",
    "dust2": "phys.absorption.opticalDepth;phys.dust",
    "tage": "time.age",
    "logtau": "time.scale",
    "surviving_mass": "phys.mass",
    "mass_weighted_age": "time.age;stat.mean",
    "sfr_10": "phys.SFR",
    "sfr_100": "phys.SFR",
    "ssfr_10": "phys.SFR",
    "ssfr_100": "phys.SFR",
}
"""Quantities with a posterior, without the word for the percentile."""

_COLUMNS = {
    "galaxy_id": "meta.id;meta.main",
    "redshift": "src.redshift",
    "n_good": "meta.number",
    "quality": "meta.code.qual",
    "log_evidence": "stat.likelihood",
    "log_evidence_error": "stat.error",
    "predictive_reduced_chi2": "stat.fit.chi2",
    "predictive_pvalue": "stat.probability",
    "trust": "stat.probability",
    "tier": "meta.code",
    "ra": "pos.eq.ra",
    "dec": "pos.eq.dec",
    "mjd": "time.epoch",
    "z_err": "stat.error;src.redshift",
    "zwarning": "meta.code.qual",
    "class": "src.class",
    "subclass": "src.class",
    "sn_median": "stat.snr",
}
"""Columns of the package, and those that surveys name alike."""

_PERCENTILE = re.compile(r"(?P<quantity>\w+)_p(?P<percent>\d+(_\d+)?)(_weighted)?")


def ucd(column: str) -> str | None:
    """Return the UCD of a column of the result table by its name; None where no word fits."""
    found = _PERCENTILE.fullmatch(column)
    if found and found["quantity"] in _QUANTITIES:
        # a mean or a rate has a median too: the words add up
        return f"{_QUANTITIES[found['quantity']]};{'stat.median' if found['percent'] == '50' else 'stat.percentile'}"
    return _COLUMNS.get(column.lower())
