"""Where the time goes: measured for each shard, kept with its ledger, and told by ``status --profile``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from click.testing import CliRunner

from anonymizer.backbones import Denoised
from anonymizer.release import profiling
from anonymizer.release.ledger import Ledger
from anonymizer.release.profiling import METADATA_KEY as METADATA_KEY
from anonymizer.release.profiling import STAGES, Profile, Stopwatch
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import KEY, begin, people, run, settings


class Slow(IdealGaussian):
    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        time.sleep(0.05)
        return super().predict(zt, t, condition)


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(profiling, "perf_counter", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_stage_inside_another_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, clock = Stopwatch(), Clock(monkeypatch)
    with watch.stage("sample"):
        clock.sleep(1)
        with watch.stage("noise"):
            clock.sleep(2)
        with watch.stage("noise"):
            clock.sleep(4)
        clock.sleep(8)
    with watch.stage("score"):
        clock.sleep(16)
    assert dict(watch.seconds) == {"sample": 9, "noise": 6, "score": 16}


def test_a_stage_that_fails_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, clock = Stopwatch(), Clock(monkeypatch)
    with pytest.raises(ValueError, match="broken"), watch.stage("decode"):
        clock.sleep(3)
        raise ValueError("broken")
    assert dict(watch.seconds) == {"decode": 3}


def test_threads_add_up_and_do_not_see_each_others_stages() -> None:
    watch = Stopwatch()

    def work() -> None:
        with watch.stage("decode"):
            time.sleep(0.1)

    with watch.stage("wait"):
        threads = [Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert watch.seconds["decode"] >= 0.3
    assert watch.seconds["wait"] >= 0.1


def test_the_time_to_get_each_item_is_measured_and_that_of_its_consumer_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, clock = Stopwatch(), Clock(monkeypatch)
    assert len([clock.sleep(16) for _ in watch.time_items("read", (clock.sleep(1) for _ in range(3)))]) == 3
    assert dict(watch.seconds) == {"read": 3}


def test_measuring_costs_next_to_nothing() -> None:
    watch, begun = Stopwatch(), time.perf_counter()
    for _ in range(10_000):
        with watch.stage("hash"):
            pass
    assert (time.perf_counter() - begun) / 10_000 < 1e-4  # ten stages a record: under 1 ms each


def made(tmp_path: Path) -> Release:
    config = settings(people(tmp_path / "in", 6), tmp_path / "out", run={"batch_size": 2, "shard_size": 3})
    return run(config, Slow())


def test_the_ledger_of_a_shard_says_where_its_time_went(tmp_path: Path) -> None:
    release = made(tmp_path)
    profiles = list(Ledger.open(release).read_profiles())
    assert [one.records for one in profiles] == [3, 3]
    for one in profiles:
        assert set(one.seconds) <= set(STAGES)
        assert set(one.seconds) >= {"read", "hash", "decode", "transfer", "noise", "sample", "score", "encode", "write"}
        assert one.seconds["sample"] >= 4 * 0.05  # two batches of two steps
        assert one.seconds["sample"] <= one.wall
        assert (one.batch_size, one.halved, one.device) == (2, 0, "cpu")
    total = Profile.merge(profiles)
    assert total is not None
    assert (total.shards, total.records) == (2, 6)
    assert total.wall == pytest.approx(sum(one.wall for one in profiles))
    assert total.seconds["sample"] == pytest.approx(sum(one.seconds["sample"] for one in profiles))


def test_a_profile_says_nothing_of_a_record(tmp_path: Path) -> None:
    release = made(tmp_path)
    for number in range(2):
        document = json.loads(parquet.read_metadata(release.shard_ledger(number))[METADATA_KEY])
        assert set(document) == {"shards", "records", "wall", "seconds", "batch_size", "halved", "device"}


def test_status_tells_it_to_people_and_programs(tmp_path: Path) -> None:
    release = made(tmp_path)
    shown = CliRunner().invoke(main, ["status", str(release.root), "--profile"])
    assert shown.exit_code == 0, shown.output
    for part in ("sample", "decode", "records a second on cpu, 2 pictures at once", "of 2 shards went"):
        assert part in shown.output
    document = json.loads(CliRunner().invoke(main, ["status", str(release.root), "--profile", "--json"]).output)
    assert document["profile"]["records"] == 6
    assert "profile" not in json.loads(CliRunner().invoke(main, ["status", str(release.root), "--json"]).output)


def test_a_ledger_without_profiles_is_read(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 4), tmp_path / "out")
    release = run(config)
    for number in range(2):
        ledger = Ledger.open(release)
        table = ledger.read_shard(number)
        assert table is not None
        older = {name: value for name, value in table.schema.metadata.items() if name != METADATA_KEY}
        release.shard_ledger(number).write(ledger.to_bytes(number, table.replace_schema_metadata(older)))
    assert len(list(Ledger.open(release).scan())) == 2
    shown = CliRunner().invoke(main, ["status", str(release.root), "--profile"])
    assert "No committed shard says where its time went" in shown.output
    document = json.loads(CliRunner().invoke(main, ["status", str(release.root), "--profile", "--json"]).output)
    assert (document["read"], document["profile"]) == (4, None)


def test_nothing_committed_is_no_profile(tmp_path: Path) -> None:
    begin(settings(people(tmp_path / "in", 2), tmp_path / "out"), key=KEY)
    document = json.loads(CliRunner().invoke(main, ["status", str(tmp_path / "out"), "--profile", "--json"]).output)
    assert document["profile"] is None
