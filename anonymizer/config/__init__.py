"""Configurations: frozen, strict, and one line for whatever is wrong with them."""

from anonymizer.config.attack import Attackers, AuditConfig, CalibrationConfig
from anonymizer.config.base import Float, Section, Uri, setting
from anonymizer.config.chosen import BelongsTo, Chosen
from anonymizer.config.loading import build, build_as, dump, load, parse
from anonymizer.config.run import (
    BoomerangConfig,
    Limits,
    MetricsConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
    RunSettings,
    SourceConfig,
)
from anonymizer.config.wording import known_keys

__all__ = [
    "Attackers",
    "AuditConfig",
    "BelongsTo",
    "BoomerangConfig",
    "CalibrationConfig",
    "Chosen",
    "Float",
    "Limits",
    "MetricsConfig",
    "ModelConfig",
    "OutputConfig",
    "RunConfig",
    "RunSettings",
    "Section",
    "SourceConfig",
    "Uri",
    "build",
    "build_as",
    "dump",
    "known_keys",
    "load",
    "parse",
    "setting",
]
