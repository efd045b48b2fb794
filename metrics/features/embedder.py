"""The protocol of features by which an attacker compares images: rows of unit norm, ranked by cosine."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

FIELD = "audit.features"
BATCH = 64  # images embedded at once by ``embed_in_batches``

Rows = npt.NDArray[np.float32]


class Embedder(Protocol):
    name: str  # short: pixels, lpips, clip, imagenet, dlib, arcface
    versioned_name: str  # with a digest of the weights
    is_face: bool  # recognises people, and looks only at a face that it detects

    def embed(self, images: torch.Tensor) -> Rows:
        """Return (B, D) float32 of unit norm for (B, 3, H, W) in [-1, 1]; a row of NaN where no face is detected.

        A row depends on its own image alone, up to rounding. Raises ValueError for another shape or for integers.
        """
        ...


def embed_in_batches(embedder: Embedder, images: torch.Tensor, batch: int = BATCH) -> Rows:
    """Return (N, D) for (N, 3, H, W) in [-1, 1], ``batch`` images at a time, which bounds memory."""
    return np.concatenate([embedder.embed(part) for part in images.split(batch)])
