"""What a calibration belongs to, and the record of a level that was chosen from one."""

from __future__ import annotations

from pydantic import Field

from anonymizer.config.base import Float, Section, Uri

# Where the settings stand that a calibration belongs to.
SCOPE_KEYS = {
    "dtype": "model.dtype",
    "variant": "model.variant",
    "side": "model.size",
    "prompt": "model.prompt",
    "negative_prompt": "model.negative_prompt",
    "guidance": "model.guidance",
    "condition": "model.condition",
    "vae_tiling": "model.vae_tiling",
    "tile_overlap": "model.tile_overlap",
    "sampler": "boomerang.sampler",
    "steps": "boomerang.steps",
    "fit": "source.fit",
    "image": "output.image",
    "quality": "output.quality",
    "size": "output.size",
    "kind": "source.kind",
}


class CalibrationScope(Section):
    """What a calibration holds for: all that changes pixels but the level, and what is on the pictures.

    ``model`` is the public name; ``model_digest`` is what counts.
    """

    model_digest: str
    model: str
    dtype: str
    variant: str | None
    side: int | None
    prompt: str
    negative_prompt: str
    guidance: float
    condition: str
    vae_tiling: bool
    tile_overlap: float
    sampler: str
    steps: int | None
    fit: str
    image: str
    quality: int
    size: str
    kind: str


class ChosenLevel(Section):
    """How ``boomerang.level`` was chosen from a calibration: a record that the program makes, and no setting."""

    level: float
    identified: bool = Field(False, description="whether people were told apart when the sample was halved")
    calibration: str = Field(description="SHA-256 of the calibration's file; where that lay is not kept")
    max_risk: float = Field(description="the risk above chance that was to be kept")
    attacks: tuple[str, ...] = Field(description="what this is about")
    choosing_high: float = Field(description="highest upper bound of these attacks, in the half that chose")
    confirming_value: float = Field(description="highest risk of these attacks, in the half that confirmed")
    confirming_high: float = Field(description="and the highest upper bound there")
    belongs_to: CalibrationScope

    def __str__(self) -> str:
        return f"chosen from a calibration for a risk of at most {self.max_risk:g} ({', '.join(self.attacks)})"


class LevelRule(Section):
    """``boomerang.level`` as a promise about risk, in place of a number; see ``policy.calibration``."""

    calibration: Uri
    max_risk: Float
    attacks: tuple[str, ...] | None = None
