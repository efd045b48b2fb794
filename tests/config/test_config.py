"""The configuration: strict, and with one clear line for whatever is wrong with it."""

from __future__ import annotations

import os
import re
from functools import reduce
from pathlib import Path
from typing import Any

import jsonschema
import pyrage
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.config import ModelConfig, RunConfig, build, dump, known_keys, parse, read_tree
from anonymizer.errors import ConfigError
from tests.support import ROOT
from tests.support.releases import begin, people, settings
from tests.support.site import page_text

LEAST: dict[str, Any] = {"source": {"uri": "in"}, "output": {"uri": "out"}}


def error(tree: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(tree, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_error(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        build(read_tree(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_source_and_output_are_required() -> None:
    config = build(LEAST)
    assert (config.source.uri, config.output.uri, config.boomerang.level) == ("in", "out", 0.6)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("boomerang.levle=0.4", "boomerang.levle: unknown key: did you mean 'level'?"),
        ("sorce=1", "sorce: unknown key: did you mean 'source'?"),
        ("level=0.4", "level: unknown key: did you mean 'boomerang.level'?"),
        ("output.batch_size=4", "output.batch_size: unknown key: did you mean 'run.batch_size'?"),
        ("source.limits.max_byte=4", "source.limits.max_byte: unknown key: did you mean 'max_bytes'?"),
        (
            "run.zzz=1",
            "run.zzz: unknown key: known keys: batch_size, compile, deployment, dispatch, retries, runner, shard_size, "
            "threads, timeout, workers",
        ),
        ("stps=4", "stps: unknown key: did you mean 'boomerang.steps'?"),
        ("uri=x", "uri: unknown key: did you mean 'source.uri' or 'output.uri'?"),
        ("source.columns=[a]", "source.columns: unknown key: did you mean 'source.carry'?"),
        ("source.path=x", "source.path: unknown key: did you mean 'source.uri'?"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(override: str, hint: str) -> None:
    assert hint in error(LEAST, override)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("boomerang.level=0", "boomerang.level must be in (0, 1], got 0: level 0 would release the original"),
        ("boomerang.level=1.5", "boomerang.level must be in (0, 1], got 1.5"),
        ("boomerang.level=.nan", "boomerang.level must be in (0, 1], got nan"),
        ("boomerang.level=-.inf", "boomerang.level must be in (0, 1], got -inf"),
        ("boomerang.samples=3", "boomerang.samples must be 1 in a release, got 3"),
        ("boomerang.steps=0", "boomerang.steps: Input should be greater than or equal to 1, got 0"),
        ("boomerang.sampler=euler", "boomerang.sampler: Input should be 'ddpm', 'ddim'"),
        ("output.uri=2024", "output.uri: Input should be a valid string, got 2024: put it in quotes"),
        ("source.uri=' '", "source.uri must name a folder, file or prefix, got ' '"),
        ("source.where={day: 2024-01-01}", "put it in quotes"),
        ("source=4", "source: is a section, got 4: its keys are uri, format, image"),
        ("source=", "source: is a section, got nothing: its keys are uri, format, image"),
        ("source=photos/", "source: is a section, got 'photos/': write source.uri: photos/"),
        ("model=bundled:faces-64", "model: is a section, got 'bundled:faces-64': write model.id: bundled:faces-64"),
        ("metrics=none", "metrics: is a section, got 'none': its keys are clip, lpips"),
        ("source.limits=4", "source.limits: is a section, got 4: its keys are max_bytes, max_pixels, max_frames"),
        ("source.where=4", "source.where: is a mapping, got 4: write source.where.COLUMN: VALUE"),
        ("source.carry=age", "source.carry: is a list, got 'age': put it in square brackets"),
        ("source.uri.x=4", "--set: 'source.uri.x' goes through 'uri', which is a value"),
        ("run.batch_size=many", "run.batch_size must be a number, 1 or more, or auto, got 'many'"),
        ("run.threads=[", "--set run.threads: the value '[' is not YAML"),
        ("run.threads", "--set: got 'run.threads': write it as section.key=value"),
        ("=3", "--set: got '=3': write it as section.key=value"),
        ("source.=3", "--set: got 'source.=3': write it as section.key=value"),
        ("boomerang.level=true", "boomerang.level must be a number, got true"),
        ("boomerang.steps=yes", "boomerang.steps must be a number, got true"),
        ("run.retries=false", "run.retries must be a number, got false"),
        ("output.quality=on", "output.quality must be a number, got true"),
        ("source.limits.max_frames=true", "source.limits.max_frames must be a number, got true"),
    ],
)
def test_a_wrong_value_is_one_line_with_field_value_and_next_step(override: str, line: str) -> None:
    assert line in error(LEAST, override)


def test_missing_keys_are_named() -> None:
    assert "source: missing: give it in the config or as --set source=..." in error({"output": {"uri": "out"}})
    assert "output.uri: missing" in error({"source": {"uri": "in"}, "output": {}})


def test_two_problems_are_still_one_line() -> None:
    line = error(LEAST, "boomerang.level=0", "run.treads=2")
    assert "boomerang.level must be" in line
    assert "run.treads: unknown key: did you mean 'run.threads'?" in line or "did you mean 'threads'" in line


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "holds no mapping"),
        (b"# only a comment\n", "holds no mapping"),
        (b"- a\n- b\n", "holds no mapping"),
        (b"just text", "holds no mapping"),
        (b"source:\n\turi: x\n", "is not YAML at line 2"),
        (b"source: {uri: x\n", "is not YAML"),
        (b"source: {uri: a}\nsource: {uri: b}\n", "key 'source' stands twice at line 2"),
        (b"source:\n  uri: a\n  uri: b\n", "key 'uri' stands twice at line 3"),
        (b"source: {uri: \xff}\n", "cannot read"),
        (b"source: {uri: \x01}\n", "is not YAML"),
        (b"source: &a {where: *a}\n", "holds itself"),
        (b"source: {uri: 2024-13-45}\n", "cannot be read as values"),
        (b"source: !!python/object/apply:os.system [true]\n", "is not YAML"),
        (b"1: 2\n", "1: "),
        (b"? {a: b}\n: c\n", "is not YAML"),
    ],
)
def test_odd_yaml_is_one_line(tmp_path: Path, data: bytes, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(data)
    assert line in file_error(path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "no file" in file_error(tmp_path / "none.yaml")
    assert "cannot read" in file_error(tmp_path)
    if os.geteuid() != 0:
        (tmp_path / "c.yaml").touch(mode=0)
        assert "cannot read" in file_error(tmp_path / "c.yaml")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_config_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_bytes(data)
    assert file_error(path)


def test_anchors_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("source: &a {uri: x}\noutput: {<<: *a, uri: y}\n")
    assert build(read_tree(tmp_path / "c.yaml")).output.uri == "y"


def test_overrides_are_yaml_and_win_over_everything(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("source: {uri: a, carry: [x]}\noutput: {uri: b}\nboomerang: {level: 0.1}\n")
    sets = (
        "boomerang.level=0.3",
        "source.carry=[p, q]",
        "source.where.split=test",
        "boomerang.steps=null",
        "output.uri=a=b",
    )
    config = build(read_tree(tmp_path / "c.yaml"), sets, {"boomerang.level": 0.2, "source.uri": "given"})
    assert (config.boomerang.level, config.source.carry, config.source.where) == (0.3, ("p", "q"), {"split": "test"})
    assert (config.boomerang.steps, config.output.uri, config.source.uri) == (None, "a=b", "given")


@pytest.mark.parametrize("name", ["photos 😀", "2024", "yes", "a: b", "'", "C:\\x", "~", "[bold]"])
def test_paths_from_the_command_line_are_taken_literally(name: str) -> None:
    assert build({}, (), {"source.uri": name, "output.uri": "out"}).source.uri == name


@pytest.mark.parametrize("value", ["ab" * 16, "0123456789abcdef" * 4, "with space", "", "9lives"])
def test_a_key_where_its_variables_name_belongs_is_not_repeated(value: str) -> None:
    line = error(LEAST | {"key_env": value})
    assert line.startswith("key_env must be the name of an environment variable")
    assert not value or value not in line


@pytest.mark.parametrize("value", [12345678901234567890123456789012, 0.125, True, None, ["ab" * 16], {"a": "ab" * 16}])
def test_a_key_that_is_not_even_text_is_not_repeated(value: Any) -> None:
    expected = "key_env must be the name of an environment variable: put the key into that variable, not here"
    assert error(LEAST | {"key_env": value}) == expected


def test_a_key_that_is_no_yaml_is_not_repeated() -> None:
    assert "deadbeef" not in error(LEAST, "key_env=[deadbeef")
    assert "deadbeef" not in error(LEAST, "key_env.x=deadbeef")


@pytest.mark.parametrize("level", [0.5, 1, {"calibration": "c.json", "max_risk": 0.1, "attacks": ["linkage"]}])
def test_the_json_schema_admits_a_level_and_a_calibrated_rule(level: Any) -> None:
    schema = RunConfig.model_json_schema()
    jsonschema.validate(LEAST | {"boomerang": {"level": level}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(LEAST | {"boomerang": {"level": {"max_risk": 0.1}}}, schema)


# -- passwords --------------------------------------------------------------------------------------------------------

PASSWORD = "hunter2"


@pytest.mark.parametrize("key", ["source.uri", "output.uri"])
@pytest.mark.parametrize("uri", ["s3://me:{}@host/x", "ftp://:{}/a@host", "simplecache::sftp://me:{}@host:22/x"])
def test_an_address_with_a_password_is_refused_and_not_repeated(key: str, uri: str) -> None:
    line = error(LEAST, f"{key}={uri.format(PASSWORD)}")
    assert line.startswith(f"{key} holds a password, which would be stored with the run")
    assert "environment" in line
    assert PASSWORD not in line


@pytest.mark.parametrize(
    "override", ["source={}", "source=[{}]", "source.uri=[{}]", "output.format={}", "{}", "a={}x: ["]
)
def test_an_address_with_a_password_is_not_repeated_wherever_it_stands(override: str) -> None:
    assert PASSWORD not in error(LEAST, override.format(f"s3://me:{PASSWORD}@host/x"))


@pytest.mark.parametrize(
    "uri", ["hdfs://host:8020/me@home", "sftp://me@host/x", "github://org:repo@v1/x", "s3://bucket/a:b@c", "C:\\a@b"]
)
def test_an_address_without_a_password_is_accepted(uri: str) -> None:
    assert build(LEAST, (), {"source.uri": uri}).source.uri == uri


def test_only_owner_and_name_are_a_hub_id() -> None:
    for name in ("google/ddpm-celebahq-256", "a/b.c_d"):
        assert ModelConfig(id=name).is_hub_id
    for name in ("nodir/", "./a/b", "/a/b", "~/a", "a/b/c", "a\\b", "name", "../x", "a/.b", "owner/two words"):
        assert not ModelConfig(id=name).is_hub_id


# -- fingerprint ------------------------------------------------------------------------------------------------------

PIXELS = {
    "boomerang.level": 0.5, "boomerang.sampler": "ddim", "boomerang.steps": 7, "model.dtype": "bfloat16",
    "source.fit": "pad", "model.size": 128, "model.variant": "fp16",
    "model.prompt": "a", "model.negative_prompt": "a", "model.guidance": 2.0,
    "model.vae_tiling": True, "model.tile_overlap": 0.5,
    "output.image": "jpeg", "output.quality": 50, "output.size": "original",
}  # fmt: skip
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
    "source.drop": ("x",), "source.restricted": ("x",), "source.subject": "x", "previous": "x",
    "metrics.identity": "dlib", "policy.scores": {"lpips": {"min": 0.1}}, "policy.escalate": (0.9,),
    "policy.risk": {"max_linkage": {"upper": 0.1}}, "policy.audits": ("linkage",), "policy.audit_days": 1,
    "policy.max_quarantined": 0.1, "policy.max_failed": 0.1, "policy.min_released": 1,
    "policy.approvers": {"a": "ed25519:" + "A" * 43 + "="}, "restricted.recipients": (RECIPIENT,),
    "policy.waivers": ({"rule": "min_released", "who": "a", "why": "b", "until": "2026-12-01"},),
    "restricted.picture_days": 1, "restricted.record_days": 1, "lineage.to": "x", "lineage.namespace": "x",
    "signing_key_env": "OTHER",
    "run.runner": "ray", "run.dispatch": "workers", "run.workers": 1, "run.deployment": "a/b",
    "run.timeout": 60,
}  # fmt: skip


def test_every_setting_is_listed_as_changing_pixels_or_not() -> None:
    # Samples can only be 1; approvals need approvers, and a condition a label.
    excluded = {"boomerang.samples", "policy.approvals", "model.condition"}
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


# -- round trip -------------------------------------------------------------------------------------------------------


def test_the_stored_config_of_a_release_loads_again(tmp_path: Path) -> None:
    source = {"label": "folder", "fit": "pad", "limits": {"max_bytes": 5000}}
    config = settings(people(tmp_path / "fotos ä"), tmp_path / "out", source=source, output={"image": "webp"})
    release = begin(config)
    assert build(read_tree(release.config.path)) == config


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s.strip() and "\0" not in s))
def test_any_name_survives_the_round_trip(name: str) -> None:
    config = build(LEAST, (), {"source.uri": name, "source.where": {name: name}})
    assert build(parse(dump(config), "config.yaml")) == config


def test_a_config_cannot_be_changed_afterwards() -> None:
    config = build(LEAST)
    for name in known_keys():
        *sections, key = name.split(".")
        with pytest.raises(ValueError, match="frozen"):
            setattr(reduce(getattr, sections, config), key, 1)


# -- documentation ----------------------------------------------------------------------------------------------------

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
