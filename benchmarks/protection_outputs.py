"""Outputs of groups for `benchmarks/protection.py`: one each, one a member, or several from one noised mean."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from anonymizer.boomerang import Boomerang
from anonymizer.noise import FORWARD, KeyedNoise
from metrics.stats.intervals import Floats, Numbers

BATCH = 24  # outputs drawn at once


@dataclass(frozen=True)
class Pair:
    """What is measured: originals behind each output, the level, and how many outputs a group has."""

    k: int
    level: float
    outputs: str

    @property
    def name(self) -> str:
        return f"{self.k} {self.level:g} {self.outputs}"


@dataclass(frozen=True)
class SharedForward:
    """Noise with which all outputs of a group begin at one noised mean: ``forward`` has one key for each group."""

    forward: KeyedNoise
    reverse: KeyedNoise

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        return (self.forward if step == FORWARD else self.reverse)(step, like)

    def sample(self, number: int) -> SharedForward:
        return SharedForward(self.forward.sample(number), self.reverse.sample(number))


@torch.inference_mode()
def encode_rows(boomerang: Boomerang, images: torch.Tensor) -> Floats:
    """Return images as they are noised: (B, D) float32."""
    return np.concatenate([boomerang.backbone.encode(x).flatten(1).float().numpy() for x in images.split(BATCH)])


@torch.inference_mode()
def draw_outputs(boomerang: Boomerang, originals: torch.Tensor, groups: Numbers, pair: Pair, seed: int) -> torch.Tensor:
    """Return (G, n, 3, S, S), uint8: n outputs of each of G groups."""
    n = 1 if pair.outputs == "one" else pair.k
    drawn = []
    for begin in range(0, len(groups), batch := max(1, BATCH // n)):
        part = groups[begin : begin + batch]
        z0 = boomerang.mean(originals[torch.from_numpy(part)])
        keys = [[f"{seed} {pair.name} {begin + i} {number}" for number in range(n)] for i in range(len(part))]
        own = KeyedNoise([digest(key) for row in keys for key in row])
        of_group = KeyedNoise([digest(row[0]) for row in keys for _ in row])
        noise = SharedForward(of_group if pair.outputs == "shared" else own, own)
        drawn.append(boomerang.sample_latent(z0.repeat_interleave(n, 0), pair.level, noise))
    outputs = torch.cat(drawn)
    if not outputs.isfinite().all():
        raise ValueError(f"{pair.name}: an output is not finite: choose another model, or more steps")
    return ((outputs + 1) * 127.5).round().byte().unflatten(0, (len(groups), n))


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
