"""Taking people out: nothing of them is left but what says so, and what was stopped is finished by the same command."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyrage
import pytest

from anonymizer.attest import revocation
from anonymizer.attest.verify import check_public
from anonymizer.config import RestrictedConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import (
    AnonymizerError,
    CustodianKeyError,
    GateError,
    OutputError,
    SigningKeyError,
    StepError,
    UsageError,
)
from anonymizer.records import Scores
from anonymizer.release import event_log, history, plan, publish, retention, succession
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.jobs import erase as erase_job
from flows.jobs.erase import ErasureSummary
from tests.support.interruptions import Stop, named, stop_at
from tests.support.planted_leaks import seen_in
from tests.support.prefect_database import cells, wait_for
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    PlainScorer,
    Unscored,
    folder_of,
    follow,
    listing,
    manifest,
    outputs,
    picture,
    plain,
    rows,
    run,
    settings,
    tree,
    verification_failures,
    write_restricted_report,
)

PUBLISHER, ALICE = signing.generate_key_pair(), signing.generate_key_pair()
ADA = "Ada_Zz7x"  # not to be found anywhere by chance
SCORER = Unscored(Scores())
EVENTS_LOCK = "restricted/.events.lock"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, ``in``, and the release that was made from it, ``old``: copied for each test.

    Ada with two photos, one that is held back, and one that is none; a copy of hers with Ben, who has two more.
    """
    ada = {f"{ADA}/0.png": picture(0), f"{ADA}/1.png": picture(1), f"{ADA}/black.png": plain(0)}
    ben = {"Ben/copy.png": picture(0), "Ben/2.png": picture(2), "Ben/black.png": plain(1)}
    folder = tmp_path_factory.mktemp("made")
    source = folder_of(folder / "in", ada | ben | {f"{ADA}/bad.png": GARBAGE, "Cyd/3.png": picture(3)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
        released(source, folder / "old")
    return folder


@pytest.fixture
def source(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made / "in", tmp_path / "in"))


def released(source: Path | str, output: Path | str, /, *overrides: str, **sections: Any) -> Release:
    """A release with all papers, and with what errors and audits leave behind."""
    subject = {"source": {"subject": "folder"}} if Path(str(source)).is_dir() else {}
    config = settings(source, output, *overrides, **(subject | sections))
    release = run(config, scorer=SCORER)
    write_restricted_report(release, config)
    (release.errors / "shard-00000.txt").write_uncommitted(f"went wrong with {ADA}/0.png".encode())
    (release.audit / "found.parquet").write_uncommitted(parquet.to_bytes(pa.table({"record_id": [f"{ADA}/0.png"]})))
    return release


@pytest.fixture
def old(tmp_path: Path, made: Path) -> Release:
    """A copy of it that was made where it lies."""
    old = Release.at(str(shutil.copytree(made / "old", tmp_path / "old")), KEY)
    plan.write(old, replace(plan.read(old), output=str(tmp_path / "old")))
    return old


def names(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "withdrawn.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def erase(old: Release, new: Path | str, file: Path) -> ErasureSummary:
    return erase_job.run(str(old.root), file, str(new))


def marks(release: Release, whose: Callable[[dict[str, Any]], bool]) -> tuple[set[bytes], set[bytes]]:
    """Names and pictures of some records; and the ids and digests of what was public."""
    data = {name: picture for name, (_, picture) in outputs(release).items()}
    mine = [row for row in rows(release) if whose(row)]
    document = {ADA.encode()} | {row["record_id"].encode() for row in mine}
    for row in mine:
        if row["record_id"] in data:
            document |= {data[row["record_id"]], base64.b64encode(data[row["record_id"]])[8:-8]}
    ids = {row[name].encode() for row in mine for name in ("output_id", "sha256", "source_hmac") if row[name]}
    return document, ids


def found_in(folder: Path, marked: set[bytes]) -> dict[str, list[bytes]]:
    """Files below a folder -> what of the marks is in them, packed or not."""
    views = {name: seen_in(name, data) for name, data in tree(folder).items()}
    hits = {name: [mark for mark in marked if any(mark in view for view in seen)] for name, seen in views.items()}
    return {name: found for name, found in hits.items() if found}


# -- what is left -----------------------------------------------------------------------------------------------------


def test_of_a_person_who_is_erased_nothing_is_left_but_what_revokes_and_keeps_away(
    tmp_path: Path, old: Release
) -> None:
    document, ids = marks(old, lambda row: row["subject"] == ADA or row["record_id"] == "Ben/copy.png")
    everywhere = {name.partition("-")[0] for name in found_in(tmp_path / "old", document | ids)}
    assert everywhere > {
        *("public/manifest.parquet", "restricted/ledger/shard", "restricted/plan/shard", "restricted/errors/shard"),
        *("restricted/report.html", "restricted/audit/found.parquet"),
    }
    kept = {name: one for name, one in outputs(old).items() if name in ("Ben/2.png", "Cyd/3.png")}

    done = erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    assert done == ErasureSummary(released=2, erased=5, pending=0, revoked=3, published=True, standing="published")
    new = Release.at(str(tmp_path / "new"))
    assert outputs(new) == kept
    assert {row["record_id"] for row in rows(new)} == {"Ben/2.png", "Ben/black.png", "Cyd/3.png"}
    assert verification_failures(new) == []

    assert set(tree(tmp_path / "old")) == {"restricted/events.jsonl"}
    assert found_in(tmp_path / "old", document | ids) == {}
    assert found_in(tmp_path / "new", document) == {}
    lists = {"public/revocations.intoto.jsonl", "restricted/revocations.intoto.jsonl", "restricted/erased.parquet"}
    assert set(found_in(tmp_path / "new", ids)) == lists
    assert new.report.exists() and not new.errors.exists() and not new.audit.exists()


def test_the_revocation_list_names_each_picture_once_and_is_signed(tmp_path: Path, old: Release) -> None:
    public = {row["output_id"]: row["sha256"] for row in manifest(old).to_pylist()}
    mine = {outputs(old)[name][0] for name in (f"{ADA}/0.png", f"{ADA}/1.png", "Ben/copy.png")}
    erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    (signed,) = revocation.read(StoragePath.from_uri(str(tmp_path / "new" / "public")))
    assert signed.digests == {output_id: public[output_id] for output_id in mine}
    assert signed.is_signed_by(PUBLISHER.public_key)


def test_a_record_goes_with_all_copies_of_its_original_and_with_no_other(tmp_path: Path, old: Release) -> None:
    done = erase(old, tmp_path / "new", names(tmp_path, f"  {ADA}/0.png  ", ""))
    assert (done.erased, done.revoked, done.released) == (2, 2, 3)
    left = {row["record_id"] for row in rows(Release.at(str(tmp_path / "new")))}
    assert f"{ADA}/1.png" in left and not {f"{ADA}/0.png", "Ben/copy.png"} & left


def test_what_was_held_back_goes_too_and_the_rest_of_it_stays(tmp_path: Path, old: Release) -> None:
    ids = {row["record_id"]: row["output_id"] for row in rows(old) if row["status"] == "quarantined"}
    kept = tree(old.quarantine.path)[f"{ids['Ben/black.png']}.png"]
    assert erase(old, tmp_path / "new", names(tmp_path, f"{ADA}/black.png")).revoked == 0
    new = Release.at(str(tmp_path / "new"))
    assert tree(new.quarantine.path) == {f"{ids['Ben/black.png']}.png": kept}
    assert "public/revocations.intoto.jsonl" not in tree(tmp_path / "new")  # nobody outside has had it
    assert verification_failures(new) == []


def head(release: Release) -> event_log.ChainHead:
    lines = release.event_log.read().splitlines()
    return event_log.ChainHead(len(lines), hashlib.sha256(lines[-1]).hexdigest())


def test_what_was_held_back_stays_encrypted(tmp_path: Path, source: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    old = released(source, tmp_path / "old", restricted={"recipients": [str(identity.to_public())]})
    before = tree(old.quarantine.path)
    erase(old, tmp_path / "new", names(tmp_path, f"{ADA}/black.png"))
    new = Release.at(str(tmp_path / "new"))
    (kept,) = tree(new.quarantine.path).items()
    assert kept in before.items() and kept[0].endswith(".png.age") and verification_failures(new) == []
    assert new.encrypted_report.exists() and not new.report.exists()


def test_both_logs_name_what_was_destroyed_and_its_successor(tmp_path: Path, old: Release) -> None:
    files = tree(old.root.path)
    before = head(old)
    erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    new = Release.at(str(tmp_path / "new"))
    assert event_log.contains_head(old, before)
    last, end = event_log.read(old)[-2:], head(old)
    assert [event["event"] for event in last] == ["destroying", "destroyed"]
    gone = [name for name in files if not name.endswith((".lock", "events.jsonl"))]
    assert last[0]["details"]["files"] >= len(gone) and last[0]["details"]["bytes"] > 10_000
    published = next(e for e in event_log.read(new) if e["event"] == "published")
    assert last[0]["details"]["successor"] == published["details"]["statement"]
    done = next(e for e in event_log.read(new) if e["event"] == "predecessor destroyed")
    assert done["details"]["events"] == {"count": end.count, "hash": end.hash}
    with pytest.raises(OutputError, match="it was erased"):
        plan.read(old)


def test_columns_name_people_too(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(4)})
    items = [{"image": f"{i}.png", "who": [ADA, "Ben"][i % 2], "id": f"r{i}"} for i in range(4)]
    source = {"id": "id", "subject": "who", "label": "who", "drop": ["*"]}
    old = released(listing(tmp_path / "in", items), tmp_path / "old", source=source)
    assert erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}")).erased == 2
    new = Release.at(str(tmp_path / "new"))
    assert found_in(tmp_path / "new", {ADA.encode()}) == {} and manifest(new)["label"].to_pylist() == ["Ben"] * 2
    assert verification_failures(new) == []


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_people_are_taken_out_of_every_layout(tmp_path: Path, source: Path, form: str) -> None:
    old = released(source, tmp_path / "old", output={"format": form})
    kept = outputs(old)
    erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    new = Release.at(str(tmp_path / "new"))
    assert (
        outputs(new) == {name: kept[name] for name in ("Ben/2.png", "Cyd/3.png")} and verification_failures(new) == []
    )


def test_all_people_can_be_erased(tmp_path: Path, old: Release) -> None:
    done = erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}", "subject:Ben", "subject:Cyd"))
    assert (done.released, done.erased, done.revoked) == (0, 8, 5)
    new = Release.at(str(tmp_path / "new"))
    assert len(manifest(new)) == 0 and rows(new) == [] and verification_failures(new) == []


