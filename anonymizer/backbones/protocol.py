"""Protocol between Boomerang and a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

ConditionKind = Literal["nothing", "class", "prompt"]


@dataclass(frozen=True)
class Denoised:
    """Estimates of both parts of ``z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps``, of the shape of z_t, float32."""

    z0: torch.Tensor
    eps: torch.Tensor


class Backbone(Protocol):
    """A pretrained model, unchanged, with its training schedule.

    ``T``: number of steps. ``alphas_cumprod``: (T,) float64, so that ``z_t = sqrt(abar) z0 + sqrt(1 - abar) eps``; a
    model of another process (flow matching) converts to and from this scale. ``size``: side in pixels of the images
    that the model is made for. ``multiple``: sides of other images must be multiples of it. ``scale``: pixels of a side
    for each cell of z, which has ``channels``. ``digest``: SHA-256 (hex) of the weights. ``name``: as errors call it.
    ``condition_kind``: what it can be conditioned on for each record.
    """

    T: int
    alphas_cumprod: torch.Tensor
    size: int
    multiple: int
    scale: int
    channels: int
    digest: str
    name: str
    device: torch.device
    condition_kind: ConditionKind

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to z0 (B, channels, h, w), deterministically."""
        ...

    def condition(self, texts: Sequence[str]) -> object:
        """Return the condition of a batch, for ``predict``, from the class or the prompt of each row.

        RecordError: NO_CONDITION, for a class that the model does not know.
        """
        ...

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        """Return the estimates for ``zt`` at step t in 1..T, whatever the network was trained to predict.

        Without a condition: no class, or the prompt that the model was loaded with, without its placeholders.
        """
        ...

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        """Decode z0 to images (B, 3, H, W), nominally in [-1, 1]."""
        ...

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        """Return the verdict of the model's own safety checker on each image (B, 3, H, W); False without a checker."""
        ...
