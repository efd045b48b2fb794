"""Unconditional models of pixels in diffusers' format, patched ones included."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from anonymizer.errors import ModelError


class PixelBackbone:
    """A ``UNet2DModel`` with epsilon, sample or v prediction.

    A network with 3 p^2 input channels sees pictures through ``pixel_unshuffle(p)`` (Patched Diffusion, Luhman and
    Luhman 2022). Where the model's own scheduler clips its estimate of x0, so do we, and return the noise that agrees
    with the clipped estimate.
    """

    def __init__(
        self, unet: Any, scheduler: Any, *, name: str, digest: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.patch = math.isqrt(unet.config.in_channels // 3)
        _refuse_other_kinds(name, unet, scheduler, self.patch)
        self.unet = unet.to(device).eval().requires_grad_(False)
        self.name, self.digest, self.device, self.dtype = name, digest, device, dtype
        self.T = int(scheduler.config.num_train_timesteps)
        self.alphas_cumprod = scheduler.alphas_cumprod.double().cpu()
        self.prediction = scheduler.config.prediction_type
        self.clip = (
            float(scheduler.config.get("clip_sample_range", 1.0)) if scheduler.config.get("clip_sample") else None
        )
        self.channels = int(unet.config.in_channels)
        self.size = int(unet.config.sample_size) * self.patch

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(images.to(self.device, torch.float32), self.patch)  # (B, 3 p^2, H / p, W / p)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.unet(zt, t - 1).sample[:, : self.channels]  # a learned variance, where there is one, is not used
        abar = float(self.alphas_cumprod[t - 1])
        eps = self._noise(zt, out.float(), abar)
        if self.clip is None:
            return eps
        z0 = ((zt - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-self.clip, self.clip)
        return (zt - math.sqrt(abar) * z0) / math.sqrt(1 - abar)

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(z0, self.patch)

    def _noise(self, zt: torch.Tensor, out: torch.Tensor, abar: float) -> torch.Tensor:
        if self.prediction == "v_prediction":  # v = sqrt(abar) eps - sqrt(1 - abar) x0
            return math.sqrt(abar) * out + math.sqrt(1 - abar) * zt
        if self.prediction == "sample":
            return (zt - math.sqrt(abar) * out) / math.sqrt(1 - abar)
        return out


def _refuse_other_kinds(name: str, unet: Any, scheduler: Any, patch: int) -> None:
    config = unet.config
    if patch < 1 or config.in_channels != 3 * patch**2:
        raise ModelError(
            f"model.id {name!r}: {config.in_channels} input channels: an RGB pixel model has 3, 12, 27 or 48"
        )
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ModelError(f"model.id {name!r}: class-conditional: choose an unconditional pixel model")
    if not isinstance(config.sample_size, int):
        raise ModelError(f"model.id {name!r}: sample_size {config.sample_size!r}: only square models are supported")
    if scheduler.config.prediction_type not in ("epsilon", "sample", "v_prediction"):
        kind = scheduler.config.prediction_type
        raise ModelError(f"model.id {name!r}: prediction_type {kind!r}: epsilon, sample and v_prediction are supported")
    if scheduler.config.get("thresholding"):
        raise ModelError(
            f"model.id {name!r}: thresholding: dynamic thresholding is not supported: choose a model that is sampled "
            "without it"
        )
    abar = scheduler.alphas_cumprod
    if not ((abar > 0) & (abar < 1)).all():  # Boomerang divides by the square roots of both
        at = int(((abar > 0) & (abar < 1)).int().argmin()) + 1
        raise ModelError(
            f"model.id {name!r}: its schedule leaves no signal or no noise at step {at} (alphas_cumprod "
            f"{float(abar[at - 1]):g}): choose a model without a zero-terminal-SNR schedule (rescale_betas_zero_snr)"
        )
