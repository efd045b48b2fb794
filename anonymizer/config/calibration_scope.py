"""What a calibration applies to, and how a level was chosen from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from anonymizer.config.base import CeilingName, Float, Section, Uri


class CalibrationScope(Section):
    """All settings that change pixels but the level, and what the pictures show.

    Descriptions name the setting that a field is compared with; of the model its digest counts, not its public name.
    """

    model_digest: str
    model: str
    dtype: str = Field(description="model.dtype")
    variant: str | None = Field(description="model.variant")
    side: int | None = Field(description="model.size")
    prompt: str = Field(description="model.prompt")
    negative_prompt: str = Field(description="model.negative_prompt")
    guidance: float = Field(description="model.guidance")
    condition: str = Field(description="model.condition")
    vae_tiling: bool = Field(description="model.vae_tiling")
    tile_overlap: float = Field(description="model.tile_overlap")
    sampler: str = Field(description="boomerang.sampler")
    steps: int | None = Field(description="boomerang.steps")
    fit: str = Field(description="source.fit")
    image: str = Field(description="output.image")
    quality: int = Field(description="output.quality")
    size: str = Field(description="output.size")
    kind: str = Field(description="source.kind")


SCOPE_KEYS = {name: field.description for name, field in CalibrationScope.model_fields.items() if field.description}


EARLIER_FIGURES = frozenset(["choosing_high", "confirming_value", "confirming_high"])


class ChosenLevel(Section):
    """How ``boomerang.level`` was chosen from a calibration; recorded by the program, and no setting.

    It holds the promise, and no risk that was measured: that is in the calibration's file, and stays there.
    """

    level: float
    identified: bool = Field(False, description="whether people were told apart when the sample was halved")
    calibration: str = Field(description="SHA-256 of the calibration's file, whose address is not stored")
    max_risk: float | None = Field(None, description="highest risk above chance that the level had to keep")
    attacks: tuple[str, ...] = Field((), description="attacks that this applies to")
    ceilings: dict[CeilingName, float] = Field({}, description="ceilings that it had to keep instead")
    belongs_to: CalibrationScope

    @model_validator(mode="before")
    @classmethod
    def _drop_figures(cls, value: Any) -> Any:
        """Drop the measured risks that settings of earlier versions hold: settings reach a scheduler."""
        return {k: v for k, v in value.items() if k not in EARLIER_FIGURES} if isinstance(value, Mapping) else value

    def __str__(self) -> str:
        promise = f"ceilings of {', '.join(f'{name} {bound:g}' for name, bound in self.ceilings.items())}"
        if self.max_risk is not None:
            promise = f"a risk of at most {self.max_risk:g} ({', '.join(self.attacks)})"
        return f"chosen from a calibration for {promise}, SHA-256 {self.calibration[:12]}"


class LevelRule(Section):
    """``boomerang.level`` as the smallest level that keeps a promise, in place of a number; see policy.calibration.

    The promise is about the attacks that were measured (``max_risk``), or about any attacker (``ceilings``).
    """

    calibration: Uri
    promise: Literal["measured", "ceiling"] = "measured"
    max_risk: Float | None = None
    attacks: tuple[str, ...] | None = None
    ceilings: dict[CeilingName, Annotated[Float, Field(ge=0, le=1)]] = Field({})
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")  # of a file that the custodian's key did not seal

    @model_validator(mode="after")
    def _check_promise(self) -> LevelRule:
        needed, other = ("ceilings", "max_risk") if self.promise == "ceiling" else ("max_risk", "ceilings")
        if getattr(self, needed) in (None, {}):
            raise ValueError(f"{needed}: missing: a promise of the kind {self.promise!r} is about it")
        if getattr(self, other) not in (None, {}) or (self.promise == "ceiling" and self.attacks is not None):
            raise ValueError(f"{other}: goes with another promise than {self.promise!r}: leave it out")
        return self
