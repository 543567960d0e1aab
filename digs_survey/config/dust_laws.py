"""The laws of the dust by name: which parameters each has, and the values of those that are not free."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

from digs_survey.errors import ConfigError

__all__ = ["DUST_CONSTANTS", "DustLawName", "check_dust"]

DustLawName = Literal["calzetti", "power_law", "kriek_conroy", "mw", "smc"]

DUST_CONSTANTS = {"dust1": 0.0, "dust_index": -0.7}
"""FSPS's defaults."""

_LAWS_WITH: dict[str, tuple[DustLawName, ...]] = {
    "dust1": tuple(law for law in get_args(DustLawName) if law != "calzetti"),
    "dust_index": ("power_law", "kriek_conroy"),
}
_WITHOUT = {
    "dust1": "this law is one of all stars alike, young and old",
    "dust_index": "the slope of this law is fixed",
}


def check_dust(law: DustLawName, names: Collection[str]) -> None:
    """Refuse parameters that a law does not have.

    Parameters
    ----------
    law : str
    names : collection of str
        Parameters that a prior gives.

    Raises
    ------
    ConfigError
        Naming the parameter, the laws that have it and the law found.
    """
    for name, laws in _LAWS_WITH.items():
        if name in names and law not in laws:
            raise ConfigError(
                f"prior.{name}: {_WITHOUT[name]}; leave it out, or choose another law: "
                f"expected model.dust_law = {' or '.join(map(repr, laws))}, found {law!r}"
            )
