"""The settings of an augmentation: further training pictures, which are not anonymised."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from anonymizer.config.base import Float, Int, Section, Uri
from anonymizer.config.model import ModelConfig
from anonymizer.config.run import Sampler, SourceConfig, check_condition_columns


def _range(value: Any) -> Any:
    """``.1:.4``, or a pair, as two numbers."""
    if isinstance(value, str):
        try:
            value = [float(part) for part in value.split(":")]
        except ValueError:
            value = None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("must be LOWEST:HIGHEST, as in .1:.4, or a list of these two")
    return value


class AugmentOutput(Section):
    """Where the samples go and what they are encoded as."""

    uri: Uri = Field(description="a new folder or prefix; any fsspec URI")
    image: Literal["png", "jpeg", "webp"] = Field("png", description="png, jpeg or webp")
    quality: Int = Field(95, ge=1, le=100, description="of jpeg and webp, 1 to 100")


class FilterConfig(Section):
    """What looks whether a sample still shows what its label says."""

    kind: Literal["none", "clip", "classifier"] = Field(
        "none", description="clip (by the names of the labels), classifier (one of yours), or none"
    )
    clip: str = Field("bundled:clip-mini", description="bundled:clip-mini, or an open_clip 'MODEL/PRETRAINED'")
    prompt: str = Field("a photo of a {label}", description="what CLIP is asked about each label; holds {label}")
    classifier: str | None = Field(
        None, description="folder of an image classifier in transformers' format: safetensors, id2label, preprocessor"
    )
    names: dict[str, str] = Field(
        {}, description="label -> its name in the prompt, or its class of the classifier, where that differs"
    )

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str) -> str:
        if "{label}" not in value or set(value.replace("{label}", "")) & set("{}"):
            raise ValueError(f"must hold {{label}} and no other braces, got {value!r}")
        return value

    @model_validator(mode="after")
    def _named(self) -> FilterConfig:
        if self.kind == "classifier" and self.classifier is None:
            raise ValueError("classifier: missing: name the folder of the classifier")
        if self.kind != "classifier" and self.classifier is not None:
            raise ValueError(f"classifier: given, and kind is {self.kind}: set kind to classifier, or leave it out")
        return self


class AugmentConfig(Section):
    """Everything that local samples for training are made from."""

    source: SourceConfig
    output: AugmentOutput
    model: ModelConfig = ModelConfig()
    levels: Annotated[tuple[Float, Float], BeforeValidator(_range)] = Field(
        (0.1, 0.4), description="lowest and highest level; each sample draws one of 16 from there to there"
    )
    samples: Int = Field(2, ge=0, description="samples of each record; 0 with balance: only smaller classes get any")
    balance: bool = Field(
        False, description="whether smaller classes get more samples, until originals and samples are as many in each"
    )
    sampler: Sampler = Field(
        "sde-dpm++", description="ddpm (the paper's), ddim, dpm++, sde-dpm++, unipc; of few-step models lcm, tcd"
    )
    steps: Int | None = Field(20, ge=1, description="reverse steps from t_boom to 0; null: every step")
    filter: FilterConfig = FilterConfig()
    seed: Int = Field(0, ge=0, lt=2**63, description="the same seed gives the same samples; no secret")
    batch_size: Int = Field(32, ge=1, description="pictures that the model sees at once")

    @field_validator("levels")
    @classmethod
    def _levels(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high <= 1:
            raise ValueError(f"must be two numbers in (0, 1], the lowest first, got {low:g} and {high:g}")
        return value

    @model_validator(mode="after")
    def _has_labels(self) -> AugmentConfig:
        """What is done by label needs one."""
        needs = {"balance": self.balance, "filter.kind": self.filter.kind != "none"}
        for name, needed in needs.items():
            if needed and self.source.label is None:
                raise ValueError(f"{name}: needs labels, and source.label is not set: say where the label stands")
        if not self.samples and not self.balance:
            raise ValueError("samples: 0, and balance is off, so that nothing would be made: ask for 1 or more")
        return self

    @model_validator(mode="after")
    def _condition_is_read(self) -> AugmentConfig:
        check_condition_columns(self.model, self.source)
        return self
