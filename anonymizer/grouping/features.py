"""What records are compared by when they are grouped: at most 64 numbers for each, float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from anonymizer.backbones import Backbone
from anonymizer.config import RunConfig

DIMENSIONS = 64
Features = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Embedder:
    """An image model that features come from: its name with a digest of its weights, (B, 3, H, W) -> (B, D)."""

    name: str
    embed: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FeatureExtractor:
    """Features of pictures (B, 3, S, S) in [-1, 1], on any device; ``name`` differs where the features would."""

    name: str
    extract: Callable[[torch.Tensor], torch.Tensor]

    @torch.inference_mode()
    def __call__(self, pictures: torch.Tensor) -> Features:
        """Return (B, D) with D <= ``DIMENSIONS``."""
        features: Features = self.extract(pictures).to("cpu", torch.float16).numpy()
        return features


def open_extractor(config: RunConfig, backbone: Backbone, clip: Embedder | None) -> FeatureExtractor:
    """Return the extractor that ``groups.features`` names; "clip" needs a model."""
    kind = config.groups.features
    if kind == "pixels":
        return FeatureExtractor(kind, average_cells)
    if kind == "latent":
        return FeatureExtractor(kind, lambda pictures: average_cells(backbone.encode(pictures.to(backbone.device))))
    assert clip is not None, "checked by the settings"
    return FeatureExtractor(f"{kind} {clip.name}", lambda pictures: project(clip.embed(pictures)))


def average_cells(maps: torch.Tensor) -> torch.Tensor:
    """Return the averages (B, D) of the cells of a grid over maps (B, C, H, W), with as many cells as D allows.

    Up to a factor this is a projection, so that pictures that are near in it have a mean that is near to each of them
    in coarse structure; finer grids do not give better groups.
    """
    cells = max(1, DIMENSIONS // maps.shape[1])
    rows = int(cells**0.5)
    averages: torch.Tensor = F.adaptive_avg_pool2d(maps.float(), (rows, cells // rows)).flatten(1)
    return averages[:, :DIMENSIONS]


def project(embeddings: torch.Tensor) -> torch.Tensor:
    """Return embeddings (B, D) in at most ``DIMENSIONS`` random directions, always the same ones."""
    size = embeddings.shape[1]
    if size <= DIMENSIONS:
        return embeddings
    directions = np.random.default_rng(0).standard_normal((size, DIMENSIONS), np.float32) / DIMENSIONS**0.5
    return embeddings.float() @ torch.from_numpy(directions).to(embeddings.device)
