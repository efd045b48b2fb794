"""What the model is told of each record: its class, or a prompt in which its columns stand; and what it objects to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from anonymizer.backbones.protocol import Backbone
from anonymizer.config.model import FIELD, ModelConfig
from anonymizer.errors import ConfigError, RecordError
from anonymizer.records import Reason, Record


def told(model: ModelConfig, record: Record, backbone: Backbone) -> str | None:
    """None where every record is told the same.

    RecordError: NO_CONDITION, if what it should be told is missing, or a class that the model does not know.
    """
    if model.condition == "label":
        said = _text(record.label)
        backbone.condition([said])
        return said
    if not model.fields:
        return None
    columns = {**record.columns, **record.restricted, "label": record.label, "caption": record.caption}
    return FIELD.sub(lambda field: _text(columns.get(field[1])), model.prompt)


def stand_in(model: ModelConfig) -> str | None:
    """What is told in place of a record where only time is measured."""
    if model.condition == "label":
        return "0"
    return model.prompt if model.fields else None


def condition(backbone: Backbone, said: Iterable[str | None]) -> object:
    """What ``predict`` takes for a batch of which so much is told; None where nothing is."""
    texts = [one for one in said if one is not None]
    return backbone.condition(texts) if texts else None


def unsafe(model: ModelConfig, backbone: Backbone, images: torch.Tensor) -> Sequence[bool]:
    """What the model's own safety checker objects to, where it is asked."""
    return backbone.unsafe(images) if model.safety_checker else [False] * len(images)


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
