"""A model that sees a large image in overlapping tiles, at every step, so that no seams are left to hide.

Its estimates are averaged where tiles overlap (MultiDiffusion: Bar-Tal et al. 2023), under weights that fall towards a
tile's edge; the noise is that of the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from anonymizer.backbones.protocol import Backbone, Denoised


class TiledBackbone:
    """``backbone`` for images of any sides that are multiples of its ``multiple`` and no smaller than its ``size``.

    ``overlap``: the share of a tile's side that it has in common with its neighbour, at least.
    """

    def __init__(self, backbone: Backbone, overlap: float) -> None:
        self.backbone = backbone
        self.tile_size = backbone.size // backbone.scale  # cells of z
        self.overlap_cells = min(self.tile_size - 1, round(overlap * self.tile_size))
        ramp = torch.arange(1, self.tile_size + 1)
        edge = torch.minimum(ramp, ramp.flip(0)).clamp(max=self.overlap_cells + 1).to(backbone.device, torch.float32)
        self.weights = edge[:, None] * edge  # (side, side)

    def __getattr__(self, name: str) -> Any:
        if name == "backbone":  # not set yet, in a copy that is being made
            raise AttributeError(name)
        return getattr(self.backbone, name)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        z0, eps, total = torch.zeros_like(zt), torch.zeros_like(zt), torch.zeros_like(zt[:1, :1])
        for tile in self.tiles(*zt.shape[-2:]):
            denoised = self.backbone.predict(zt[tile].contiguous(), t, condition)
            z0[tile] += self.weights * denoised.z0
            eps[tile] += self.weights * denoised.eps
            total[tile] += self.weights
        return Denoised(z0 / total, eps / total)

    def tiles(self, height: int, width: int) -> Iterator[tuple[Any, ...]]:
        """Yield the index of each tile of z (..., height, width)."""
        for top, left in product(self.tile_starts(height), self.tile_starts(width)):
            yield (..., slice(top, top + self.tile_size), slice(left, left + self.tile_size))

    def tile_starts(self, length: int) -> list[int]:
        """Return where tiles begin on a side of ``length`` cells, evenly spread."""
        if length < self.tile_size:
            raise ValueError(f"sides must be {self.tile_size} cells or more, got {length}: enlarge the picture first")
        count = -(-(length - self.overlap_cells) // (self.tile_size - self.overlap_cells))
        return [round(i * (length - self.tile_size) / max(1, count - 1)) for i in range(count)]
