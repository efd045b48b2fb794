"""Smooth coloured pictures made of noise, and ways to spoil them."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def pictures(count: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) in [-1, 1]: random colours at several scales."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, 3, size, size)
    for cells, strength in ((3, 0.5), (8, 0.3), (24, 0.15)):
        field = torch.randn(count, 3, cells, cells, generator=gen)
        x += strength * F.interpolate(field, (size, size), mode="bicubic", align_corners=False)
    return x.clamp(-1, 1)


def blurred(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Shrunk by ``factor`` and enlarged again."""
    small = F.interpolate(x, scale_factor=1 / factor, mode="area")
    return F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False).clamp(-1, 1)


def noisy(x: torch.Tensor, strength: float) -> torch.Tensor:
    gen = torch.Generator().manual_seed(1)
    return (x + strength * torch.randn(x.shape, generator=gen)).clamp(-1, 1)
