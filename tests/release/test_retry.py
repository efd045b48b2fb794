"""Failed records done again: those alone, with all else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import GateError, IntegrityError, OutputError
from anonymizer.records import Reason
from anonymizer.release import event_log, ledger, plan
from anonymizer.release.ledger import Ledger
from anonymizer.release.profiling import Profile
from anonymizer.release.retry import reopen_failed
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, Release
from anonymizer.storage.path import StoragePath
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    NotFinite,
    begin,
    folder_of,
    one_shard,
    people,
    plain,
    public_images,
    rows,
    run,
    settings,
    tree,
)

STRICT = {"max_failed": 0}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven pictures, two of which are white."""
    return folder_of(people(tmp_path / "in", 5), {"a/white.png": plain(255), "b/white.png": plain(254)})


def unwell(config: Any) -> Release:
    """A run whose model fails for white pictures, which its policy does not let out."""
    with pytest.raises(GateError):
        run(config, NotFinite())
    release = Release.at(config.output.uri, KEY)
    assert [row["reason"] for row in rows(release)].count("not_finite") == 2
    assert not release.is_published
    return release


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_only_failed_records_are_done_again_and_the_release_is_as_if_nothing_had_failed(
    tmp_path: Path, source: Path, form: str
) -> None:
    whole = run(settings(source, tmp_path / "whole", output={"format": form}, policy=STRICT))
    config = settings(source, tmp_path / "out", output={"format": form}, policy=STRICT)
    release = unwell(config)
    before = {row["record_id"]: row for row in rows(release) if row["status"] == "released"}

    assert reopen_failed(release) == 2
    assert not release.is_assembled
    model = IdealGaussian()
    run(config, model)
    assert len(model.calls) <= 2 * 2 + 2  # two steps for each shard that was opened, and a trial
    after = {row["record_id"]: row for row in rows(release)}
    assert {name: after[name] for name in before} == before  # down to when they were done
    assert {row["status"] for row in after.values()} == {"released"}
    assert public_images(release)[1].equals(public_images(whole)[1])
    assert pictures(release) == pictures(whole)
    assert {p.name for p in release.restricted.children()} == {p.name for p in whole.restricted.children()}
    assert event_log.read(release)[-1]["event"] == "published"
    took = Profile.merge(Ledger.open(release).read_profiles())
    assert took and (took.shards, took.records) == (plan.read(release).shards, 7 + 2)
    document = next(event for event in event_log.read(release) if event["event"] == "reopened")
    white = {row["shard"] for row in after.values() if row["record_id"].endswith("white.png")}
    assert document["details"] == {"records": 2, "shards": len(white)}


def pictures(release: Release) -> dict[str, bytes]:
    names = set(public_images(release)[1]["file"].to_pylist())
    return {name: data for name, data in tree(release.public.path).items() if name in names}


def test_what_fails_again_is_accounted_for_as_before(tmp_path: Path, source: Path) -> None:
    folder_of(source, {"a/broken.png": GARBAGE})
    config = settings(source, tmp_path / "out", policy=STRICT)
    release = unwell(config)
    assert reopen_failed(release) == 3
    with pytest.raises(GateError):
        run(config)
    ends = {row["record_id"]: row["reason"] for row in rows(release)}
    assert len(ends) == 8
    assert {name: reason for name, reason in ends.items() if reason} == {"a/broken.png": "not_an_image"}


def test_one_reason_is_chosen_and_the_others_stand(tmp_path: Path, source: Path) -> None:
    folder_of(source, {"a/broken.png": GARBAGE})
    config = settings(source, tmp_path / "out", policy=STRICT)
    release = unwell(config)
    was = next(row for row in rows(release) if row["reason"] == "not_an_image")
    assert reopen_failed(release, [Reason.NOT_FINITE]) == 2
    with pytest.raises(GateError):
        run(config)
    assert next(row for row in rows(release) if row["reason"]) == was
    assert reopen_failed(release, [Reason.TOO_CLOSE]) == 0
    assert release.is_assembled  # nothing was touched


def test_a_published_release_stays_as_it_was_signed(tmp_path: Path, source: Path) -> None:
    release = run(settings(source, tmp_path / "out"), NotFinite())
    before = tree(tmp_path / "out")
    with pytest.raises(OutputError, match=r"is published and stays as it was signed: make another one with .*previous"):
        reopen_failed(release)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_a_candidate_that_does_not_hold_its_pictures_any_more_is_left_as_it_is(
    tmp_path: Path, source: Path, form: str
) -> None:
    release = unwell(settings(source, tmp_path / "out", output={"format": form}, policy=STRICT))
    file = next(row for row in parquet.read(release.candidate / MANIFEST).to_pylist())["file"]
    (release.candidate / file).write(b"damaged" if form != "folder" else b"")
    if form == "folder":
        (release.candidate / file).remove()
    before = tree(release.candidate.path)
    with pytest.raises(
        IntegrityError, match=r"candidate: \d pictures are gone or cannot be read: nothing is done again"
    ):
        reopen_failed(release)
    assert tree(release.candidate.path) == before
    assert not list(release.reopened.children())
    (release.candidate / MANIFEST).write(b"damaged")
    with pytest.raises(IntegrityError, match=r"manifest\.parquet: damaged: nothing is done again"):
        reopen_failed(release)
    assert release.is_assembled


