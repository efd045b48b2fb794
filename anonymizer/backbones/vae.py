"""Base of the models that work on latents: images to latents and back, deterministically, in the model's own scale."""

from __future__ import annotations

import torch

from anonymizer.backbones.base import BaseBackbone
from anonymizer.backbones.compilation import move_channels_last
from anonymizer.backbones.pipeline_folder import PipelineFolder, silence_libraries


class LatentBackbone(BaseBackbone):
    """A latent is the mode of an ``AutoencoderKL``, less its ``shift_factor``, times its ``scaling_factor``.

    The autoencoder stays in float32 where its configuration asks for it (``force_upcast``: SDXL; diffusers takes it
    where it is silent), else it is in the model's dtype. Images pass it one at a time, to save memory, and large ones
    in tiles where ``model.vae_tiling`` is set.
    """

    def __init__(self, folder: PipelineFolder, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderKL

        super().__init__(folder, device, dtype)
        vae = folder.load_network(AutoencoderKL, "vae", torch.float32)
        self.vae_dtype = torch.float32 if vae.config.get("force_upcast") else dtype
        with silence_libraries():  # it warns of modules to keep in float32, of which there are none
            self.vae = move_channels_last(vae.to(device, self.vae_dtype), device, self.vae_dtype)
        self.vae.enable_slicing()
        if self.config.vae_tiling:
            self.vae.enable_tiling()
        self.channels = int(vae.config.latent_channels)
        self.scale = int(2 ** (len(vae.config.block_out_channels) - 1))  # pixels of a side for each cell
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift_factor = float(vae.config.get("shift_factor") or 0.0)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, H, W) in [-1, 1] to (B, channels, H / scale, W / scale) float32."""
        mode: torch.Tensor = self.vae.encode(images.to(self.device, self.vae_dtype)).latent_dist.mode()
        return (mode.float() - self.shift_factor) * self.scaling_factor

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        """Decode (B, channels, h, w) to (B, 3, H, W) float32, nominally in [-1, 1]."""
        image: torch.Tensor = self.vae.decode((z0 / self.scaling_factor + self.shift_factor).to(self.vae_dtype)).sample
        return image.float()
