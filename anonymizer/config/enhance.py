"""The settings of an enhancement: pictures enlarged, which invents detail and anonymises nobody."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from anonymizer.config.base import Float, Int, Section, Uri
from anonymizer.config.model import ModelConfig
from anonymizer.config.run import Sampler, SourceConfig, check_condition_columns


def _list(value: Any) -> Any:
    """``.5,.3``, or one number, as a list."""
    if isinstance(value, str):
        try:
            return [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"must be numbers with commas, as in .5,.3, got {value!r}") from None
    return [value] if isinstance(value, int | float) else value


def _place(value: Any) -> Any:
    """An address alone, as the source that lies there."""
    return {"uri": value} if isinstance(value, str) else value


class EnhanceOutput(Section):
    """Where the enlarged pictures go and what they are encoded as."""

    uri: Uri = Field(description="a new folder or prefix; any fsspec URI")
    image: Literal["png", "jpeg", "webp"] = Field("png", description="png, jpeg or webp")
    quality: Int = Field(95, ge=1, le=100, description="of jpeg and webp, 1 to 100")


class EnhanceMetrics(Section):
    """What compares with references, beside PSNR and SSIM."""

    lpips: str = Field("st-alex", description="st-alex (offline), alex, vgg, squeeze, 'alex:WEIGHTS_FILE', or none")


class EnhanceConfig(Section):
    """Everything that enlarged pictures are made from."""

    source: SourceConfig
    output: EnhanceOutput
    references: Annotated[SourceConfig | None, BeforeValidator(_place)] = Field(
        None, description="the same pictures at full size, to compare with; an address, or a section like source"
    )
    model: ModelConfig = ModelConfig()
    factor: Int = Field(4, ge=2, le=16, description="how many times as long a side becomes")
    levels: Annotated[tuple[Float, ...], BeforeValidator(_list)] = Field(
        (0.4,), description="a level for each pass of Boomerang, in turn; several make a cascade"
    )
    upsampling: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bicubic", description="bilinear, bicubic or lanczos, before the first pass"
    )
    sampler: Sampler = Field(
        "sde-dpm++", description="ddpm (the paper's), ddim, dpm++, sde-dpm++, unipc; of few-step models lcm, tcd"
    )
    steps: Int | None = Field(20, ge=1, description="reverse steps of each pass, from t_boom to 0; null: every step")
    seed: Int = Field(0, ge=0, lt=2**63, description="the same seed gives the same pictures; no secret")
    batch_size: Int = Field(32, ge=1, description="pictures of the model's size that it sees at once; fewer of larger")
    metrics: EnhanceMetrics = EnhanceMetrics()

    @field_validator("levels")
    @classmethod
    def _levels(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < level <= 1 for level in value):
            raise ValueError(f"must be numbers in (0, 1], got {', '.join(f'{x:g}' for x in value) or 'none'}")
        return value

    @model_validator(mode="after")
    def _condition_is_read(self) -> EnhanceConfig:
        check_condition_columns(self.model, self.source)
        return self
