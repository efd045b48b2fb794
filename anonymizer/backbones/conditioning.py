"""Condition of a record: its class, or a prompt with values of its columns; and the model's own safety checker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from anonymizer.backbones.protocol import Backbone
from anonymizer.config.model import PLACEHOLDER, ModelConfig
from anonymizer.errors import ConfigError, RecordError
from anonymizer.records import Reason, Record


def conditioning_text(model: ModelConfig, record: Record, backbone: Backbone) -> str | None:
    """Return the class or the prompt of a record; None where all records have the same condition.

    RecordError: NO_CONDITION, if a value is missing, or the model does not know the class.
    """
    if model.condition == "label":
        label = _normalize(record.label)
        backbone.condition([label])
        return label
    if not model.prompt_fields:
        return None
    columns = {**record.columns, **record.restricted, "label": record.label, "caption": record.caption}
    return PLACEHOLDER.sub(lambda field: _normalize(columns.get(field[1])), model.prompt)


def placeholder_condition(model: ModelConfig) -> str | None:
    """Return a text to measure time with, in place of a record's."""
    if model.condition == "label":
        return "0"
    return model.prompt if model.prompt_fields else None


def encode_conditions(backbone: Backbone, texts: Iterable[str | None]) -> object:
    """Return the condition of a batch, for ``predict``; None where all records have the same."""
    present = [text for text in texts if text is not None]
    return backbone.condition(present) if present else None


def flag_unsafe(model: ModelConfig, backbone: Backbone, images: torch.Tensor) -> Sequence[bool]:
    """Return the safety checker's verdict on each image; False where ``model.safety_checker`` is off."""
    return backbone.flag_unsafe(images) if model.safety_checker else [False] * len(images)


def refuse_unused_guidance(model: ModelConfig, backbone: Backbone) -> None:
    """Raise ConfigError if guidance would lead towards a class, and records have none."""
    if model.guidance != 1 and backbone.condition_kind == "class" and model.condition == "none":
        raise ConfigError("model.guidance: leads towards a class, and none is told: set model.condition=label, or 1")


def _normalize(value: object) -> str:
    """Return a value as text with single spaces. RecordError: NO_CONDITION, if it is missing, NaN or blank."""
    text = "" if value is None or value != value else " ".join(str(value).split())
    if not text:
        raise RecordError(Reason.NO_CONDITION)
    return text
