"""What an attacker compares pictures by: each feature makes pictures rows of unit norm, whose cosine ranks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from anonymizer.errors import ModelError

FIELD = "audit.features"
BATCH = 64  # pictures embedded at once by ``embed_all``

Rows = npt.NDArray[np.float32]


class Embedder(Protocol):
    """``name`` is short (pixels, lpips, clip, imagenet, dlib, arcface); ``reported`` adds a digest of the weights.

    ``is_face``: made to tell people apart, and looks only at a face that it detects.
    """

    @property
    def name(self) -> str: ...
    @property
    def versioned_name(self) -> str: ...
    @property
    def is_face(self) -> bool: ...

    def embed(self, images: torch.Tensor) -> Rows:
        """(B, 3, H, W) in [-1, 1] to (B, D) float32 of unit norm; a row of NaN where a face is looked for in vain.

        A row depends on its own picture alone, up to rounding. Raises ValueError for another shape or for integers.
        """
        ...


def load_embedders(names: Sequence[str], device: str | torch.device = "cpu") -> list[Embedder]:
    """The embedders of these names, in order: pixels, lpips, clip, imagenet, dlib, arcface:FILE.onnx.

    ``lpips:MODEL`` and ``clip:MODEL`` take what ``metrics.lpips`` and ``metrics.clip`` take. Any number of face
    recognisers can be had together. Networks run on ``device``, face recognisers on the CPU. Raises ModelError.
    """
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ModelError(f"{FIELD}: {twice[0]!r} is named twice: name each feature once")
    return [_load(name, torch.device(device)) for name in names]


def embed_in_batches(embedder: Embedder, images: torch.Tensor, batch: int = BATCH) -> Rows:
    """(N, 3, H, W) in [-1, 1] to (N, D), ``batch`` pictures at a time: no more than these are in work at once."""
    return np.concatenate([embedder.embed(part) for part in images.split(batch)])


def _load(name: str, device: torch.device) -> Embedder:
    kind, _, model = name.partition(":")
    takes_model = {"lpips", "clip", "arcface"}
    if kind not in LOADERS or (":" in name and kind not in takes_model):
        known = ", ".join(f"{kind}:FILE.onnx" if kind == "arcface" else kind for kind in LOADERS)
        raise ModelError(f"{FIELD}: unknown feature {name!r}: known: {known}")
    return LOADERS[kind](model, device)


def _pixels(_: str, __: torch.device) -> Embedder:
    from metrics.features.image_features import Pixels

    return Pixels()


def _lpips(model: str, device: torch.device) -> Embedder:
    from metrics.features.image_features import Perceptual
    from metrics.models.lpips import OFFLINE_MODEL, PerceptualDistance

    return Perceptual(PerceptualDistance.load(model or OFFLINE_MODEL, device))


def _clip(model: str, device: torch.device) -> Embedder:
    from metrics.features.image_features import Clip
    from metrics.models.clip import ClipEmbedder

    return Clip(ClipEmbedder.load(model or "bundled:clip-mini", device))


def _imagenet(_: str, device: torch.device) -> Embedder:
    from metrics.features.image_features import ImageNet

    return ImageNet.load(device)


def _dlib(_: str, __: torch.device) -> Embedder:
    from metrics.features.dlib_faces import DlibFaces

    return DlibFaces.load()


def _arcface(model: str, __: torch.device) -> Embedder:
    from metrics.features.arcface import ArcFace

    return ArcFace.load(model)


LOADERS: Mapping[str, Callable[[str, torch.device], Embedder]] = {
    "pixels": _pixels,
    "lpips": _lpips,
    "clip": _clip,
    "imagenet": _imagenet,
    "dlib": _dlib,
    "arcface": _arcface,
}
