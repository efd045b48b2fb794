"""The settings of an audit and of a calibration: what attackers have, and what they try."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator

from anonymizer.config.base import Attack, Float, Section, Uri
from anonymizer.config.run import RunConfig, SourceConfig

Baseline = Literal["round-trip", "blur", "pixelation", "global", "unrelated"]


class AttackerConfig(Section):
    """What attackers have, and how hard they try. Nothing here goes into ``public/``."""

    identity: str | None = Field(
        None, description="what tells people apart in the source: 'folder', or a column; none: each record is a person"
    )
    attributes: tuple[str, ...] = Field((), description="columns of the source that an attacker may want to read off")
    others: SourceConfig | None = Field(None, description="other photos of the same people; its label names the person")
    outsiders: SourceConfig | None = Field(None, description="photos of people who are not in the release")
    training: SourceConfig | None = Field(None, description="pictures that the diffusion model was trained on")
    features: tuple[str, ...] = Field(
        ("pixels", "lpips", "clip", "imagenet", "dlib"),
        description="what pictures are compared by: these, or arcface:FILE.onnx",
    )
    sample: int = Field(300, ge=1, description="records that are attacked, drawn by chance; figures say how many")
    pairs: int = Field(256, ge=20, description="pairs that attackers who learn make for themselves")
    outputs: int = Field(8, ge=2, le=16, description="outputs of one original that an attacker may see")
    averaged: int = Field(40, ge=1, description="originals for which he sees that many")
    device: str = "auto"


class AuditConfig(AttackerConfig):
    """What an audit of one release tries, and with what at hand."""

    release: Uri = Field(description="the release, with its restricted half")
    union: tuple[Uri, ...] = Field(
        (), description="earlier releases whose pictures are attacked together with this one's"
    )
    attacks: tuple[Attack, ...] = Field(get_args(Attack), description="attacks to try")
    skip: tuple[Attack, ...] = Field((), description="attacks to leave out")
    baselines: tuple[Baseline, ...] = Field(
        (), description="what to attack besides: round-trip, blur, pixelation, global, unrelated"
    )


MAX_LEVELS = 100


def _levels(value: Any) -> Any:
    """``.1:.9:.1`` (first, last, step) or ``.2,.4,.6`` as numbers."""
    if not isinstance(value, str):
        return value
    try:
        numbers = [float(part) for part in value.replace(":", ",").split(",")]
        if ":" not in value:
            return numbers
        first, last, step = numbers
        count = int((last - first) / step + 1e-6) + 1
        if not 0 < count <= MAX_LEVELS:
            raise ValueError
        return [round(first + i * step, 6) for i in range(count)]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"must be FIRST:LAST:STEP, as in .1:.9:.1, or numbers with commas, got {value!r}") from None


class CalibrationConfig(AttackerConfig):
    """What a calibration measures: the levels of a run's settings, on a sample of its source."""

    run: RunConfig
    levels: Annotated[tuple[Float, ...], BeforeValidator(_levels)] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), description="levels to measure: FIRST:LAST:STEP, or a list"
    )
    attacks: tuple[Attack, ...] = Field(("linkage", "reidentification", "parrot"), description="attacks to try")
    folder: Uri = Field("calibration", description="where calibration.json, its tables and plots go")

    @field_validator("levels")
    @classmethod
    def _within(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or len(set(value)) < len(value) or not all(0 < level <= 1 for level in value):
            raise ValueError(f"must be different numbers in (0, 1], got {', '.join(f'{x:g}' for x in value) or 'none'}")
        return tuple(sorted(value))

    @field_validator("attacks")
    @classmethod
    def _on_pictures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or "leaks" in value:
            raise ValueError("must name attacks on pictures: leaks are looked for in a release, by `anonymizer audit`")
        return value