def test_a_run_that_is_not_finished_yet_does_its_failed_records_again_too(tmp_path: Path, source: Path) -> None:
    whole = run(settings(source, tmp_path / "whole"))
    config = settings(source, tmp_path / "out")
    release = begin(config)
    for shard in (0, 1):
        one_shard(config, shard, NotFinite())
    failed = sum(row["status"] == "failed" for row in rows(release))
    assert failed
    assert reopen_failed(release) == failed
    run(config)
    assert public_images(release)[0] == public_images(whole)[0]


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("method", ["write_uncommitted", "write", "move_to", "remove", "create"])
def test_a_retry_that_is_stopped_anywhere_loses_nothing(
    tmp_path: Path, source: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each of its calls of one kind in turn, until there is none left to stop at."""
    whole = run(settings(source, tmp_path / "whole", policy=STRICT))
    for number in range(40):
        config = settings(source, tmp_path / f"out-{number}", policy=STRICT)
        release = unwell(config)
        calls, real = iter(range(1000)), getattr(StoragePath, method)

        def stopping(*given: Any, calls: Any = calls, real: Any = real, number: int = number, **named: Any) -> Any:
            at = next(calls)
            if at == number // 2 and number % 2 == 0:
                raise Stop
            done = real(*given, **named)
            if at == number // 2:
                raise Stop
            return done

        stopped = False
        with monkeypatch.context() as patch:
            patch.setattr(StoragePath, method, stopping)
            try:
                reopen_failed(release)
                run(config)
            except Stop:
                stopped = True
        if not release.is_published:
            reopen_failed(release)
            run(config)
        assert public_images(release)[0] == public_images(whole)[0]
        assert len(rows(release)) == 7
        if not stopped:
            return
    assert method in ("write_uncommitted", "write")


def test_two_at_one_opened_shard_leave_what_the_first_committed(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out", policy=STRICT, run={"shard_size": 10})
    release = unwell(config)
    reopen_failed(release)
    late = ledger.ShardWriter(Ledger.open(release), 0, {})
    one_shard(config, 0)
    (release.staging / late.staging_folder / "late.png").write_uncommitted(b"x")
    late.commit([], 0, 0.0)
    run(config)
    assert release.is_published
    assert {row["status"] for row in rows(release)} == {"released"}


@pytest.mark.slow
def test_the_command_finishes_a_release_whose_file_came_back(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, prefect_home: Path
) -> None:
    from flows.cli import main

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    folder_of(tmp_path, {"p/0.png": plain(90), "list.csv": b"image\np/0.png\np/1.png\n"})
    made = ["run", "-q", "--source", str(tmp_path / "list.csv"), "--output", str(tmp_path / "out")]
    made += ["--model", str(tiny_model), "--set", "metrics.lpips=none", "--set", "boomerang.steps=1"]
    refused = CliRunner().invoke(main, [*made, "--set", "policy.max_failed=0"])
    assert refused.exit_code == 1, refused.output
    folder_of(tmp_path, {"p/1.png": plain(120)})
    (tmp_path / "out").rename(tmp_path / "moved")
    wrong = CliRunner().invoke(main, ["retry", "--failed", "--reason", "unreadible", str(tmp_path / "moved")])
    assert wrong.exit_code == 2
    assert "did you mean 'unreadable'?" in wrong.output
    done = CliRunner().invoke(main, ["retry", "-q", "--failed", str(tmp_path / "moved")])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Doing 1 failed record again.\nReleased 2 of 2 pictures")
    assert not (tmp_path / "out").exists()
    again = CliRunner().invoke(main, ["retry", "-q", "--failed", str(tmp_path / "moved")])
    assert again.exit_code == 2
    assert "is published and stays as it was signed" in again.output


def test_a_release_without_a_key_is_changed_by_its_own_settings_only_on_request(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write there could name a model, a source or a policy of theirs."""
    from flows.cli import main

    monkeypatch.delenv("ANONYMIZER_KEY", raising=False)
    release = begin(settings(source, tmp_path / "out"), key=CustodianKey(KEY.secret, is_persistent=False))
    for command in (["retry", "--failed"], ["purge"]):
        refused = CliRunner().invoke(main, [*command, str(release.root)])
        assert refused.exit_code == 2
        assert "was made without a custodian's key, so that nothing says who wrote its settings" in refused.output
    assert CliRunner().invoke(main, ["purge", "--without-key", str(release.root)]).exit_code == 0
