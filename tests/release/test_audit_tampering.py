"""An audit against somebody who can write to source, public and restricted half, and has no key."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import AuditConfig, RunConfig
from anonymizer.crypto import seal
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import CustodianKeyError, GateError, IntegrityError, SourceError
from anonymizer.policy.calibration import build_resolved
from anonymizer.release import audit_files, plan
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.report import thumbnails
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.jobs import audit as audit_job
from flows.jobs import replay as replay_job
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    HEX,
    KEY,
    PlainScorer,
    folder_of,
    listing,
    picture,
    rows,
    run,
    settings,
)
from tests.support.signing_keys import PUBLISHER

PICTURES = 24
POLICY = {"risk": {"max_linkage": {"upper": 1.0}}, "attackers": {"features": ["pixels"], "averaged": 20}}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    monkeypatch.setattr(audit_job, "backbone_of", lambda config: IdealGaussian())
    monkeypatch.setattr(audit_job, "scorer_of", lambda metrics, device: PlainScorer())


def people(root: Path, who: Callable[[int], str] = lambda i: f"p{i % 12}") -> Path:
    """A list of pictures with the person on each."""
    folder_of(root, {f"{i}.png": picture(i) for i in range(PICTURES)})
    items = [{"image": f"{i}.png", "id": f"{i}", "who": who(i), "side": i % 2} for i in range(PICTURES)]
    return listing(root, items)


def config_of(root: Path, **sections: Any) -> RunConfig:
    source = {"id": "id", "subject": "who", "drop": ["side"]}
    return settings(root / "in/list.jsonl", root / "out", **{"source": source, "run": {"shard_size": 32}} | sections)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    people(tmp_path / "in")
    return run(config_of(tmp_path))


@pytest.fixture
def held_back(tmp_path: Path) -> Release:
    """A release whose policy waits for an audit."""
    people(tmp_path / "in")
    with pytest.raises(GateError, match="no audit of this release"):
        run(config_of(tmp_path, policy=POLICY))
    return Release.at(str(tmp_path / "out"), KEY)


def audit_of(release: Release, **more: Any) -> audit_job.AuditSummary:
    given = {"release": str(release.root), "features": ["pixels"], "attacks": ["linkage"], "averaged": 20}
    return audit_job.run(build_resolved(AuditConfig, given | more))


def trials(release: Release) -> set[int]:
    """How many pictures were linked, or could not be."""
    table = parquet.read(release.audit / "figures.parquet").to_pylist()
    return {row["n"] for row in table if row["measure"] == "rank-1"}


# -- originals under another content -----------------------------------------------------------------------------------


@pytest.mark.parametrize("overwritten", [1, 10])
def test_what_was_overwritten_under_its_name_is_not_measured_and_holds_no_bound(
    tmp_path: Path, held_back: Release, overwritten: int
) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(100 + i) for i in range(overwritten)})
    summary = audit_of(held_back)
    assert (summary.audited, summary.missing) == (PICTURES - overwritten, overwritten)
    assert trials(held_back) == {PICTURES - overwritten}
    document = json.loads((held_back.audit / "audit.json").read())
    assert (document["unread"], document["changed"]) == (0, overwritten)
    assert f"{overwritten} under whose ids the source has other bytes" in document["note"]
    assert json.loads(held_back.audit_summary.read())["pictures_not_measured"] == overwritten
    with pytest.raises(GateError, match=f"audits.linkage .*not measured on {overwritten} of {PICTURES}.*max_linkage"):
        run(config_of(tmp_path, policy=POLICY))
    people(tmp_path / "in")
    assert audit_of(held_back).missing == 0
    assert run(config_of(tmp_path, policy=POLICY)).is_published


def test_what_is_gone_is_missing_evidence_as_well(tmp_path: Path, held_back: Release) -> None:
    (tmp_path / "in/3.png").unlink()
    assert audit_of(held_back).missing == 1
    with pytest.raises(GateError, match="not measured on 1 of 24, whose originals are gone or are not those"):
        run(config_of(tmp_path, policy=POLICY))


def test_a_source_that_was_exchanged_as_a_whole_is_not_attacked(tmp_path: Path, release: Release) -> None:
    names = [f"{i}.png" for i in range(PICTURES)]
    for name in names:
        (tmp_path / "in" / name).rename(tmp_path / "in" / f"old {name}")
    for name, other in zip(names, [*names[1:], names[0]], strict=True):  # the same pictures, under each other's names
        (tmp_path / "in" / f"old {name}").rename(tmp_path / "in" / other)
    with pytest.raises(SourceError, match="none of the released originals"):
        audit_of(release)


def test_pages_show_no_original_but_the_one_that_was_released(tmp_path: Path, release: Release) -> None:
    config = plan.resolve_config(release)
    before, _ = thumbnails.original_thumbnails(release, config, rows(release))
    (tmp_path / "in/3.png").write_bytes(picture(103))
    after, _ = thumbnails.original_thumbnails(release, config, rows(release))
    assert {name for name in before if before[name] != after[name]} == {"3"} and after["3"] == "changed"


def test_released_pictures_that_were_exchanged_are_not_attacked(release: Release) -> None:
    images = sorted(Path(release.public.path, "images").rglob("*.png"))
    shutil.copy(images[0], images[1])
    with pytest.raises(IntegrityError, match="1 of 24 released pictures are missing, or not those of the ledger"):
        audit_of(release)


# -- who is on which picture -------------------------------------------------------------------------------------------


def test_who_is_shown_comes_from_the_ledger(tmp_path: Path, release: Release) -> None:
    audit_of(release, identity="who")
    before = (release.audit / "figures.parquet").read()
    people(tmp_path / "in", who=lambda i: f"p{i % 2}")
    audit_of(release, identity="who")
    assert (release.audit / "figures.parquet").read() == before
    people(tmp_path / "in", who=lambda i: f" P{i % 12} ")  # as a source spells people is no matter
    audit_of(release, identity="who")
    assert (release.audit / "figures.parquet").read() == before


def test_what_the_ledger_does_not_hold_lets_no_bound_hold(tmp_path: Path, held_back: Release) -> None:
    audit_of(held_back, attributes=["side"])
    with pytest.raises(GateError, match="max_linkage"):
        run(config_of(tmp_path, policy=POLICY))
    result = audit_files.read(held_back)
    assert result is not None and (result.attacker_limits or "").startswith("side of the source is not in the ledger")


# -- the key -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, bytes(range(1, 33)).hex()])
def test_without_the_key_of_the_release_there_is_no_audit(
    release: Release, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY") if key is None else monkeypatch.setenv("ANONYMIZER_KEY", key)
    with pytest.raises(CustodianKeyError, match="ANONYMIZER_KEY"):
        audit_job.check(AuditConfig(release=str(release.root)))


def test_a_release_that_was_made_without_a_key_cannot_be_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY")
    monkeypatch.delenv("ANONYMIZER_SIGNING_KEY")
    people(tmp_path / "in")
    made = run(config_of(tmp_path), key=CustodianKey(bytes(32), is_persistent=False))
    with pytest.raises(CustodianKeyError, match="compared under the custodian's key"):
        audit_job.check(AuditConfig(release=str(made.root)))


@pytest.mark.parametrize("is_checked", [True, False])
def test_settings_that_are_not_sealed_load_no_model(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch, is_checked: bool
) -> None:
    """A plan that says that there was no key, and settings of somebody else beside it."""
    document = json.loads(release.plan.read())
    release.plan.write(json.dumps(document | {"key_check": None}).encode())
    release.config.write(release.config.read().replace(b"bundled:faces-64", b"/tmp/mine"))
    loaded: list[Any] = []
    for job in (audit_job, replay_job):
        monkeypatch.setattr(job, "backbone_of", lambda model: loaded.append(model) or IdealGaussian())
    with pytest.raises((CustodianKeyError, IntegrityError)):
        work = audit_job.check if is_checked else audit_job.collect_evidence
        work(AuditConfig(release=str(release.root), features=("pixels",)))
    release.plan.write(json.dumps(document).encode())  # the plan as it was, and the settings not
    findings = [finding.result for finding in replay_job.verify_release(Release(release.root), rescore=1, replay=1)]
    assert "fail" in findings and not loaded


def test_verification_takes_the_key_that_is_set_whatever_unsealed_settings_call_it(release: Release) -> None:
    release.config.write(release.config.read().replace(b"key_env: ANONYMIZER_KEY", b"key_env: NO_SUCH_KEY"))
    findings = list(replay_job.verify_release(Release(release.root), rescore=None, replay=0))
    assert [(f.check, f.result) for f in findings] == [("settings", "fail")]


# -- the files of the audit --------------------------------------------------------------------------------------------


def test_a_change_to_any_file_of_an_audit_is_found(tmp_path: Path, held_back: Release) -> None:
    audit_of(held_back)
    files = {name: (held_back.audit / name).read() for name in ("audit.json", "figures.parquet", "public.json")}
    rng = random.Random(16)
    changes: list[tuple[str, bytes]] = [(name, b"") for name in files]
    for _ in range(60):
        name = rng.choice(list(files))
        data, at = bytearray(files[name]), rng.randrange(len(files[name]))
        data[at] ^= 1 << rng.randrange(8)
        changes.append((name, bytes(data)))
    document = json.loads(files["audit.json"])
    changes += [  # by hand, with another seal, or none
        ("audit.json", json.dumps(document | change).encode())
        for change in ({"changed": -1}, {"when": "2099-01-01T00:00:00+00:00"}, {"hmac": seal.PLACEHOLDER}, {"union": 0})
    ]
    changes.append(("audit.json", json.dumps({k: v for k, v in document.items() if k != "hmac"}).encode()))
    for name, data in changes:
        (held_back.audit / name).write(data)
        with pytest.raises(IntegrityError, match=r"restricted/audit/.*run `anonymizer audit` again"):
            audit_files.read(held_back)
        (held_back.audit / name).write(files[name])
    (held_back.audit / "figures.parquet").remove()
    with pytest.raises(IntegrityError, match="is not what the audit wrote"):
        run(config_of(tmp_path, policy=POLICY))
    assert not held_back.is_published
    (held_back.audit / "figures.parquet").write(files["figures.parquet"])
    assert run(config_of(tmp_path, policy=POLICY)).is_published


def test_an_earlier_audit_does_not_take_the_place_of_the_last(tmp_path: Path, held_back: Release) -> None:
    """Its seal is right: only the log, whose lines are keyed, says which one was the last."""
    audit_of(held_back)
    first = {name: (held_back.audit / name).read() for name in held_back.audit.list_files()}
    audit_of(held_back, sample=20)
    assert audit_files.read(held_back) is not None
    for name, data in first.items():
        (held_back.audit / name).write(data)
    with pytest.raises(IntegrityError, match="is not of the last audit in the event log: run `anonymizer audit` again"):
        run(config_of(tmp_path, policy=POLICY))
    assert not held_back.is_published
    lines = held_back.event_log.read().splitlines(keepends=True)
    held_back.event_log.write(b"".join(line for line in lines if b'"audited"' not in line))
    with pytest.raises(IntegrityError):
        audit_files.read(held_back)


def test_the_audit_of_another_release_is_not_believed(tmp_path: Path, held_back: Release) -> None:
    audit_of(held_back)
    other = run(settings(tmp_path / "in/list.jsonl", tmp_path / "other", source={"id": "id", "drop": ["*"]}))
    for name in held_back.audit.list_files():
        (other.audit / name).write((held_back.audit / name).read())
    with pytest.raises(IntegrityError, match="is not what was written with the custodian's key"):
        audit_files.read(other)


def test_verification_finds_a_changed_audit(release: Release) -> None:
    def findings() -> list[str]:
        config = plan.resolve_config(release)
        return [f.result for f in check_restricted(release, config, KEY) if f.check == "audit"]

    assert findings() == []
    audit_of(release)
    assert findings() == ["pass"]
    document = (release.audit / "audit.json").read()
    (release.audit / "audit.json").write(document.replace(b'"changed": 0', b'"changed": 1'))
    assert findings() == ["fail"]
    (release.audit / "audit.json").write(document.replace(b"hmac", b"past").replace(b"sha256:", b""))
    assert findings() == ["note"], "as an audit of an earlier version"


def test_without_the_key_no_audit_is_believed(held_back: Release) -> None:
    audit_of(held_back)
    assert audit_files.read(held_back) is not None and audit_files.read(Release(held_back.root)) is None
