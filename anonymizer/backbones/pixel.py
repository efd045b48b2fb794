"""Models of pixels in diffusers' format, patched and class-conditional ones included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from anonymizer.backbones.class_labels import ClassLabels
from anonymizer.backbones.compilation import move_channels_last
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prediction_type import clip_z0, make_output_converter
from anonymizer.backbones.protocol import ConditionKind, Denoised
from anonymizer.errors import ModelError


class PixelBackbone:
    """A ``UNet2DModel`` with epsilon, sample or v prediction.

    A network with 3 p^2 input channels sees pictures through ``pixel_unshuffle(p)`` (Patched Diffusion, Luhman and
    Luhman 2022). Where the model's own scheduler clips its estimate of x0, so do we, and return the noise that agrees
    with the clipped estimate. A model that knows classes may have one more that stands for none of them; ``guidance``
    then mixes what it says with and without a class (Ho and Salimans 2022).
    """

    def __init__(self, parts: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler, UNet2DModel

        # The schedule and the prediction type are shared by all schedulers, so DDPM's reads any of their configs.
        scheduler = parts.load(DDPMScheduler, "scheduler")
        unet = parts.load_network(UNet2DModel, "unet", torch.float32)
        self.name, self.device, self.dtype = parts.config.id, device, dtype
        self.patch = math.isqrt(unet.config.in_channels // 3)
        _refuse_other_kinds(self.name, unet, scheduler, self.patch)
        self.unet = move_channels_last(unet, device, dtype)
        self.digest = parts.digest
        self.T = int(scheduler.config.num_train_timesteps)
        self.alphas_cumprod = scheduler.alphas_cumprod.double().cpu()
        self.convert_output = make_output_converter(self.name, scheduler.config.prediction_type, self.alphas_cumprod)
        self.clip_range = _clip(parts.load_config(DDPMScheduler, "scheduler"))
        self.channels = int(unet.config.in_channels)
        self.scale = self.patch
        self.multiple = self.patch * 2 ** (len(unet.config.block_out_channels) - 1)
        self.size = parts.resolve_size(int(unet.config.sample_size) * self.patch, self.multiple)
        self.classes = _classes(unet, parts)
        self.condition_kind: ConditionKind = "class" if self.classes else "nothing"
        self.guidance = parts.config.guidance

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(images.to(self.device, torch.float32), self.patch)  # (B, 3 p^2, H / p, W / p)

    def condition(self, labels: Sequence[str]) -> torch.Tensor:
        if self.classes is None:
            raise ModelError(f"model.condition: the model {self.name!r} knows no classes: leave it out")
        return self.classes.indices_of(labels).to(self.device, non_blocking=True)  # (B,)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        abar = float(self.alphas_cumprod[t - 1])
        found = self.convert_output(zt, self._guided(zt, t, condition), abar)
        return found if self.clip_range is None else clip_z0(zt, found, abar, self.clip_range)

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(z0, self.patch)

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [False] * len(images)

    def _guided(self, zt: torch.Tensor, t: int, condition: object) -> torch.Tensor:
        if self.classes is None:
            return self._network(zt, t, None)
        null = None if self.classes.null is None else torch.full((len(zt),), self.classes.null, device=self.device)
        if not isinstance(condition, torch.Tensor):
            if null is None:
                raise ModelError(
                    f"model.condition: the model {self.name!r} needs a class for each record: set it to label"
                )
            return self._network(zt, t, null)
        if self.guidance == 1:
            return self._network(zt, t, condition)
        if null is None:
            raise ModelError(f"model.guidance: the model {self.name!r} has no class that stands for none: set it to 1")
        both = self._network(torch.cat([zt, zt]), t, torch.cat([null, condition]))
        without, within = both.chunk(2)
        return without + self.guidance * (within - without)

    def _network(self, zt: torch.Tensor, t: int, labels: torch.Tensor | None) -> torch.Tensor:
        time = torch.full((len(zt),), t - 1, device=self.device)  # a number would be copied there, and waited for
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out: torch.Tensor = self.unet(zt, time, class_labels=labels).sample
        return out[:, : self.channels].float()  # a learned variance, where there is one, is not used


def _clip(own: Mapping[str, Any]) -> float | None:
    """Where the scheduler that the model was saved with clips its estimate of x0; DDPM's and DDIM's do if not told."""
    clips = own.get("clip_sample", own.get("_class_name", "DDPMScheduler") in ("DDPMScheduler", "DDIMScheduler"))
    return float(own.get("clip_sample_range", 1.0)) if clips else None


def _classes(unet: Any, parts: PipelineFolder) -> ClassLabels | None:
    embeddings = unet.config.get("num_class_embeds")
    return ClassLabels.from_config(int(embeddings), parts.index.get("id2label")) if embeddings else None


def _refuse_other_kinds(name: str, unet: Any, scheduler: Any, patch: int) -> None:
    config = unet.config
    if patch < 1 or config.in_channels != 3 * patch**2:
        raise ModelError(
            f"model.id {name!r}: {config.in_channels} input channels: an RGB pixel model has 3, 12, 27 or 48"
        )
    if (kind := config.get("class_embed_type")) is not None:
        raise ModelError(f"model.id {name!r}: class_embed_type {kind!r}: only numbered classes are supported")
    if not isinstance(config.sample_size, int):
        raise ModelError(f"model.id {name!r}: sample_size {config.sample_size!r}: only square models are supported")
    if scheduler.config.get("thresholding"):
        raise ModelError(
            f"model.id {name!r}: thresholding: dynamic thresholding is not supported: choose a model that is sampled "
            "without it"
        )
