"""The configuration of a survey: frozen pydantic models, read from TOML."""

from digs_survey.config.audit_sections import AuditConfig, EscalateConfig, InferConfig, MCMCConfig
from digs_survey.config.noise_sections import MissingConfig, NoiseConfig
from digs_survey.config.survey import (
    GridConfig,
    MapConfig,
    ModelConfig,
    SimulateConfig,
    SurveyConfig,
    TrainConfig,
    grid_centres,
    load_config,
    preset_path,
    presets,
)

__all__ = [
    "AuditConfig",
    "EscalateConfig",
    "GridConfig",
    "InferConfig",
    "MCMCConfig",
    "MapConfig",
    "MissingConfig",
    "ModelConfig",
    "NoiseConfig",
    "SimulateConfig",
    "SurveyConfig",
    "TrainConfig",
    "grid_centres",
    "load_config",
    "preset_path",
    "presets",
]
