"""Keyed noise: (key of a record, attempt, sample, step) -> N(0, I), whatever the batch, order, shard or device.

The generator is Philox 4x64 (Salmon et al., 2011; numpy's implementation): counter-based, under a 128-bit key. The
256-bit counter holds attempt, sample and step in its upper three words, so streams never overlap. Numbers are drawn on
the CPU in float32 and moved, so that every device sees the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

FORWARD = 0  # the step that noises x0; the reverse step from t uses step t >= 1


class Noise(Protocol):
    """Source of the noise of one batch."""

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        """Return N(0, I) for one step, of the shape, device and dtype of ``like`` (B, ...)."""
        ...

    def sample(self, number: int) -> Noise:
        """Return the same rows' noise for another local sample."""
        ...


@dataclass(frozen=True)
class KeyedNoise:
    """Noise of a batch: row i depends only on ``keys[i]`` (16 bytes), ``attempt``, ``number`` and the step."""

    keys: Sequence[bytes]
    attempt: int = 0
    number: int = 0

    def __post_init__(self) -> None:
        if any(len(key) != 16 for key in self.keys):
            raise ValueError("keys: each must be 16 bytes, which nobody else knows: secrets.token_bytes(16)")

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        return self.drawn(step, tuple(like.shape)).to(device=like.device, dtype=like.dtype)

    def drawn(self, step: int, shape: tuple[int, ...], *, pinned: bool = False) -> torch.Tensor:
        """Return the numbers on the CPU, in float32; ``pinned``: in memory that a GPU can read itself. Thread-safe."""
        if shape[0] != len(self.keys):
            raise ValueError(f"keys: {len(self.keys)} for a batch of {shape[0]}: give one key for each row")
        numbers = torch.empty(shape, pin_memory=pinned)
        for row, key in zip(numbers.numpy(), self.keys, strict=True):
            counter = np.array([0, step, self.number, self.attempt], dtype=np.uint64)
            bits = np.random.Philox(key=int.from_bytes(key, "little"), counter=counter)
            np.random.Generator(bits).standard_normal(dtype=np.float32, out=row)
        return numbers

    def sample(self, number: int) -> KeyedNoise:
        return replace(self, number=number)
