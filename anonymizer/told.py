"""What the model is told of each record: its class, or a prompt in which its columns stand."""

from __future__ import annotations

import math

from anonymizer.backbones.protocol import Backbone
from anonymizer.config.model import FIELD, ModelConfig
from anonymizer.errors import ConfigError, RecordError
from anonymizer.records import Reason, Record


def told(model: ModelConfig, record: Record) -> str | None:
    """None where every record is told the same. RecordError: NO_CONDITION, if what it should be told is missing."""
    if model.condition == "label":
        return _text(record.label)
    if not model.fields:
        return None
    columns = {**record.columns, **record.restricted, "label": record.label, "caption": record.caption}
    return FIELD.sub(lambda field: _text(columns.get(field[1])), model.prompt)


def refuse_idle_guidance(model: ModelConfig, backbone: Backbone) -> None:
    """ConfigError for a guidance that would lead towards a class which nobody tells the model."""
    if model.guidance != 1 and backbone.asks == "class" and model.condition == "none":
        raise ConfigError("model.guidance: leads towards a class, and none is told: set model.condition=label, or 1")


def _text(value: object) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    text = "" if missing else " ".join(str(value).split())
    if not text:
        raise RecordError(Reason.NO_CONDITION)
    return text
