"""Settings of the model: hub ids."""

from __future__ import annotations

from anonymizer.config import ModelConfig


def test_only_owner_and_name_are_a_hub_id() -> None:
    for name in ("google/ddpm-celebahq-256", "a/b.c_d"):
        assert ModelConfig(id=name).is_hub_id
    for name in ("nodir/", "./a/b", "/a/b", "~/a", "a/b/c", "a\\b", "name", "../x", "a/.b", "owner/two words"):
        assert not ModelConfig(id=name).is_hub_id
