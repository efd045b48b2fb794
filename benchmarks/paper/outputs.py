"""Outputs of one model on some originals, and the metrics that compare them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from common import Arrays, LocalSampler, Pictures, Workspace, digest, to_floats

from anonymizer.backbones.protocol import Backbone
from anonymizer.boomerang import Boomerang
from metrics import features
from metrics.features import Embedder, embed_in_batches
from metrics.models.clip import ClipEmbedder, cosine_similarity
from metrics.models.lpips import OFFLINE_MODEL, PerceptualDistance

MEASURES = {"lpips": "LPIPS to the original", "clip": "CLIP similarity to the original", "pixels": "pixel distance"}


@dataclass(frozen=True)
class Task:
    """One set of originals and the model that samples them."""

    name: str
    backbone: Backbone
    originals: Pictures
    args: argparse.Namespace
    work: Workspace

    def sampling(self, sampler: str, steps: int | None, block: int = 250) -> LocalSampler:
        batch = min(block, self.args.batch)
        boomerang = Boomerang(self.backbone, sampler, steps)
        return LocalSampler(boomerang, self.work, True, self.args.dtype, self.args.seed, block, batch)


@dataclass(frozen=True)
class Metrics:
    """Scores of outputs; ``embedders`` give the features whose distributions are compared."""

    lpips: PerceptualDistance
    clip: ClipEmbedder
    embedders: Sequence[Embedder]

    @classmethod
    def load(cls, device: torch.device) -> Metrics:
        clip = ClipEmbedder.load("bundled:clip-mini", device)
        return cls(
            PerceptualDistance.load(OFFLINE_MODEL, device), clip, features.load_embedders(["clip", "imagenet"], device)
        )

    def scores(self, work: Workspace, originals: torch.Tensor, outputs: torch.Tensor) -> Arrays:
        """Return for each output (N,) LPIPS, CLIP similarity and root mean square difference, of 0 to 255."""
        names = [self.lpips.versioned_name, self.clip.versioned_name]
        key = {"outputs": digest(outputs), "originals": digest(originals), "by": names}

        def make() -> Arrays:
            a, b = to_floats(originals), to_floats(outputs)
            alike = cosine_similarity(self.clip.embed(a), self.clip.embed(b))
            return {
                "lpips": self.lpips(a, b).double().cpu().numpy(),
                "clip": alike.double().cpu().numpy(),
                "pixels": (a - b).double().square().mean((1, 2, 3)).sqrt().numpy() * 127.5,
            }

        return work.cached_arrays("scores", key, make)

    def features(self, work: Workspace, outputs: torch.Tensor) -> Arrays:
        """Return features (N, D) by their names."""
        key = {"outputs": digest(outputs), "by": [embedder.versioned_name for embedder in self.embedders]}
        return work.cached_arrays(
            "features",
            key,
            lambda: {embedder.name: embed_in_batches(embedder, to_floats(outputs)) for embedder in self.embedders},
        )
