"""Pictures to latents and back, deterministically, in the scale that a diffusion model of latents works in."""

from __future__ import annotations

from typing import Any

import torch

from anonymizer.backbones.compilation import move_channels_last
from anonymizer.backbones.pipeline_folder import silence_libraries


class Autoencoder:
    """An ``AutoencoderKL``: the mode of what it takes a picture for, less ``shift_factor``, times ``scaling_factor``.

    Where its configuration asks for it (``force_upcast``: SDXL; diffusers takes it where it is silent), it stays in
    float32 whatever the model's dtype. Pictures go through one at a time, to save memory; large ones in tiles, if that
    is asked for.
    """

    def __init__(self, vae: Any, device: torch.device, dtype: torch.dtype, tiling: bool) -> None:
        self.dtype = torch.float32 if vae.config.get("force_upcast") else dtype
        with silence_libraries():  # it warns of modules that it would rather keep in float32, of which there are none
            self.vae = move_channels_last(vae.to(device, self.dtype), device, self.dtype)
        self.vae.enable_slicing()
        if tiling:
            self.vae.enable_tiling()
        self.device = device
        self.channels = int(vae.config.latent_channels)
        self.downsampling = int(2 ** (len(vae.config.block_out_channels) - 1))  # of a side for each cell
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift_factor = float(vae.config.get("shift_factor") or 0.0)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, channels, H / pixels, W / pixels) float32."""
        found: torch.Tensor = self.vae.encode(images.to(self.device, self.dtype)).latent_dist.mode()
        return (found.float() - self.shift_factor) * self.scaling_factor

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        """(B, channels, h, w) -> (B, 3, H, W) float32, nominally in [-1, 1]."""
        found: torch.Tensor = self.vae.decode((z0 / self.scaling_factor + self.shift_factor).to(self.dtype)).sample
        return found.float()
