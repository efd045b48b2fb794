"""Checks of an object store before a run: one line for each problem, without names of objects."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anonymizer.backbones import load_backbone
from anonymizer.config import build, read_tree
from anonymizer.errors import OutputError, SourceError, UsageError
from anonymizer.release import preflight
from anonymizer.storage import filesystem
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from tests.support.object_store import (
    BUCKET,
    checking_keys,
    delete_nothing,
    reach,
)
from tests.support.releases import (
    begin,
    people,
    settings,
)


@pytest.fixture
def collect_errors(bucket: str) -> Callable[[], list[str]]:
    """A function that returns the error lines of source, output, model, configuration and plan."""

    def collect() -> list[str]:
        config = settings(f"{bucket}/in", f"{bucket}/out", model={"id": f"{bucket}/model"})
        checks: list[Callable[[], Any]] = [
            lambda: preflight.check(config),
            lambda: preflight.check_output(config),
            lambda: load_backbone(config.model),
            lambda: build(read_tree(f"{bucket}/release.yaml")),
            lambda: Release.at(f"{bucket}/out").plan.read(),
        ]
        lines = []
        for work in checks:
            with pytest.raises(UsageError) as error:
                work()
            lines.append(str(error.value))
            assert "\n" not in lines[-1] and "secret" not in lines[-1] and "someone" not in lines[-1]
        fields = [f"source.uri '{bucket}/in': ", f"output.uri '{bucket}/out': ", f"model.id '{bucket}/model': "]
        fields += ["config: ", f"s3://{BUCKET}: "]
        assert [line.startswith(field) for line, field in zip(lines, fields, strict=True)] == [True] * 5, lines
        return lines

    return collect


def test_an_unknown_access_key_is_explained(server: str, collect_errors: Callable[[], list[str]]) -> None:
    with checking_keys(server):
        lines = collect_errors()
    assert all("access denied: check the credentials" in line for line in lines[:2] + lines[3:]), lines
    assert "access key" in lines[2]


def test_missing_credentials_are_explained(
    collect_errors: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    filesystem.open_fs("s3://")[0].clear_instance_cache()
    assert all("no credentials were found" in line for line in collect_errors())


def test_a_missing_bucket_is_explained(bucket: str) -> None:
    config = settings("s3://no-such-bucket/in", "s3://no-such-bucket/out")
    for work, error in ((preflight.check, SourceError), (preflight.check_output, OutputError)):
        with pytest.raises(error, match=r"\.uri 's3://no-such-bucket/.*: there is no such bucket: make it"):
            work(config)


def test_an_unreachable_store_is_explained(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    reach(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="cannot be reached: check the network and the endpoint"):
        preflight.check(settings(f"{bucket}/in", f"{bucket}/out"))


def test_a_store_that_ignores_conditions_gives_a_caution(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(f"{bucket}/in", f"{bucket}/out")
    assert preflight.list_cautions(config) == []
    fs = StoragePath.from_uri(bucket).fs
    put = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, data, mode="", **more: put(path, data))
    (caution,) = preflight.list_cautions(config)
    assert "ignores conditions" in caution and not StoragePath.from_uri(f"{bucket}/out").exists()


def test_a_bucket_that_keeps_old_versions_gives_a_caution(bucket: str) -> None:
    fs = StoragePath.from_uri(bucket).fs
    fs.makedirs("versioned")
    fs.make_bucket_versioned("versioned")
    (caution,) = preflight.list_cautions(settings("in", "s3://versioned/out"))
    assert "keeps old versions" in caution


def test_an_output_without_permission_to_delete_is_refused_before_the_run(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(StoragePath.from_uri(bucket).fs), "_bulk_delete", delete_nothing)
    with pytest.raises(OutputError, match=r"output\.uri 's3://.*': something could not be deleted"):
        preflight.check_output(settings(f"{bucket}/in", f"{bucket}/out"))


@pytest.mark.parametrize("name", ["errors", "quarantine", "staging", "candidate"])
def test_a_link_in_the_restricted_half_is_refused(tmp_path: Path, name: str) -> None:
    """What is written there, pictures before the gate included, would lie where somebody else wants it."""
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    release = begin(config)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (release.restricted / name).remove()
    Path((release.restricted / name).path).symlink_to(elsewhere)
    with pytest.raises(OutputError, match=f"restricted/{name} is a link: what is written there would lie elsewhere"):
        preflight.check(config)
