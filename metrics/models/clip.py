"""CLIP embeddings of images, and their cosine similarity."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn import functional as F

from anonymizer.errors import ModelError
from metrics.models import weights

FIELD = "metrics.clip"
BUNDLED, LOCAL_FOLDER = "bundled:", "local-dir:"
CHUNK_PIXELS = 2**20  # at the model's input size, embedded at once; bounds memory


@dataclass(frozen=True)
class Preprocess:
    """The input of a model; ``squash`` ignores the aspect ratio, otherwise the centre is cropped."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    squash: bool = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read open_clip's ``preprocess_cfg``. Raises ModelError for unsupported settings."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size[-2:]
        mode, interpolation = config.get("resize_mode", "shortest"), config.get("interpolation", "bicubic")
        if height != width or mode not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
            resizing = f"{interpolation} {mode} to {height} x {width}"
            raise ModelError(f"{FIELD}: the model wants pictures resized by {resizing}: choose one with a square input")
        return cls(height, tuple(config["mean"]), tuple(config["std"]), interpolation, mode == "squash")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, 3, size, size) as open_clip does, without 8-bit rounding."""
        height, width = images.shape[-2:]
        x = (images.float().clamp(-1, 1) + 1) / 2
        new = (self.size, self.size) if self.squash else _resized_shape(height, width, self.size)
        if new != (height, width):
            x = F.interpolate(x, new, mode=self.interpolation, antialias=True, align_corners=False).clamp(0, 1)
        top, left = round((new[0] - self.size) / 2), round((new[1] - self.size) / 2)
        x = x[..., top : top + self.size, left : left + self.size]
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


class ClipEmbedder:
    """A CLIP image tower on one device; embeds images in bounded chunks, in float32."""

    def __init__(self, model: Any, preprocess: Preprocess, *, name: str, digest: str, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.preprocess, self.name, self.device = preprocess, name, device
        self.versioned_name = weights.versioned_name(name, digest)

    @classmethod
    def load(cls, spec: str, device: str | torch.device = "cpu", *, allow_pickle: bool = False) -> Self:
        """Load ``bundled:NAME``, ``local-dir:FOLDER``, or open_clip's ``MODEL/PRETRAINED`` (a tag or a file).

        Only safetensors are loaded unless ``allow_pickle``, and even then only plain tensors. Raises ModelError.
        """
        folder = model_folder(spec)
        model, config, path = _load_folder(folder, spec) if folder else _load_named(spec, allow_pickle)
        name = Path(spec).name if spec.startswith(LOCAL_FOLDER) else spec.removeprefix(BUNDLED)
        if Path(name.partition("/")[2]).suffix:  # a file: its digest names it, its path stays private
            name = name.partition("/")[0]
        digest = weights.digest(path)
        return cls(model, Preprocess.from_config(config), name=name, digest=digest, device=torch.device(device))

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, D), float32, unit norm, on the model's device, for (B, 3, H, W) in [-1, 1]. Raises ValueError."""
        check_images(images)
        chunk = max(1, CHUNK_PIXELS // self.preprocess.size**2)
        parts = [self.model.encode_image(self.preprocess(x.to(self.device))).float() for x in images.split(chunk)]
        return F.normalize(torch.cat(parts), dim=-1)


def cosine_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the similarity (B,) in [-1, 1] of two (B, D) of unit norm, row by row."""
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"embeddings must be two equal (B, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    return (a * b).sum(1).clamp(-1, 1)


def check_images(images: torch.Tensor) -> None:
    """Raise ValueError unless images are (B, 3, H, W) of floats with at least one row."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}: convert to RGB and stack")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [-1, 1], got {images.dtype}: divide bytes by 127.5 and subtract 1")


def _resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the shape whose shorter side is ``size``, the other truncated as torchvision's Resize does."""
    short, long = sorted((height, width))
    other = int(size * long / short)
    return (size, other) if height <= width else (other, size)


