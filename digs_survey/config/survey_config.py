"""The configuration of a survey: frozen models, with units in the names of the keys."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from digs_survey.config.audit_sections import AuditConfig, EscalateConfig, ImportanceConfig, MCMCConfig
from digs_survey.config.binned_prior import prior_of_bins, refuse_bins
from digs_survey.config.burst_prior import check_burst
from digs_survey.config.dust_laws import check_dust
from digs_survey.config.file_model import check_file_model
from digs_survey.config.gas import check_gas
from digs_survey.config.map_section import MapConfig
from digs_survey.config.model_section import ModelConfig
from digs_survey.config.noise_sections import MissingConfig, NoiseConfig
from digs_survey.config.photometry_section import PhotometryConfig, check_spec_norm
from digs_survey.config.train_section import TrainConfig
from digs_survey.config.types import Count, Positive, Section
from digs_survey.distributions import CONDITIONAL, AnyPrior, Uniform
from digs_survey.errors import ConfigError
from digs_survey.parameters import SPEC_NORM
from digs_survey.prior import Prior

__all__ = [
    "AuditConfig",
    "EscalateConfig",
    "GridConfig",
    "ImportanceConfig",
    "MCMCConfig",
    "MapConfig",
    "MissingConfig",
    "ModelConfig",
    "NoiseConfig",
    "SimulateConfig",
    "SurveyConfig",
    "TrainConfig",
]


class GridConfig(Section):
    """Wavelength grid, used where no catalog gives one; element centres, both ends included."""

    start_angstrom: Positive = 3060.0
    stop_angstrom: Positive = 9910.0
    step_angstrom: Positive = 50.0
    frame: Literal["rest", "observed"] = "rest"
    medium: Literal["vacuum", "air"] = "vacuum"

    @model_validator(mode="after")
    def _ordered(self) -> GridConfig:
        if self.stop_angstrom < self.start_angstrom + self.step_angstrom:
            raise ValueError("expected stop_angstrom >= start_angstrom + step_angstrom")
        return self


class SimulateConfig(Section):
    """How many noiseless spectra to compute."""

    simulations: Count = 60_000
    rows_per_shard: Count = 2_000
    engine: Literal["auto", "prospector", "batched"] = "auto"
    """Prospector itself, one spectrum after the other; or the same spectra in batches, as matrix products.
    "auto" takes batches and lets Prospector compute one in a hundred (at least 200) beside them as a check."""
    sampling: Literal["random", "sobol"] = "random"
    """How the prior is sampled: independent draws, or a scrambled Sobol sequence, which covers it more evenly. The
    simulations that calibration is tested on are always independent draws."""

    @model_validator(mode="after")
    def _sobol_ends(self) -> SimulateConfig:
        if self.sampling == "sobol" and self.simulations > 2**30:
            raise ValueError(f"sampling = 'sobol' has at most {2**30} simulations, found {self.simulations}")
        return self


class AugmentConfig(Section):
    """The stage that writes noisy pairs to disk: for training with ``train.pairs = "disk"``, or for other programs."""

    draws_per_spectrum: Count = 4
    """Noisy copies of each simulation."""


class SurveyConfig(Section):
    """Everything that decides a run's results; see ``catalogs/*.toml`` for presets."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 2022
    model: ModelConfig = ModelConfig()
    prior: dict[str, AnyPrior] = Field(default_factory=dict)
    """Each parameter's prior or value, as ``[model.parameters]`` of the file gives them."""
    grid: GridConfig = GridConfig()
    noise: NoiseConfig = NoiseConfig()
    simulate: SimulateConfig = SimulateConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    map: MapConfig = MapConfig()
    importance: ImportanceConfig = ImportanceConfig()
    audit: AuditConfig = AuditConfig()
    escalate: EscalateConfig = EscalateConfig()

    @model_validator(mode="before")
    @classmethod
    def _priors_are_independent(cls, data: Any) -> Any:
        # Validators that come before run from the last to the first: the section is in its place here.
        priors = data.get("prior") if isinstance(data, dict) else None
        for name, prior in priors.items() if isinstance(priors, dict) else ():
            if isinstance(prior, dict) and prior.get("prior") == CONDITIONAL:
                raise ValueError(
                    f"prior.{name}: a posterior is trained with a prior of each parameter by itself, and "
                    f"{CONDITIONAL!r} depends on the mass; train with a wide prior, keep draws (map.samples), and "
                    "give this one to 'digs-survey reprior'"
                )
        return data

    @model_validator(mode="before")
    @classmethod
    def _sections_where_kept(cls, data: Any) -> Any:
        """Take the sections of the model's parameters and of photometry."""
        return with_sections(data)

    @model_validator(mode="after")
    def _file_model(self) -> SurveyConfig:
        try:
            check_file_model(self)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _prior_and_walkers(self) -> SurveyConfig:
        try:
            prior = self.make_prior()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.audit.mcmc.walkers // 2 <= prior.ndim:
            raise ValueError(
                f"audit.mcmc.walkers: expected {2 * (prior.ndim + 1)} or more for the {prior.ndim} parameters of this "
                f"prior, found {self.audit.mcmc.walkers}"
            )
        return self

    @model_validator(mode="after")
    def _row_noise(self) -> SurveyConfig:
        by_row, prior = self.noise.by_row, self.make_prior()
        for key, value, needed in (
            ("train.whitening", self.train.whitening, "least_squares"),
            ("model.age", self.model.age, "tage_tuniv"),
        ):
            if value == needed and not by_row:
                raise ValueError(f"{key} = {needed!r} needs noise.kind = 'row', found {self.noise.kind!r}")
        if by_row and self.train.whitening != "least_squares":
            raise ValueError(
                "noise.kind = 'row' gives the network the errors of each row; expected "
                f"train.whitening = 'least_squares', found {self.train.whitening!r}"
            )
        if by_row and self.train.pairs == "disk":
            raise ValueError("noise.kind = 'row' draws noise afresh; expected train.pairs = 'fresh', found 'disk'")
        if not self.noise.photometry.filters and SPEC_NORM in {*prior.names, *prior.constants, *prior.ties}:
            raise ValueError(
                f"prior.{SPEC_NORM} is the share of the light that the spectrum has, which photometry tells; expected "
                "photometry.filters beside it, found none"
            )
        if "tage" in self.map.derived and self.model.binned:
            raise ValueError(f"map.derived: model.sfh = {self.model.sfh!r} has no tage; expected t50 or t90")
        if "tage" in self.map.derived and self.model.age != "tage_tuniv":
            raise ValueError("map.derived: tage is a parameter of this model already; it is derived from tage_tuniv")
        return self

    @model_validator(mode="after")
    def _equivariance(self) -> SurveyConfig:
        if self.train.amplitude == "equivariant" and not self.noise.scales_with_flux:
            found = "kind = 'constant'" if self.noise.kind == "constant" else "poisson_share"
            raise ValueError(
                "train.amplitude = 'equivariant' needs noise that is the same share of the flux at any mass, and "
                f"noise.{found} is not; expected noise.kind = 'fractional', or 'catalog' without poisson_share, "
                "or train.amplitude = 'centred'"
            )
        return self

    @model_validator(mode="after")
    def _mass_is_a_scale(self) -> SurveyConfig:
        mass = self.prior.get("logmass", Uniform(low=0, high=1))
        if self.train.amplitude != "feature" and not isinstance(mass, Uniform):
            raise ValueError(
                f"train.amplitude = {self.train.amplitude!r} takes the mass from the amplitude, which needs a free, "
                "uniform prior.logmass; expected that, or train.amplitude = 'feature'"
            )
        return self

    def make_prior(self) -> Prior:
        """Return the prior of this configuration's parameters.

        Raises
        ------
        ConfigError
            If a prior is given for a parameter that the model does not have.
        """
        if self.model.param_file is not None:
            return Prior.of_file(self.prior, self.model.param_file.parameters, self.model.param_file.units)
        if "sigma_smooth" in self.prior:
            self._check_free_spread()
        check_dust(self.model.dust_law, self.prior)
        check_gas(self.model, self.prior)
        check_spec_norm(self.prior)
        if self.model.binned:
            return prior_of_bins(self.model, self.prior)
        left_out = ("logtau",) if self.model.sfh == "constant" else ()
        other = "tage" if self.model.age == "tage_tuniv" else "tage_tuniv"
        if other in self.prior:
            raise ConfigError(
                f"prior.{other}: model.age = {self.model.age!r} needs prior.{self.model.age} in its place"
            )
        refuse_bins(self.model.sfh, self.prior)
        check_burst(self.prior)
        priors = {name: prior for name, prior in self.prior.items() if name not in left_out}
        return Prior(priors, left_out, self.model.age)

    def _check_free_spread(self) -> None:
        """Refuse a fixed line spread beside a free one."""
        default = type(self.model).model_fields["smoothing_kms"].get_default()
        if self.model.smoothing_kms != default:
            raise ConfigError(
                "prior.sigma_smooth makes the line spread a parameter, and model.smoothing_kms fixes it; leave out one "
                f"of the two, found model.smoothing_kms = {self.model.smoothing_kms:g}"
            )
        if self.model.line_spread != "velocity":
            raise ConfigError(
                f"prior.sigma_smooth needs model.line_spread = 'velocity', found {self.model.line_spread!r}"
            )

    def hash(self, *sections: str) -> str:
        """SHA-256 of the named sections (all of them if none is named), independent of key order."""
        data = self.model_dump(mode="json", include=set(sections) or None)
        if not sections or "prior" in sections:
            data["prior"] = self.make_prior().to_dict()
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def grid_centres(grid: GridConfig) -> np.ndarray:
    """Element centres (wavelength,) in Angstrom of a configured grid."""
    count = int(np.floor((grid.stop_angstrom - grid.start_angstrom) / grid.step_angstrom + 1e-9)) + 1
    return grid.start_angstrom + grid.step_angstrom * np.arange(count)


