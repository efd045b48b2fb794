"""Configurations: frozen, strict, with one line for each problem."""

from anonymizer.config.audit import AttackerConfig, AuditConfig, CalibrationConfig
from anonymizer.config.augment import AugmentConfig, FilterConfig
from anonymizer.config.base import CeilingName, Section, get_setting
from anonymizer.config.calibration_scope import CalibrationScope, ChosenLevel, LevelRule
from anonymizer.config.enhance import EnhanceConfig
from anonymizer.config.groups import GroupsConfig
from anonymizer.config.loading import build, dump, merge, parse, read_tree, validate
from anonymizer.config.model import ModelConfig
from anonymizer.config.policy import Bound, LeastAttackers, PolicyConfig, parse_risk_rule
from anonymizer.config.run import MetricsConfig, OutputConfig, RestrictedConfig, RunConfig
from anonymizer.config.source import Limits, SourceConfig
from anonymizer.config.validation_messages import known_keys

__all__ = [
    "AttackerConfig", "AuditConfig", "AugmentConfig", "Bound", "CalibrationConfig", "CalibrationScope", "CeilingName",
    "ChosenLevel", "EnhanceConfig", "FilterConfig", "GroupsConfig", "LeastAttackers", "LevelRule", "Limits",
    "MetricsConfig", "ModelConfig", "OutputConfig", "PolicyConfig", "RestrictedConfig", "RunConfig", "Section",
    "SourceConfig", "build", "dump", "get_setting", "known_keys", "merge", "parse", "parse_risk_rule", "read_tree",
    "validate",
]  # fmt: skip
