"""From a model id to a backbone on a device: bundled, a local folder, or a pinned revision from the hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from anonymizer.backbones.pixel import PixelBackbone
from anonymizer.backbones.protocol import Backbone
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError

BUNDLED = "bundled:"
NEEDED = "scheduler/scheduler_config.json, unet/config.json and unet/diffusion_pytorch_model.safetensors"


def load_backbone(config: ModelConfig) -> Backbone:
    """The model that ``config`` names, ready to predict. Raises ModelError with one line that says what to do."""
    folder = resolve(config)
    device, dtype = torch_device(config.device), getattr(torch, config.dtype)
    if device.type == "cpu" and dtype == torch.float16:
        raise ModelError("model.dtype: float16 is not usable on a CPU: choose float32 or bfloat16")
    unet, scheduler = _load_parts(config, folder)
    return PixelBackbone(unet, scheduler, name=config.id, digest=digest(folder), device=device, dtype=dtype)


def bundled_models() -> dict[str, Path]:
    """Name -> folder of each diffusion model that comes with the package."""
    root = Path(str(files("anonymizer.bundled")))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/model_index.json"))}


def resolve(config: ModelConfig) -> Path:
    """The local folder that holds the model's files; a hub id is fetched first (or found in the hub's cache)."""
    if config.id.startswith(BUNDLED):
        known = bundled_models()
        name = config.id.removeprefix(BUNDLED)
        if name not in known:
            names = ", ".join(BUNDLED + n for n in known)
            raise ModelError(f"model.id: unknown bundled model {config.id!r}: known: {names}")
        return known[name]
    if (folder := Path(config.id).expanduser()).is_dir():
        return folder
    if not config.is_hub_id:
        raise ModelError(
            f"model.id {config.id!r}: no such folder, and not a hub id: give bundled:NAME, a folder, or OWNER/NAME"
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


def digest(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of configs and weights, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin")):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256")
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + inner.digest())
    return total.hexdigest()


def _from_hub(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", *(["*.bin"] if config.allow_pickle else [])]
    try:
        return Path(snapshot_download(config.id, revision=config.revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"model.id {config.id!r} at {config.revision!r}: neither on the hub nor in its cache "
            f"({type(error).__name__}): put model_index.json, {NEEDED} in a folder and set model.id to that folder"
        ) from None


def _load_parts(config: ModelConfig, folder: Path) -> tuple[Any, Any]:
    """U-Net and DDPM scheduler of a pipeline folder, by diffusers' own classes, weights from safetensors only."""
    from diffusers import DDPMScheduler, UNet2DModel

    index = folder / "model_index.json"
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"] if index.exists() else "DDPMPipeline"
        if kind not in ("DDPMPipeline", "DDIMPipeline"):
            raise ModelError(
                f"model.id {config.id!r}: a {kind} is not supported: use a DDPMPipeline or DDIMPipeline folder"
            )
        unet_at, scheduler_at = (name if (folder / name).is_dir() else None for name in ("unet", "scheduler"))
        with _quiet():
            # The schedule and the prediction type are shared by all schedulers, so DDPM's reads any of their configs.
            scheduler = DDPMScheduler.from_pretrained(folder, subfolder=scheduler_at)
            unet, found = UNet2DModel.from_pretrained(
                folder,
                subfolder=unet_at,
                torch_dtype=torch.float32,
                use_safetensors=None if config.allow_pickle else True,  # None: pickles, where there is nothing else
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ModelError(
            f"model.id {config.id!r}: not a usable diffusers folder ({type(error).__name__}): it needs {NEEDED} "
            "(pickled weights only with model.allow_pickle=true)"
        ) from None
    if missing := found["missing_keys"]:  # diffusers would have drawn them at random
        raise ModelError(
            f"model.id {config.id!r}: the weights lack {len(missing)} of the tensors that unet/config.json asks for: "
            "save the model again"
        )
    return unet, scheduler


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """diffusers writes about missing and pickled files on standard error, which our own line says better."""
    log = logging.getLogger("diffusers")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
