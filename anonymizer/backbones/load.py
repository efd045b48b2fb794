"""Load a backbone by its model id: bundled, a local folder or URI, or a pinned revision of the hub."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from anonymizer.backbones.pipeline_folder import REQUIRED_FILES, PipelineFolder
from anonymizer.backbones.protocol import Backbone, ConditionKind
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError
from anonymizer.storage import download

BUNDLED = "bundled:"

# Class of a pipeline in its model_index.json -> module and class of the backbone.
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
    """Return the model of ``config``, ready to predict. ModelError with the next step, if it is not usable."""
    folder = PipelineFolder(resolve(config), config)
    device, dtype = torch_device(config.device), getattr(torch, config.dtype)
    if device.type == "cpu" and dtype == torch.float16:
        raise ModelError("model.dtype: float16 is not usable on a CPU: choose float32 or bfloat16")
    if folder.pipeline_class not in FAMILIES:
        raise folder.error(
            f"{folder.pipeline_class} is not supported, nor are inpainting, ONNX and other tasks: use a folder of one "
            f"of {', '.join(FAMILIES)}"
        )
    module, _, name = FAMILIES[folder.pipeline_class].partition(":")
    backbone: Backbone = getattr(import_module(f"anonymizer.backbones.{module}"), name)(
        folder, device=device, dtype=dtype
    )
    _refuse_unusable_settings(config, backbone.condition_kind)
    return backbone


def _refuse_unusable_settings(config: ModelConfig, kind: ConditionKind) -> None:
    if config.condition == "label" and kind != "class":
        raise ModelError(f"model.condition: the model {config.id!r} knows no classes: leave it out")
    for name in ("prompt", "negative_prompt"):
        if getattr(config, name) and kind != "prompt":
            raise ModelError(f"model.{name}: the model {config.id!r} takes no prompt: leave it out")
    if config.guidance != 1 and kind == "nothing":
        raise ModelError(f"model.guidance: the model {config.id!r} knows neither prompts nor classes: leave it out")


def bundled_models() -> dict[str, Path]:
    """Return name -> folder of each diffusion model that comes with the package."""
    root = Path(str(files("anonymizer.bundled")))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/model_index.json"))}


def resolve(config: ModelConfig) -> Path:
    """Return the local folder of the model's files, downloaded first where they lie elsewhere and are not cached."""
    if config.id.startswith(BUNDLED):
        known = bundled_models()
        if (name := config.id.removeprefix(BUNDLED)) not in known:
            names = ", ".join(BUNDLED + known_name for known_name in known)
            raise ModelError(f"model.id: unknown bundled model {config.id!r}: known: {names}")
        return known[name]
    if download.is_uri(config.id):
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        return download.download_folder(
            "model.id", config.id, lambda names: filter_repo_objects(names, **_file_patterns(config))
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
    return _download_from_hub(config)


def torch_device(name: str) -> torch.device:
    """Return a device: ``auto`` is a GPU where there is one; any other must exist, else ModelError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"model.device: {name!r} cannot be used on this machine: use auto, cpu, or cuda:N") from None
    return device


def _file_patterns(config: ModelConfig) -> dict[str, Any]:
    """Return patterns of each part's configuration, vocabulary and weights, without checkpoints of other programs."""
    weights = "*" if config.variant is None else f"*.{config.variant}*"
    patterns = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]
    patterns += [f"*/{weights}.safetensors", "diffusion_pytorch_model.safetensors"]
    patterns += ["*/*.bin", "diffusion_pytorch_model.bin"] if config.allow_pickle else []
    ignored = [] if config.variant else ["*.fp16.*", "*.non_ema.*"]
    return {"allow_patterns": patterns, "ignore_patterns": ignored or None}


def _download_from_hub(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(config.id, revision=config.revision, **_file_patterns(config)))
    except (HfHubHTTPError, OSError) as error:  # among them: no such repository, not in the cache
        raise ModelError(
            f"model.id {config.id!r} at {config.revision!r}: neither on the hub nor in its cache "
            f"({type(error).__name__}): put model_index.json, {REQUIRED_FILES} in a folder and set model.id to that "
            "folder"
        ) from None
