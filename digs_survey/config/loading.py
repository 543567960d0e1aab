"""Configurations from files: TOML or a preset that ships under ``catalogs/``, with overrides ``section.key=value``.

Unknown keys are refused, and the nearest known key is named.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from digs_survey.config.file_model import FileModel, with_file_model
from digs_survey.config.survey_config import SurveyConfig, with_sections
from digs_survey.config.types import Section
from digs_survey.distributions import PRIORS, AnyPrior, Given
from digs_survey.errors import ConfigError
from digs_survey.parameters import PARAMETERS
from digs_survey.store.locations import is_file, location

__all__ = ["RENAMED", "default_of", "load_config", "parse_prior", "preset_path", "presets", "read_parameters"]

RENAMED = {
    "simulate.draws": "simulate.sampling",
    "train.features": "train.flux_transform",
    "infer": "importance (with the keys rows, draws and simulations)",
    "map.least_pvalue": "map.min_pvalue",
    "audit.mcmc.limit_s": "audit.mcmc.timeout_s",
    "escalate.below": "escalate.agreement_threshold",
    "escalate.trust_threshold": "escalate.agreement_threshold",
    "escalate.least_ess": "escalate.min_ess",
}
"""Keys and sections of earlier versions, and what they are called now."""


_PHOTOMETRY = ["noise", "photometry"]
"""Where the section ``[photometry]`` is kept."""


def _kept(parts: list[str]) -> list[str]:
    """Return where a key is kept that is written so in a file."""
    if parts[:2] == ["model", "parameters"]:
        return ["prior", *parts[2:]]
    return [*_PHOTOMETRY, *parts[1:]] if parts[:1] == ["photometry"] else parts


def _written(parts: list[str]) -> list[str]:
    """Return how a key of photometry is written in a file that is kept there."""
    return parts[1:] if parts[:2] == _PHOTOMETRY else parts


def _catalogs() -> Path:
    packaged = Path(str(files("digs_survey"))) / "catalogs"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "catalogs"


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in _catalogs().glob("*.toml"))


def preset_path(name: str) -> Path:
    """Path of the preset ``name``; a :class:`ConfigError` names the nearest one if it is unknown."""
    path = _catalogs() / f"{name}.toml"
    if not path.is_file():
        known = presets()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"configuration {name!r} is neither a file nor a preset{hint} Presets: {', '.join(known)}")
    return path


def load_config(
    source: str | Path | None = None, overrides: Iterable[str] = (), file_model: FileModel | None = None
) -> SurveyConfig:
    """Read a configuration from a TOML file or a preset's name, and apply ``section.key=value`` overrides.

    The model of a parameter file (``file_model``) takes the place of a preset's. A TOML file must not contradict it.

    Raises
    ------
    ConfigError
        Naming every unknown key (with the nearest known one), wrong type and impossible value.
    """
    data: dict[str, Any] = {}
    name, preset = "defaults", False
    if source is not None:
        path = location(source)
        if path.suffix != ".toml" and not is_file(path):
            preset = not path.is_dir()
            path = preset_path(str(source)) if preset else path
        name = str(source)
        data = _read(path)
    if file_model is not None:
        data = with_file_model(data, file_model, replaces=preset)
    for override in overrides:
        _apply(data, override)
    try:
        return SurveyConfig.model_validate(data)
    except ValidationError as error:
        raise _unusable(name, error) from error


def read_parameters(path: Path) -> dict[str, Any]:
    """Return what the section ``[model.parameters]`` of a TOML file, which has nothing else, gives to each parameter.

    Raises
    ------
    ConfigError
        If the file has no such section, or others.
    """
    data = _read(path)
    given = data.pop("prior", None)
    model = data.pop("model", {})
    others = sorted({*data} | ({f"model.{key}" for key in model} if isinstance(model, dict) else {"model"}))
    if others or not isinstance(given, dict) or not given:
        found = f"found {', '.join(others)}" if others else "found none"
        raise ConfigError(f"{path}: expected the section [model.parameters] with priors, alone; {found}")
    return given


def _read(path: Path) -> dict[str, Any]:
    """Read a TOML file, with each of its sections where it is kept."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"configuration {path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"configuration {path}: expected a TOML file, found a folder; name the file") from None
    except PermissionError:
        raise ConfigError(f"configuration {path}: this user may not read it; change its permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from error
    try:
        found: dict[str, Any] = with_sections(data)
    except ValueError as error:
        raise ConfigError(f"configuration {path} cannot be used:\n  - {error}") from error
    return found


class _Priors(Section):
    """Priors alone."""

    prior: dict[str, AnyPrior]


def parse_prior(parameter: str, value: Any, source: str) -> Given:
    """Return the prior of a parameter for what ``[model.parameters]`` of a file gives it.

    Raises
    ------
    ConfigError
        Naming the file ``source`` and all that is wrong.
    """
    try:
        return _Priors.model_validate({"prior": {parameter: value}}).prior[parameter]
    except ValidationError as error:
        raise _unusable(source, error) from error


def _unusable(source: str, error: ValidationError) -> ConfigError:
    lines = "\n".join(f"  - {line}" for line in _explain(error))
    return ConfigError(f"configuration {source} cannot be used:\n{lines}")


def default_of(key: str) -> Any:
    """Return the default of a setting, as plain values; None for what is no setting.

    Examples
    --------
    >>> default_of("noise.observing.snr")
    [2.0, 60.0]
    """
    value: Any = SurveyConfig()
    for name in _kept(key.split(".")):
        if not isinstance(value, BaseModel) or name not in type(value).model_fields:
            return None
        value = getattr(value, name)
    return to_jsonable_python(value)


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    parts = _kept(parts)
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: expected section.key=value, for example train.epochs=5")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node = data
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    node[parts[-1]] = value


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if name == "prior" and model is SurveyConfig:
            keys = dict.fromkeys(key for kind in PRIORS for key in kind.model_fields)
            yield from (f"prior.{p}.{key}" for p in PARAMETERS for key in keys)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _known_keys(info.annotation, ".".join([*_written(f"{prefix}{name}".split(".")), ""]))
        else:
            yield f"{prefix}{name}"


def _explain(error: ValidationError) -> Iterator[str]:
    known = list(_known_keys(SurveyConfig))
    sections = sorted({key.rpartition(".")[0] for key in known} - {""})
    for problem in error.errors():
        # The kind of a prior is part of where it is, and no key.
        where = [str(part) for k, part in enumerate(problem["loc"]) if not (k == 2 and problem["loc"][0] == "prior")]
        key = ".".join(_written(where))
        # Of a value that may be of several kinds, the last part names a kind.
        if (parent := key.rpartition(".")[0]) in known and isinstance(problem["loc"][-1], str):
            key = parent
        if problem["type"] == "extra_forbidden" and (now := RENAMED.get(key)):
            yield f"{key}: this key is now called {now}"
        elif problem["type"] == "extra_forbidden":
            candidates = sections + known if isinstance(problem["input"], dict) else known
            near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.4)
            yield f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
        else:
            found = "" if isinstance(problem["input"], dict) else f", found {problem['input']!r}"
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{key}: {message}{found}" if key else f"{message}{found}"
