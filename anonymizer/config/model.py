"""Settings of the diffusion model and of its conditioning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from anonymizer.config.base import Float, Int, Section, Uri, ensure

PLACEHOLDER = re.compile(r"\{(\w+)\}")
# Settings that change the outputs of a model with the same weights.
PIXEL_SETTINGS = {"variant", "size", "prompt", "negative_prompt", "guidance", "condition", "vae_tiling", "tile_overlap"}


class ModelConfig(Section):
    """The diffusion model, its device and its conditioning."""

    id: Uri = Field(
        "bundled:faces-64", description="bundled:NAME, a folder, any fsspec URI of one, or a hub id with a revision"
    )
    revision: str | None = Field(None, description="commit of a hub model; needed for one, so that it cannot change")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32",
        description="float32, bfloat16, float16; auto: bfloat16 if the run is planned on a GPU with support for it",
    )
    device: str = Field("auto", description="auto (a GPU where there is one), cpu, or cuda:N")
    variant: str | None = Field(None, description="variant of the weights' files, such as fp16; none by default")
    allow_pickle: bool = Field(False, description="whether pickled weights are loaded; they can run code")
    size: Int | None = Field(None, gt=0, le=8192, description="side in pixels of the model's input; its own by default")
    prompt: Annotated[
        str,
        ensure(
            lambda text: not set(PLACEHOLDER.sub("", text)) & set("{}"),
            "must hold braces around names of columns only, got {!r}: {{label}}, {{caption}}",
        ),
    ] = Field("", description="prompt of a model with prompts; may hold {label}, {caption} or {COLUMN}")
    negative_prompt: Annotated[
        str,
        ensure(lambda text: not set(text) & set("{}"), "must hold no braces, got {!r}: it is the same for all records"),
    ] = Field("", description="prompt that guidance leads away from")
    guidance: Float = Field(1.0, ge=0, description="weight of the prompt or class; 1: as the model was trained")
    condition: Literal["none", "label"] = Field(
        "none", description="label: models with classes get each record's; none: no class"
    )
    safety_checker: bool = Field(True, description="whether what the model's safety checker rejects is quarantined")
    vae_tiling: bool = Field(False, description="whether large pictures are encoded and decoded in tiles, for memory")
    tile_overlap: Float = Field(0.25, ge=0, le=0.75, description="share of a tile's side that it shares with the next")

    @model_validator(mode="before")
    @classmethod
    def _resolve_dtype(cls, given: Any) -> Any:
        """Resolve ``auto`` once, where a run is configured, so that all of its workers do the same."""
        if isinstance(given, dict) and given.get("dtype") == "auto":
            from anonymizer.devices import fast_dtype  # torch, which most configurations do without

            return {**given, "dtype": fast_dtype(str(given.get("device", "auto")))}
        return given

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The columns in the prompt, in order."""
        return tuple(dict.fromkeys(PLACEHOLDER.findall(self.prompt)))

    @property
    def common_prompt(self) -> str:
        """The prompt without its columns."""
        return " ".join(PLACEHOLDER.sub("", self.prompt).split())

    @property
    def has_record_condition(self) -> bool:
        """Whether the conditioning differs by record."""
        return self.condition != "none" or bool(self.prompt_fields)

    @property
    def is_hub_id(self) -> bool:
        """Whether the id reads as OWNER/NAME; a folder of that name may still be meant."""
        return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.id) is not None

    @property
    def public_name(self) -> str:
        """The model's name in a manifest, which hides the path of a local folder."""
        hub = self.revision is not None and self.is_hub_id
        known = self.id.startswith("bundled:") or (hub and not Path(self.id).is_dir())
        return self.id if known else "a local model"
