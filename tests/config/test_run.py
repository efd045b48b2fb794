"""Settings of a run: what is required, key variables, the fingerprint, the JSON schema, the reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pyrage
import pytest
import yaml

from anonymizer.config import RunConfig, build, known_keys, read_tree
from tests.support import ROOT
from tests.support.configs import LEAST, PIXELS, config_error
from tests.support.signing_keys import ADA, public_key
from tests.support.site import page_text


def test_only_source_and_output_are_required() -> None:
    config = build(LEAST)
    assert (config.source.uri, config.output.uri, config.boomerang.level) == ("in", "out", 0.6)


@pytest.mark.parametrize("value", ["ab" * 16, "0123456789abcdef" * 4, "with space", "", "9lives"])
def test_a_key_where_its_variables_name_belongs_is_not_repeated(value: str) -> None:
    line = config_error(LEAST | {"key_env": value})
    assert line.startswith("key_env must be the name of an environment variable")
    assert not value or value not in line


@pytest.mark.parametrize("value", [12345678901234567890123456789012, 0.125, True, None, ["ab" * 16], {"a": "ab" * 16}])
def test_a_key_that_is_not_even_text_is_not_repeated(value: Any) -> None:
    expected = "key_env must be the name of an environment variable: put the key into that variable, not here"
    assert config_error(LEAST | {"key_env": value}) == expected


def test_a_key_that_is_no_yaml_is_not_repeated() -> None:
    assert "deadbeef" not in config_error(LEAST, "key_env=[deadbeef")
    assert "deadbeef" not in config_error(LEAST, "key_env.x=deadbeef")


@pytest.mark.parametrize("level", [0.5, 1, {"calibration": "c.json", "max_risk": 0.1, "attacks": ["linkage"]}])
def test_the_json_schema_admits_a_level_and_a_calibrated_rule(level: Any) -> None:
    schema = RunConfig.model_json_schema()
    jsonschema.validate(LEAST | {"boomerang": {"level": level}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(LEAST | {"boomerang": {"level": {"max_risk": 0.1}}}, schema)


RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())

NOT_PIXELS = {
    "source.uri": "x", "source.format": "parquet", "source.image": "x", "source.id": "x", "source.label": "x",
    "source.caption": "x", "source.carry": ("x",), "source.where": {"a": "b"}, "source.limits.max_bytes": 1,
    "source.limits.max_pixels": 1, "source.limits.max_frames": 1, "output.uri": "x", "output.format": "parquet",
    "output.public_scores": "none", "model.id": "x", "model.revision": "x", "model.device": "cpu",
    "model.allow_pickle": True, "model.safety_checker": False,
    "metrics.clip": "none", "metrics.lpips": "none", "run.shard_size": 1,
    "run.batch_size": 1, "run.threads": 1, "run.retries": 0, "run.compile": "always", "key_env": "OTHER",
    "source.kind": "x",
    "source.drop": ("x",), "source.restricted": ("x",), "source.subject": "x", "source.allow": ("/x",),
    "previous": "x", "trust": ("x.pub",),
    "metrics.identity": "dlib", "policy.scores": {"lpips": {"min": 0.1}}, "policy.escalate": (0.9,),
    "metrics.gallery": 1,
    "policy.risk": {"max_linkage": {"upper": 0.1}}, "policy.audits": ("linkage",), "policy.audit_days": 1,
    "policy.attackers.attacks": ("linkage",), "policy.attackers.features": ("pixels",), "policy.attackers.sample": 1,
    "policy.attackers.pairs": 1, "policy.attackers.outputs": 1, "policy.attackers.averaged": 1,
    "policy.attackers.identity": "folder",
    "policy.max_quarantined": 0.1, "policy.max_failed": 0.1, "policy.min_released": 1,
    "policy.groups.min_k": 1, "policy.groups.max_leftover": 0.1,
    "policy.approvers": {"a": public_key(ADA)}, "restricted.recipients": (RECIPIENT,),
    "policy.waivers": ({"rule": "min_released", "who": "a", "why": "b", "until": "2026-12-01"},),
    "restricted.picture_days": 1, "restricted.record_days": 1, "lineage.to": "x", "lineage.namespace": "x",
    "signing_key_env": "OTHER",
    "run.runner": "ray", "run.dispatch": "workers", "run.workers": 1, "run.deployment": "a/b",
    "run.timeout": 60,
}  # fmt: skip


def test_every_setting_is_listed_as_changing_pixels_or_not() -> None:
    # Samples can only be 1; approvals need approvers, a condition a label, two settings a previous
    # release, and a reason a sampler that needs one.
    excluded = {"boomerang.samples", "policy.approvals", "model.condition"}
    excluded |= {"policy.weaker_than_previous", "previous_statement", "boomerang.accept_deterministic"}
    excluded |= {"policy.ceilings"}  # needs output.public_scores none
    excluded |= {name for name in known_keys() if name.startswith("groups.")}  # need boomerang.k
    assert set(known_keys()) == set(PIXELS) | set(NOT_PIXELS) | excluded


@pytest.mark.parametrize("name", sorted(PIXELS))
def test_the_fingerprint_changes_with_what_changes_pixels(name: str) -> None:
    assert build(LEAST, (), {name: PIXELS[name]}).fingerprint("m") != build(LEAST).fingerprint("m")


@pytest.mark.parametrize("name", sorted(NOT_PIXELS))
def test_the_fingerprint_does_not_change_with_anything_else(name: str) -> None:
    other = build(LEAST, (), {name: NOT_PIXELS[name]})
    assert other != build(LEAST)
    assert other.fingerprint("m") == build(LEAST).fingerprint("m")


def test_the_fingerprint_changes_with_the_models_weights() -> None:
    assert build(LEAST).fingerprint("m") != build(LEAST).fingerprint("n")


ROW = re.compile(r"^\| `([a-z_.]+)` \| (required|`.*?`) \| (.+) \|$", re.MULTILINE)


def field(name: str) -> Any:
    model: Any = RunConfig
    *sections, key = name.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[key]


def test_the_documentation_has_every_setting_with_its_default_and_meaning() -> None:
    table = page_text("reference/configuration.md").partition("## A release")[2].partition("\n## ")[0]
    rows = {name: (default, meaning) for name, default, meaning in ROW.findall(table)}
    assert list(rows) == list(known_keys())
    for name, (default, meaning) in rows.items():
        assert meaning == field(name).description
        if field(name).is_required():
            assert default == "required"
        else:
            written = yaml.safe_load(default.strip("`"))
            assert (tuple(written) if isinstance(written, list) else written) == field(name).default, name


@pytest.mark.parametrize("path", sorted((ROOT / "deployments/examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_configuration(path: Path) -> None:
    assert build(read_tree(path)).source.uri
