"""Settings of an augmentation: further training pictures, which are not anonymised."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anonymizer.config.base import Float, ImageOutput, Int, Sampler, Section, Seed, ensure
from anonymizer.config.model import ModelConfig
from anonymizer.config.source import SourceConfig, check_condition_columns


def _parse_range(value: Any) -> Any:
    """Return the two numbers of ``.1:.4``, or of a pair."""
    if isinstance(value, str):
        try:
            value = [float(part) for part in value.split(":")]
        except ValueError:
            value = None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("must be LOWEST:HIGHEST, as in .1:.4, or a list of these two")
    return value


class FilterConfig(Section):
    """How samples that no longer show their label are detected."""

    kind: Literal["none", "clip", "classifier"] = Field(
        "none", description="clip (by the names of the labels), classifier (one of yours), or none"
    )
    clip: str = Field("bundled:clip-mini", description="bundled:clip-mini, or an open_clip 'MODEL/PRETRAINED'")
    prompt: Annotated[
        str,
        ensure(
            lambda text: "{label}" in text and not set(text.replace("{label}", "")) & set("{}"),
            "must hold {{label}} and no other braces, got {!r}",
        ),
    ] = Field("a photo of a {label}", description="CLIP prompt for each label; holds {label}")
    classifier: str | None = Field(
        None, description="folder of an image classifier in transformers' format: safetensors, id2label, preprocessor"
    )
    names: dict[str, str] = Field(
        {}, description="label -> its name in the prompt or its class of the classifier, where it differs"
    )

    @model_validator(mode="after")
    def _check_classifier(self) -> FilterConfig:
        if self.kind == "classifier" and self.classifier is None:
            raise ValueError("classifier: missing: name the folder of the classifier")
        if self.kind != "classifier" and self.classifier is not None:
            raise ValueError(f"classifier: given, and kind is {self.kind}: set kind to classifier, or leave it out")
        return self


class AugmentConfig(Section):
    """All settings of local samples for training."""

    source: SourceConfig
    output: ImageOutput
    model: ModelConfig = ModelConfig()
    levels: Annotated[
        tuple[Float, Float],
        BeforeValidator(_parse_range),
        ensure(
            lambda levels: 0 < levels[0] <= levels[1] <= 1,
            "must be two numbers in (0, 1], the lowest first, got {1[0]:g} and {1[1]:g}",
        ),
    ] = Field((0.1, 0.4), description="lowest and highest level; each sample draws one of 16 from there to there")
    samples: Int = Field(2, ge=0, description="samples of each record; 0 with balance: only smaller classes get any")
    balance: bool = Field(
        False, description="whether smaller classes get more samples, until all classes are of one size"
    )
    sampler: Sampler = "sde-dpm++"
    steps: Int | None = Field(20, ge=1, description="reverse steps from t_boom to 0; null: every step")
    filter: FilterConfig = FilterConfig()
    seed: Seed = Field(0, description="the same seed gives the same samples; no secret")
    batch_size: Int = Field(32, ge=1, description="pictures in one batch")

    @model_validator(mode="after")
    def _check_labels(self) -> AugmentConfig:
        needs_label = {"balance": self.balance, "filter.kind": self.filter.kind != "none"}
        for name, is_needed in needs_label.items():
            if is_needed and self.source.label is None:
                raise ValueError(f"{name}: needs labels, and source.label is not set: say where the label stands")
        if not self.samples and not self.balance:
            raise ValueError("samples: 0, and balance is off, so that nothing would be made: ask for 1 or more")
        return self

    @model_validator(mode="after")
    def _check_condition(self) -> AugmentConfig:
        check_condition_columns(self.model, self.source)
        return self
