"""Features by which records are grouped: coarse averages of pictures or latents, and a CLIP model's embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anonymizer.config import RunConfig
from anonymizer.grouping.features import Embedder, average_cells, open_extractor, project
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import settings


def config(features: str) -> RunConfig:
    return settings("in", "out", "boomerang.k=3", f"groups.features={features}")


@pytest.mark.parametrize(("channels", "cells"), [(3, (4, 5)), (4, (4, 4)), (16, (2, 2)), (100, (1, 1))])
def test_averages_are_those_of_each_cell(channels: int, cells: tuple[int, int]) -> None:
    maps = torch.randn(2, channels, 20, 20)
    rows, columns = cells
    expected = maps.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).mean((3, 5)).flatten(1)
    assert torch.allclose(average_cells(maps), expected[:, :64], atol=1e-6)


def test_the_feature_of_a_mean_is_the_mean_of_the_features() -> None:
    pictures = torch.randn(5, 3, 16, 16)
    mean = average_cells(pictures.mean(0, keepdim=True))
    assert torch.allclose(mean, average_cells(pictures).mean(0, keepdim=True), atol=1e-6)


def test_projected_distances_are_about_those_of_the_embeddings() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(40, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    projected = project(embeddings)
    assert projected.shape == (40, 64)
    ratio = torch.pdist(projected) / torch.pdist(embeddings)
    assert 0.6 < float(ratio.min()) < float(ratio.max()) < 1.4
    assert project(embeddings[:, :10]) is not None
    assert torch.equal(project(embeddings[:, :10]), embeddings[:, :10])


def test_each_setting_takes_its_own_features() -> None:
    pictures, ideal = torch.rand(2, 3, 8, 8) * 2 - 1, IdealGaussian()
    clip = Embedder("a-model", lambda images: images.mean((2, 3)))
    pixels = open_extractor(config("pixels"), ideal, None)(pictures)
    assert (pixels.dtype, pixels.shape) == (np.float16, (2, 60))
    assert open_extractor(config("latent"), ideal, None)(pictures).shape[1] <= 64
    by_clip = open_extractor(config("clip"), ideal, clip)
    assert np.allclose(by_clip(pictures), pictures.mean((2, 3)).numpy(), atol=2e-3)
    assert len({open_extractor(config(name), ideal, clip).name for name in ("pixels", "latent", "clip")}) == 3
    other = open_extractor(config("clip"), ideal, Embedder("another", clip.embed))
    assert other.name != by_clip.name
