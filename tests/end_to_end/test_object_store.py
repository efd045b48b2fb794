"""Releases whose source, model, configuration and output are in an object store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anonymizer.attest.verify import check_public
from anonymizer.config import dump
from anonymizer.crypto import signing
from anonymizer.records import Scores
from anonymizer.release import event_log, preflight, publish, retention
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage import download, parquet, run_lock
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import erase as erase_job
from tests.support.object_store import (
    reach,
    release_images,
    together,
    unreliable,
    upload,
)
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    Unscored,
    folder_of,
    people,
    plain,
    released,
    rows,
    run,
    settings,
)


def test_a_release_in_a_store_equals_the_one_on_a_disk(bucket: str, tmp_path: Path) -> None:
    source = people(tmp_path / "in")
    on_disk = run(settings(source, tmp_path / "out"))
    config = settings(upload(source, f"{bucket}/in"), f"{bucket}/out")
    preflight.check(config)
    in_store = run(config)
    assert in_store.is_published
    assert released(in_store) == released(on_disk)
    assert release_images(in_store) == release_images(on_disk)
    assert in_store.manifest.read() == on_disk.manifest.read()


@pytest.mark.slow
def test_months_approvals_erasures_and_purges_work_in_a_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, ada = signing.generate_key_pair(), signing.generate_key_pair()
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", publisher.private_bytes.decode())
    source = upload(
        folder_of(people(tmp_path / "in", 3), {"c/bad.png": GARBAGE, "c/black.png": plain(0)}), f"{bucket}/in"
    )
    policy = {"approvals": 1, "approvers": {"ada": signing.format_public_key(ada.public_key)}}
    sections = {"source": {"subject": "folder"}, "restricted": {"picture_days": 30}, "policy": policy}
    sections["run"] = {"shard_size": 8}

    january = run(settings(source, f"{bucket}/january", **sections), scorer=Unscored(Scores()))
    assert not january.is_published and january.candidate.exists()
    assert publish.approve(january, ada).is_published
    assert problems(january) == []

    february = run(settings(source, f"{bucket}/february", f"previous={bucket}/january", **sections))
    publish.approve(february, ada)
    assert {name: sha for name, sha in released(february).items() if name in released(january)} == released(january)

    (file := tmp_path / "withdrawn.txt").write_text("subject:b\n")
    erase_job.run(f"{bucket}/february", file, f"{bucket}/erased")
    erased = Release.at(f"{bucket}/erased")
    publish.approve(erased, ada)
    assert erase_job.run(f"{bucket}/february", file, f"{bucket}/erased").published
    assert february.root.list_files() == ["restricted/events.jsonl"]
    assert set(released(erased)) == {name for name in released(january) if not name.startswith("b/")} | {"c/black.png"}
    assert problems(erased) == []

    assert january.quarantine.exists()
    retention.purge(january, resolve_config(january).restricted, datetime.now(UTC) + timedelta(days=31))
    assert not january.quarantine.exists() and problems(january) == []


def problems(release: Release) -> list[str]:
    found = [*check_public(release.public), *check_restricted(release, resolve_config(release), KEY)]
    assert {"signature", "pictures", "ledger", "materials", "events"} <= {finding.check for finding in found}
    return [str(finding) for finding in found if finding.result == "fail"]


@pytest.mark.slow
def test_the_commands_work_on_a_store(
    bucket: str, tmp_path: Path, tiny_model: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration, a source, a model and a release, all in a store, through Prefect, as on a disk."""
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    source = people(tmp_path / "in", 4)
    more: dict[str, Any] = {"metrics": {"clip": "none", "lpips": "none"}}
    here = settings(source, tmp_path / "out", model={"id": str(tiny_model)}, **more)
    there = settings(
        upload(source, f"{bucket}/in"), f"{bucket}/out", model={"id": upload(tiny_model, f"{bucket}/m")}, **more
    )
    (tmp_path / "here.yaml").write_text(dump(here))
    (StoragePath.from_uri(bucket) / "there.yaml").write_uncommitted(dump(there).encode())

    assert json.loads(cli("plan", f"{bucket}/there.yaml", "--json"))["records"] == 4
    assert not StoragePath.from_uri(f"{bucket}/out").exists()
    for config in (tmp_path / "here.yaml", f"{bucket}/there.yaml"):
        assert json.loads(cli("run", config, "--json"))["released"] == 4
    on_disk, in_store = Release.at(str(tmp_path / "out")), Release.at(f"{bucket}/out")
    assert release_images(in_store) == release_images(on_disk)
    assert in_store.manifest.read() == on_disk.manifest.read()
    assert not in_store.lock.exists()

    assert json.loads(cli("status", in_store.root, "--json"))["state"] == "complete"
    shown = parquet.read(in_store.manifest)["output_id"][0].as_py()
    assert shown in cli("inspect", in_store.root, shown)
    assert "4 read again" in cli("verify", in_store.root, "--replay", "2")
    audited = json.loads(cli("audit", in_store.root, "--attacks", "linkage", "--features", "pixels", "--json"))
    assert audited["audited"] == 4 and in_store.audit_page.exists()


def cli(*words: Any) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_a_store_that_fails_one_request_in_ten_changes_no_output(
    bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = people(tmp_path / "in", 4)
    undisturbed = run(settings(source, tmp_path / "out"))
    config = settings(upload(source, f"{bucket}/in"), f"{bucket}/out")
    with unreliable(server, every=10) as proxy:
        reach(monkeypatch, proxy.url)
        preflight.check(config)
        with run_lock.exclusive_run(config.output.uri):
            disturbed = run(config)
        assert proxy.failed > 20
        assert [row["status"] for row in rows(disturbed)] == ["released"] * 4
        assert release_images(disturbed) == release_images(undisturbed)
        assert disturbed.manifest.read() == undisturbed.manifest.read()
        assert events(disturbed) == events(undisturbed)
        assert len(set(events(disturbed))) == len(events(disturbed))


def events(release: Release) -> list[str]:
    return [event["event"] for event in event_log.read(release)]


def test_events_of_concurrent_writers_form_one_chain(bucket: str) -> None:
    release = Release.at(bucket)
    together(lambda number: [event_log.record(release, "told", writer=number, n=n) for n in range(3)], 3)
    found = event_log.read(release)
    assert sorted((event["details"]["writer"], event["details"]["n"]) for event in found) == [
        (writer, n) for writer in range(3) for n in range(3)
    ]


def test_an_event_whose_acknowledgement_is_lost_is_written_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another writer has gone on from it before the request is repeated."""
    release = Release.at(bucket)
    event_log.record(release, "first")
    put, requests = release.root.fs.pipe_file, list[str]()

    def lose_one_response(path: str, data: bytes, **more: Any) -> Any:
        requests.append(path)
        done = put(path, data, **more)
        if len(requests) == 1:
            event_log.record(release, "other")
            raise ConnectionResetError
        return done

    monkeypatch.setattr(release.root.fs, "pipe_file", lose_one_response)
    head = event_log.record(release, "second")
    assert len(requests) == 3
    assert events(release) == ["first", "second", "other"]
    assert head.count == 2 and event_log.contains_head(release, head)
