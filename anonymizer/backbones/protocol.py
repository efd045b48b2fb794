"""What Boomerang asks of a diffusion model."""

from __future__ import annotations

from typing import Protocol

import torch


class Backbone(Protocol):
    """A pretrained model, unchanged, with its training schedule.

    ``T`` steps; ``alphas_cumprod`` (T,) float64, so that ``z_t = sqrt(abar) z0 + sqrt(1 - abar) eps``; ``size`` in
    pixels (square pictures in and out); ``channels`` of z; ``digest`` names the weights (SHA-256, hex); ``name`` is
    what a manifest prints.
    """

    T: int
    alphas_cumprod: torch.Tensor
    size: int
    channels: int
    digest: str
    name: str
    device: torch.device

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, size, size) in [-1, 1] -> z0 (B, channels, h, w), deterministically."""
        ...

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> torch.Tensor:
        """The noise in ``zt`` at step t in 1..T, of the same shape, float32, whatever the model was trained to say."""
        ...

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        """z0 -> pictures (B, 3, size, size), nominally in [-1, 1]."""
        ...
