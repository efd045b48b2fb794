"""The event log: whatever was done to it is found, and nobody who writes to it breaks it."""

from __future__ import annotations

import getpass
import hashlib
import itertools
import json
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anonymizer.errors import IntegrityError, OutputError
from anonymizer.release import event_log
from anonymizer.release.event_log import ChainHead
from anonymizer.storage.layout import Release
from tests.support.releases import KEY, begin, people
from tests.support.releases import settings as configured

many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release.at(str(tmp_path / "out"))


@pytest.fixture
def log(release: Release) -> Path:
    """A log of five events."""
    for number in range(5):
        event_log.record(release, "shard committed", actor="ada", shard=number)
    return Path(release.event_log.path)


def lines(log: Path) -> list[bytes]:
    return log.read_bytes().splitlines(keepends=True)


def test_what_is_recorded_is_read_in_order(release: Release) -> None:
    assert event_log.read(release) == []
    for number in range(3):
        head = event_log.record(release, "shard committed", actor="ada", shard=number)
        assert head.count == number + 1
    result = event_log.read(release)
    assert [event["details"] for event in result] == [{"shard": 0}, {"shard": 1}, {"shard": 2}]
    assert {(event["event"], event["actor"]) for event in result} == {("shard committed", "ada")}


def test_each_line_holds_its_own_hash_and_that_of_the_line_before(log: Path) -> None:
    before = "0" * 64
    for number, line in enumerate(lines(log), start=1):
        document = json.loads(line)
        own = document.pop("sha256")
        assert own == hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        assert (document["n"], document["previous"]) == (number, before)
        before = hashlib.sha256(line.rstrip(b"\n")).hexdigest()


def test_any_flipped_bit_is_detected_in_the_last_line_too(release: Release, log: Path) -> None:
    data = log.read_bytes()
    with open(log, "r+b", buffering=0) as raw:
        for position, bit in itertools.product(range(len(data)), range(8)):
            os.pwrite(raw.fileno(), bytes([data[position] ^ 1 << bit]), position)
            with pytest.raises(IntegrityError, match=r"^events: [^\n]*restore events\.jsonl$"):
                event_log.read(release)
            os.pwrite(raw.fileno(), data[position : position + 1], position)
    assert len(event_log.read(release)) == 5


@pytest.mark.parametrize("number", range(5))
def test_a_removed_or_repeated_line_is_detected(release: Release, log: Path, number: int) -> None:
    workdir = lines(log)
    log.write_bytes(b"".join(workdir[:number] + workdir[number + 1 :]))
    if number < 4:
        with pytest.raises(IntegrityError, match=f"line {number + 1} does not follow"):
            event_log.read(release)
    log.write_bytes(b"".join([*workdir[: number + 1], *workdir[number:]]))
    with pytest.raises(IntegrityError, match=f"line {number + 2} does not follow"):
        event_log.read(release)


def test_lines_in_any_other_order_are_detected(release: Release, log: Path) -> None:
    workdir = lines(log)
    for order in itertools.permutations(range(5)):
        log.write_bytes(b"".join(workdir[i] for i in order))
        if list(order) == sorted(order):
            assert len(event_log.read(release)) == 5
        else:
            with pytest.raises(IntegrityError):
                event_log.read(release)


def test_lines_of_another_log_are_detected(release: Release, log: Path, tmp_path: Path) -> None:
    other = Release.at(str(tmp_path / "other"))
    for number in range(5):
        event_log.record(other, "shard committed", actor="ada", shard=number + 10)
    for number in range(1, 5):
        log.write_bytes(b"".join(lines(log)[:number] + lines(Path(other.event_log.path))[number:]))
        with pytest.raises(IntegrityError):
            event_log.read(release)


@many
@given(line=st.binary(max_size=60) | st.sampled_from([b"", b"{}", b"[]", b"null", b"1", b"[" * 5000]))
def test_an_inserted_line_is_detected(release: Release, log: Path, line: bytes) -> None:
    workdir = lines(log)[:5]
    log.write_bytes(b"".join([*workdir[:2], line + b"\n", *workdir[2:]]))
    with pytest.raises(IntegrityError):
        event_log.read(release)
    log.write_bytes(b"".join(workdir))


