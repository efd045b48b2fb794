"""Settings of an audit and of a calibration: the attackers' resources, and their attacks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from anonymizer.config.base import (
    AUDIT_AVERAGED,
    AUDIT_FEATURES,
    AUDIT_OUTPUTS,
    AUDIT_PAIRS,
    AUDIT_SAMPLE,
    MATCHED_FILTER,
    Attack,
    Float,
    Section,
    Uri,
    are_levels,
    ensure,
)
from anonymizer.config.run import RunConfig
from anonymizer.config.source import SourceConfig

Baseline = Literal["round-trip", "blur", "pixelation", "global", "unrelated"]


class AttackerConfig(Section):
    """The attackers' resources and effort; what a policy bounds is published with the figures, and no address."""

    identity: str | None = Field(
        None, description="'folder' or the column that identifies a person in the source; none: each record is a person"
    )
    attributes: tuple[str, ...] = Field((), description="columns of the source that an attacker may want to infer")
    others: SourceConfig | None = Field(None, description="other photos of the same people, labelled with the person")
    outsiders: SourceConfig | None = Field(None, description="photos of people who are not in the release")
    training: SourceConfig | None = Field(None, description="pictures that the diffusion model was trained on")
    features: Annotated[
        tuple[str, ...],
        ensure(
            lambda names: any(name != MATCHED_FILTER for name in names),
            "must name a feature besides the filter, such as pixels, got {}",
        ),
    ] = Field(
        AUDIT_FEATURES,
        description="features that pictures are compared by: these, or arcface:FILE.onnx; filter is the matched filter",
    )
    sample: int = Field(AUDIT_SAMPLE, ge=1, description="records that are attacked, drawn by chance")
    pairs: int = Field(AUDIT_PAIRS, ge=20, description="training pairs that learning attackers make")
    outputs: int = Field(AUDIT_OUTPUTS, ge=2, le=16, description="outputs of one original that an attacker may see")
    averaged: int = Field(AUDIT_AVERAGED, ge=1, description="originals of which the attacker sees that many outputs")
    device: str = "auto"


class AuditConfig(AttackerConfig):
    """The attacks and baselines of one release's audit."""

    release: Uri = Field(description="the release, with its restricted half")
    union: tuple[Uri, ...] = Field(
        (), description="earlier releases whose pictures are attacked together with this one's"
    )
    attacks: tuple[Attack, ...] = Field(get_args(Attack), description="attacks to try")
    skip: tuple[Attack, ...] = Field((), description="attacks to leave out")
    baselines: tuple[Baseline, ...] = Field(
        (), description="baselines to attack as well: round-trip, blur, pixelation, global, unrelated"
    )


MAX_LEVELS = 100


def _parse_levels(value: Any) -> Any:
    """Return the numbers of ``.1:.9:.1`` (first, last, step) or of ``.2,.4,.6``."""
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
    """The levels at which a run's settings are measured, on a sample of its source."""

    run: RunConfig
    levels: Annotated[
        tuple[Float, ...],
        BeforeValidator(_parse_levels),
        ensure(
            lambda levels: levels and len(set(levels)) == len(levels) and are_levels(levels),
            "must be different numbers in (0, 1], got {}",
        ),
        AfterValidator(lambda levels: tuple(sorted(levels))),
    ] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), description="levels to measure: FIRST:LAST:STEP, or a list"
    )
    attacks: Annotated[
        tuple[Attack, ...],
        ensure(
            lambda attacks: attacks and "leaks" not in attacks,
            "must name attacks on pictures: leaks are looked for in a release, by `anonymizer audit`",
        ),
    ] = Field(("linkage", "reidentification", "parrot"), description="attacks to try")
    folder: Uri = Field("calibration", description="where calibration.json, its tables and plots go")
