"""However shards are distributed, the release is the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anonymizer.config import RunConfig
from anonymizer.errors import OutputError, ShardError
from anonymizer.storage.layout import Release
from flows.jobs import (
    release as release_job,  # nothing that imports Prefect: its server's settings are set by a fixture
)
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import query, wait_for
from tests.support.releases import HEX, PlainScorer, people, public_images, settings

PLAIN = {"metrics": {"clip": "none", "lpips": "none"}}


@pytest.fixture
def release(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], dict[str, Any]]:
    from flows.release import release

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    return lambda config: release(config.model_dump(mode="json"))


@pytest.fixture
def in_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, scorer = IdealGaussian(), PlainScorer()
    monkeypatch.setattr(release_job, "backbone_of", lambda model: backbone)
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: scorer)


def of_run(home: Path, config: RunConfig, sql: str) -> list[list[Any]]:
    """What the server knows of each run of this release, the first one first."""
    runs = query(home, "SELECT id, parameters FROM flow_run ORDER BY created")
    return [[row[0] for row in query(home, sql, i)] for i, parameters in runs if config.output.uri in parameters]


@pytest.mark.usefixtures("in_closed_form")
def test_committed_shards_are_no_tasks_when_a_run_is_resumed(
    tmp_path: Path, prefect_home: Path, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(people(tmp_path / "in", 6), tmp_path / "out", "run.retries=0")
    original = release_job._run_shard

    def failing(config: RunConfig, shard: int, progress: Any) -> Any:
        if shard == 1:
            raise RuntimeError
        return original(config, shard, progress)

    with monkeypatch.context() as patch, pytest.raises(ShardError, match="1 of 3 shards failed"):
        patch.setattr(release_job, "_run_shard", failing)
        release(config)
    assert release(config)["released"] == 6
    names = "SELECT name FROM task_run WHERE flow_run_id = ? AND name LIKE 'shard-%' ORDER BY name"
    assert wait_for(lambda: of_run(prefect_home, config, names) == [["shard-0", "shard-1", "shard-2"], ["shard-1"]])


@pytest.mark.usefixtures("in_closed_form")
def test_a_shard_that_was_killed_between_commit_and_event_is_in_the_log(tmp_path: Path, release: Any) -> None:
    config = settings(people(tmp_path / "in", 4), tmp_path / "out")
    release_job.prepare(config)
    release_job.run_shard(config, 0, lambda done: None)
    release(config)
    assert release_job.read_logged_shards(config) == {0, 1}


@pytest.mark.usefixtures("in_closed_form")
def test_a_schedule_that_finds_its_release_complete_fails(
    tmp_path: Path, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import release as module

    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    release(config)
    assert release(config)["released"] == 2  # not by a schedule

    class Scheduled:
        flow_run = SimpleNamespace(auto_scheduled=True, run_count=1)

    monkeypatch.setattr(module.FlowRunContext, "get", lambda: Scheduled)
    with pytest.raises(
        OutputError, match=r"is complete already, and a schedule asks for another release: put \{month\}"
    ):
        module._refuse_completed(config)
    Scheduled.flow_run.run_count = 2  # a retry
    module._refuse_completed(config)


@pytest.mark.slow
def test_many_shards_are_few_tasks_at_once_and_few_artifacts(
    tmp_path: Path, prefect_home: Path, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.task_runners import ThreadPoolTaskRunner

    from flows.runtime import dispatch

    config = settings(people(tmp_path / "in", 150), tmp_path / "out", "run.shard_size=1")
    lock, open_now, most = threading.Lock(), 0, 0
    submit, backbone, scorer = ThreadPoolTaskRunner.submit, IdealGaussian(), PlainScorer()

    def counted(self: Any, task: Any, *args: Any, **more: Any) -> Any:
        nonlocal open_now, most
        future = submit(self, task, *args, **more)
        with lock:
            open_now += 1
            most = max(most, open_now)
        return future

    original = dispatch._result_of

    def outcome(future: Any) -> Any:
        nonlocal open_now
        result = original(future)
        with lock:
            open_now -= 1
        return result

    monkeypatch.setattr(ThreadPoolTaskRunner, "submit", counted)
    monkeypatch.setattr(dispatch, "_result_of", outcome)
    monkeypatch.setattr(release_job, "backbone_of", lambda model: backbone)
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: scorer)
    assert release(config)["released"] == 150
    assert most == dispatch.WINDOW
    ((*artifacts,),) = of_run(prefect_home, config, "SELECT id FROM artifact WHERE flow_run_id = ?")
    assert len(artifacts) < 30  # one for every 5 seconds, and two more


# Every process that starts with this on its path writes down when it reads weights.
WATCH = """
import os, sys
def watch(event, args):
    if event == "open" and str(args[0]).endswith(".safetensors") and "/unet/" in str(args[0]):
        with open(os.environ["LOADS"] + f"/{os.getpid()}", "a") as file:
            file.write("x")
sys.addaudithook(watch)
"""


LOAD = "import sys\nfrom flows.jobs.models import backbone_of\nfrom anonymizer.config import ModelConfig\n"
LOAD += "for _ in range(2): backbone_of(ModelConfig(id=sys.argv[1]))"


@pytest.fixture
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """How often each process that is started from here reads weights."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "loads").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "watch"), *sys.path]))
    monkeypatch.setenv("LOADS", str(tmp_path / "loads"))

    def count() -> Counter[str]:
        files = list((tmp_path / "loads").iterdir())
        counts = Counter({file.name: len(file.read_text()) for file in files})
        for file in files:
            file.unlink()
        return counts

    return count


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_the_release_is_the_same_on_any_engine_and_each_process_loads_the_model_once(
    tmp_path: Path, tiny_model: Path, release: Any, loads: Any, runner: str
) -> None:
    source, model = people(tmp_path / "in", 12), {"id": str(tiny_model)}
    subprocess.run([sys.executable, "-c", LOAD, str(tiny_model)], check=True)
    ((_, once),) = loads().items()
    release(settings(source, tmp_path / "local", model=model, **PLAIN))
    expected = public_images(Release.at(str(tmp_path / "local")))
    for workers in (1, 2):
        config = settings(
            source,
            tmp_path / f"{runner}{workers}",
            f"run.runner={runner}",
            f"run.workers={workers}",
            model=model,
            **PLAIN,
        )
        assert release(config)["shards"] == 6
        done = Release.at(config.output.uri)
        assert public_images(done)[0] == expected[0]
        assert public_images(done)[1].equals(expected[1])
        counts = loads()
        assert 1 <= len(counts) <= workers
        assert set(counts.values()) == {once}