def model_folder(spec: str) -> Path | None:
    """Return the folder of a ``bundled:`` or ``local-dir:`` model, None for a named one. Raises ModelError."""
    if spec.startswith(LOCAL_FOLDER):
        return Path(spec.removeprefix(LOCAL_FOLDER)).expanduser()
    if not spec.startswith(BUNDLED):
        return None
    root = Path(str(files("anonymizer.bundled")))
    known = sorted(path.parent.name for path in root.glob("*/open_clip_config.json"))
    if (name := spec.removeprefix(BUNDLED)) not in known:
        raise ModelError(f"{FIELD}: unknown bundled model {spec!r}: known: {', '.join(BUNDLED + n for n in known)}")
    return root / name


def _load_folder(folder: Path, spec: str) -> tuple[Any, dict[str, Any], Path]:
    """Load open_clip's own folder format; returns model, preprocessing and the file of weights."""
    config, path = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    for file in (config, path):
        if not file.is_file():
            raise ModelError(f"{FIELD}: {spec!r} holds no {file.name}: give a folder in open_clip's format")
    try:
        preprocess = json.loads(config.read_text(encoding="utf-8"))["preprocess_cfg"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{FIELD}: {spec!r}: {config.name} holds no preprocess_cfg: save the model again") from None
    return _create_model(spec, model_name=f"{LOCAL_FOLDER}{folder}"), preprocess, path


def _load_named(spec: str, allow_pickle: bool) -> tuple[Any, dict[str, Any], Path]:
    """Load an architecture that open_clip knows, with weights of a known tag or from a file."""
    import open_clip

    architecture, _, pretrained = spec.partition("/")
    if architecture not in open_clip.list_models() or not pretrained:
        raise ModelError(
            f"{FIELD}: {spec!r}: write MODEL/PRETRAINED with a MODEL that open_clip knows, for example "
            "ViT-B-32/laion2b_s34b_b79k, or bundled:clip-mini, or none"
        )
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, pretrained) or {}
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
    hint = f"give the path of a file, or a tag of {architecture}: {tags or 'there are none'}"
    path = _fetch_tag(spec, architecture, tag, allow_pickle) if tag else weights.resolve_file(FIELD, pretrained, hint)
    if path.suffix != ".safetensors" and not allow_pickle:
        raise ModelError(f"{FIELD}: {path.name} is a pickle file: convert it to safetensors, or set allow_pickle")
    quick = {"force_quick_gelu": True} if tag.get("quick_gelu") else {}
    model = _create_model(spec, model_name=architecture, pretrained=str(path), weights_only=True, **quick)
    config = dict(model.visual.preprocess_cfg)
    return model, config | {k: v for k, v in tag.items() if k in ("mean", "std", "interpolation", "resize_mode")}, path


def _fetch_tag(spec: str, architecture: str, tag: dict[str, Any], allow_pickle: bool) -> Path:
    repo, _, name = str(tag.get("hf_hub") or "").rpartition("/")
    if not repo:
        raise ModelError(f"{FIELD}: {spec!r} comes as a pickle file only: convert it, then write {architecture}/FILE")
    names = [str(Path(name or "open_clip_model.bin").with_suffix(".safetensors"))]
    if allow_pickle:
        names.append(name or "open_clip_pytorch_model.bin")
    return weights.fetch_from_model_hub(FIELD, repo, names, f"{architecture}/PATH_OF_THE_FILE")


def _create_model(spec: str, **arguments: Any) -> Any:
    """Create open_clip's model with its weights. Raises ModelError in one line."""
    import open_clip

    with _silence_open_clip():
        try:
            return open_clip.create_model(**arguments, precision="fp32", require_pretrained=True)
        except Exception as error:  # open_clip raises many types for a wrong file
            reason = next(iter(str(error).splitlines()), "")[:160]
            raise ModelError(f"{FIELD}: {spec!r}: the weights do not fit the model ({reason}): check both") from None


@contextmanager
def _silence_open_clip() -> Iterator[None]:
    """Keep open_clip from adding a handler to the root logger and from warning about activations."""
    handler, root = logging.NullHandler(), logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            yield
    finally:
        root.removeHandler(handler)