def test_people_are_erased_on_an_object_store(tmp_path: Path, source: Path, store: Any) -> None:
    old = released(source, "memory://bucket/old")
    kept = outputs(old)
    file = names(tmp_path, f"subject:{ADA}")
    assert erase(old, "memory://bucket/new", file) == erase(old, "memory://bucket/new", file)
    new = Release.at("memory://bucket/new")
    assert outputs(new) == {name: kept[name] for name in ("Ben/2.png", "Cyd/3.png")}
    assert old.root.list_files() == ["restricted/events.jsonl"]
    assert [f for f in check_public(new.public) if f.result == "fail"] == []


# -- afterwards -------------------------------------------------------------------------------------------------------


def test_erased_people_stay_away_from_later_releases(tmp_path: Path, source: Path, old: Release) -> None:
    erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}", "Cyd/3.png"))
    folder_of(source, {f"{ADA}/later.png": picture(50), "Dan/again.png": picture(3), "Dan/4.png": picture(4)})
    config = follow(str(tmp_path / "new"), source, tmp_path / "march", source={"subject": "folder"})
    march = run(config, scorer=SCORER)
    ended = {row["record_id"]: (row["status"], row["reason"]) for row in rows(march)}
    gone = [f"{ADA}/0.png", f"{ADA}/later.png", f"{ADA}/black.png", f"{ADA}/bad.png", "Cyd/3.png", "Dan/again.png"]
    assert {ended[name] for name in (*gone, "Ben/copy.png")} == {("failed", "withdrawn")}
    assert set(outputs(march)) == {"Ben/2.png", "Dan/4.png"} and verification_failures(march) == []
    for row in rows(march):
        if row["reason"] == "withdrawn":
            assert {row[name] for name in ("subject", "label", "output_id", "sha256", "clip_similarity")} == {None}


