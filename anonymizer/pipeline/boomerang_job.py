"""What a release and an augmentation have in common: items are decoded for a model, and sampled by Boomerang."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import conditioning_text
from anonymizer.backbones.tiling import TiledBackbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig, SourceConfig
from anonymizer.data import image_codec
from anonymizer.noise import Noise
from anonymizer.pipeline.batch_sampling import SamplingJob
from anonymizer.pipeline.batching import I


class BoomerangJob(SamplingJob[I]):
    """Sample each item by Boomerang at its own level."""

    def __init__(
        self, source: SourceConfig, model: ModelConfig, backbone: Backbone, sampler: str, steps: int | None
    ) -> None:
        self.source, self.model = source, model
        self.backbone = TiledBackbone(backbone, model.tile_overlap) if self.is_tiled else backbone
        self.boomerang = Boomerang(self.backbone, sampler, steps)

    @property
    def is_tiled(self) -> bool:
        return self.source.fit == "tiles"

    def prefetch_depth(self, batch_size: int) -> int:
        """Return how many records are decoded before their turn: few where pictures may be large."""
        return 2 if self.is_tiled else 2 * batch_size

    def level_columns(self, level: float) -> dict[str, Any]:
        """Return what a level means for this model: its step, log-SNR and number of network calls."""
        t_boom = self.boomerang.t_boom(level)
        steps = len(self.boomerang.grid(t_boom)) - 1
        return {"level": level, "t_boom": t_boom, "log_snr": self.boomerang.log_snr(t_boom), "steps": steps}

    def decode_image(self, item: I, data: bytes) -> None:
        """Fill in an item's conditioning text and picture. Raises RecordError."""
        item.conditioning_text = conditioning_text(self.model, item.record, self.backbone)
        source, model = self.source, self.backbone
        item.picture = image_codec.decode(data, model.size, source.fit, source.limits, model.multiple)

    def noise_steps(self, level: float) -> Sequence[int]:
        return self.boomerang.draws(level)

    def sample(self, x0: torch.Tensor, level: float, noise: Noise, condition: object) -> torch.Tensor:
        return self.boomerang.sample(x0, level, noise, condition)
