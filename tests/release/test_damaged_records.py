"""Files of the restricted half that anybody with access may write: whatever they hold, reading them is one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import dsse
from anonymizer.errors import IntegrityError
from anonymizer.records import Plan
from anonymizer.release import event_log, plan, publish, retention
from anonymizer.storage.layout import Release
from tests.support.signed_release import JSON_VALUES

FUZZ = hypothesis_settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60, database=None)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    release = Release.at(str(tmp_path / "out"))
    release.restricted.make_private_folder()
    return release


@FUZZ
@given(name=st.sampled_from(["n", "event", "time", "details", "previous", "actor"]), value=JSON_VALUES)
def test_an_event_with_any_value_in_any_field_is_read_or_one_line(release: Release, name: str, value: Any) -> None:
    release.event_log.remove()
    event_log.record(release, "sealed")
    fields = {k: v for k, v in json.loads(release.event_log.read()).items() if k != "sha256"} | {name: value}
    release.event_log.write(event_log._encode(fields) + b"\n")
    (release.public / "manifest.parquet").write(b"")
    try:
        event_log.read(release)
        retention.retention_start(release)
    except IntegrityError as error:
        assert len(str(error).splitlines()) == 1


@FUZZ
@given(kept_since=JSON_VALUES | st.just("2026-11-01T00:00:00"))
def test_an_erasure_that_counts_since_anything_is_read_or_one_line(release: Release, kept_since: Any) -> None:
    release.event_log.remove()
    event_log.record(release, event_log.ERASURE_BEGUN, kept_since=kept_since)
    event_log.record(release, "sealed")
    (release.public / "manifest.parquet").write(b"")
    try:
        start = retention.retention_start(release)
        assert start is not None and start.tzinfo is not None
    except IntegrityError as error:
        assert len(str(error).splitlines()) == 1


@FUZZ
@given(data=st.binary(max_size=50) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_purged_data_of_any_content_is_read_or_one_line(release: Release, data: bytes) -> None:
    release.purged.write(data)
    try:
        assert all(isinstance(day, str) for day in retention.read_purged(release).values())
    except IntegrityError as error:
        assert "purged.json is damaged" in str(error)


@FUZZ
@given(rules=JSON_VALUES)
def test_a_decision_with_any_rules_is_read_or_one_line(release: Release, rules: Any) -> None:
    release.decision_log.write(dsse.dumps([dsse.build(publish.DECISION_PREDICATE, {}, {"rules": rules}, None)]))
    try:
        decision = publish.read_last_decision(release)
        assert decision is not None and all(rule["rule"] is not rule for rule in decision.predicate["rules"])
    except IntegrityError as error:
        assert "decisions" in str(error)


def test_folders_and_deep_nesting_in_place_of_files_are_one_line(release: Release) -> None:
    readers = {"plan.json": plan.read, "events.jsonl": event_log.read, "purged.json": retention.read_purged,
               "decisions.intoto.jsonl": publish.read_last_decision}  # fmt: skip
    for name, read in readers.items():
        file = Path(release.restricted.path) / name
        file.write_bytes(b"[" * 100_000)
        with pytest.raises(IntegrityError):
            read(release)
        file.unlink()
        file.mkdir()
        with pytest.raises(IntegrityError):
            read(release)
        file.rmdir()


PLAN = Plan(
    "in", "out", 3, 2, 2, 0.5, 500, 1000, -0.5, "ddim", 20, "bundled:faces-64", "0" * 64, "1" * 64, ("2" * 64,), None
)  # fmt: skip


@FUZZ
@given(name=st.sampled_from(list(asdict(PLAN))), value=JSON_VALUES | st.just(10**7))
def test_a_plan_with_any_value_in_any_field_is_read_or_one_line(release: Release, name: str, value: Any) -> None:
    release.plan.write(json.dumps(asdict(PLAN) | {name: value}).encode())
    try:
        assert isinstance(getattr(plan.read(release), name), type(getattr(PLAN, name)) | str | int | None)
    except IntegrityError as error:
        assert "plan.json is damaged" in str(error)
    release.plan.write(json.dumps(asdict(PLAN)).encode())
    assert plan.read(release) == PLAN
