"""What a run is a run of: one object that every stage takes its facts from.

Whether two pieces of work are the same is asked in many places: a stage asks whether it is done, a dataset whether it
may be continued, a chain whether it has been run. All of them compare parts of this object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from digs_survey.config import ImportanceConfig, MapConfig, ModelConfig, SurveyConfig
from digs_survey.distributions import Fixed, Given, Uniform
from digs_survey.errors import ConfigError
from digs_survey.noise.model import NoiseModel
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid

__all__ = ["RunIdentity", "prior_key"]


@dataclass(frozen=True, eq=False)
class RunIdentity:
    """The seed, the physical model, its prior, the noise and the grid; then the catalog and the frozen posterior.

    Before a posterior is trained these are the configuration's (:meth:`of_config`). From then on they are those of
    the posterior's card (:func:`~digs_survey.estimator.artefact.identify`).

    Attributes
    ----------
    seed : int
        Of the run.
    model : ModelConfig
    prior : Prior
    noise : NoiseModel
    grid : WavelengthGrid
        Of the spectra that the posterior takes.
    catalog : str
        Fingerprint of the catalog; "" where there is none.
    posterior : Path or None
        Folder of the frozen posterior; None before there is one.
    posterior_hash : str
        SHA-256 of the posterior; "" before there is one.

    Examples
    --------
    >>> from digs_survey.config import SurveyConfig
    >>> config = SurveyConfig()
    >>> identity = RunIdentity.of_config(config, WavelengthGrid.from_config(config.grid))
    >>> identity.zred, list(identity.key("seed", "grid"))
    (1e-05, ['seed', 'grid'])
    """

    seed: int
    model: ModelConfig
    prior: Prior
    noise: NoiseModel
    grid: WavelengthGrid
    catalog: str = ""
    posterior: Path | None = None
    posterior_hash: str = ""

    @classmethod
    def of_config(
        cls, config: SurveyConfig, grid: WavelengthGrid, noise: NoiseModel | None = None, catalog: str = ""
    ) -> RunIdentity:
        """Return what a configuration asks for on a grid.

        Parameters
        ----------
        config : SurveyConfig
        grid : WavelengthGrid
        noise : NoiseModel, optional
            Where a catalog's errors are part of the noise, the noise with their table.
        catalog : str
            Fingerprint of the catalog.
        """
        if noise is None:
            noise = NoiseModel.from_config(config.noise, flux_transform=config.train.flux_transform)
        return cls(config.seed, config.model, config.make_prior(), noise.on(grid), grid, catalog)

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of the filters that rows have fluxes through; none without photometry."""
        return self.noise.config.photometry.filters

    @property
    def zred(self) -> float:
        """Redshift whose luminosity distance the simulations, and so the posterior, are at."""
        return self.model.zred

    def key(self, *parts: str) -> dict[str, Any]:
        """Return the named parts as plain values, for keys and recipes.

        Parameters
        ----------
        *parts : {"seed", "model", "prior", "noise", "grid", "catalog", "posterior"}
            Noise has the checksum of its table, a grid and a posterior their hash.
        """
        return {part: getattr(self, f"_{part}_key")() for part in parts}

    def digest(self, *parts: str, **more: Any) -> str:
        """Return the SHA-256 of the named parts, and of more values that JSON can hold."""
        return hashlib.sha256(json.dumps(self.key(*parts) | more, sort_keys=True).encode()).hexdigest()

    def adopt(self, config: SurveyConfig) -> SurveyConfig:
        """Return a configuration with this model, prior and noise in place of its own.

        What the configuration does not set is taken from here. What it sets must agree.

        Raises
        ------
        ConfigError
            Naming each field that differs, with both values.
        """
        differences = [*_differences("model", config.model, self.model)]
        if "sigma_smooth" in self.prior.names:
            differences = [
                "model.smoothing_kms: the posterior has prior.sigma_smooth in its place"
                if line.startswith("model.smoothing_kms:")
                else line
                for line in differences
            ]
        elif "sigma_smooth" in config.prior:
            fixed = f"model.smoothing_kms = {self.model.smoothing_kms:g}"
            differences.append(f"prior.sigma_smooth: the posterior has {fixed} in its place")
        differences += _differences("noise", config.noise, self.noise.config)
        trained = self.prior.priors
        told = {"sigma_smooth", "tage", "tage_tuniv"}
        for name, prior in config.prior.items():
            if name in trained:
                differences += _prior_differences(f"prior.{name}", prior, trained[name])
            elif name in config.make_prior().priors.keys() - told:
                differences.append(f"prior.{name}: the posterior has no such parameter")
        if other := {"tage", "tage_tuniv"} & config.prior.keys() - trained.keys():
            instead = "bins of age" if self.model.binned else f"prior.{self.model.age}"
            differences.append(f"prior.{other.pop()}: the posterior has {instead} in its place")
        if differences:
            lines = "\n".join(f"  - {line}" for line in differences)
            raise ConfigError(
                f"the posterior {self.posterior} was trained for other settings than the configuration's:\n{lines}\n"
                "Leave these settings out, or set them to the posterior's. In a run directory that was made with other "
                "settings, use a new --run-dir."
            )
        return self._imposed(config)

    def restore(self, config: SurveyConfig, key: Mapping[str, Any]) -> SurveyConfig:
        """Return a configuration with this model, prior and noise, and with the settings that a map recorded.

        Parameters
        ----------
        config : SurveyConfig
            Of the other sections.
        key : mapping
            Of the map stage.
        """
        weighs = key.get("importance")
        importance = config.importance.model_dump() | (weighs or {})
        if weighs is None and config.importance.rows == "all":
            importance["rows"] = "audit"
        return self._imposed(config).model_copy(
            update={
                "seed": key["seed"],
                "map": MapConfig.model_validate(key["map"]),
                "importance": ImportanceConfig.model_validate(importance),
            }
        )

    def _imposed(self, config: SurveyConfig) -> SurveyConfig:
        update: dict[str, Any] = {"model": self.model, "noise": self.noise.config, "prior": self.prior.priors}
        if self.noise.config.by_row:
            # Else the configuration could be written, and not be read again.
            by_row = {"whitening": "least_squares", "pairs": "fresh"}
            if config.train.embedding == "conv":
                by_row["embedding"] = "none"
            update["train"] = config.train.model_copy(update=by_row)
        return config.model_copy(update=update)

    def _seed_key(self) -> int:
        return self.seed

    def _model_key(self) -> dict[str, Any]:
        return self.model.model_dump(mode="json")

    def _prior_key(self) -> dict[str, Any]:
        return prior_key(self.prior)

    def _noise_key(self) -> dict[str, Any]:
        return self.noise.to_dict()

    def _grid_key(self) -> str:
        return f"{self.grid} ({hashlib.sha256(self.grid.wavelength.tobytes()).hexdigest()[:12]})"

    def _catalog_key(self) -> str:
        return self.catalog

    def _posterior_key(self) -> str:
        return self.posterior_hash


def prior_key(prior: Prior) -> dict[str, Any]:
    """Return each parameter's prior as plain values: two bounds where it is uniform, one number where it is fixed."""
    return {name: _prior_value(one) for name, one in prior.priors.items()}


def _prior_value(prior: Given) -> Any:
    if isinstance(prior, Fixed):
        return prior.value
    return [prior.low, prior.high] if isinstance(prior, Uniform) else prior.model_dump()


def _differences(name: str, asked: BaseModel, trained: BaseModel) -> Iterator[str]:
    """Name what ``asked`` sets, and ``trained`` has otherwise."""
    for field in asked.model_fields_set:
        mine, theirs = getattr(asked, field), getattr(trained, field)
        if isinstance(mine, BaseModel) and isinstance(theirs, BaseModel):
            yield from _differences(f"{name}.{field}", mine, theirs)
        elif mine != theirs:
            yield f"{name}.{field}: posterior {_plain(theirs)!r}, configuration {_plain(mine)!r}"


def _prior_differences(name: str, asked: Given, trained: Given) -> Iterator[str]:
    if type(asked) is type(trained):
        yield from _differences(name, asked, trained)
    else:
        yield f"{name}: posterior {trained.model_dump()}, configuration {asked.model_dump()}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
