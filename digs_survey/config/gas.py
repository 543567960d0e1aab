"""The parameters of the gas: what a model must be to have them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from digs_survey.errors import ConfigError

if TYPE_CHECKING:
    from digs_survey.config.survey_config import ModelConfig

__all__ = ["GAS", "check_gas"]

GAS = ("gas_logz", "gas_logu")
"""Without the first the gas has the stars' metallicity, and without the second the ionisation parameter is
``model.gas_logu``."""


def check_gas(model: ModelConfig, names: Collection[str]) -> None:
    """Refuse parameters of the gas that a model cannot have.

    Parameters
    ----------
    model : ModelConfig
    names : collection of str
        Parameters that a prior gives.

    Raises
    ------
    ConfigError
        Naming the parameter, what was found and what to leave out.
    """
    given = [name for name in GAS if name in names]
    if given and not model.nebular:
        raise ConfigError(
            f"prior.{given[0]}: model.nebular = false leaves the gas out; leave out prior.{given[0]}, or set "
            "model.nebular = true"
        )
    default = type(model).model_fields["gas_logu"].get_default()
    if "gas_logu" in given and model.gas_logu != default:
        raise ConfigError(
            "prior.gas_logu is the ionisation parameter in the place of model.gas_logu; leave out one of the two, "
            f"found model.gas_logu = {model.gas_logu:g}"
        )
