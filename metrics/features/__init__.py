"""Features by which an attacker compares images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from anonymizer.errors import ModelError
from metrics.features.arcface import ArcFace
from metrics.features.dlib_faces import DlibFaces
from metrics.features.embedder import FIELD, Embedder, Rows, embed_in_batches
from metrics.features.image_features import Clip, ImageNet, Perceptual, Pixels
from metrics.models.clip import ClipEmbedder
from metrics.models.lpips import OFFLINE_MODEL, PerceptualDistance

__all__ = ["Embedder", "Rows", "embed_in_batches", "load_embedders"]

LOADERS: Mapping[str, Callable[[str, torch.device], Embedder]] = {  # of a model's name and a device
    "pixels": lambda model, device: Pixels(),
    "lpips": lambda model, device: Perceptual(PerceptualDistance.load(model or OFFLINE_MODEL, device)),
    "clip": lambda model, device: Clip(ClipEmbedder.load(model or "bundled:clip-mini", device)),
    "imagenet": lambda model, device: ImageNet.load(device),
    "dlib": lambda model, device: DlibFaces.load(),
    "arcface": lambda model, device: ArcFace.load(model),
}


def load_embedders(names: Sequence[str], device: str | torch.device = "cpu") -> list[Embedder]:
    """Load embedders by name, in order: pixels, lpips, clip, imagenet, dlib, arcface:FILE.onnx.

    ``lpips:MODEL`` and ``clip:MODEL`` take the models of ``metrics.models``. Face recognisers can be combined. Networks
    run on ``device``, face recognisers on the CPU. Raises ModelError.
    """
    repeated = [name for number, name in enumerate(names) if name in names[:number]]
    if repeated:
        raise ModelError(f"{FIELD}: {repeated[0]!r} is named twice: name each feature once")
    embedders = []
    for name in names:
        kind, _, model = name.partition(":")
        if kind not in LOADERS or (":" in name and kind not in {"lpips", "clip", "arcface"}):
            known = ", ".join(f"{kind}:FILE.onnx" if kind == "arcface" else kind for kind in LOADERS)
            raise ModelError(f"{FIELD}: unknown feature {name!r}: known: {known}")
        embedders.append(LOADERS[kind](model, torch.device(device)))
    return embedders
