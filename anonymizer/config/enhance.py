"""Settings of an enhancement: enlarged pictures with invented detail, which are not anonymised."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anonymizer.config.base import Float, ImageOutput, Int, Sampler, Section, Seed, are_levels, ensure
from anonymizer.config.model import ModelConfig
from anonymizer.config.source import SourceConfig, check_condition_columns


def _parse_list(value: Any) -> Any:
    """Return the numbers of ``.5,.3``, or of one number."""
    if isinstance(value, str):
        try:
            return [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"must be numbers with commas, as in .5,.3, got {value!r}") from None
    return [value] if isinstance(value, int | float) else value


def _parse_source(value: Any) -> Any:
    """Return a source section for a plain address."""
    return {"uri": value} if isinstance(value, str) else value


class EnhanceMetrics(Section):
    """Comparisons with references besides PSNR and SSIM."""

    lpips: str = Field("st-alex", description="st-alex (offline), alex, vgg, squeeze, 'alex:WEIGHTS_FILE', or none")


class EnhanceConfig(Section):
    """All settings of enlarged pictures."""

    source: SourceConfig
    output: ImageOutput
    references: Annotated[SourceConfig | None, BeforeValidator(_parse_source)] = Field(
        None, description="the same pictures at full size, to compare with; an address, or a section like source"
    )
    model: ModelConfig = ModelConfig()
    factor: Int = Field(4, ge=2, le=16, description="factor by which each side grows")
    levels: Annotated[
        tuple[Float, ...],
        BeforeValidator(_parse_list),
        ensure(lambda levels: levels and are_levels(levels), "must be numbers in (0, 1], got {}"),
    ] = Field((0.4,), description="a level for each pass of Boomerang, in turn; several make a cascade")
    upsampling: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bicubic", description="bilinear, bicubic or lanczos, before the first pass"
    )
    sampler: Sampler = "sde-dpm++"
    steps: Int | None = Field(20, ge=1, description="reverse steps of each pass, from t_boom to 0; null: every step")
    seed: Seed = Field(0, description="the same seed gives the same pictures; no secret")
    batch_size: Int = Field(32, ge=1, description="pictures of the model's size in one batch; fewer of larger ones")
    metrics: EnhanceMetrics = EnhanceMetrics()

    @model_validator(mode="after")
    def _check_condition(self) -> EnhanceConfig:
        check_condition_columns(self.model, self.source)
        return self
