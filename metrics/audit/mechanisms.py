"""What is done to originals before they are handed out: Boomerang, and what it is set beside.

Attackers know the method and run it too; only the custodian's noise is secret. So each is a function of pictures and an
``rng``.
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
from anonymizer.noise import KeyedNoise

BATCH = 32
GENERATION_SAMPLER = ("sde-dpm++", 25)  # the sampler and its steps that invent people at level 1


class Mechanism(Protocol):
    """``is_random``: the outputs of one original differ, so that several of them tell more than one."""

    @property
    def name(self) -> str: ...
    @property
    def is_random(self) -> bool: ...

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """One output for each row of (B, 3, S, S) in [-1, 1]; NaN where the model returned no picture."""
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

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        noise = KeyedNoise([rng.bytes(16) for _ in x0])  # fresh keys: nobody else knows the custodian's
        made = self.boomerang.sample(x0.to(self.boomerang.backbone.device, torch.float32), self.level, noise)
        return reencode(made.cpu(), self.image, self.quality)


@dataclass(frozen=True)
class RoundTrip:
    """Encoded and decoded at the model's size, and nothing else: what level 0 would be."""

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
        widest = 2 * min(x0.shape[-2:]) - 1  # the picture is mirrored at its edges, once
        side = min(widest, 2 * math.ceil(3 * self.sigma) + 1)
        found: torch.Tensor = gaussian_blur(x0, [side, side], [self.sigma, self.sigma])
        return found


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
    """Somebody else's picture, drawn by chance from ``pool`` (M, 3, S, S): nothing of an original is in it."""

    pool: torch.Tensor
    name = "unrelated pictures"
    is_random = True

    def __call__(self, x0: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        drawn = rng.choice(len(self.pool), len(x0), replace=len(x0) > len(self.pool))
        return self.pool[torch.from_numpy(drawn)]


def reencode(pictures: torch.Tensor, image: Encoding = "png", quality: int = 95) -> torch.Tensor:
    """Pictures (N, 3, S, S) as they come back from a file; one that is not finite fits into none, and stays so."""

    def through(x: torch.Tensor) -> torch.Tensor:
        return decode(encode(x, encoding=image, quality=quality).data, x.shape[-1]).tensor if x.isfinite().all() else x

    return torch.stack([through(x) for x in pictures])


def apply(
    mechanism: Mechanism,
    pictures: torch.Tensor,
    rng: np.random.Generator,
    *,
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """One output for each of (N, 3, S, S), ``batch`` at a time; ``progress`` hears how many more are done."""
    parts = []
    for x0 in pictures.split(batch):
        parts.append(mechanism(x0, rng).float())
        progress(len(x0))
    return torch.cat(parts)


def generate_people(
    backbone: Backbone,
    count: int,
    rng: np.random.Generator,
    *,
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """``count`` people who do not exist, (count, 3, S, S) float32 in [-1, 1]: samples of the model at level 1."""
    sampler, steps = GENERATION_SAMPLER
    blank = torch.zeros(count, 3, backbone.size, backbone.size)  # nothing is left of it
    return apply(LocalSampling(Boomerang(backbone, sampler, steps), 1.0), blank, rng, batch=batch, progress=progress)
