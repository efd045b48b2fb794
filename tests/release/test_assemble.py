"""Stopped at any point, a run is finished by the same command, and nobody can tell from the pictures."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import GateError, IntegrityError, OutputError
from anonymizer.records import Scores
from anonymizer.release import plan
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from tests.support import ROOT
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.interruptions import POINTS, Stop, stop_at
from tests.support.releases import (
    GARBAGE,
    HEX,
    PlainScorer,
    Unscored,
    assemble_candidate,
    begin,
    folder_of,
    listing,
    manifest,
    one_shard,
    people,
    picture,
    plain,
    public_images,
    released,
    rows,
    run,
    settings,
    summarize,
    tree,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = people(tmp_path / "in", 5)
    folder_of(folder, {"bad.png": GARBAGE, "black.png": plain(0)})
    return folder


@pytest.fixture
def undisturbed(tmp_path: Path, source: Path) -> Release:
    return finish(settings(source, tmp_path / "undisturbed"))


def finish(config: RunConfig) -> Release:
    return run(config, scorer=Unscored(Scores()))


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_was_stopped_is_finished_with_the_same_pictures(
    tmp_path: Path, source: Path, undisturbed: Release, point: str
) -> None:
    config = settings(source, tmp_path / "out")
    release = Release.at(config.output.uri)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, *POINTS[point])
        finish(config)
    published = point == "after public/ appeared"
    assert release.public.exists() == release.is_published == published

    finish(config)
    assert public_images(release)[0] == public_images(undisturbed)[0]
    assert public_images(release)[1].equals(public_images(undisturbed)[1])
    same = ("record_id", "source_hmac", "output_id", "status", "reason", "sha256", "clip_similarity")
    assert [[row[name] for name in same] for row in rows(release)] == [
        [row[name] for name in same] for row in rows(undisturbed)
    ]
    names = {p.name for p in release.restricted.children()}
    assert names == {p.name for p in undisturbed.restricted.children()}
    assert tree(release.quarantine.path) == tree(undisturbed.quarantine.path)


def test_every_record_of_a_stopped_and_finished_run_is_accounted_for(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out")
    for point in POINTS:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, *POINTS[point])
            finish(config)
            raise Stop  # an earlier stop may have left nothing to do here
    total = summarize(finish(config))
    assert (total.read, total.released, total.quarantined, total.failed) == (7, 5, 1, 1)
    assert total.reasons == {"not_an_image": 1, "not_scored": 1}


def test_public_appears_all_at_once(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(source, tmp_path / "out")
    release, seen = Release.at(config.output.uri), []
    original = StoragePath.write_uncommitted

    def watching(place: StoragePath, data: bytes) -> None:
        seen.append(release.public.exists())
        original(place, data)

    monkeypatch.setattr(StoragePath, "write_uncommitted", watching)
    finish(config)
    assert not any(seen)
    names = {p.name for p in release.public.children()}
    assert {"images", "manifest.parquet", "README.md", "report.html"} <= names


def test_a_complete_release_is_not_touched(tmp_path: Path, undisturbed: Release, source: Path) -> None:
    before = tree(undisturbed.root.path)
    stamps = {p: p.stat().st_mtime_ns for p in Path(undisturbed.root.path).rglob("*")}
    finish(settings(source, undisturbed.root.path))
    assert tree(undisturbed.root.path) == before
    assert {p: p.stat().st_mtime_ns for p in Path(undisturbed.root.path).rglob("*")} == stamps


def test_the_staged_pictures_of_a_stopped_attempt_are_removed(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out")
    stale = "restricted/staging/shard-00000-0123456789ab/stale.png"
    begin(config)
    folder_of(tmp_path / "out", {stale: b"x", "restricted/quarantine/stale.png": b"x", "restricted/assembling/y": b"x"})
    release = finish(config)
    assert not [name for name in tree(release.root.path) if "stale" in name or "assembling" in name]


def test_a_public_half_without_its_manifest_is_not_written_over(
    tmp_path: Path, undisturbed: Release, source: Path
) -> None:
    Path(undisturbed.manifest.path).unlink()
    with pytest.raises(IntegrityError, match="has lost its manifest"):
        finish(settings(source, undisturbed.root.path))


def test_a_public_half_that_was_taken_away_is_not_made_up(tmp_path: Path, undisturbed: Release, source: Path) -> None:
    undisturbed.public.remove()
    with pytest.raises(IntegrityError, match="a staged picture is missing"):
        finish(settings(source, undisturbed.root.path))
    assert not undisturbed.public.exists()


def test_images_that_do_not_match_the_ledger_are_not_published(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that loses or mixes up pictures."""
    from anonymizer.data.sinks import folder

    original = folder.FolderSink.write
    monkeypatch.setattr(folder.FolderSink, "write", lambda *args: list(original(*args))[::-1])
    with pytest.raises(IntegrityError, match="other pictures were written than the ledger has"):
        finish(settings(source, tmp_path / "out"))
    assert not (tmp_path / "out" / "public").exists()


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_a_candidate_of_nothing_is_whole_and_never_published(tmp_path: Path, form: str) -> None:
    folder_of(tmp_path / "in", {"bad.png": GARBAGE})
    source = listing(tmp_path / "in", [{"image": "bad.png", "age": 3}])
    config = settings(source, tmp_path / "out", source={"carry": ["age"]}, output={"format": form})
    release = Release.at(config.output.uri)
    with pytest.raises(GateError, match=r"1 records 0 were quarantined and 1 failed \(1 not_an_image\)"):
        finish(config)
    assert len(manifest(release)) == 0 and not release.public.exists() and not release.statement.exists()
    assert [row["reason"] for row in rows(release)] == ["not_an_image"]


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_columns_that_are_asked_for_are_carried_to_the_right_picture(tmp_path: Path, form: str) -> None:
    folder_of(tmp_path / "in", {f"p{i}.png": picture(i) for i in range(5)})
    items = [{"image": f"p{i}.png", "id": f"r{i}", "who": "abcde"[i], "age": i, "secret": "s"} for i in range(5)]
    config = settings(
        listing(tmp_path / "in", items),
        tmp_path / "out",
        source={"id": "id", "carry": ["age"], "label": "who", "drop": ["secret"]},
        output={"format": form},
    )
    release = finish(config)
    table = manifest(release)
    assert "secret" not in table.column_names
    assert table["age"].type == pa.int64()
    label_of = {row["output_id"]: row for row in table.to_pylist()}
    ids = {row["record_id"]: row["output_id"] for row in rows(release)}
    for i in range(5):
        row = label_of[ids[f"r{i}"]]
        assert (row["label"], row["age"]) == ("abcde"[i], i)


