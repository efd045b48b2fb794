"""Perceptual resolution enhancement (Luzi et al. 2024, section 6): upsample a picture, then Boomerang it, once or more.

What comes back looks sharper. The detail is the model's invention, and nobody is anonymised by it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
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
        """``low`` (B, 3, h, w) in [-1, 1] to (B, 3, factor h, factor w), on its device, float32.

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
        """The sides at which a picture of these is worked on: its own, or with the shorter at the model's size."""
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
    """A key for ``KeyedNoise``: one picture's encoded bytes and a seed give the same noise again. No secret."""
    return hashlib.sha256(b"%d\n" % seed + data).digest()[:16]


def cautions(levels: Sequence[float]) -> list[str]:
    """What whoever chose these levels should know."""
    least, most = PAPER_LEVELS
    return [
        f"levels: {level:g} is outside of {least:g} to {most:g}, where the method was tried for this: "
        + ("little is added below" if level < least else "above, the picture becomes another one")
        for level in levels
        if not least <= level <= most
    ]


def resample(pictures: torch.Tensor, sides: tuple[int, int], kind: Upsampling) -> torch.Tensor:
    """(B, 3, h, w) in [-1, 1] enlarged to ``sides`` (height, width), and clamped to [-1, 1]; pixels are areas.

    "bilinear" and "bicubic" are torch's (Keys' kernel with a = -3/4, edges continued); "lanczos" is ours, and Pillow's.
    """
    if kind == "lanczos":
        return lanczos(pictures, sides)
    return F.interpolate(pictures, sides, mode=kind, align_corners=False).clamp(-1, 1)


def lanczos(pictures: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """(B, 3, h, w) in [-1, 1] at any other ``sides`` (height, width), clamped to [-1, 1].

    Pillow's filter in floating point: Lanczos' kernel over three pixels, or over as many as become three where the
    picture is reduced; weights beyond an edge are dealt out to those within.
    """
    return _resample_axis(_resample_axis(pictures, sides[0], -2), sides[1], -1).clamp(-1, 1)


def _resample_axis(x: torch.Tensor, after: int, dim: int) -> torch.Tensor:
    before = x.shape[dim]
    if before == after:
        return x
    scale = before / after
    stretch = max(1.0, scale)
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * scale  # in pixels of x, the first of which is 0 to 1
    first = torch.floor(centres - 3 * stretch).long()
    taps = first[:, None] + torch.arange(math.ceil(6 * stretch) + 1)  # (after, taps)
    away = (taps + 0.5 - centres[:, None]) / stretch
    kernel = torch.sinc(away) * torch.sinc(away / 3)
    weights = torch.where((away.abs() < 3) & (taps >= 0) & (taps < before), kernel, 0)
    weights = (weights / weights.sum(1, keepdim=True)).to(x.device, x.dtype)
    taps = taps.clamp(0, before - 1).to(x.device)
    along = [1] * x.ndim
    along[dim] = after
    total = torch.zeros_like(x.index_select(dim, taps[:, 0]))
    for tap, weight in zip(taps.T, weights.T, strict=True):
        total += x.index_select(dim, tap) * weight.reshape(along)
    return total
