"""A model that a Prospector parameter file brings: what the configuration keeps of it, and what it may not say beside.

The file has the stars, the history, dust, gas, line spread and priors. The configuration keeps its name, its hash and
the parameters that it frees. It never holds code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from digs_survey.config.types import Section
from digs_survey.distributions import Distribution
from digs_survey.errors import ConfigError

if TYPE_CHECKING:
    from digs_survey.config.survey_config import SurveyConfig

__all__ = ["FileModel", "ParamFileConfig", "check_file_model", "with_file_model"]

_KEPT = ("zred", "resampling", "param_file")
"""Keys of [model] that count beside a parameter file."""
_IMPOSED: dict[str, Any] = {
    "train.amplitude": "feature",
    "map.derived": (),
    "map.history_lookback_gyr": (),
    "map.predictive_draws": 0,
    "map.recalibrate": 0,
    "importance.rows": "none",
    "audit.agreement_simulations": 0,
    "audit.checked_galaxies": 0,
    "audit.sensitivity_rows": 0,
    "audit.mcmc.engine": "prospector",
    "escalate.core_hours": 0.0,
}
"""Settings beside a parameter file: what they would turn on needs spectra in batches, or this package's own model."""


class ParamFileConfig(Section):
    """What is kept of a parameter file; ``--param-file`` writes it."""

    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of its text."""
    parameters: Annotated[tuple[str, ...], Field(min_length=1)]
    """The columns of theta, in the file's order."""
    units: tuple[str, ...]
    """Of each."""

    @model_validator(mode="after")
    def _same_length(self) -> ParamFileConfig:
        if len(self.units) != len(self.parameters):
            raise ValueError(f"units: expected {len(self.parameters)}, found {len(self.units)}")
        return self


@dataclass(frozen=True)
class FileModel:
    """What a parameter file says of its model.

    Attributes
    ----------
    about : ParamFileConfig
    priors : mapping of str to Distribution
        Of each of its parameters.
    zred : float or None
        The redshift that it fixes; None where it leaves it to the configuration.
    """

    about: ParamFileConfig
    priors: Mapping[str, Distribution]
    zred: float | None


def with_file_model(data: dict[str, Any], given: FileModel, *, replaces: bool) -> dict[str, Any]:
    """Return the values of a configuration with a file's model in the place of their own.

    Parameters
    ----------
    data : dict
        Sections as TOML has them, with priors under ``prior``.
    given : FileModel
    replaces : bool
        Of a preset, or of the configuration of a run with such a file, the model gives way. Of others it contradicts
        the file.

    Raises
    ------
    ConfigError
        Naming what the configuration says that is the file's to say.
    """
    name, model = given.about.name, dict(data.get("model", {}))
    if replaces or "param_file" in model:
        kept = {key: model[key] for key in ("zred", "resampling") if key in model and "param_file" in model}
        data, model = {**data, "prior": {}}, kept
        if given.zred is not None:
            model.pop("zred", None)
    if found := sorted([*(f"model.{key}" for key in model.keys() - {*_KEPT}), *(f"prior.{key}" for key in _of(data))]):
        raise ConfigError(
            f"--param-file {name}: the configuration has {', '.join(found)} too, and the model and its "
            "priors are those of the file; leave them out"
        )
    if given.zred is not None and model.setdefault("zred", given.zred) != given.zred:
        raise ConfigError(
            f"--param-file {name}: it fixes zred = {given.zred:g}, and the configuration model.zred = "
            f"{model['zred']:g}; leave out one of them"
        )
    model["param_file"] = given.about.model_dump(mode="json")
    data = {**data, "model": model, "prior": {key: prior.model_dump() for key, prior in given.priors.items()}}
    for key, value in _IMPOSED.items():
        *sections, last = key.split(".")
        node = data
        for section in sections:
            node[section] = dict(node.get(section, {}))
            node = node[section]
        if replaces or last not in node:
            node[last] = value
    return data


def _of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    prior = data.get("prior", {})
    return prior if isinstance(prior, Mapping) else {}


def check_file_model(config: SurveyConfig) -> None:
    """Refuse settings that the model of a parameter file cannot have.

    Raises
    ------
    ConfigError
    """
    about = config.model.param_file
    if about is None:
        return
    for line in _contradictions(config):
        raise ConfigError(f"{line} with the model of a parameter file ({about.name})")
    if set(config.prior) != set(about.parameters):
        raise ConfigError(f"prior: expected the parameters of {about.name}, {', '.join(about.parameters)}")


def _contradictions(config: SurveyConfig) -> Iterator[str]:
    model = config.model
    for name, field in type(model).model_fields.items():
        default, found = field.get_default(), getattr(model, name)
        if name not in _KEPT and found != default:
            yield f"model.{name}: expected to be left out, found {found!r},"
    if config.simulate.engine == "batched":
        yield "simulate.engine: expected 'auto' or 'prospector', found 'batched',"
    if config.noise.photometry.filters:
        yield f"photometry.filters: expected none, found {', '.join(config.noise.photometry.filters)},"
    if config.map.error_floor == "fit":
        yield "map.error_floor: expected a number, found 'fit',"
    for key, expected in _IMPOSED.items():
        node: Any = config
        for part in key.split("."):
            node = getattr(node, part)
        if node != expected:
            shown = list(expected) if isinstance(expected, tuple) else expected
            yield f"{key}: expected {shown!r}, found {node!r},"
