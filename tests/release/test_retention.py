"""What is kept for how long: nothing goes before its day, and then all that shows an original or names a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from anonymizer.attest.verify import check_public
from anonymizer.config import RestrictedConfig
from anonymizer.crypto import signing
from anonymizer.errors import IntegrityError
from anonymizer.records import Scores
from anonymizer.release import event_log, retention
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import audit as audit_job
from flows.jobs import models
from flows.jobs import release as release_job
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.interruptions import Stop, stop_at
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    PlainScorer,
    Unscored,
    folder_of,
    people,
    plain,
    rows,
    run,
    settings,
    tree,
    write_restricted_report,
)

Cli = Callable[..., Result]
BOTH = RestrictedConfig(picture_days=30, record_days=90)
PICTURES = ["quarantine", "report.html", "audit.html", "errors"]
RECORDS = ["ledger", "plan", "report.html", "audit.html", "errors", "audit/found.parquet"]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    for module in (models, release_job):
        monkeypatch.setattr(module, "backbone_of", lambda model: IdealGaussian())
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: PlainScorer())


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder_of(people(tmp_path / "in", 3), {"bad.png": GARBAGE, "black.png": plain(0)})


def kept(source: Path, output: Path, **terms: int) -> Release:
    """A release with everything that a custodian may have in it."""
    config = settings(source, output, restricted=terms)
    release = run(config, scorer=Unscored(Scores()))
    write_restricted_report(release, config)
    for name in ("errors/shard-00000.txt", "audit.html"):
        (release.restricted / name).write_uncommitted(b"bad.png")
    (release.audit / "found.parquet").write_uncommitted(parquet.to_bytes(parquet.read(release.manifest)))
    (release.audit / "figures.parquet").write_uncommitted(b"figures")
    return release


@pytest.fixture
def release(tmp_path: Path, source: Path) -> Release:
    return kept(source, tmp_path / "out", picture_days=30, record_days=90)


def published(release: Release) -> datetime:
    """When it was signed: the last step before, which needs the custodian's key."""
    (event,) = (event for event in event_log.read(release) if event["event"] == "sealed")
    return datetime.fromisoformat(event["time"])


def workdir(release: Release) -> set[str]:
    return {name for name in {*PICTURES, *RECORDS} if (release.restricted / name).exists()}


def test_there_is_no_term_that_is_not_configured(tmp_path: Path, source: Path) -> None:
    release = kept(source, tmp_path / "out")
    years = published(release) + timedelta(days=36500)
    assert retention.list_terms(release, RestrictedConfig()) == []
    assert retention.purge(release, RestrictedConfig(), years) == []
    assert workdir(release) == {*PICTURES, *RECORDS}


def test_terms_run_from_the_day_of_publication(release: Release) -> None:
    found = {term.kind: term.until - published(release) for term in retention.list_terms(release, BOTH)}
    assert found == {"pictures": timedelta(days=30), "records": timedelta(days=90)}


def test_what_is_not_published_is_not_due(tmp_path: Path, source: Path) -> None:
    approver = {"alice": signing.format_public_key(signing.generate_key_pair().public_key)}
    config = settings(source, tmp_path / "out", policy={"approvals": 1, "approvers": approver})
    waiting = run(config, scorer=Unscored(Scores()))
    assert not waiting.is_published and retention.list_terms(waiting, BOTH) == []


@pytest.mark.parametrize("kind", ["picture_days", "record_days"])
def test_everything_goes_on_its_day_and_nothing_before(release: Release, kind: str) -> None:
    terms, day = RestrictedConfig(**{kind: 30}), published(release) + timedelta(days=30)
    assert retention.purge(release, terms, day - timedelta(milliseconds=1)) == []
    assert workdir(release) == {*PICTURES, *RECORDS} and not release.purged.exists()
    (done,) = retention.purge(release, terms, day)
    going = set(PICTURES if kind == "picture_days" else RECORDS)
    assert workdir(release) == {*PICTURES, *RECORDS} - going and done.remaining == len(going)
    assert retention.read_purged(release) == {kind.removesuffix("_days") + "s": day.date().isoformat()}
    assert retention.purge(release, terms, day + timedelta(days=9)) == []  # once


def test_pages_that_are_encrypted_go_as_well(tmp_path: Path, source: Path) -> None:
    import pyrage

    key = str(pyrage.x25519.Identity.generate().to_public())
    config = settings(source, tmp_path / "out", restricted={"recipients": [key], "picture_days": 0})
    release = run(config, scorer=Unscored(Scores()))
    write_restricted_report(release, config)
    assert release.encrypted_report.exists() and release.quarantine.exists()
    retention.purge(release, config.restricted, published(release))
    assert [name for name in tree(release.restricted.path) if name.endswith(".age")] == []


def test_purged_records_leave_no_names(tmp_path: Path, source: Path, release: Release) -> None:
    names = [row["record_id"].encode() for row in rows(release)]
    retention.purge(release, BOTH, published(release) + timedelta(days=90))
    for name, data in tree(release.root.path).items():
        if not name.endswith(("config.yaml", "plan.json")):  # which name the source, and nothing in it
            assert not [mark for mark in names if mark in data], name


