"""Models that jobs share, loaded once for each process."""

from __future__ import annotations

from functools import lru_cache

from anonymizer.backbones import Backbone, load_backbone
from anonymizer.config import ModelConfig
from flows.jobs.redaction import in_fresh_thread


@lru_cache(maxsize=1)
def backbone_of(model: ModelConfig) -> Backbone:
    """Return the diffusion model that ``model`` describes."""
    return in_fresh_thread(lambda: load_backbone(model))
