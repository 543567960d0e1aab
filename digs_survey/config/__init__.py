"""The configuration of a survey: frozen pydantic models, read from TOML."""

from digs_survey.config.audit_sections import AuditConfig, EscalateConfig, ImportanceConfig, MCMCConfig
from digs_survey.config.loading import default_of, load_config, parse_prior, preset_path, presets, read_parameters
from digs_survey.config.noise_sections import MissingConfig, NoiseConfig
from digs_survey.config.survey_config import (
    GridConfig,
    MapConfig,
    ModelConfig,
    SimulateConfig,
    SurveyConfig,
    TrainConfig,
    grid_centres,
)

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
    "default_of",
    "grid_centres",
    "load_config",
    "parse_prior",
    "preset_path",
    "presets",
    "read_parameters",
]
