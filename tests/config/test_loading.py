"""Configurations are read from an object store."""

from __future__ import annotations

import pytest

from anonymizer.config import build, dump, read_tree
from anonymizer.errors import ConfigError
from anonymizer.storage.path import StoragePath
from tests.support.object_store import (
    BUCKET,
)
from tests.support.releases import (
    settings,
)


def test_a_configuration_is_read_from_a_store(bucket: str) -> None:
    config = settings(f"{bucket}/in", f"{bucket}/out")
    (StoragePath.from_uri(bucket) / "release.yaml").write_uncommitted(dump(config).encode())
    assert build(read_tree(f"{bucket}/release.yaml")) == config
    with pytest.raises(ConfigError, match="no file"):
        build(read_tree(f"{bucket}/none.yaml"))
    with pytest.raises(ConfigError, match="holds a password") as error:
        build(read_tree(f"s3://someone:secret@{BUCKET}/release.yaml"))
    assert "secret" not in str(error.value)
