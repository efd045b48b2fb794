"""The release flow on a temporary Prefect server: what it returns, what it retries, what it writes down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import RunConfig
from anonymizer.errors import OutputError, ShardError, StepError
from anonymizer.release import assemble, plan
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.jobs import release as release_job
from flows.jobs.progress import report_progress_to
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import query, wait_for
from tests.support.releases import (
    GARBAGE,
    HEX,
    Broken,
    PlainScorer,
    folder_of,
    people,
    public_images,
    rows,
    run,
    settings,
)


@pytest.fixture
def flow(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the flow with a model and scores in closed form, under a key."""
    from prefect import tags

    from flows.release import TAGS, release

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)

    def run_it(config: RunConfig, backbone: Any = None, scorer: Any = None) -> dict[str, Any]:
        backbone, scorer = backbone or IdealGaussian(), scorer or PlainScorer()
        monkeypatch.setattr(release_job, "backbone_of", lambda model: backbone)
        monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: scorer)
        with tags(*TAGS):
            return release(config.model_dump(mode="json"))

    return run_it


class Failing(IdealGaussian):
    """Fails for the shards whose turn it is, in order of the attempts."""

    def __init__(self, *attempts: bool) -> None:
        super().__init__()
        self.attempts = list(attempts)

    def encode(self, images: Any) -> Any:
        if self.attempts and self.attempts.pop(0):
            raise RuntimeError("the model is unwell")
        return images


class Reporter:
    def __init__(self) -> None:
        self.total, self.done, self.stages = 0, 0, list[str]()

    def begin(self, records: int, done: int) -> None:
        self.total = records

    def advance(self, records: int) -> None:
        self.done += records

    def stage(self, name: str) -> None:
        self.stages.append(name)


def test_the_flow_makes_the_same_release_as_the_functions_without_it(tmp_path: Path, flow: Any) -> None:
    source = people(tmp_path / "in", 5)
    folder_of(source, {"bad.png": GARBAGE})
    reporter = Reporter()
    with report_progress_to(reporter):
        summary = flow(settings(source, tmp_path / "out"))
    counts = {name: summary[name] for name in ("read", "released", "quarantined", "failed", "shards", "reasons")}
    assert counts == {
        "read": 6, "released": 5, "quarantined": 0, "failed": 1, "shards": 3, "reasons": {"not_an_image": 1},
    }  # fmt: skip
    release, plain = Release.at(str(tmp_path / "out")), run(settings(source, tmp_path / "plain"))
    assert public_images(release)[0] == public_images(plain)[0]
    assert public_images(release)[1].equals(public_images(plain)[1])
    assert release.is_complete
    assert (reporter.total, reporter.done) == (6, 6)
    assert reporter.stages == ["planning", "anonymising", "assembling"]


def test_progress_and_summary_are_artifacts_and_runs_are_tagged(tmp_path: Path, flow: Any, prefect_home: Path) -> None:
    config = settings(people(tmp_path / "in", 3), tmp_path / "out")
    flow(config)
    (run_id,) = [i for i, p in query(prefect_home, "SELECT id, parameters FROM flow_run") if config.output.uri in p]
    artifacts = dict(query(prefect_home, "SELECT key, data FROM artifact WHERE flow_run_id = ?", run_id))
    assert float(artifacts["release-progress"]) == 100
    assert "| released | 3 |" in json.loads(artifacts["release-summary"])
    assert "2 shards." in json.loads(artifacts["release-summary"])

    def names() -> set[str]:
        return {name for (name,) in query(prefect_home, "SELECT name FROM task_run WHERE flow_run_id = ?", run_id)}

    assert wait_for(lambda: {"shard-0", "shard-1"} <= names())
    tags = query(prefect_home, "SELECT tags FROM task_run WHERE flow_run_id = ? AND name = 'shard-0'", run_id)
    assert set(json.loads(tags[0][0])) >= {"anonymizer", "release", "shard"}
    ((own,),) = query(prefect_home, "SELECT tags FROM flow_run WHERE id = ?", run_id)
    assert set(json.loads(own)) == {"anonymizer", "release"}


def test_tags_of_the_caller_stay_on_a_run(tmp_path: Path, flow: Any, prefect_home: Path) -> None:
    from prefect import tags

    config = settings(people(tmp_path / "in", 1), tmp_path / "out")
    with tags("monthly"):
        flow(config)
    (own,) = [t for t, p in query(prefect_home, "SELECT tags, parameters FROM flow_run") if config.output.uri in p]
    assert set(json.loads(own)) == {"anonymizer", "release", "monthly"}


def test_a_second_run_on_one_output_is_refused_and_spoils_nothing(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    (tmp_path / "out" / "restricted").mkdir(parents=True)
    lock = tmp_path / "out" / "restricted" / ".lock"
    holder = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another run is working on it"):
            flow(config)
        assert not (tmp_path / "out" / "restricted" / "plan.json").exists()
    assert flow(config)["released"] == 2


def test_a_shard_that_fails_once_is_tried_again(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "metrics.gallery=0")
    assert flow(config, Failing(True, False))["released"] == 2
    assert "the model is unwell" in (tmp_path / "out/restricted/errors/shard-00000.txt").read_text()


def test_other_shards_go_on_when_one_fails_and_a_second_run_finishes(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 6), tmp_path / "out", "run.retries=0", "metrics.gallery=0")
    with pytest.raises(ShardError) as caught:
        flow(config, Failing(False, True, False))
    assert str(caught.value) == (
        "1 of 3 shards failed: shard 1: failed, nothing of it was committed: see restricted/errors/shard-00001.txt: "
        "run again to finish them"
    )
    release = Release.at(config.output.uri)
    assert [Ledger.open(release).read_shard(shard) is not None for shard in range(3)] == [True, False, True]
    assert not release.public.exists()
    first = IdealGaussian()
    assert flow(config, first)["released"] == 6
    assert len(first.calls) == config.boomerang.steps  # one shard of one batch, and not the others again
    assert public_images(release)[0] == public_images(run(settings(tmp_path / "in", tmp_path / "plain")))[0]


def test_a_disk_that_fills_up_is_named_and_the_run_resumed(
    tmp_path: Path, flow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "run.retries=0")
    original = StoragePath.write_uncommitted

    def full(place: StoragePath, data: bytes) -> None:
        if "staging" in place.path or "errors" in place.path:
            raise OutputError("output.uri: cannot be written (No space left on device): check space and access")
        original(place, data)

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="No space left on device"):
        patch.setattr(StoragePath, "write_uncommitted", full)
        flow(config)
    assert flow(config)["released"] == 2


@pytest.mark.parametrize("step", ["plan", "assemble"])
def test_an_unexpected_error_of_a_step_is_kept_from_the_scheduler(
    tmp_path: Path, flow: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def leaking(*args: Any) -> None:
        raise ValueError("/home/alice/patient 7.png")

    module, function = (plan, "write_or_resume") if step == "plan" else (assemble, "assemble")
    monkeypatch.setattr(module, function, leaking)
    with pytest.raises(StepError) as caught:
        flow(settings(people(tmp_path / "in", 2), tmp_path / "out"))
    assert f"see restricted/errors/{step}.txt" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert "alice" not in repr(error)
        error = error.__cause__ or error.__context__
    assert "alice" in (tmp_path / f"out/restricted/errors/{step}.txt").read_text()


def test_a_failed_run_is_finished_by_the_next_one(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "run.retries=0")
    with pytest.raises(ShardError):
        flow(config, Broken())
    flow(config)
    assert [row["status"] for row in rows(Release.at(config.output.uri))] == ["released"] * 2