def test_the_log_names_what_was_purged_and_the_release_verifies(release: Release) -> None:
    public, config = tree(release.public.path), settings("in", release.root.path, restricted=BOTH.model_dump())
    for days, what in ((30, "pictures"), (90, "records")):
        retention.purge(release, BOTH, published(release) + timedelta(days=days))
        last = event_log.read(release)[-1]
        assert (last["event"], last["details"]["what"]) == ("purged", what)
        found = [*check_public(release.public), *check_restricted(release, config, KEY)]
        assert [finding for finding in found if finding.result == "fail"] == []
    assert tree(release.public.path) == public
    assert any(finding.result == "note" and "purged" in finding.message for finding in found)
    assert (
        release.plan.exists()
        and release.config.exists()
        and release.event_log.exists()
        and release.decision_log.exists()
    )


@pytest.mark.parametrize("point", ["quarantine", "report.html", "errors"])
def test_a_purge_that_was_stopped_is_finished_by_the_next(release: Release, point: str, cli: Cli) -> None:
    day = published(release) + timedelta(days=30)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, StoragePath, "remove", lambda place: place.name == point)
        retention.purge(release, BOTH, day)
    assert json.loads(cli("status", release.root, "--json").stdout)["purged"] == {}  # nothing says that it was done
    retention.purge(release, BOTH, day)
    assert json.loads(cli("status", release.root, "--json").stdout)["purged"].keys() == {"pictures"}
    assert workdir(release) == {"ledger", "plan", "audit/found.parquet"}
    assert event_log.read(release)[-1]["event"] == "purged"


# -- by the commands --------------------------------------------------------------------------------------------------


def test_status_shows_retention_terms_and_what_is_due(tmp_path: Path, source: Path, cli: Cli) -> None:
    release = kept(source, tmp_path / "out", picture_days=0, record_days=90)
    until = published(release) + timedelta(days=90)
    text = cli("status", release.root).stdout
    assert f"{until:%Y-%m-%d}" in text and "due, see `anonymizer purge`" in text
    document = json.loads(cli("status", release.root, "--json").stdout)
    assert document["retention"] == {
        "pictures": {"until": published(release).isoformat(), "left": len(PICTURES), "due": True},
        "records": {"until": until.isoformat(), "left": len(RECORDS), "due": False},
    }
    assert document["purged"] == {}
    assert cli("purge", release.root).stdout == "Purged: pictures (4 places)\n"
    assert cli("purge", release.root).stdout == f"Nothing is due: see `anonymizer status {release.root}`\n"
    document = json.loads(cli("status", release.root, "--json").stdout)
    assert document["purged"] == {"pictures": f"{datetime.now(UTC):%Y-%m-%d}"}
    assert document["retention"]["pictures"]["due"] is False and document["read"] == 5
    assert "pictures purged on" in cli("status", release.root).stdout


def test_a_release_whose_records_were_purged_is_a_release(tmp_path: Path, source: Path, cli: Cli) -> None:
    release = kept(source, tmp_path / "out", record_days=0)
    assert json.loads(cli("purge", release.root, "--json").stdout) == {"purged": {"records": len(RECORDS)}}
    assert "its records were purged" in cli("status", release.root).stdout
    checked = cli("verify", release.root, "--json")
    assert checked.exit_code == 0 and "were purged" in checked.stdout
    assert cli("verify", release.public).exit_code == 0


def command(source: Path, release: Release, *more: str) -> list[str]:
    sets = ["boomerang.level=0.4", "boomerang.steps=2", "run.shard_size=2", "run.batch_size=2", *more]
    words = ["run", "--source", str(source), "--output", str(release.root)]
    return [*words, *(word for one in sets for word in ("--set", one))]


@pytest.mark.parametrize("term", ["picture_days", "record_days"])
def test_nothing_is_redone_of_what_was_purged(tmp_path: Path, source: Path, cli: Cli, term: str) -> None:
    release = kept(source, tmp_path / "out", **{term: 0})
    assert cli("purge", release.root).exit_code == 0
    before = tree(release.root.path)
    done = cli(*command(source, release, f"restricted.{term}=0"))
    if term == "record_days":
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "its records were purged, nothing can be redone: choose another" in done.stderr
    else:
        assert done.exit_code == 0 and "Nothing to do, this release is complete" in done.stdout
    assert tree(release.root.path) == before


def test_an_audit_of_what_was_purged_is_one_line(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    from anonymizer.config import AuditConfig

    monkeypatch.setattr(audit_job, "backbone_of", lambda model: IdealGaussian())
    retention.purge(release, BOTH, published(release) + timedelta(days=90))
    config = AuditConfig(release=str(release.root), features=("pixels",), attacks=("linkage",))
    with pytest.raises(IntegrityError, match="no records of it are here, or they were purged"):
        audit_job.run(config)


def test_status_of_a_release_with_a_damaged_log_says_so(release: Release, cli: Cli) -> None:
    log = Path(release.event_log.path)
    log.write_bytes(log.read_bytes().replace(b"sealed", b"healed"))
    said: Any = cli("status", release.root)
    assert (said.exit_code, said.stderr.count("\n")) == (1, 1) and "does not follow from the one before" in said.stderr


@pytest.mark.parametrize("event", ["verified", "published", "approved"])
def test_no_event_that_needs_no_key_moves_a_term(tmp_path: Path, source: Path, event: str) -> None:
    release = run(settings(source, tmp_path / "out"))
    begun = retention.retention_start(release)
    keyless = Release(release.root)
    for day in ("1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "not a day"):
        event_log.record(keyless, event, kept_since=day)
        assert retention.retention_start(release) == begun