def test_columns_of_mixed_types_are_carried_as_text(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"p{i}.png": picture(i) for i in range(3)})
    items = [{"image": f"p{i}.png", "x": value} for i, value in enumerate([1, "one", None])]
    release = finish(settings(listing(tmp_path / "in", items), tmp_path / "out", source={"carry": ["x"]}))
    assert sorted(str(v) for v in manifest(release)["x"].to_pylist()) == ["1", "None", "one"]


# -- disks and stores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [0, 1, 3, 4, 6, 9, 12])
def test_a_full_disk_is_one_line_and_the_run_is_resumed_when_there_is_space(
    tmp_path: Path, source: Path, undisturbed: Release, calls: int
) -> None:
    config = settings(source, tmp_path / "out")
    original, left = StoragePath._open_descriptor, calls

    def filling_up(self: StoragePath, path: str) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return original(self, path)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError) as caught:
        patch.setattr(StoragePath, "_open_descriptor", filling_up)
        finish(config)
    line = "output.uri: cannot be written (No space left on device): check space and access, then run the same command"
    assert str(caught.value) == f"{line} again"
    assert not (tmp_path / "out" / "public").exists()
    assert public_images(finish(config))[0] == public_images(undisturbed)[0]


def test_an_object_store_gets_the_same_release(store: Any, source: Path, undisturbed: Release) -> None:
    release = finish(settings(source, "memory://bucket/out"))
    table = pq.read_table(pa.BufferReader(release.manifest.read()))
    assert table.equals(public_images(undisturbed)[1])
    for name, data in public_images(undisturbed)[0].items():
        assert (release.public / name).read() == data
    assert not release.staging.exists()
    assert not release.assembling.exists()


