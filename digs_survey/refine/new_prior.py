"""Another prior than a run's, from a file: what it changes, and how much more or less probable it makes a draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from digs_survey.config import parse_prior, read_parameters
from digs_survey.distributions import CONDITIONAL, Distribution, Fixed
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior
from digs_survey.refine.mass_metallicity import MassMetallicity

__all__ = ["NewPrior"]

_MAY_BE_OUTSIDE = 1e-3
"""Share of a new prior that may lie where the run's has no draws."""
_MASSES = 512
"""Masses at which a prior that depends on the mass is held against the run's ends."""


@dataclass(frozen=True)
class NewPrior:
    """A prior that differs from a run's in some parameters.

    Attributes
    ----------
    run : Prior
        What the draws are from.
    changed : mapping of str to Distribution or MassMetallicity
        The new priors of some of its free parameters.
    """

    run: Prior
    changed: Mapping[str, Distribution | MassMetallicity]

    @classmethod
    def load(cls, path: Path, run: Prior) -> NewPrior:
        """Read the section ``[model.parameters]`` of a TOML file that has nothing else.

        Raises
        ------
        ConfigError
            If the file cannot be used, names a parameter that the run has no draws of, or has a prior that reaches
            beyond the run's.
        """
        changed = {name: _parse(name, value, run, path) for name, value in read_parameters(path).items()}
        for name, prior in changed.items():
            _check_inside(name, prior, run)
        return cls(run, changed)

    def log_ratio(self, theta: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log of the new density over the run's (..., draw) at theta (..., draw, ndim); -inf outside the new ends."""
        total = np.zeros(theta.shape[:-1])
        for name, new in self.changed.items():
            old = self.run.parameters[self.run.index(name)].distribution
            # Draws are kept as float32, which may lie a little beyond the end.
            value = np.clip(np.asarray(theta[..., self.run.index(name)], dtype=float), old.low, old.high)
            density = self._log_pdf(new, value, theta) - old.log_pdf(old.within(value))
            total += np.where((value >= new.low) & (value <= new.high), density, -np.inf)
        return total

    def _log_pdf(
        self, new: Distribution | MassMetallicity, value: NDArray[np.float64], theta: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        if isinstance(new, Distribution):
            return new.log_pdf(new.within(value))
        known = self.run.complete({name: theta[..., k] for k, name in enumerate(self.run.names)})
        return new.log_pdf(value, known["logmass"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the new priors, and the run's of the same parameters."""
        return {
            "prior": {name: _plain(prior) for name, prior in self.changed.items()},
            "prior_of_run": {name: _plain(self.run.priors[name]) for name in self.changed},
        }

    def __str__(self) -> str:
        """Return the new priors as people read them."""
        return "; ".join(f"{name} {prior} in [{prior.low:g}, {prior.high:g}]" for name, prior in self.changed.items())


def _plain(prior: Any) -> dict[str, Any]:
    # A uniform prior leaves its kind out.
    return {"prior": prior.prior} | prior.model_dump()


def _parse(name: str, value: Any, run: Prior, path: Path) -> Distribution | MassMetallicity:
    """Return the new prior of a parameter of which the run has draws."""
    place = f"{path}: model.parameters.{name}"
    if name in run.constants:
        raise ConfigError(
            f"{place}: the run has it fixed at {run.constants[name]:g}, so that there are no other draws; leave it out"
        )
    if name in run.ties:
        raise ConfigError(f"{place}: the run has it tied, as {run.ties[name]}; change the prior of what it follows")
    if name not in run.names:
        raise ConfigError(f"{place}: the run has no such parameter; expected some of {', '.join(run.names)}")
    old = run.parameters[run.index(name)].distribution
    if isinstance(value, Mapping) and value.get("prior") == CONDITIONAL:
        if name != "logzsol" or "logmass" not in run.priors:
            raise ConfigError(f"{place}: prior = {CONDITIONAL!r} is one of logzsol, in a model that has logmass")
        try:
            return MassMetallicity.model_validate({"low": old.low, "high": old.high} | dict(value))
        except ValidationError as error:
            raise ConfigError(f"{place}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    new = parse_prior(name, value, str(path))
    if not isinstance(new, Distribution):
        what = "a fixed value" if isinstance(new, Fixed) else "a tie"
        raise ConfigError(f"{place}: expected a prior, found {what}, which has no density; give it a narrow one")
    return new


def _check_inside(name: str, new: Distribution | MassMetallicity, run: Prior) -> None:
    """Refuse a prior of which more than a thousandth lies where the run has no draws."""
    old = run.parameters[run.index(name)].distribution
    if isinstance(new, Distribution):
        outside = float(new.cdf(old.low)) + 1 - float(new.cdf(old.high))
    else:
        masses = np.linspace(*run.ranges()["logmass"], _MASSES)
        outside = float(new.outside(old.low, old.high, masses).max())
    if outside > _MAY_BE_OUTSIDE:
        raise ConfigError(
            f"model.parameters.{name}: expected a prior within the run's, [{old.low:g}, {old.high:g}], since there are "
            f"no draws outside; found [{new.low:g}, {new.high:g}], with {outside:.2g} of its probability outside. Give "
            "low and high within the run's, or train with the wider prior"
        )
