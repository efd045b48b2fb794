"""What the model is told of each record: its class, or a prompt in which its columns stand; and what it objects to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from anonymizer.backbones.protocol import Backbone
from anonymizer.config.model import PLACEHOLDER, ModelConfig
from anonymizer.errors import ConfigError, RecordError
from anonymizer.records import Reason, Record


def conditioning_text(model: ModelConfig, record: Record, backbone: Backbone) -> str | None:
    """None where every record is told the same.

    RecordError: NO_CONDITION, if what it should be told is missing, or a class that the model does not know.
    """
    if model.condition == "label":
        said = _text(record.label)
        backbone.condition([said])
        return said
    if not model.prompt_fields:
        return None
    columns = {**record.columns, **record.restricted, "label": record.label, "caption": record.caption}
    return PLACEHOLDER.sub(lambda field: _text(columns.get(field[1])), model.prompt)


def placeholder_condition(model: ModelConfig) -> str | None:
    """What is told in place of a record where only time is measured."""
    if model.condition == "label":
        return "0"
    return model.prompt if model.prompt_fields else None


def encode_conditions(backbone: Backbone, texts: Iterable[str | None]) -> object:
    """What ``predict`` takes for a batch of which so much is told; None where nothing is."""
    given = [text for text in texts if text is not None]
    return backbone.condition(given) if given else None


def flag_unsafe(model: ModelConfig, backbone: Backbone, images: torch.Tensor) -> Sequence[bool]:
    """What the model's own safety checker objects to, where it is asked."""
    return backbone.flag_unsafe(images) if model.safety_checker else [False] * len(images)


def refuse_unused_guidance(model: ModelConfig, backbone: Backbone) -> None:
    """ConfigError for a guidance that would lead towards a class which nobody tells the model."""
    if model.guidance != 1 and backbone.condition_kind == "class" and model.condition == "none":
        raise ConfigError("model.guidance: leads towards a class, and none is told: set model.condition=label, or 1")


def _text(value: object) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    text = "" if missing else " ".join(str(value).split())
    if not text:
        raise RecordError(Reason.NO_CONDITION)
    return text
