"""A model that sees a large picture in overlapping tiles, at every step: so there are no seams to hide afterwards.

What it takes each tile for is averaged where tiles overlap (MultiDiffusion: Bar-Tal et al. 2023), under weights that
fall towards a tile's edge; the noise is that of the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from anonymizer.backbones.protocol import Backbone, Denoised


class Tiled:
    """``backbone`` for pictures of any sides that are multiples of its ``multiple`` and no smaller than its ``size``.

    ``overlap``: the share of a tile's side that it has in common with its neighbour, at least.
    """

    def __init__(self, backbone: Backbone, overlap: float) -> None:
        self.backbone = backbone
        self.side = backbone.size // backbone.scale  # of a tile, in cells of z
        self.shared = min(self.side - 1, round(overlap * self.side))
        ramp = torch.arange(1, self.side + 1)
        edge = torch.minimum(ramp, ramp.flip(0)).clamp(max=self.shared + 1).to(backbone.device, torch.float32)
        self.weights = edge[:, None] * edge  # (side, side)

    def __getattr__(self, name: str) -> Any:
        if name == "backbone":  # not set yet, in a copy that is being made
            raise AttributeError(name)
        return getattr(self.backbone, name)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        z0, eps, total = torch.zeros_like(zt), torch.zeros_like(zt), torch.zeros_like(zt[:1, :1])
        for tile in self.tiles(*zt.shape[-2:]):
            found = self.backbone.predict(zt[tile].contiguous(), t, condition)
            z0[tile] += self.weights * found.z0
            eps[tile] += self.weights * found.eps
            total[tile] += self.weights
        return Denoised(z0 / total, eps / total)

    def tiles(self, height: int, width: int) -> Iterator[tuple[Any, ...]]:
        for top in self.starts(height):
            for left in self.starts(width):
                yield (..., slice(top, top + self.side), slice(left, left + self.side))

    def starts(self, length: int) -> list[int]:
        """Where tiles begin on a side of so many cells, evenly spread."""
        if length < self.side:
            raise ValueError(f"sides must be {self.side} cells or more, got {length}: enlarge the picture first")
        count = -(-(length - self.shared) // (self.side - self.shared))
        return [round(i * (length - self.side) / max(1, count - 1)) for i in range(count)]