@pytest.mark.parametrize("copies", [0, 1, 4])
def test_a_copy_that_was_stopped_on_an_object_store_is_not_taken_for_a_release(
    store: Any, source: Path, undisturbed: Release, copies: int
) -> None:
    config = settings(source, "memory://bucket/out")
    original, left = type(store).cp_file, copies

    def stopping(self: Any, one: str, other: str, **rest: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop
        original(self, one, other, **rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(type(store), "cp_file", stopping)
        finish(config)
    release = Release.at(config.output.uri)
    assert not release.is_published
    store.pipe("/bucket/out/public/images/stale.png", b"x")
    finish(config)
    assert release.is_published
    assert not store.exists("/bucket/out/public/images/stale.png")
    assert pq.read_table(pa.BufferReader(release.manifest.read())).equals(public_images(undisturbed)[1])


# -- a real kill ------------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import run, settings
class Slow(IdealGaussian):
    def predict(self, zt, t, condition=None):
        time.sleep(0.05)
        return super().predict(zt, t, condition)
run(settings(sys.argv[2], sys.argv[3], run={"shard_size": 2, "batch_size": 1}), Slow())
"""


@pytest.mark.fault
@pytest.mark.parametrize("wait_for", ["restricted/plan.json", "restricted/staging", "restricted/ledger", "public"])
def test_a_run_that_was_killed_is_finished_with_the_same_pictures(tmp_path: Path, wait_for: str) -> None:
    source = people(tmp_path / "in", 9)
    whole = run(settings(source, tmp_path / "whole", run={"shard_size": 2, "batch_size": 1}))
    out = tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(ROOT), str(source), str(out)]
    with subprocess.Popen(command, env=os.environ | {"ANONYMIZER_KEY": HEX}) as child:
        deadline = time.monotonic() + 120
        while not (out / wait_for).exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    release = run(settings(source, out, run={"shard_size": 2, "batch_size": 3}), IdealGaussian(), PlainScorer())
    assert released(release) == released(whole)
    assert public_images(release)[0] == public_images(whole)[0]
    assert len(rows(release)) == plan.read(release).records == 9


# -- two at once ------------------------------------------------------------------------------------------------------


def test_a_shard_that_is_done_twice_counts_once_and_the_first_commit_stands(
    tmp_path: Path, source: Path, undisturbed: Release
) -> None:
    config = settings(source, tmp_path / "out")
    release = begin(config)
    first = [one_shard(config, shard, scorer=Unscored(Scores())) for shard in range(4)]
    ledger = [release.shard_ledger(shard).read() for shard in range(4)]
    again = [one_shard(config, shard, scorer=Unscored(Scores(lpips=0.5))) for shard in range(4)]
    assert [release.shard_ledger(shard).read() for shard in range(4)] == ledger
    assert [(s.read, s.released, s.quarantined, s.failed) for s in again] == [
        (s.read, s.released, s.quarantined, s.failed) for s in first
    ]
    assert len(list(release.staging.children())) == 4
    finish(config)
    assert public_images(release)[0] == public_images(undisturbed)[0]


def test_a_worker_that_is_late_changes_nothing_that_is_published(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out")
    release = finish(config)
    before = tree(release.root.path)
    one_shard(config, 0, scorer=Unscored(Scores(lpips=0.5)))
    finish(config)
    assert tree(release.root.path) == before


@pytest.mark.parametrize("moment", ["writing pictures", "about to show"])
def test_two_that_assemble_at_once_publish_one_whole_release(
    tmp_path: Path, source: Path, undisturbed: Release, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    config = settings(source, tmp_path / "out")
    release = begin(config)
    for shard in range(4):
        one_shard(config, shard, scorer=Unscored(Scores()))
    owner, name = {"writing pictures": (StoragePath, "write_uncommitted"), "about to show": (StoragePath, "move_to")}[
        moment
    ]
    original = getattr(owner, name)
    others = [True]

    def interrupted(place: StoragePath, *args: Any, **rest: Any) -> Any:
        if others and "assembling" in place.path:
            others.clear()
            assemble_candidate(release, config)  # the other is quicker, and tidies up
        return original(place, *args, **rest)

    monkeypatch.setattr(owner, name, interrupted)
    finish(config)
    assert public_images(release)[0] == public_images(undisturbed)[0]
    assert public_images(release)[1].equals(public_images(undisturbed)[1])
    assert {p.name for p in release.restricted.children()} == {p.name for p in undisturbed.restricted.children()}


def test_a_public_half_of_another_ledger_is_an_error(tmp_path: Path, source: Path, undisturbed: Release) -> None:
    other = run(settings(source, tmp_path / "other"), key=CustodianKey(b"another key of another process!!"))
    Path(undisturbed.manifest.path).write_bytes(other.manifest.read())
    with pytest.raises(IntegrityError, match="does not hold what the ledger speaks of"):
        finish(settings(source, undisturbed.root.path))


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_the_restricted_half_is_readable_by_its_owner_only(undisturbed: Release) -> None:
    assert stat.S_IMODE(os.stat(undisturbed.restricted.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(undisturbed.public.path).st_mode) & 0o055 == 0o055
