"""Fit images of any shape to the shape that a model works on, and undo it."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def content_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the image inside a square of ``size`` that it was padded to."""
    longest = max(width, height)
    inner_width, inner_height = (max(1, round(side * size / longest)) for side in (width, height))
    return (size - inner_width) // 2, (size - inner_height) // 2, inner_width, inner_height


def tiled_sides(sides: tuple[int, int], size: int, multiple: int) -> tuple[int, int]:
    """Return (width, height) of an image for tiling: its own, at least one tile, in multiples of ``multiple``."""
    scale = max(1.0, size / min(sides))
    width, height = (max(size, round(side * scale / multiple) * multiple) for side in sides)
    return width, height


def resize(images: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """Return images (B, 3, H, W) in [-1, 1] at other sides (height, width)."""
    return F.interpolate(images, sides, mode="bicubic", antialias=True).clamp(-1, 1)


def pad_to_square(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images (B, 3, H, W) fitted as by "pad": (B, 3, size, size), with the edges repeated."""
    height, width = images.shape[-2:]
    left, top, inner_width, inner_height = content_box(width, height, size)
    inner = resize(images, (inner_height, inner_width))
    sides = (left, size - inner_width - left, top, size - inner_height - top)
    return F.pad(inner, sides, mode="replicate")
