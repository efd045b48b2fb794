"""What a calibration belongs to, and the record of a level that was chosen from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from anonymizer.config.base import Section, get_setting, safe_repr
from anonymizer.errors import ConfigError

if TYPE_CHECKING:
    from anonymizer.config.run import RunConfig

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

    @classmethod
    def of(cls, config: RunConfig, model_digest: str) -> CalibrationScope:
        """What a calibration with these settings will belong to. ConfigError without ``source.kind``."""
        if config.source.kind is None:
            raise ConfigError(
                "source.kind: missing: say in a few words what is on the pictures (--set source.kind='faces of "
                "adults'): a calibration holds for one kind"
            )
        here = {name: get_setting(config, key) for name, key in SCOPE_KEYS.items()}
        return cls(model_digest=model_digest, model=config.model.public_name, **here)

    def differences(self, config: RunConfig) -> list[str]:
        """What forbids the calibration to these settings, a line for each; the model's digest is not among them."""
        found = []
        for name, key in SCOPE_KEYS.items():
            was, now = getattr(self, name), get_setting(config, key)
            said = "null" if was is None else safe_repr(was)
            if name == "kind" and now is None:
                found.append(f"{key}: missing: the calibration is for {said}: set it to that if it is true here")
            elif was != now:
                got = "null" if now is None else safe_repr(now)
                found.append(f"{key}: the calibration was made with {said}, not {got}: use that, or calibrate anew")
        return found


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
