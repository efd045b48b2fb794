"""Perceptual resolution enhancement (Luzi et al. 2024, section 6): upsample a picture, then Boomerang it, once or more.

What comes back looks sharper. The detail is the model's invention, and nobody is anonymised by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from anonymizer.backbones.protocol import Backbone
from anonymizer.backbones.tiling import TiledBackbone
from anonymizer.boomerang import Boomerang
from anonymizer.noise import Noise

Upsampling = Literal["bilinear", "bicubic", "lanczos"]
UPSAMPLINGS: tuple[Upsampling, ...] = get_args(Upsampling)
PAPER_LEVELS = (0.2, 0.6)  # the levels at which the paper enhances: t_boom 50 to 150 of 250


class Enhancer:
    """Pictures ``factor`` times as large: upsampled, then one pass of Boomerang at each of ``levels``, in turn.

    The model works at the size of the result. Where that is more than the model's own size, it sees overlapping tiles
    at every step; where a side is less, the picture is worked on with its shorter side at the model's size, and reduced
    at the end. Sides that are no multiple of what the model needs are continued by their edge, which is cut off again.
    """

    def __init__(
        self,
        backbone: Backbone,
        factor: int = 4,
        levels: Sequence[float] = (0.4,),
        upsampling: Upsampling = "bicubic",
        sampler: str = "sde-dpm++",
        steps: int | None = 20,
        overlap: float = 0.25,
    ) -> None:
        if factor < 2:
            raise ValueError(f"factor must be 2 or more, got {factor}: it is how many times a side becomes longer")
        if not levels:
            raise ValueError("levels must not be empty: give one for each pass, as in (0.4,)")
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling: unknown {upsampling!r}: choose one of {', '.join(UPSAMPLINGS)}")
        self.backbone, self.factor, self.levels, self.upsampling = backbone, factor, tuple(levels), upsampling
        self.whole = Boomerang(backbone, sampler, steps)
        self.tiled = Boomerang(TiledBackbone(backbone, overlap), sampler, steps)
        self.t_boom = tuple(self.whole.t_boom(level) for level in self.levels)

    @property
    def steps(self) -> int:
        """Reverse steps of all passes together: calls of the network for each picture, or for each tile of it."""
        return sum(len(self.whole.grid(t_boom)) - 1 for t_boom in self.t_boom)

    @torch.inference_mode()
    def __call__(self, low: torch.Tensor, noise: Noise, condition: object = None) -> torch.Tensor:
        """Enlarge ``low`` (B, 3, h, w) in [-1, 1] to (B, 3, factor h, factor w), on its device, float32.

        Each pass draws another sample of ``noise``. NaN where the model returned no picture.
        """
        if low.ndim != 4 or low.shape[1] != 3:
            raise ValueError(f"pictures must be (B, 3, h, w), got {tuple(low.shape)}: add the dimension of the batch")
        height, width = (self.factor * side for side in low.shape[-2:])
        inner = self.working_sides(height, width)
        x = resample(low.to(self.backbone.device, torch.float32), inner, self.upsampling)
        x = self._passes(self._padded(x), noise, condition)[..., : inner[0], : inner[1]]
        return (x if inner == (height, width) else lanczos(x, (height, width))).to(low.device)

    def working_sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the sides at which a picture of these is worked on: its own, or the shorter at the model's size."""
        size = self.backbone.size
        scale = max(1.0, size / min(height, width))
        return max(size, round(height * scale)), max(size, round(width * scale))

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        down, right = (-side % self.backbone.multiple for side in x.shape[-2:])
        return F.pad(x, (0, right, 0, down), mode="replicate")

    def _passes(self, x: torch.Tensor, noise: Noise, condition: object) -> torch.Tensor:
        size = self.backbone.size
        boomerang = self.whole if x.shape[-2:] == (size, size) else self.tiled
        for number, level in enumerate(self.levels):
            x = boomerang.sample(x, level, noise.sample(number), condition)
        return x


def noise_key(seed: int, data: bytes) -> bytes:
    """Return a key for ``KeyedNoise`` from a seed and a picture's encoded bytes; it is no secret."""
    return hashlib.sha256(b"%d\n" % seed + data).digest()[:16]


def cautions(levels: Sequence[float]) -> list[str]:
    """Return what should be known of these levels before they are used."""
    least, most = PAPER_LEVELS
    return [
        f"levels: {level:g} is outside of {least:g} to {most:g}, where the method was tried for this: "
        + ("little is added below" if level < least else "above, the picture becomes another one")
        for level in levels
        if not least <= level <= most
    ]


def resample(pictures: torch.Tensor, sides: tuple[int, int], kind: Upsampling) -> torch.Tensor:
    """Enlarge (B, 3, h, w) in [-1, 1] to ``sides`` (height, width), clamped to [-1, 1]; pixels are areas.

    "bilinear" and "bicubic" are torch's (Keys' kernel with a = -3/4, edges continued), "lanczos" is Pillow's.
    """
    if kind == "lanczos":
        return lanczos(pictures, sides)
    return F.interpolate(pictures, sides, mode=kind, align_corners=False).clamp(-1, 1)


def lanczos(pictures: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """Resize (B, 3, h, w) in [-1, 1] to ``sides`` (height, width) by Pillow's filter in float32; clamped to [-1, 1]."""
    height, width = sides
    planes = pictures.float().cpu().flatten(0, 1).numpy()  # (3 B, h, w)
    images = (Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS) for plane in planes)
    resized = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return resized.reshape(*pictures.shape[:2], height, width).to(pictures).clamp(-1, 1)
