"""A model in closed form, so that tests need no trained one, and the overlap that a GPU gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from anonymizer.backbones import Denoised
from anonymizer.backbones.prediction_type import from_noise
from anonymizer.pipeline.device_overlap import Concurrent


class IdealGaussian:
    """The exact noise predictor for pixels that are independent N(mean, spread^2).

    With z_t = sqrt(abar) z0 + sqrt(1 - abar) eps, E[eps | z_t] = sqrt(1 - abar) (z_t - sqrt(abar) mean) / var_t, where
    var_t = abar spread^2 + 1 - abar.
    """

    def __init__(self, mean: float = 0.1, spread: float = 0.25, T: int = 1000, size: int = 8) -> None:
        self.mean, self.spread, self.T, self.size, self.channels = mean, spread, T, size, 3
        betas = torch.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T, dtype=torch.float64).clamp(max=0.999)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.device, self.name = torch.device("cpu"), "ideal"
        self.multiple, self.scale, self.condition_kind = 1, 1, "nothing"
        self.digest = hashlib.sha256(b"ideal").hexdigest()
        self.calls: list[int] = []

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return z0

    def condition(self, texts: Sequence[str]) -> object:
        raise AssertionError("it knows neither prompts nor classes")

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [False] * len(images)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        self.calls.append(t)
        abar = float(self.alphas_cumprod[t - 1])
        eps = (1 - abar) ** 0.5 * (zt - abar**0.5 * self.mean) / (abar * self.spread**2 + 1 - abar)
        return from_noise(zt, eps, abar)


@contextmanager
def open_concurrent(device: torch.device, threads: int) -> Iterator[Concurrent]:
    """What a GPU gets."""
    with ThreadPoolExecutor(1, "scorer") as scoring, ThreadPoolExecutor(threads, "noise") as drawing:
        yield Concurrent(device, scoring, drawing, threads)
