"""Settings of groups: what would tell of one member is refused."""

from __future__ import annotations

from typing import Any

import pytest

from anonymizer.config import build
from anonymizer.errors import ConfigError

LEAST: dict[str, Any] = {"source": {"uri": "in"}, "output": {"uri": "out"}, "boomerang": {"k": 5}}


def configured(source: dict[str, Any], **more: Any) -> Any:
    return build(LEAST | {"source": LEAST["source"] | source} | more)


@pytest.mark.parametrize(
    ("source", "more", "name"),
    [
        ({"carry": ["age"]}, {}, "source.carry: 'age'"),
        ({"caption": "text"}, {}, "source.caption: 'caption'"),
        ({"label": "folder"}, {"groups": {"by": []}}, "source.label: 'label'"),
        ({}, {"groups": {"by": ["sex"]}}, "groups.by: 'sex'"),
        ({}, {"groups": {"generalise": {"age": "range"}}}, "groups.generalise: 'age'"),
        ({"restricted": ["sex"]}, {"model": {"prompt": "a {sex}"}}, "model: is conditioned on 'sex'"),
        ({"fit": "tiles"}, {}, "source.fit"),
        ({}, {"groups": {"distinct": "subject"}}, "groups.distinct"),
        ({}, {"groups": {"outputs": "each"}, "boomerang": {"k": 1}}, "groups: boomerang.k is 1"),
        ({}, {"output": {"uri": "out", "size": "original"}}, "output.size"),
    ],
)
def test_what_would_tell_of_one_member_is_refused(source: dict[str, Any], more: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        configured(source, **more)


def test_groups_are_by_the_label_unless_columns_are_named() -> None:
    config = configured({"label": "folder"})
    assert config.groups.columns(config.source) == ("label",)
    config = configured(
        {"restricted": ["sex"], "carry": ["age"]}, groups={"by": ["sex"], "generalise": {"age": "range"}}
    )
    assert config.groups.columns(config.source) == ("sex",)


def test_the_fingerprint_of_settings_without_groups_is_that_of_versions_without_them() -> None:
    plain = build(LEAST | {"boomerang": {}})
    assert plain.fingerprint("m") == build(LEAST | {"boomerang": {"k": 1}}).fingerprint("m")
    other = configured({}, groups={"leftover": "merge"})
    assert len({plain.fingerprint("m"), configured({}).fingerprint("m"), other.fingerprint("m")}) == 3


def test_a_k_below_that_of_the_policy_is_refused_unless_the_rule_is_waived() -> None:
    policy: dict[str, Any] = {"groups": {"min_k": 6}}
    with pytest.raises(ConfigError, match=r"policy\.groups\.min_k: 6, and boomerang\.k is 5: set boomerang\.k=6"):
        configured({}, policy=policy)
    with pytest.raises(ConfigError, match=r"policy\.groups\.min_k: 6, and boomerang\.k is 1: set boomerang\.k=6"):
        configured({}, boomerang={"k": 1}, policy=policy)
    waiver = {"rule": "groups.min_k", "who": "Kim", "why": "a pilot", "until": "2099-01-01"}
    assert configured({}, policy=policy | {"waivers": [waiver]}).boomerang.k == 5
    with pytest.raises(ConfigError, match=r"none of the rules that are set"):
        configured({}, policy={"groups": {"max_leftover": 0.1}, "waivers": [waiver]})


def test_groups_by_clip_need_a_model() -> None:
    assert configured({}, groups={"features": "clip"}).groups.features == "clip"
    with pytest.raises(ConfigError, match=r"groups\.features: clip, and metrics\.clip is none"):
        configured({}, groups={"features": "clip"}, metrics={"clip": "none"})