def with_sections(data: Any) -> Any:
    """Return the values of a configuration with each section where it is kept: see :func:`_with_parameters` and
    :func:`_with_photometry`.

    Raises
    ------
    ValueError
        If a setting is in both places.
    """
    return _with_photometry(_with_parameters(data))


def _with_photometry(data: Any) -> Any:
    """Return the values of a configuration with ``photometry`` in ``noise``, whose cards and hashes it belongs to."""
    if not isinstance(data, dict) or "photometry" not in data:
        return data
    given, noise = data["photometry"], data.get("noise", {})
    if not isinstance(given, dict | PhotometryConfig) or not isinstance(noise, dict):
        raise ValueError("photometry: expected a section with filters")
    if "photometry" in noise:
        raise ValueError("photometry and noise.photometry are both given, and are the same; leave out the latter")
    others = {name: value for name, value in data.items() if name != "photometry"}
    return others | {"noise": noise | {"photometry": given}}


def _with_parameters(data: Any) -> Any:
    """Return the values of a configuration with ``model.parameters`` as ``prior``."""
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or "parameters" not in model:
        return data
    given, prior = model["parameters"], data.get("prior", {})
    if not isinstance(given, dict) or not isinstance(prior, dict):
        raise ValueError("model.parameters: expected a section with an entry for each parameter")
    if twice := sorted(given.keys() & prior.keys()):
        raise ValueError(f"model.parameters.{twice[0]} and prior.{twice[0]} are both given; leave out the latter")
    others = {name: value for name, value in model.items() if name != "parameters"}
    return data | {"model": others, "prior": prior | given}