def test_revocations_add_up_over_erasures_and_go_on_with_the_releases(
    tmp_path: Path, source: Path, old: Release
) -> None:
    ids = {name: output_id for name, (output_id, _) in outputs(old).items()}
    erase(old, tmp_path / "second", names(tmp_path, f"{ADA}/1.png"))
    second = Release.at(str(tmp_path / "second"))
    erase(second, tmp_path / "third", names(tmp_path, "subject:Cyd"))
    third = Release.at(str(tmp_path / "third"))
    march = run(follow(third, source, tmp_path / "march", source={"subject": "folder"}), scorer=SCORER)
    for release in (third, march):
        first, then = (set(one.digests) for one in revocation.read(release.public))
        assert (first, then) == ({ids[f"{ADA}/1.png"]}, {ids["Cyd/3.png"]})
        assert verification_failures(release) == []
    assert parquet.read(march.erased).equals(parquet.read(third.erased)) and len(parquet.read(third.erased)) == 4
    assert set(tree(tmp_path / "second")) == {"restricted/events.jsonl"}
    assert set(outputs(march)) == {f"{ADA}/0.png", "Ben/copy.png", "Ben/2.png"}
    assert {outputs(march)[name][1] for name in (f"{ADA}/0.png", "Ben/copy.png")} == {outputs(third)["Ben/copy.png"][1]}


