"""Scores of outputs against their originals, which are embedded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from anonymizer.config import MetricsConfig
from anonymizer.records import Scores
from metrics.features import Rows
from metrics.models.clip import ClipEmbedder, check_images, cosine_similarity
from metrics.models.lpips import PerceptualDistance
from metrics.scores.identity import FaceRecogniser, identity_distance, load_recogniser, score_models

NONE = "none"
MAX_FEATURE_BYTES = 256 * 2**20  # of perceptual features of originals; larger ones are computed again


@dataclass(frozen=True)
class Reference:
    """Features of a batch of originals that scores need; tensors are on the model's device."""

    images: torch.Tensor  # (B, 3, H, W); rows that were not finite are grey
    finite: torch.Tensor  # bool (B,)
    clip: torch.Tensor | None  # (B, D), unit norm
    lpips: tuple[list[torch.Tensor], ...] | None  # features, chunk by chunk; None where too large
    faces: list[Rows] | None  # of each original, (F, D), unit norm


class ReleaseScorer:
    """CLIP similarity, perceptual distance, and distance and number of faces, each model optional.

    Implements ``anonymizer.pipeline.batch_sampling.Scorer``. One thread at a time, as face networks have state.
    ``names`` maps each metric column to the model that fills it, with a digest of its weights.
    """

    names: Mapping[str, str]

    def __init__(
        self,
        clip: ClipEmbedder | None,
        lpips: PerceptualDistance | None,
        identity: FaceRecogniser | None,
        device: torch.device,
    ) -> None:
        self.clip, self.lpips, self.identity, self.device = clip, lpips, identity, device
        models = {"clip_similarity": clip, "lpips": lpips}
        self.names = {column: model.versioned_name for column, model in models.items() if model is not None}
        self.names |= score_models(identity) if identity else {}

    @torch.inference_mode()
    def embed(self, originals: torch.Tensor) -> Reference:
        """Embed originals (B, 3, H, W) in [-1, 1], on any device. Raises ValueError for another shape."""
        images, finite = self._prepare(originals)
        clip = self.clip.embed(images) if self.clip else None
        faces = self.identity.embed_faces(images.cpu()) if self.identity else None
        return Reference(images, finite, clip, self._features(images), faces)

    @torch.inference_mode()
    def score(self, reference: Reference, outputs: torch.Tensor) -> list[Scores]:
        """Return one row for each output: None for a metric that is off, NaN where an image is not finite.

        ``identity_distance`` is NaN, too, where the original or the output shows no face. ``faces`` is 0 where the
        output shows none or is not finite.
        """
        if outputs.shape != reference.images.shape:
            shapes = f"{tuple(outputs.shape)} and {tuple(reference.images.shape)}"
            raise ValueError(f"outputs and originals must have equal shapes, got {shapes}: score what was embedded")
        images, finite = self._prepare(outputs)
        valid = finite & reference.finite
        columns: dict[str, list[Any]] = {}
        if self.clip and reference.clip is not None:
            columns["clip_similarity"] = _column(cosine_similarity(reference.clip, self.clip.embed(images)), valid)
        if self.lpips:
            columns["lpips"] = _column(self._distance(reference, images), valid)
        if self.identity and reference.faces is not None:
            faces = self.identity.embed_faces(images.cpu())
            distances = torch.tensor([identity_distance(a, b) for a, b in zip(reference.faces, faces, strict=True)])
            columns |= {"identity_distance": _column(distances, valid.cpu()), "faces": [len(rows) for rows in faces]}
        return [Scores(**{name: values[i] for name, values in columns.items()}) for i in range(len(images))]

    @torch.inference_mode()
    def score_pairwise(self, originals: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return by name the scores (N, M) of N outputs against M originals that a release may publish.

        These are CLIP similarity and LPIPS; scores of faces serve the gate and are never published. NaN where an image
        is not finite. Raises ValueError for images that cannot be compared.
        """
        (a, fine_a), (b, fine_b) = self._prepare(outputs), self._prepare(originals)
        scores: dict[str, torch.Tensor] = {}
        if self.clip:
            scores["clip_similarity"] = (self.clip.embed(a) @ self.clip.embed(b).T).clamp(-1, 1)
        if self.lpips:
            scores["lpips"] = self.lpips.pairwise(a, b)
        return {name: values.where(fine_a[:, None] & fine_b, float("nan")) for name, values in scores.items()}

    def _prepare(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images on the device, in [-1, 1] as an encoder would save them, and which rows are finite."""
        check_images(images)
        images = images.to(self.device, torch.float32)
        finite = images.isfinite().flatten(1).all(1)
        return images.where(finite[:, None, None, None], 0.0).clamp(-1, 1), finite

    def _features(self, images: torch.Tensor) -> tuple[list[torch.Tensor], ...] | None:
        if self.lpips is None:
            return None
        parts = images.split(self.lpips.chunk_size(images))
        first = self.lpips.features(parts[0])
        if sum(f.nbytes for f in first) * len(parts) > MAX_FEATURE_BYTES:
            return None
        return (first, *(self.lpips.features(part) for part in parts[1:]))

    def _distance(self, reference: Reference, images: torch.Tensor) -> torch.Tensor:
        assert self.lpips is not None
        if reference.lpips is None:
            distances: torch.Tensor = self.lpips(reference.images, images)
            return distances
        parts = zip(reference.lpips, images.split(self.lpips.chunk_size(images)), strict=True)
        return torch.cat([self.lpips.compare_features(features, self.lpips.features(part)) for features, part in parts])


def build_scorer(config: MetricsConfig, device: str | torch.device, *, allow_pickle: bool = False) -> ReleaseScorer:
    """Load the models that ``config`` names. Raises ModelError in one line."""
    device = torch.device(device)
    clip = None if config.clip == NONE else ClipEmbedder.load(config.clip, device, allow_pickle=allow_pickle)
    lpips = None if config.lpips == NONE else PerceptualDistance.load(config.lpips, device)
    identity = None if config.identity == NONE else load_recogniser(config.identity)
    return ReleaseScorer(clip, lpips, identity, device)


def _column(values: torch.Tensor, valid: torch.Tensor) -> list[float]:
    return values.where(valid, float("nan")).tolist()  # type: ignore[no-any-return]
