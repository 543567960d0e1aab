"""Which parameters a star formation history in bins of age has, and which of the priors given are not of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from digs_survey.distributions import Beta, Distribution, Given, StudentT
from digs_survey.errors import ConfigError
from digs_survey.parameters import BINNED, BURST, MAX_REDSHIFT, PARAMETERS, binned_names
from digs_survey.prior import Prior

if TYPE_CHECKING:
    from digs_survey.config.model_section import ModelConfig

__all__ = ["prior_of_bins", "refuse_bins"]

_LEFT_OUT = ("tage", "tage_tuniv", "logtau")


def prior_of_bins(model: ModelConfig, priors: Mapping[str, Given]) -> Prior:
    """Return the prior of a model whose history is in bins of age, with the priors that a configuration gives.

    Raises
    ------
    ConfigError
        If one is of a parameter that the model does not have, or of a share that is none, or the universe at
        ``model.zred`` is too young for the bins.
    """
    sfh, bins = model.sfh, model.sfh_bins
    if model.zred > MAX_REDSHIFT:
        raise ConfigError(
            f"model.zred: expected at most {MAX_REDSHIFT:g} with model.sfh = {sfh!r}, since earlier the universe is "
            f"younger than its bins of age, found {model.zred:g}"
        )
    names = binned_names(sfh, bins)
    for name in priors:
        if name in BURST:
            raise ConfigError(
                f"prior.{name}: model.sfh = {sfh!r} has no burst beside its bins of age; leave out prior.{name}, or "
                "choose model.sfh = 'delayed_tau', 'tau' or 'constant'"
            )
        if name in _LEFT_OUT:
            raise ConfigError(
                f"prior.{name}: model.sfh = {sfh!r} has no {name}, since its bins reach back to the beginning of the "
                f"universe; it has {names[0]} to {names[-1]}. Leave out prior.{name}"
            )
        if _of_bin(name) and name not in names:
            raise ConfigError(
                f"prior.{name}: model.sfh = {sfh!r} in {bins} bins (model.sfh_bins) has {names[0]} to {names[-1]}"
            )
    prior = Prior({**_defaults(names, sfh), **priors}, _LEFT_OUT)
    for name, (low, high) in prior.ranges().items():
        if sfh == "dirichlet" and name in names and not (0 <= low and high <= 1):
            raise ConfigError(f"prior.{name}: expected values from 0 to 1, found {low:g} to {high:g}")
    return prior


def _defaults(names: tuple[str, ...], sfh: str) -> dict[str, Distribution]:
    """Return Prospector's priors: Student's t for ratios, and the betas that make shares a uniform Dirichlet."""
    if sfh == "dirichlet":
        return {name: Beta(prior="beta", alpha=float(len(names) - k), beta=1.0) for k, name in enumerate(names)}
    ratio = PARAMETERS[names[0]]
    shape = StudentT(prior="student_t", mean=0.0, scale=0.3, df=2.0, low=ratio.low, high=ratio.high)
    return dict.fromkeys(names, shape)


def refuse_bins(sfh: str, priors: Mapping[str, Given]) -> None:
    """Refuse priors of bins where the history is a function of time.

    Raises
    ------
    ConfigError
    """
    for name in priors:
        if _of_bin(name):
            needed = next(history for history, stem in BINNED.items() if name.startswith(stem))
            raise ConfigError(f"prior.{name} needs model.sfh = {needed!r}, found {sfh!r}")


def _of_bin(name: str) -> bool:
    return name.rpartition("_")[0] in BINNED.values()
