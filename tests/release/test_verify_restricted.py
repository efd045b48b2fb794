"""Changes to the restricted half of a release are found."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from anonymizer import config as configuration
from anonymizer.attest import dsse
from anonymizer.attest.verify import Finding
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.release import event_log, publish
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from tests.support.releases import (
    KEY,
)
from tests.support.signed_release import (
    GREY,
    encode_image,
    failed_checks,
    failures,
    replace_image,
    with_column,
)


def check_both(release: Release, key: CustodianKey = KEY) -> list[Finding]:
    text = release.config.read().decode()
    config = configuration.build(configuration.parse(text, "config.yaml"))
    found = list(check_restricted(release, config, key))
    assert all(len(f.message.splitlines()) == 1 and f.message.isprintable() for f in found)
    return found


def test_both_halves_of_an_untouched_release_agree(signed_release: Release) -> None:
    found = check_both(signed_release)
    assert [(f.check, f.result) for f in found] == [
        (name, "pass") for name in ("modes", "events", "decision", "ledger", "materials", "settings", "quarantine")
    ]
    assert "8 read, 6 released, 1 quarantined, 1 failed, and no other" in {finding.message for finding in found}


def change_shard(release: Release, change: Callable[[pa.Table], pa.Table], shard: int = 0) -> None:
    table = parquet.read(release.shard_ledger(shard))
    release.shard_ledger(shard).write(parquet.to_bytes(change(table)))


def swap_shards(release: Release) -> None:
    first, second = release.shard_ledger(0).read(), release.shard_ledger(1).read()
    release.shard_ledger(0).write(second)
    release.shard_ledger(1).write(first)


def replace_log(release: Release) -> None:
    release.event_log.remove()
    for _ in range(20):
        event_log.record(release, "planned", records=8)


def open_to_others(release: Release) -> None:
    os.chmod(release.shard_ledger(0).path, 0o644)


def quarantined_file(release: Release) -> StoragePath:
    (place,) = release.quarantine.children()
    return place


RESTRICTED: Mapping[str, tuple[Callable[[Release], object], set[str]]] = {
    "a row less": (lambda r: change_shard(r, lambda t: t.slice(1)), {"ledger"}),
    "a row twice": (lambda r: change_shard(r, lambda t: pa.concat_tables([t, t.slice(0, 1)])), {"ledger"}),
    "another score": (lambda r: change_shard(r, lambda t: with_column(t, "lpips", [0.5] * len(t))), {"ledger"}),
    "another digest": (lambda r: change_shard(r, lambda t: with_column(t, "sha256", ["0" * 64] * len(t))), {"ledger"}),
    "other originals": (
        lambda r: change_shard(r, lambda t: with_column(t, "source_hmac", ["0" * 64] * len(t))),
        {"ledger", "materials"},
    ),
    "other columns": (lambda r: change_shard(r, lambda t: t.drop_columns(["kept"])), {"ledger"}),
    "shards swapped": (swap_shards, {"ledger"}),
    "a shard missing": (lambda r: r.shard_ledger(1).remove(), {"ledger"}),
    "a shard of garbage": (lambda r: r.shard_ledger(1).write(b"garbage"), {"ledger"}),
    "no ledger": (lambda r: r.ledger.remove(), {"ledger"}),
    "garbage on what was purged": (lambda r: (r.ledger.remove(), r.purged.write(b"records")), {"ledger"}),
    "a plan of garbage": (lambda r: r.plan.write(b"[]"), {"ledger"}),
    "a plan of other types": (
        lambda r: r.plan.write(json.dumps(json.loads(r.plan.read()) | {"shards": "many"}).encode()), {"ledger"},
    ),
    "entries of garbage": (lambda r: r.shard_plan(0).write(b"{"), {"ledger"}),
    "the log of another release": (replace_log, {"events", "ledger"}),
    "no log": (lambda r: r.event_log.remove(), {"events", "ledger"}),
    "a log that is cut": (
        lambda r: r.event_log.write(b"".join(r.event_log.read().splitlines(keepends=True)[:2])), {"events", "ledger"},
    ),
    "a log with a line changed": (
        lambda r: r.event_log.write(r.event_log.read().replace(b'"records": 8', b'"records": 9')), {"events", "ledger"},
    ),
    "open to others": (open_to_others, {"modes"}),
    "a strange file in quarantine": (lambda r: (r.quarantine / "more.png").write_uncommitted(b"more"), {"quarantine"}),
    "quarantine emptied": (lambda r: quarantined_file(r).remove(), {"quarantine"}),
    "another file in quarantine": (lambda r: quarantined_file(r).write_uncommitted(b"other"), {"quarantine"}),
    "another statement": (lambda r: r.statement.write(b"{}"), {"ledger"}),
}  # fmt: skip


@pytest.mark.parametrize("what", RESTRICTED)
def test_changes_to_the_restricted_half_are_detected(signed_release: Release, what: str) -> None:
    change, expected = RESTRICTED[what]
    change(signed_release)
    assert failures(check_both(signed_release)) == expected


def test_a_wrong_custodian_key_fails_and_a_missing_one_is_noted(signed_release: Release) -> None:
    wrong, none = CustodianKey(bytes(range(1, 33))), CustodianKey(bytes(range(32)), is_persistent=False)
    assert failures(check_both(signed_release, wrong)) == {"materials"}
    assert [(f.check, f.result) for f in check_both(signed_release, none) if f.result != "pass"] == [
        ("materials", "note")
    ]


PLANNED = {"level": 0.9, "t_boom": 7, "T": 7, "log_snr": -9.0, "sampler": "ddim", "steps": 99, "model": "another/model"}


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_that_says_otherwise_than_the_statement_fails_without_the_key_too(
    signed_release: Release, name: str
) -> None:
    plan = json.loads(signed_release.plan.read())
    signed_release.plan.write(json.dumps(plan | {name: PLANNED[name]}).encode())
    none = CustodianKey(bytes(range(32)), is_persistent=False)
    assert failures(check_both(Release(signed_release.root), none)) == {"settings"}


def test_a_sealed_release_cannot_pretend_that_it_was_made_without_a_key(signed_release: Release) -> None:
    """Nothing would be checked of its seals."""
    plan = json.loads(signed_release.plan.read())
    signed_release.plan.write(json.dumps(plan | {"key_check": None}).encode())
    none = CustodianKey(bytes(range(32)), is_persistent=False)
    for key in (KEY, none):
        assert failures(check_both(Release(signed_release.root), key)) == {"materials"}


def test_purged_records_are_noted(signed_release: Release) -> None:
    signed_release.ledger.remove()
    signed_release.purged.write(json.dumps({"records": "2026-12-01"}).encode())
    assert failures(check_both(signed_release)) == {"ledger"}, "anybody can write that file: the log must say so too"
    event_log.record(signed_release, "purged", what="records", places=1)
    assert [(f.check, f.result) for f in check_both(signed_release) if f.result != "pass"] == [("ledger", "note")]


@pytest.mark.parametrize("change", ["missing", "another policy", "garbage", "not signed"])
def test_a_decision_not_signed_by_the_publisher_is_detected(signed_release: Release, change: str) -> None:
    (last,) = dsse.loads(signed_release.decision_log.read(), publish.DECISION_PREDICATE)
    if change == "missing":
        signed_release.decision_log.remove()
    elif change == "garbage":
        signed_release.decision_log.write(b"garbage")
    elif change == "not signed":
        bare = dsse.build(publish.DECISION_PREDICATE, last.digests, last.predicate, None)
        signed_release.decision_log.write(dsse.dumps([bare]))
    else:
        text = signed_release.config.read().decode()
        signed_release.config.write(re.sub(r"min_released: \d+", "min_released: 7", text).encode())
        assert text != signed_release.config.read().decode()
    assert failures(check_both(signed_release)) == {"decision"}


def test_a_replaced_image_that_is_signed_again_contradicts_the_ledger(signed_release: Release) -> None:
    replace_image(Path(signed_release.public.path), encode_image(GREY))
    assert failed_checks(Path(signed_release.public.path)) == set()
    assert {f.message for f in check_both(signed_release) if f.result == "fail"} == {
        "the last decision does not let this release out",
        "1 pictures are not those that the ledger speaks of",
    }
