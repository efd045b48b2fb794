"""Models of pixels in diffusers' format, patched and class-conditional ones included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from anonymizer.backbones.class_labels import ClassConditionalBackbone, ClassLabels
from anonymizer.backbones.compilation import move_channels_last
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prediction_type import from_sample
from anonymizer.backbones.protocol import ConditionKind, Denoised


class PixelBackbone(ClassConditionalBackbone):
    """A ``UNet2DModel`` with epsilon, sample or v prediction, with or without classes.

    A network with 3 p^2 input channels sees images through ``pixel_unshuffle(p)`` (Patched Diffusion, Luhman and
    Luhman 2022). Where the model's own scheduler clips its estimate of x0, so does this one, and returns the noise that
    agrees with the clipped estimate.
    """

    def __init__(self, folder: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler, UNet2DModel

        unet = folder.load_network(UNet2DModel, "unet", torch.float32)
        super().__init__(folder, device, dtype)
        scheduler, config = self.load_schedule(folder), unet.config
        self.channels, self.patch = int(config.in_channels), math.isqrt(config.in_channels // 3)
        if self.patch < 1 or self.channels != 3 * self.patch**2:
            raise folder.error(f"{self.channels} input channels: an RGB pixel model has 3, 12, 27 or 48")
        if (kind := config.get("class_embed_type")) is not None:
            raise folder.error(f"class_embed_type {kind!r}: only numbered classes are supported")
        if scheduler.config.get("thresholding"):
            raise folder.error(
                "thresholding: dynamic thresholding is not supported: choose a model that is sampled without it"
            )
        self.unet = move_channels_last(unet, device, dtype)
        self.clip_range = _clip_range(folder.load_config(DDPMScheduler, "scheduler"))
        self.scale = self.patch
        self.multiple = self.patch * 2 ** (len(config.block_out_channels) - 1)
        self.size = folder.resolve_size(config.sample_size, self.scale, self.multiple)
        count = config.get("num_class_embeds")
        self.classes = ClassLabels.from_config(int(count), folder.index.get("id2label")) if count else None
        self.condition_kind: ConditionKind = "class" if self.classes else "nothing"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(images.to(self.device, torch.float32), self.patch)  # (B, 3 p^2, H / p, W / p)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        denoised = super().predict(zt, t, condition)
        if self.clip_range is None:
            return denoised
        return from_sample(zt, denoised.z0.clamp(-self.clip_range, self.clip_range), float(self.alphas_cumprod[t - 1]))

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(z0, self.patch)

    def _network(self, zt: torch.Tensor, t: int, labels: torch.Tensor | None) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out: torch.Tensor = self.unet(zt, self.timesteps(zt, t - 1), class_labels=labels).sample
        return out[:, : self.channels].float()


def _clip_range(config: Mapping[str, Any]) -> float | None:
    """Return the bound on x0 of the scheduler that the model was saved with; DDPM's and DDIM's clip by default."""
    clips = config.get("clip_sample", config.get("_class_name", "DDPMScheduler") in ("DDPMScheduler", "DDIMScheduler"))
    return float(config.get("clip_sample_range", 1.0)) if clips else None
