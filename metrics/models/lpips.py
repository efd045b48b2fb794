"""Learned perceptual distance (LPIPS; Zhang et al. 2018), plain and shift-tolerant (Ghildyal and Liu 2022)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from anonymizer.errors import ModelError
from metrics.models import weights
from metrics.models.clip import check_images

FIELD = "metrics.lpips"
OFFLINE_MODEL = "st-alex"
CHUNK_PIXELS = 2**18  # of images in one pass; bounds memory
MAX_CANDIDATE_BYTES = 2**28  # of candidates' features held at once; further candidates come in another pass
# Inputs in [-1, 1] are brought to ImageNet's statistics, as since LPIPS 0.1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# The layers of torchvision's ``features`` before which a stage ends.
BACKBONES = {"alex": (2, 5, 8, 10, 12), "vgg": (4, 9, 16, 23, 30), "squeeze": (2, 5, 8, 10, 11, 12, 13)}
ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # torchvision's names


class BlurPool(nn.Module):
    """A [1 2 1] x [1 2 1] low-pass filter with stride 2 after reflecting two pixels on each side (Zhang 2019)."""

    filt: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


def shift_tolerant_alexnet() -> list[nn.Sequential]:
    """Return AlexNet's stages without aliasing: stride 1, blur-pooled after the first convolution and each pool."""
    return _split_stages(
        nn.Sequential(
            *[nn.Conv2d(3, 64, 11, padding=2), BlurPool(64), nn.ReLU()],
            *[nn.MaxPool2d(3, 1), BlurPool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
            *[nn.MaxPool2d(3, 1), BlurPool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            *[nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            *[nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        ),
        (3, 7, 11, 13, 15),
    )


def torchvision_stages(kind: str) -> list[nn.Sequential]:
    """Return the stages of a torchvision network, without values until weights are assigned."""
    from torchvision import models

    with torch.device("meta"):  # VGG's unused classifier would take half a gigabyte
        return _split_stages(models.get_model(ARCHITECTURES[kind], weights=None).features, BACKBONES[kind])


def _split_stages(layers: nn.Sequential, ends: Sequence[int]) -> list[nn.Sequential]:
    """Return stages that end before these layers; layers keep their numbers, and so their names in a state dict."""
    return [
        nn.Sequential(OrderedDict((str(i), layers[i]) for i in range(start, end)))
        for start, end in zip((0, *ends[:-1]), ends, strict=True)
    ]


class PerceptualDistance(nn.Module):
    """Stages of a network and a non-negative weight for each of their channels.

    The distance of two images is the weighted squared difference of their unit-norm features, averaged over positions
    and summed over stages: 0 for equal images, symmetric, without an upper bound.
    """

    def __init__(
        self, stages: Sequence[nn.Sequential], heads: Sequence[torch.Tensor], *, name: str, digest: str
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ParameterList([head.reshape(-1) for head in heads])  # (C,) each
        self.name, self.versioned_name = name, weights.versioned_name(name, digest)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, spec: str, device: str | torch.device = "cpu") -> Self:
        """Load ``st-alex`` (needs no network), ``alex``, ``vgg``, ``squeeze``, or one of these three with ``:FILE``.

        Files are read as plain tensors only. Raises ModelError.
        """
        kind, _, file = spec.partition(":")
        if spec == OFFLINE_MODEL:
            path = weights.find_in_package("stlpips-pytorch", "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth")
            stages = shift_tolerant_alexnet()
            heads = _fill_shift_tolerant(stages, path)
            return cls(stages, heads, name="st-lpips-alex", digest=weights.digest(path)).to(device)
        if kind not in BACKBONES:
            known = ", ".join([OFFLINE_MODEL, *BACKBONES])
            raise ModelError(f"{FIELD}: unknown model {spec!r}: known: {known}, alex:WEIGHTS_FILE, none")
        head = weights.find_in_package("lpips", f"lpips/weights/v0.1/{kind}.pth")
        path = weights.resolve_file(FIELD, file) if file else _backbone_file(kind)
        stages = torchvision_stages(kind)
        _fill_torchvision(stages, path, kind)
        heads = _head_weights(_read_state_dict(head))
        return cls(stages, heads, name=f"lpips-{kind}", digest=weights.digest(path, head)).to(device)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.heads[0].device
        return device

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return for images (B, 3, H, W) in [-1, 1] a (B, C, h, w) of unit norm along C of each stage; not chunked."""
        check_images(images)
        x = images.to(self.device, torch.float32).clamp(-1, 1)
        shift, scale = (torch.tensor(v, device=x.device)[:, None, None] for v in (SHIFT, SCALE))
        x, features = (x - shift) / scale, []
        try:
            for stage in self.stages:
                x = stage(x)
                features.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        except RuntimeError:
            if min(images.shape[-2:]) >= 64:
                raise
            raise ModelError(
                f"{FIELD}: {self.name} cannot look at {images.shape[-2]} x {images.shape[-1]} pictures: "
                "they are too small: set metrics.lpips to none"
            ) from None
        return features

    @torch.inference_mode()
    def compare_features(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return distances (B,) from two results of ``features``."""
        parts = zip(self.heads, a, b, strict=True)
        return torch.stack([(u - v).square().mean((2, 3)) @ head for head, u, v in parts]).sum(0)

    @torch.inference_mode()
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return distances (B,) of two (B, 3, H, W) in [-1, 1], row by row, float32. Memory does not grow with B."""
        check_images(a)
        if a.shape != b.shape:
            raise ValueError(f"pictures must have equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
        pairs = zip(a.split(self.chunk_size(a)), b.split(self.chunk_size(a)), strict=True)
        return torch.cat([self.compare_features(self.features(x), self.features(y)) for x, y in pairs])

    @torch.inference_mode()
    def pairwise(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the distances (N, M), float32, of every image of (N, 3, H, W) from every one of (M, 3, H, W).

        Takes N + M passes and a matrix product as long as features of all M fit ``MAX_CANDIDATE_BYTES``, and N more for
        each further part of M. Raises ValueError.
        """
        check_images(a)
        check_images(b)
        if a.shape[1:] != b.shape[1:]:
            raise ValueError(f"pictures must have equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
        step, parts = self.chunk_size(a), []
        for candidates in b.split(max(step, MAX_CANDIDATE_BYTES // self._embed_points(b[:1]).nbytes)):
            y = torch.cat([self._embed_points(x) for x in candidates.split(step)])  # (m, F)
            rows = [_squared_distances(self._embed_points(x), y) for x in a.split(step)]
            parts.append(torch.cat(rows))
        return torch.cat(parts, dim=1)

    def _embed_points(self, images: torch.Tensor) -> torch.Tensor:
        """Return points (B, F) whose squared Euclidean distance is the perceptual one."""
        stages = zip(self.features(images), self.heads, strict=True)
        return torch.cat([(f * (head / f[0, 0].numel()).sqrt()[:, None, None]).flatten(1) for f, head in stages], dim=1)

    def chunk_size(self, images: torch.Tensor) -> int:
        """Return how many images of this size go through in one pass."""
        return max(1, CHUNK_PIXELS // (images.shape[-2] * images.shape[-1]))


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return squared distances of (N, F) and (M, F): (N, M)."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def _read_state_dict(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is no checkpoint
        raise ModelError(f"{FIELD}: cannot read {path.name!r} ({type(error).__name__}): give a state dict") from None
    if not isinstance(state, dict):
        raise ModelError(f"{FIELD}: {path.name!r} holds no state dict: give the file that torchvision publishes")
    return state


def _head_weights(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the channel weights of each stage, from ``linN.model.1.weight`` (1, C, 1, 1); N is at most 7."""
    return [state[name] for name in sorted(state) if name.startswith("lin")]


def _fill_shift_tolerant(stages: Sequence[nn.Sequential], path: Path) -> list[torch.Tensor]:
    """Fill the stages, strictly, and return the heads. The file names a tensor ``net.slice2.5.weight``."""
    state = _read_state_dict(path)
    shift, scale = state.pop("scaling_layer.shift"), state.pop("scaling_layer.scale")
    assert torch.allclose(shift.flatten(), torch.tensor(SHIFT)) and torch.allclose(scale.flatten(), torch.tensor(SCALE))
    heads = _head_weights(state)
    for number, stage in enumerate(stages, 1):
        stage.load_state_dict({name: state.pop(f"net.slice{number}.{name}") for name in stage.state_dict()})
    assert all(name.startswith("lin") for name in state), "the file holds layers that this network does not have"
    return heads


def _backbone_file(kind: str) -> Path:
    from torchvision import models

    url = models.get_model_weights(ARCHITECTURES[kind]).IMAGENET1K_V1.url
    return weights.fetch_from_torch_hub(FIELD, url, f"{kind}:PATH_OF_THE_FILE")


def _fill_torchvision(stages: Sequence[nn.Sequential], path: Path, kind: str) -> None:
    """Fill the stages from torchvision's state dict, which names a tensor ``features.3.weight``."""
    state = _read_state_dict(path)
    try:
        for stage in stages:
            stage.load_state_dict({name: state[f"features.{name}"] for name in stage.state_dict()}, assign=True)
    except (KeyError, RuntimeError):
        raise ModelError(
            f"{FIELD}: {path.name!r} does not hold torchvision's {kind!r} weights: check the file"
        ) from None
