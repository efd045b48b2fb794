"""From a model id to a backbone on a device: bundled, a local folder, or a pinned revision from the hub."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch

from anonymizer.backbones.pipeline_folder import REQUIRED_FILES, PipelineFolder
from anonymizer.backbones.protocol import Backbone
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError
from anonymizer.storage import download

BUNDLED = "bundled:"

# Class of a pipeline in its model_index.json -> who builds a backbone of its parts.
FAMILIES = {
    "DDPMPipeline": "pixel:PixelBackbone",
    "DDIMPipeline": "pixel:PixelBackbone",
    "StableDiffusionPipeline": "stable_diffusion:StableBackbone",
    "StableDiffusionImg2ImgPipeline": "stable_diffusion:StableBackbone",
    "LatentConsistencyModelPipeline": "stable_diffusion:StableBackbone",
    "LatentConsistencyModelImg2ImgPipeline": "stable_diffusion:StableBackbone",
    "StableDiffusionXLPipeline": "stable_diffusion:StableXLBackbone",
    "StableDiffusionXLImg2ImgPipeline": "stable_diffusion:StableXLBackbone",
    "DiTPipeline": "dit:DiTBackbone",
    "StableDiffusion3Pipeline": "sd3:SD3Backbone",
    "FluxPipeline": "flux:FluxBackbone",
}


def load_backbone(config: ModelConfig) -> Backbone:
    """The model that ``config`` names, ready to predict. Raises ModelError with one line that says what to do."""
    parts = PipelineFolder(resolve(config), config)
    device, dtype = torch_device(config.device), getattr(torch, config.dtype)
    if device.type == "cpu" and dtype == torch.float16:
        raise ModelError("model.dtype: float16 is not usable on a CPU: choose float32 or bfloat16")
    if parts.pipeline_class not in FAMILIES:
        raise ModelError(
            f"model.id {config.id!r}: {parts.pipeline_class} is not supported, nor are inpainting, ONNX and other tasks: use "  # noqa: E501
            f"a folder of one of {', '.join(FAMILIES)}"
        )
    module, _, name = FAMILIES[parts.pipeline_class].partition(":")
    build = cast(Callable[..., Backbone], getattr(import_module(f"anonymizer.backbones.{module}"), name))
    backbone = build(parts, device=device, dtype=dtype)
    _refuse_other_settings(config, backbone)
    return backbone


def _refuse_other_settings(config: ModelConfig, backbone: Backbone) -> None:
    """Settings that this model can make nothing of."""
    if config.condition == "label" and backbone.condition_kind != "class":
        raise ModelError(f"model.condition: the model {config.id!r} knows no classes: leave it out")
    for name in ("prompt", "negative_prompt"):
        if getattr(config, name) and backbone.condition_kind != "prompt":
            raise ModelError(f"model.{name}: the model {config.id!r} takes no prompt: leave it out")
    if config.guidance != 1 and backbone.condition_kind == "nothing":
        raise ModelError(f"model.guidance: the model {config.id!r} knows neither prompts nor classes: leave it out")


def bundled_models() -> dict[str, Path]:
    """Name -> folder of each diffusion model that comes with the package."""
    root = Path(str(files("anonymizer.bundled")))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/model_index.json"))}


def resolve(config: ModelConfig) -> Path:
    """The local folder that holds the model's files; what lies elsewhere is fetched first, or found in a cache."""
    if config.id.startswith(BUNDLED):
        known = bundled_models()
        name = config.id.removeprefix(BUNDLED)
        if name not in known:
            names = ", ".join(BUNDLED + n for n in known)
            raise ModelError(f"model.id: unknown bundled model {config.id!r}: known: {names}")
        return known[name]
    if download.is_uri(config.id):
        from huggingface_hub.utils._paths import filter_repo_objects

        return download.download_folder(
            "model.id", config.id, lambda names: filter_repo_objects(names, **_files(config))
        )
    if (folder := Path(config.id).expanduser()).is_dir():
        return folder
    if not config.is_hub_id:
        raise ModelError(
            f"model.id {config.id!r}: no such folder, and not a hub id: give bundled:NAME, a folder, its URI, or "
            "OWNER/NAME"
        )
    if config.revision is None:
        raise ModelError(
            f"model.revision: missing for hub model {config.id!r} (there is no such folder): pin a commit, so that the "
            "model cannot change"
        )
    return _from_hub(config)


def torch_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one; anything else must exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"model.device: {name!r} cannot be used on this machine: use auto, cpu, or cuda:N") from None
    return device


def _files(config: ModelConfig) -> dict[str, Any]:
    """Of each part its configuration, vocabulary and weights; not the checkpoints of other programs beside them."""
    weights = "*" if config.variant is None else f"*.{config.variant}*"
    patterns = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]
    patterns += [f"*/{weights}.safetensors", "diffusion_pytorch_model.safetensors"]
    patterns += ["*/*.bin", "diffusion_pytorch_model.bin"] if config.allow_pickle else []
    ignored = [] if config.variant else ["*.fp16.*", "*.non_ema.*"]
    return {"allow_patterns": patterns, "ignore_patterns": ignored or None}


def _from_hub(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(config.id, revision=config.revision, **_files(config)))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"model.id {config.id!r} at {config.revision!r}: neither on the hub nor in its cache "
            f"({type(error).__name__}): put model_index.json, {REQUIRED_FILES} in a folder and set model.id to that folder"  # noqa: E501
        ) from None