def test_people_are_erased_from_a_release_with_reused_images(tmp_path: Path, source: Path, old: Release) -> None:
    folder_of(source, {f"{ADA}/9.png": picture(9)})
    bound = {"scores": {"lpips": {"min": sorted(row["lpips"] for row in rows(old) if row["lpips"])[1]}}}
    copied = f"previous_statement={history.statement_digest_at(str(old.root))}"
    config = follow(old, source, tmp_path / "february", copied, policy=bound, source={"subject": "folder"})
    february = run(config, scorer=SCORER)
    held = [row for row in rows(february) if row["kept"] and row["status"] == "quarantined"]
    assert held and any(not row["kept"] for row in rows(february))
    kept = {name: one for name, one in outputs(february).items() if not name.startswith(ADA) and name != "Ben/copy.png"}
    erase(february, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    new = Release.at(str(tmp_path / "new"))
    assert outputs(new) == kept and verification_failures(new) == []
    assert [one.root.name for one in history.predecessors(new)] == ["old"]  # where the same people still are
    weaker = {"weaker_than_previous": "no bound is needed"}
    march = run(follow(new, source, tmp_path / "march", policy=weaker, source={"subject": "folder"}), scorer=SCORER)
    assert all(outputs(march)[name][1] == one[1] for name, one in outputs(old).items() if name in outputs(march))
    assert not [name for name in outputs(march) if name.startswith(ADA)]


def test_an_erasure_does_not_extend_retention(tmp_path: Path, source: Path, old: Release) -> None:
    begun = retention.retention_start(old)
    erase(old, tmp_path / "second", names(tmp_path, f"{ADA}/1.png"))
    erase(Release.at(str(tmp_path / "second")), tmp_path / "third", names(tmp_path, f"{ADA}/0.png"))
    third = Release.at(str(tmp_path / "third"))
    assert begun is not None and retention.retention_start(third) == begun
    march = run(follow(third, source, tmp_path / "march"), scorer=SCORER)
    assert (retention.retention_start(march) or begun) > begun  # another release, with a time of its own


def test_what_was_purged_does_not_come_back(tmp_path: Path, old: Release) -> None:
    begun = retention.retention_start(old)
    assert begun is not None
    retention.purge(old, RestrictedConfig(picture_days=0), begun)
    erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    new = Release.at(str(tmp_path / "new"))
    assert not new.report.exists() and not new.quarantine.exists() and new.is_complete
    assert verification_failures(new) == [] and set(retention.read_purged(new)) == {"pictures"}


# -- what is refused --------------------------------------------------------------------------------------------------


def refusal(old: Release, new: Path | str, file: Path, kind: type[AnonymizerError] = UsageError) -> str:
    """The one line that is said, by the check and by the work, before anything is written."""
    before = tree(old.root.path), tree(new)
    lines = set()
    for work in (erase_job.check, erase_job.run):
        with pytest.raises(kind) as caught:
            work(str(old.root), file, str(new))
        lines.add(str(caught.value))
    assert (tree(old.root.path), tree(new)) == before and ADA not in str(lines)
    (line,) = lines
    assert "\n" not in line
    return line


def test_a_name_that_is_not_in_the_release_is_reported_by_its_line_only(tmp_path: Path, old: Release) -> None:
    file = names(tmp_path, f"{ADA}/0.png", "", f"{ADA}/typo.png", "subject:Ben", f"subject:{ADA}x")
    line = refusal(old, tmp_path / "new", file)
    assert line.startswith("--records: lines 3, 5: no such record or subject in the release: see record_id")
    many = names(tmp_path, *(f"typo {i}" for i in range(40)))
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...: no such" in refusal(old, tmp_path / "new", many)
    assert "line 2: no such" in refusal(old, tmp_path / "new", names(tmp_path, "Ben/2.png", "typo"))
    assert not (tmp_path / "new").exists()


def test_an_empty_or_missing_list_is_refused(tmp_path: Path, old: Release) -> None:
    assert "names nobody" in refusal(old, tmp_path / "new", names(tmp_path, "  ", ""))
    assert "cannot be read" in refusal(old, tmp_path / "new", tmp_path / "nowhere.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(old, tmp_path / "new", tmp_path / "binary")


def test_a_list_that_was_saved_on_another_system_is_read(tmp_path: Path, old: Release) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"{ADA}/0.png\r\nsubject: Cyd\r\n".encode())
    assert erase(old, tmp_path / "new", tmp_path / "list.txt").erased == 3


def test_nothing_is_begun_without_the_keys(tmp_path: Path, old: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    file = names(tmp_path, f"subject:{ADA}")
    monkeypatch.setenv("ANONYMIZER_KEY", HEX[::-1])
    assert "not the key that" in refusal(old, tmp_path / "new", file, CustodianKeyError)
    monkeypatch.delenv("ANONYMIZER_KEY")
    assert "not the key that" in refusal(old, tmp_path / "new", file, CustodianKeyError)
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.delenv("ANONYMIZER_SIGNING_KEY")
    line = refusal(old, tmp_path / "new", file, SigningKeyError)
    assert line.startswith("ANONYMIZER_SIGNING_KEY: not set, and a revocation is signed")


@pytest.mark.parametrize("where", ["old", "old/", "old/../old", "old/new", "old/restricted/audit/new"])
def test_the_new_release_is_not_written_into_the_old_one(tmp_path: Path, old: Release, where: str) -> None:
    assert "is the release itself, or lies in it" in refusal(old, tmp_path / where, names(tmp_path, "Ben/2.png"))


def test_an_output_that_holds_something_else_is_refused(tmp_path: Path, source: Path, old: Release) -> None:
    file = names(tmp_path, f"subject:{ADA}")
    folder_of(tmp_path / "full", {"diary.txt": b"x"})
    assert "is not empty" in refusal(old, tmp_path / "full", file)
    copied = f"previous_statement={history.statement_digest_at(str(old.root))}"
    run(follow(old, source, tmp_path / "february", copied), scorer=SCORER)  # follows the old one, and erases nobody
    assert "is another release" in refusal(old, tmp_path / "february", file)
    run(settings(source, tmp_path / "alone"), scorer=SCORER)
    assert "is another release" in refusal(old, tmp_path / "alone", file)


def test_what_is_no_published_release_with_records_is_refused(tmp_path: Path, source: Path, old: Release) -> None:
    file = names(tmp_path, f"{ADA}/0.png")
    assert "it is not a release" in refusal(Release.at(str(tmp_path / "nowhere")), tmp_path / "new", file)
    shutil.move(old.public.path, old.candidate.path)
    assert "is not published: remove its folder" in refusal(old, tmp_path / "new", file)
    shutil.move(old.candidate.path, old.public.path)
    begun = retention.retention_start(old)
    assert begun is not None
    retention.purge(old, RestrictedConfig(record_days=0), begun)
    assert "its records were purged" in refusal(old, tmp_path / "new", file)


# -- gates, approvals, stops ------------------------------------------------------------------------------------------


def without_log(release: Release) -> dict[str, bytes]:
    """The files of a release, but for its log, which says what is under way."""
    files = tree(release.root.path)
    return {name: data for name, data in files.items() if name not in ("restricted/events.jsonl", EVENTS_LOCK)}


def test_the_old_release_stays_until_the_new_one_is_approved(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"approvals": 1, "approvers": {"alice": signing.format_public_key(ALICE.public_key)}}
    old = released(source, tmp_path / "old", policy=policy)
    publish.approve(old, ALICE)
    before, file = without_log(old), names(tmp_path, f"subject:{ADA}")
    for _ in range(2):
        done = erase(old, tmp_path / "new", file)
        assert not done.published and "0 of 1 approvals" in done.standing
        assert (done.erased, done.revoked, done.pending) == (0, 0, 5)
        assert without_log(old) == before
    new = Release.at(str(tmp_path / "new"))
    monkeypatch.delenv("ANONYMIZER_KEY")  # which approvers do not have
    assert publish.approve(new, ALICE).is_published
    assert set(tree(tmp_path / "old")) == {"restricted/events.jsonl"}
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    assert erase(old, tmp_path / "new", file).erased == 5 and verification_failures(new) == []


def test_a_gate_that_does_not_let_the_new_release_out_leaves_the_old_one(tmp_path: Path, source: Path) -> None:
    old = released(source, tmp_path / "old", policy={"min_released": 3})
    before, file = without_log(old), names(tmp_path, f"subject:{ADA}")
    for _ in range(2):
        with pytest.raises(GateError, match="min_released"):
            erase(old, tmp_path / "new", file)
        assert without_log(old) == before and not Release.at(str(tmp_path / "new")).is_published


def test_a_new_release_that_does_not_verify_leaves_the_old_one(
    tmp_path: Path, old: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = names(tmp_path, f"subject:{ADA}")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, succession, "finish")
        erase(old, tmp_path / "new", file)
    before = tree(old.root.path)
    damaged = next(Path(tmp_path / "new" / "public").rglob("*.png"))
    data = damaged.read_bytes()
    damaged.write_bytes(b"x")
    with pytest.raises(AnonymizerError, match="the old one was left as it is"):
        erase(old, tmp_path / "new", file)
    assert tree(old.root.path) == before
    damaged.write_bytes(data)
    assert erase(old, tmp_path / "new", file).published and set(tree(tmp_path / "old")) == {"restricted/events.jsonl"}


POINTS: dict[str, tuple[Any, str, Any, bool]] = {
    "before anything": (StoragePath, "write", named("/new/restricted/config.yaml"), False),
    "after its settings": (StoragePath, "write", named("/new/restricted/config.yaml"), True),
    "while the plan is copied": (StoragePath, "write_uncommitted", named("/new/restricted/plan/shard-00001"), False),
    "while the ledger is copied": (StoragePath, "write", named("/new/restricted/ledger/shard-00001"), False),
    "while quarantine is copied": (StoragePath, "write_uncommitted", named("/new/restricted/quarantine/"), True),
    "before the list of the erased": (StoragePath, "write", named("/new/restricted/erased"), False),
    "after the list of the erased": (StoragePath, "write", named("/new/restricted/erased"), True),
    "after the revocations": (StoragePath, "write", named("/new/restricted/revocations"), True),
    "before the plan stands": (StoragePath, "write", named("/new/restricted/plan.json"), False),
    "after the plan stands": (StoragePath, "write", named("/new/restricted/plan.json"), True),
    "while pictures are staged": (StoragePath, "write_uncommitted", named("/new/restricted/staging/"), True),
    "after the candidate appeared": (StoragePath, "move_to", named("/new/restricted/assembling/"), True),
    "before the report": (StoragePath, "write", named("/new/restricted/report.html"), False),
    "after the policy was asked": (StoragePath, "write", named("/new/restricted/decisions"), True),
    "before public/ appears": (StoragePath, "move_to", named("/new/restricted/candidate"), False),
    "after public/ appeared": (StoragePath, "move_to", named("/new/restricted/candidate"), True),
    "before the old one goes": (StoragePath, "remove", named("/old/public"), False),
    "after the old pictures went": (StoragePath, "remove", named("/old/public"), True),
    "after the old settings went": (StoragePath, "remove", named("/old/restricted/config.yaml"), True),
    "after the old plan went": (StoragePath, "remove", named("/old/restricted/plan.json"), True),
    "before the old report goes": (StoragePath, "remove", named("/old/restricted/report.html"), False),
    "when all of it went": (StoragePath, "remove", named("/old/restricted/.events.lock"), False),
}


@pytest.mark.parametrize("point", POINTS)
def test_an_erasure_that_was_stopped_is_finished_by_the_same_command(tmp_path: Path, old: Release, point: str) -> None:
    kept, file = outputs(old), names(tmp_path, f"subject:{ADA}")
    document, _ = marks(old, lambda row: row["subject"] == ADA)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, *POINTS[point])
        erase(old, tmp_path / "new", file)
    new = Release.at(str(tmp_path / "new"))
    if not new.is_published:
        assert outputs(old) == kept  # whole, while nothing has taken its place
    assert erase(old, tmp_path / "new", file).erased == 5
    assert (
        outputs(new) == {name: kept[name] for name in ("Ben/2.png", "Cyd/3.png")} and verification_failures(new) == []
    )
    assert set(tree(tmp_path / "old")) == {"restricted/events.jsonl"} and set(found_in(tmp_path, document)) == {
        "withdrawn.txt"
    }
    assert [set(one.digests) for one in revocation.read(new.public)] == [
        {kept[name][0] for name in (f"{ADA}/0.png", f"{ADA}/1.png", "Ben/copy.png")}
    ]
    assert event_log.read(old)[-1]["event"] == "destroyed"


def test_what_is_done_is_not_done_again(tmp_path: Path, old: Release) -> None:
    file = names(tmp_path, f"subject:{ADA}")
    done = erase(old, tmp_path / "new", file)
    before = tree(tmp_path)
    assert erase(old, tmp_path / "new", file) == done
    assert tree(tmp_path) == before


def test_an_erasure_that_was_begun_is_not_finished_with_other_people(tmp_path: Path, old: Release) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, *POINTS["after the plan stands"])
        erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    held = {row["output_id"].encode() for row in rows(old) if row["record_id"] == f"{ADA}/black.png"}
    assert found_in(tmp_path / "new", {ADA.encode(), *held}) == {}  # not even for a while
    line = refusal(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}", "Ben/2.png"))
    assert line.startswith("--records: line 2: not among those whose erasure was begun here")
    assert erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}")).published


