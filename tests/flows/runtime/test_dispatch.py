"""However shards are spread, the release is the same; and what spreading needs is said before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError, CustodianKeyError, ModelError, OutputError, ShardError
from anonymizer.release import ledger
from anonymizer.storage.layout import Release
from flows.jobs import (
    release as release_job,  # nothing that imports Prefect: its server's settings are set by a fixture
)
from flows.runtime import task_runners
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import query, wait_for
from tests.support.releases import HEX, PlainScorer, handed_out, people, settings

PLAIN = {"metrics": {"clip": "none", "lpips": "none"}}

# -- what is said before any work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [{"runner": "ray"}, {"runner": "dask"}, {"dispatch": "workers"}])
def test_several_processes_need_a_key_that_each_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: dict[str, Any]
) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY", raising=False)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", run=run)
    with pytest.raises(
        CustodianKeyError, match=r"ANONYMIZER_KEY: not set, and run\.\w+ \w+ works in several processes"
    ):
        task_runners.check(config)
    assert not (tmp_path / "out").exists()


def test_ranges_are_handed_to_a_deployment_of_their_flow_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    spread = {"dispatch": "workers", "deployment": "release/release"}
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", run=spread)
    with pytest.raises(ConfigError, match=r"run\.deployment 'release/release': is a deployment of another flow"):
        task_runners.check(config)


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str) -> None:
    monkeypatch.setattr(task_runners, "find_spec", lambda name: None)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", f"run.runner={runner}")
    with pytest.raises(ConfigError, match=rf"pip install 'anonymizer\[{runner}\]'"):
        task_runners.check(config)


def test_workers_need_a_server_that_answers_and_has_their_deployment(
    tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "run.dispatch=workers")
    with pytest.raises(
        ConfigError, match=r"run\.deployment 'anonymize-shards/anonymize-shards': the Prefect server has no"
    ):
        task_runners.check(config)
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigError, match="set PREFECT_API_URL"),
    ):
        task_runners.check(config)
    away = {PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away), pytest.raises(ConfigError, match=r"does not answer \(ConnectError\): check"):
        task_runners.check(config)


def test_work_is_spread_in_one_way_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one way to spread the work"):
        settings(tmp_path / "in", tmp_path / "out", "run.dispatch=workers", "run.runner=ray")
    with pytest.raises(ConfigError, match=r"run\.deployment must be FLOW/DEPLOYMENT"):
        settings(tmp_path / "in", tmp_path / "out", "run.deployment=shards")


def test_a_gpu_that_no_node_of_a_cluster_has_is_not_waited_for(tmp_path: Path) -> None:
    asked = settings(tmp_path / "in", tmp_path / "out", "model.device=cuda:0")
    with pytest.raises(ConfigError, match=r"model\.device cuda:0: no node of the Ray cluster has a GPU"):
        task_runners.gpus_per_task(asked, 0)
    found = settings(tmp_path / "in", tmp_path / "out")
    assert [
        task_runners.gpus_per_task(asked, 8),
        task_runners.gpus_per_task(found, 8),
        task_runners.gpus_per_task(found, 0),
    ] == [1, 1, 0]
    assert task_runners.gpus_per_task(settings(tmp_path / "in", tmp_path / "out", "model.device=cpu"), 8) == 0


# -- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_home")  # before Prefect is imported
@pytest.mark.parametrize(
    ("shards", "workers", "count"), [(6, 2, 2), (1, 4, 1), (0, 2, 0), (16, 1, 2), (64, 2, 8), (10_000, 4, 16)]
)
def test_ranges_are_as_many_as_keep_all_workers_busy_and_no_more(shards: int, workers: int, count: int) -> None:
    from flows.runtime import worker_ranges

    found = list(worker_ranges.split_into_ranges(range(3, 3 + shards), workers))
    assert len(found) == count
    assert [shard for one in found for shard in one.shards] == list(range(3, 3 + shards))
    assert {len(one.shards) for one in found} <= {shards // count, -(-shards // count)} if count else True


@pytest.mark.usefixtures("prefect_home")
def test_an_error_of_a_worker_that_may_be_repeated_is_the_error_of_the_release(tmp_path: Path) -> None:
    from prefect import flow
    from prefect.runtime import flow_run
    from prefect.states import Crashed, Failed

    from flows.runtime import range_runs

    config, started = settings(tmp_path / "in", tmp_path / "out"), list[range_runs.RangeRun]()

    @flow
    def failing_range(error: str) -> None:
        started.append(range_runs.RangeRun(range_runs.ShardRange([3, 4]), UUID(flow_run.id)))
        with range_runs.pass_error_on(config):
            if error == "key":
                raise CustodianKeyError("ANONYMIZER_KEY: not the key")
            raise ValueError("/home/alice/7.png")

    states = [failing_range(error, return_state=True) for error in ("key", "value")]
    passed_on = range_runs.read_error(config, started[0], states[0], [3, 4])
    assert (type(passed_on), str(passed_on)) == (CustodianKeyError, "ANONYMIZER_KEY: not the key")
    prefix = "Flow run encountered an exception: "
    for state in (
        states[1], Failed(message=prefix + "ValueError: /home/alice/7.png"), Crashed(message="exit code -9"), Crashed(),
    ):  # fmt: skip
        error = range_runs.read_error(config, started[1], state, [3, 4])
        assert str(error) == f"shards 3 to 4: {state.type.value.lower()} in a worker"


@pytest.mark.usefixtures("prefect_home")
def test_what_stays_as_it_is_stands_still_and_what_nobody_can_see_does_not() -> None:
    from flows.runtime.range_runs import StallTimer

    still, stuck = StallTimer(), list[bool]()
    for seen in [None, None, [], [], [10], [10], None, [10], [20], [20]]:
        time.sleep(0.002)
        stuck.append(still.is_stalled(seen, 0.001))
    assert stuck == [False, False, False, True, False, True, False, False, False, True]


@pytest.mark.usefixtures("prefect_home")
def test_a_range_whose_process_says_nothing_more_is_taken_from_it_and_one_that_only_hangs_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.states import Running

    from flows.runtime import progress_artifact, range_runs

    monkeypatch.setattr(progress_artifact, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(range_runs, "LOST_SECONDS", 1.0)

    @flow
    def range_of_a_test() -> None:
        told = progress_artifact.ProgressArtifact(0, 10, "pictures of these shards")
        with get_client(sync_client=True) as client:
            one = range_runs.RangeRun(range_runs.ShardRange([0]), UUID(flow_run.id))

            def looked(seconds: float, timeout: float) -> str | None:
                until = time.monotonic() + seconds
                while (
                    found := range_runs.stop_if_stalled(client, one, Running(), timeout)
                ) is None and time.monotonic() < until:
                    time.sleep(0.1)
                return found.message if found else None

            monkeypatch.setattr(range_runs, "cancel", lambda client, one: None)
            with told.heartbeat():
                assert looked(2, 60) is None  # alive, and in time
                assert looked(5, 1.5) == "no picture was finished in 1.5 s (run.timeout)"
            assert looked(5, 60) == "nothing was heard of its process for 1 s"

    range_of_a_test()


# -- tasks ------------------------------------------------------------------------------------------------------------


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
    return [[row[0] for row in query(home, sql, i)] for i, told in runs if config.output.uri in told]


@pytest.mark.usefixtures("in_closed_form")
def test_committed_shards_are_no_tasks_when_a_run_is_taken_up(
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
    assert release(config)["released"] == 2  # somebody asked for it

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
        found = original(future)
        with lock:
            open_now -= 1
        return found

    monkeypatch.setattr(ThreadPoolTaskRunner, "submit", counted)
    monkeypatch.setattr(dispatch, "_result_of", outcome)
    monkeypatch.setattr(release_job, "backbone_of", lambda model: backbone)
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: scorer)
    assert release(config)["released"] == 150
    assert most == dispatch.WINDOW
    ((*told,),) = of_run(prefect_home, config, "SELECT id FROM artifact WHERE flow_run_id = ?")
    assert len(told) < 30  # one for every 5 seconds, and two more


# -- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_home")
def test_a_gpu_has_a_limit_of_its_own_name_and_a_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.runtime import gpu_limit

    monkeypatch.setattr(gpu_limit.socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(gpu_limit.torch.cuda, "is_available", lambda: False)
    assert gpu_limit.limit_name("auto") is None
    monkeypatch.setattr(gpu_limit.torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu_limit.limit_name(name) for name in ("cpu", "auto", "cuda:1")] == [
        None, "anonymizer-gpu-node7-0", "anonymizer-gpu-node7-1",
    ]  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [gpu_limit.limit_name(name) for name in ("auto", "cuda:1")] == [
        "anonymizer-gpu-node7-2",
        "anonymizer-gpu-node7-5",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_home")
def test_shards_take_turns_on_a_gpu_that_has_a_limit_and_do_not_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    from flows.runtime import gpu_limit

    monkeypatch.setattr(gpu_limit, "limit_name", lambda device: "anonymizer-gpu-test-0")

    def together() -> int:
        """How many of three have the GPU at the same time, at most."""
        now, most, lock = 0, 0, threading.Lock()

        def shard() -> None:
            nonlocal now, most
            with gpu_limit.gpu_slot("auto"):
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.5)
                with lock:
                    now -= 1

        threads = [threading.Thread(target=shard) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return most

    assert together() > 1
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("anonymizer-gpu-test-0", 1)
    assert together() == 1


# -- other processes --------------------------------------------------------------------------------------------------

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

    def found() -> Counter[str]:
        files = list((tmp_path / "loads").iterdir())
        counts = Counter({file.name: len(file.read_text()) for file in files})
        for file in files:
            file.unlink()
        return counts

    return found


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_the_release_is_the_same_on_any_engine_and_each_process_loads_the_model_once(
    tmp_path: Path, tiny_model: Path, release: Any, loads: Any, runner: str
) -> None:
    source, model = people(tmp_path / "in", 12), {"id": str(tiny_model)}
    subprocess.run([sys.executable, "-c", LOAD, str(tiny_model)], check=True)
    ((_, once),) = loads().items()
    release(settings(source, tmp_path / "local", model=model, **PLAIN))
    expected = handed_out(Release.at(str(tmp_path / "local")))
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
        assert handed_out(done)[0] == expected[0]
        assert handed_out(done)[1].equals(expected[1])
        counts = loads()
        assert 1 <= len(counts) <= workers
        assert set(counts.values()) == {once}


def test_a_shard_is_done_with_as_many_threads_as_the_plan_says(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray and Dask give a process one, and another number rounds otherwise."""
    import torch

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", model={"id": str(tiny_model)}, **PLAIN)
    usual, seen = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(release_job, "anonymize_shard", lambda *given: seen.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(3)
        release_job.prepare(config)
        torch.set_num_threads(1)
        release_job.run_shard(config, 0, lambda done: None)
    finally:
        torch.set_num_threads(usual)
    assert seen == [3]


@pytest.mark.usefixtures("prefect_home")
def test_a_range_is_asked_for_once_and_ranges_that_nobody_waits_for_are_stopped(tmp_path: Path) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    from flows.runtime import range_runs

    @flow(name="shards-of-a-test")
    def shards(config: dict[str, Any], first: int, last: int) -> None: ...

    def of(name: str) -> RunConfig:
        return settings(tmp_path / "in", tmp_path / name, "run.deployment=shards-of-a-test/ranges")

    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow(shards), "ranges", enforce_parameter_schema=False)
        own = [range_runs.start_range(of("out"), range_runs.ShardRange([0, 1])) for _ in range(2)]
        client.set_flow_run_state(own[1].flow_run, Running(), force=True)
        other, some = range_runs.start_range(of("other"), range_runs.ShardRange([0])), range_runs.ShardRange([2])
        assert range_runs.start_range(of("other"), some).flow_run == range_runs.start_range(of("other"), some).flow_run
        deployment = client.read_deployment_by_name("shards-of-a-test/ranges").id
        by_hand = client.create_flow_run_from_deployment(deployment, parameters={"config": "release.yaml"})
        range_runs.cancel_orphans(client, of("out"))
        assert client.read_flow_run(by_hand.id).state.is_scheduled()
        found = [client.read_flow_run(one.flow_run).state for one in (*own, other)]
    assert [state and state.type.value for state in found] == ["CANCELLED", "CANCELLING", "SCHEDULED"]


def test_another_key_or_model_than_was_planned_with_does_no_shard(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", model={"id": str(tiny_model)}, **PLAIN)
    release_job.prepare(config)
    with monkeypatch.context() as patch, pytest.raises(CustodianKeyError, match="not the key that the release was"):
        patch.setenv("ANONYMIZER_KEY", CustodianKey(bytes(range(1, 33))).secret.hex())
        release_job.run_shard(config, 0, lambda done: None)
    with monkeypatch.context() as patch, pytest.raises(CustodianKeyError, match="not set where shards are done"):
        patch.delenv("ANONYMIZER_KEY")
        release_job.run_shard(config, 0, lambda done: None)
    with monkeypatch.context() as patch, pytest.raises(ModelError, match="other weights or settings than"):
        patch.setattr(release_job, "backbone_of", lambda model: IdealGaussian())
        release_job.run_shard(config, 0, lambda done: None)
    assert ledger.read_shard(Release.at(config.output.uri), 0) is None
    assert json.loads(Release.at(config.output.uri).plan.read())["shards"] == 1
