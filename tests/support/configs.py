"""Helpers for tests of configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import build, read_tree
from anonymizer.errors import ConfigError

LEAST: dict[str, Any] = {"source": {"uri": "in"}, "output": {"uri": "out"}}

# Another value for each setting that changes pixels.
PIXELS = {
    "boomerang.level": 0.5, "boomerang.sampler": "ddim", "boomerang.steps": 7, "boomerang.k": 2,
    "model.dtype": "bfloat16",
    "source.fit": "pad", "model.size": 128, "model.variant": "fp16",
    "model.prompt": "a", "model.negative_prompt": "a", "model.guidance": 2.0,
    "model.vae_tiling": True, "model.tile_overlap": 0.5,
    "output.image": "jpeg", "output.quality": 50, "output.size": "original",
}  # fmt: skip


def config_error(tree: dict[str, Any], *overrides: str) -> str:
    """Return the one line of the ConfigError that these settings cause."""
    with pytest.raises(ConfigError) as caught:
        build(tree, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_error(path: Path) -> str:
    """Return the one line of the ConfigError that a file causes."""
    with pytest.raises(ConfigError) as caught:
        build(read_tree(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)
