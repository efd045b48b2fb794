"""Configurations are read from YAML files, options and object stores, and written back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.config import build, dump, parse, read_tree
from anonymizer.errors import ConfigError
from anonymizer.storage.path import StoragePath
from tests.support.configs import LEAST, file_error
from tests.support.object_store import (
    BUCKET,
)
from tests.support.releases import begin, people, settings


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


def test_the_stored_config_of_a_release_loads_again(tmp_path: Path) -> None:
    source = {"label": "folder", "fit": "pad", "limits": {"max_bytes": 5000}}
    config = settings(people(tmp_path / "fotos ä"), tmp_path / "out", source=source, output={"image": "webp"})
    release = begin(config)
    assert build(read_tree(release.config.path)) == config


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s.strip() and "\0" not in s))
def test_any_name_survives_the_round_trip(name: str) -> None:
    config = build(LEAST, (), {"source.uri": name, "source.where": {name: name}})
    assert build(parse(dump(config), "config.yaml")) == config


def test_a_configuration_is_read_from_a_store(bucket: str) -> None:
    config = settings(f"{bucket}/in", f"{bucket}/out")
    (StoragePath.from_uri(bucket) / "release.yaml").write_uncommitted(dump(config).encode())
    assert build(read_tree(f"{bucket}/release.yaml")) == config
    with pytest.raises(ConfigError, match="no file"):
        build(read_tree(f"{bucket}/none.yaml"))
    with pytest.raises(ConfigError, match="holds a password") as error:
        build(read_tree(f"s3://someone:secret@{BUCKET}/release.yaml"))
    assert "secret" not in str(error.value)
