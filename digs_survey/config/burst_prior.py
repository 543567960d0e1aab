"""The parameters of a burst on top of a star formation history."""

from __future__ import annotations

from collections.abc import Mapping

from digs_survey.distributions import Distribution, Fixed, Given
from digs_survey.errors import ConfigError
from digs_survey.parameters import BURST

__all__ = ["check_burst"]


def check_burst(priors: Mapping[str, Given]) -> None:
    """Refuse one parameter of a burst without the other.

    Raises
    ------
    ConfigError
    """
    given = [name for name in BURST if name in priors]
    if len(given) == 1:
        (missing,) = set(BURST) - set(given)
        raise ConfigError(f"prior.{given[0]}: a burst has {' and '.join(BURST)}; give {missing} too, or leave out both")
    for name in given:
        prior = priors[name]
        low, high = (prior.value,) * 2 if isinstance(prior, Fixed) else (0.0, 1.0)
        if isinstance(prior, Distribution):
            low, high = prior.low, prior.high
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"prior.{name}: expected values from 0 to 1, found {low:g} to {high:g}")
