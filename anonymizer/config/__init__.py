"""Configurations: frozen, strict, and one line for whatever is wrong with them."""

from anonymizer.config.audit import AttackerConfig, AuditConfig, CalibrationConfig
from anonymizer.config.augment import AugmentConfig, AugmentOutput, FilterConfig
from anonymizer.config.base import Attack, Float, Section, Uri, get_setting
from anonymizer.config.calibration_scope import CalibrationScope, ChosenLevel, LevelRule
from anonymizer.config.enhance import EnhanceConfig, EnhanceMetrics, EnhanceOutput
from anonymizer.config.loading import build, build_as, dump, load, merge, parse, read_tree, validate
from anonymizer.config.model import ModelConfig
from anonymizer.config.policy import Bound, PolicyConfig, RiskBound, Waiver, parse_risk_rule
from anonymizer.config.run import (
    BoomerangConfig,
    Limits,
    LineageConfig,
    MetricsConfig,
    OutputConfig,
    RestrictedConfig,
    RunConfig,
    RunSettings,
    SourceConfig,
)
from anonymizer.config.validation_messages import known_keys

__all__ = [
    "Attack",
    "AttackerConfig",
    "AuditConfig",
    "AugmentConfig",
    "AugmentOutput",
    "BoomerangConfig",
    "Bound",
    "CalibrationConfig",
    "CalibrationScope",
    "ChosenLevel",
    "EnhanceConfig",
    "EnhanceMetrics",
    "EnhanceOutput",
    "FilterConfig",
    "Float",
    "LevelRule",
    "Limits",
    "LineageConfig",
    "MetricsConfig",
    "ModelConfig",
    "OutputConfig",
    "PolicyConfig",
    "RestrictedConfig",
    "RiskBound",
    "RunConfig",
    "RunSettings",
    "Section",
    "SourceConfig",
    "Uri",
    "Waiver",
    "build",
    "build_as",
    "dump",
    "get_setting",
    "known_keys",
    "load",
    "merge",
    "parse",
    "parse_risk_rule",
    "read_tree",
    "validate",
]