def test_an_erasure_that_was_stopped_early_may_go_on_with_other_people(tmp_path: Path, old: Release) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, *POINTS["after the list of the erased"])
        erase(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"))
    assert erase(old, tmp_path / "new", names(tmp_path, "Cyd/3.png")).erased == 1
    new = Release.at(str(tmp_path / "new"))
    assert (
        parquet.read(new.erased)["kind"].to_pylist().count("original") == 1
        and set(outputs(new)) == {*outputs(new), f"{ADA}/0.png"}
        and verification_failures(new) == []
    )


# -- by the flow ------------------------------------------------------------------------------------------------------


def test_the_scheduler_gets_counts_and_no_name(
    tmp_path: Path, old: Release, prefect_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.erase import erase as flow

    document, ids = marks(old, lambda row: row["subject"] == ADA)
    file = names(tmp_path, f"subject:{ADA}")
    typo = tmp_path / "typo.txt"
    typo.write_text(f"{ADA}/typo.png")
    with pytest.raises(StepError, match="erase: failed, run the same command again"):
        flow(str(old.root), str(typo), str(tmp_path / "new"))
    assert found_in(tmp_path / "new", document) == {}  # not even where the error is explained
    shutil.rmtree(tmp_path / "new")
    assert flow(str(old.root), str(file), str(tmp_path / "new"))["erased"] == 5
    assert wait_for(lambda: any("5 records erased" in str(value) for _, _, value in cells(prefect_home)))
    kept = b"\n".join(value if isinstance(value, bytes) else str(value).encode() for _, _, value in cells(prefect_home))
    assert not [mark for mark in document | ids if mark in kept]
    assert ADA not in caplog.text


def test_a_release_whose_key_was_thrown_away_is_not_erased_from(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing seals it: whoever can write to its storage could have changed who is in it."""
    monkeypatch.delenv("ANONYMIZER_KEY")
    config = settings(source, tmp_path / "old", source={"subject": "folder"})
    old = run(config, scorer=PlainScorer(), key=CustodianKey(KEY.secret, is_persistent=False))
    assert json.loads(old.plan.read())["key_check"] is None
    for reason in (
        "was made without a custodian's key, and nothing seals who is in it: remove it, and make another",
        "unset it if the release was made without a key",
    ):
        line = refusal(old, tmp_path / "new", names(tmp_path, f"subject:{ADA}"), CustodianKeyError)
        assert reason in line
        monkeypatch.setenv("ANONYMIZER_KEY", HEX)


def test_a_new_release_in_the_source_is_refused(tmp_path: Path, old: Release) -> None:
    """Its pictures would be originals of the next month."""
    source = Path(plan.resolve_config(old).source.uri)
    line = refusal(old, source / "new", names(tmp_path, f"subject:{ADA}"), OutputError)
    assert "lies inside the source: outputs would become inputs" in line
