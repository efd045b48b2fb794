"""Mechanisms that an audit attacks: Boomerang, and the methods that it is compared with.

Attackers know the mechanism and run it too; only the custodian's noise is secret. So each is a function of images and
an ``rng``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from anonymizer.backbones.protocol import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.data.image_codec import Encoding, decode, encode
from anonymizer.noise import FORWARD, KeyedNoise

BATCH = 32
GENERATION_SAMPLER = ("sde-dpm++", 25)  # the sampler and its steps for new people


class Mechanism(Protocol):
    """``is_random``: outputs of one original differ, so that several of them tell more than one."""

    @property
    def name(self) -> str: ...
    @property
    def is_random(self) -> bool: ...

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return an output for each of (B, 3, S, S) in [-1, 1]; NaN where the model returned no image."""
        ...


@dataclass(frozen=True)
class LocalSampling:
    """Boomerang at a level, encoded and decoded; level 1 is global sampling, which keeps nothing of an original."""

    boomerang: Boomerang
    level: float
    image: Encoding = "png"
    quality: int = 95
    is_random = True

    @property
    def name(self) -> str:
        return f"level {self.level:g}"

    @property
    def abar(self) -> float:
        """The share of the original's power in the noised picture."""
        return float(self.boomerang.abar[self.boomerang.t_boom(self.level)])

    @property
    def is_deterministic(self) -> bool:
        """Whether no noise is drawn on the way back."""
        return self.boomerang.draws(self.level) == [FORWARD]

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        noise = KeyedNoise([rng.bytes(16) for _ in x0])  # fresh keys: only the custodian knows the release's
        outputs = self.boomerang.sample(x0.to(self.boomerang.backbone.device, torch.float32), self.level, noise)
        return reencode(outputs.cpu(), self.image, self.quality)


@dataclass(frozen=True)
class RoundTrip:
    """Encoded and decoded at the model's size, and nothing else: the limit of level 0."""

    name = "round trip"
    is_random = False

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        return reencode(x0)


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur; ``sigma`` in pixels."""

    sigma: float
    is_random = False

    @property
    def name(self) -> str:
        return f"blur, sigma {self.sigma:.3g}"

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        widest = 2 * min(x0.shape[-2:]) - 1  # the image is mirrored at its edges, once
        side = min(widest, 2 * math.ceil(3 * self.sigma) + 1)
        blurred: torch.Tensor = gaussian_blur(x0, [side, side], [self.sigma, self.sigma])
        return blurred


@dataclass(frozen=True)
class Pixelate:
    """The mean colour of each of ``cells`` x ``cells`` squares."""

    cells: int
    is_random = False

    @property
    def name(self) -> str:
        return f"pixelation, {self.cells} x {self.cells}"

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        return F.interpolate(F.adaptive_avg_pool2d(x0, self.cells), x0.shape[-2:], mode="nearest")


@dataclass(frozen=True)
class Unrelated:
    """An image of another person, drawn from ``pool`` (M, 3, S, S): it holds nothing of the original."""

    pool: torch.Tensor
    name = "unrelated pictures"
    is_random = True

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        drawn = rng.choice(len(self.pool), len(x0), replace=len(x0) > len(self.pool))
        return self.pool[torch.from_numpy(drawn)]


def reencode(images: torch.Tensor, image: Encoding = "png", quality: int = 95) -> torch.Tensor:
    """Return images (N, 3, S, S) as decoded from their files; one that is not finite stays as it is."""

    def round_trip(x: torch.Tensor) -> torch.Tensor:
        return decode(encode(x, encoding=image, quality=quality).data, x.shape[-1]).tensor if x.isfinite().all() else x

    return torch.stack([round_trip(x) for x in images])


def apply(
    mechanism: Mechanism,
    images: torch.Tensor,
    rng: np.random.Generator,
    *,
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Return an output for each of (N, 3, S, S), ``batch`` at a time; ``progress`` receives the size of each batch."""
    outputs = []
    for x0 in images.split(batch):
        outputs.append(mechanism(x0, rng).float())
        progress(len(x0))
    return torch.cat(outputs)


def generate_people(
    backbone: Backbone,
    count: int,
    rng: np.random.Generator,
    *,
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Generate ``count`` people who do not exist, (count, 3, S, S) float32 in [-1, 1]: samples at level 1."""
    boomerang = Boomerang(backbone, *GENERATION_SAMPLER)
    blank = torch.zeros(count, 3, backbone.size, backbone.size)  # of which level 1 keeps nothing
    return apply(LocalSampling(boomerang, 1.0), blank, rng, batch=batch, progress=progress)