def test_a_line_that_is_made_up_with_hashes_of_its_own_does_not_fit_what_follows(release: Release, log: Path) -> None:
    workdir = lines(log)
    document = json.loads(workdir[1]) | {"details": {"shard": 99}}
    del document["sha256"]
    document["sha256"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    made_up = json.dumps(document, sort_keys=True).encode() + b"\n"
    log.write_bytes(b"".join([workdir[0], made_up]))
    assert len(event_log.read(release)) == 2, "it is spelled as it should be"
    log.write_bytes(b"".join([workdir[0], made_up, *workdir[2:]]))
    with pytest.raises(IntegrityError, match="line 3 does not follow"):
        event_log.read(release)


def test_a_statement_that_speaks_of_the_log_tells_that_lines_were_cut_off(release: Release, log: Path) -> None:
    head = event_log.record(release, "sealed")
    event_log.record(release, "published")
    assert event_log.contains_head(release, head) and event_log.contains_head(
        release, ChainHead(0, event_log.GENESIS_HASH)
    )
    log.write_bytes(b"".join(lines(log)[:5]))
    assert len(event_log.read(release)) == 5, "the chain alone does not tell"
    assert not event_log.contains_head(release, head)
    event_log.record(release, "sealed", more=1)
    assert not event_log.contains_head(release, head)
    log.unlink()
    assert not event_log.contains_head(release, head) and event_log.contains_head(
        release, ChainHead(0, event_log.GENESIS_HASH)
    )


@pytest.mark.parametrize("left", [0, 1, 40, -2, -1])
def test_a_last_line_that_was_cut_off_is_repaired_by_the_next_event(release: Release, log: Path, left: int) -> None:
    workdir = lines(log)
    log.write_bytes(b"".join(workdir[:4]) + workdir[4][:left])
    if left:
        with pytest.raises(IntegrityError):
            event_log.read(release)
    event_log.record(release, "started")
    assert [event["event"] for event in event_log.read(release)] == ["shard committed"] * 4 + ["started"]


def test_a_first_line_that_was_cut_off_is_repaired_too(release: Release, log: Path) -> None:
    log.write_bytes(log.read_bytes()[:10])
    assert event_log.record(release, "started").count == 1
    assert [event["event"] for event in event_log.read(release)] == ["started"]


@pytest.mark.parametrize("data", [b"garbage\n", b"{}\n", b'{"n": "x"}\n', b"[1]\n"])
def test_nothing_is_added_to_what_is_no_log(release: Release, data: bytes) -> None:
    release.event_log.write(data)
    with pytest.raises(IntegrityError, match="last line is damaged"):
        event_log.record(release, "started")
    assert release.event_log.read() == data


def test_a_long_log_is_continued_without_being_read(release: Release) -> None:
    for number in range(300):
        head = event_log.record(release, "shard committed", actor="a" * 200, shard=number)
    assert os.path.getsize(release.event_log.path) > event_log.TAIL_BYTES
    assert head.count == len(event_log.read(release)) == 300


def test_threads_that_write_at_once_keep_the_chain(release: Release) -> None:
    with ThreadPoolExecutor(8) as pool:
        heads = list(pool.map(lambda n: event_log.record(release, "shard committed", shard=n), range(40)))
    assert sorted(event["details"]["shard"] for event in event_log.read(release)) == list(range(40))
    assert sorted(head.count for head in heads) == list(range(1, 41))
    assert all(event_log.contains_head(release, head) for head in heads)


def test_processes_that_write_at_once_keep_the_chain(release: Release) -> None:
    code = (
        "import sys; from anonymizer.release import event_log; from anonymizer.storage.layout import Release\n"
        "for n in range(10): event_log.record(Release.at(sys.argv[1]), 'shard committed', by=sys.argv[2], shard=n)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(release.root), str(i)]) for i in range(3)]
    assert [process.wait(60) for process in running] == [0] * 3
    result = [(event["details"]["by"], event["details"]["shard"]) for event in event_log.read(release)]
    assert sorted(result) == [(str(i), n) for i in range(3) for n in range(10)]
    assert [n for by, n in result if by == "0"] == list(range(10)), "each in its own order"


def test_a_log_in_an_object_store_is_a_chain_too() -> None:
    release = Release.at("memory://events")
    try:
        for number in range(3):
            head = event_log.record(release, "shard committed", shard=number)
        release.event_log.write(release.event_log.read() + b'{"cut')
        assert event_log.record(release, "started").count == 4
        assert event_log.contains_head(release, head) and len(event_log.read(release)) == 4
    finally:
        release.root.remove()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_log_is_readable_by_its_owner_only(release: Release) -> None:
    before = os.umask(0)
    try:
        event_log.record(release, "planned")
    finally:
        os.umask(before)
    folder = Path(release.restricted.path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_who_acts_is_whom_the_environment_names_or_the_user_of_the_machine(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(event_log.ACTOR_VARIABLE, " Ada ")
    assert event_log.current_actor() == "Ada"
    monkeypatch.delenv(event_log.ACTOR_VARIABLE)
    assert event_log.current_actor() == f"{getpass.getuser()}@{socket.gethostname()}"

    def strangers() -> Any:
        raise KeyError("uid")

    monkeypatch.setattr(getpass, "getuser", strangers)
    assert event_log.current_actor() == f"user {os.getuid()}@{socket.gethostname()}"


def test_a_link_in_place_of_a_file_of_the_restricted_half_is_not_followed(tmp_path: Path) -> None:
    """What it leads to would be overwritten by the custodian's own run."""
    mine = tmp_path / "mine.txt"
    mine.write_text("a file of the custodian's that is no log")
    release = Release.at(str(tmp_path / "out"), KEY)
    release.restricted.make_private_folder()
    Path(release.event_log.path).symlink_to(mine)
    with pytest.raises(OutputError):
        event_log.record(release, "planned")
    error = release.errors / "shard-00000.txt"
    release.errors.make_private_folder()
    Path(error.path).symlink_to(mine)
    with pytest.raises(OutputError):
        error.write_uncommitted(b"overwritten")
    assert mine.read_text() == "a file of the custodian's that is no log"


def test_the_log_of_another_release_under_the_same_key_is_refused(tmp_path: Path) -> None:
    one, other = (begin(configured(people(tmp_path / "in", 2), tmp_path / name)) for name in ("one", "other"))
    assert event_log.read(one) and event_log.read(other)
    one.event_log.write(other.event_log.read())
    with pytest.raises(IntegrityError, match="is not the log of this plan: restore both"):
        event_log.read(one)
