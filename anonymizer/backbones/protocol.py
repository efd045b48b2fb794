"""What Boomerang asks of a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

ConditionKind = Literal["nothing", "class", "prompt"]


@dataclass(frozen=True)
class Denoised:
    """What a model takes z_t for: ``z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps``; of the shape of z_t, float32."""

    z0: torch.Tensor
    eps: torch.Tensor


class Backbone(Protocol):
    """A pretrained model, unchanged, with its training schedule.

    ``T`` steps; ``alphas_cumprod`` (T,) float64, so that ``z_t = sqrt(abar) z0 + sqrt(1 - abar) eps``: a model of
    another process (flow matching) is asked in its own scale, and answers in this one. ``size``: side in pixels of the
    pictures that it is meant for; ``multiple``: sides of other pictures must be multiples of it; ``scale``: pixels
    of a side for each cell of z, which has ``channels``; ``digest`` names the weights (SHA-256, hex); ``name`` is
    what an error calls it; ``asks``: what it can be told of a record.
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
        """Pictures (B, 3, H, W) in [-1, 1] -> z0 (B, channels, h, w), deterministically."""
        ...

    def condition(self, texts: Sequence[str]) -> object:
        """What ``predict`` takes for a batch: the class or the prompt of each row. RecordError: NO_CONDITION, for one
        that the model does not know."""
        ...

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        """What ``zt`` at step t in 1..T is taken for, whatever the model was trained to say.

        Without a condition: no class, or the prompt that the model was loaded with, less what of a record stands in it.
        """
        ...

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        """z0 -> pictures (B, 3, H, W), nominally in [-1, 1]."""
        ...

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        """Which pictures (B, 3, H, W) the model's own safety checker objects to; none where it has no checker."""
        ...
