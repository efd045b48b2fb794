"""Helpers for tests of configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import build, read_tree
from anonymizer.errors import ConfigError

LEAST: dict[str, Any] = {"source": {"uri": "in"}, "output": {"uri": "out"}}


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
