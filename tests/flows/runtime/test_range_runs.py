"""Ranges of shards in workers: how many, and what becomes of one that fails, stalls or is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from anonymizer.config import RunConfig
from anonymizer.errors import CustodianKeyError
from tests.support.releases import settings


@pytest.mark.usefixtures("prefect_home")  # before Prefect is imported
@pytest.mark.parametrize(
    ("shards", "workers", "count"), [(6, 2, 2), (1, 4, 1), (0, 2, 0), (16, 1, 2), (64, 2, 8), (10_000, 4, 16)]
)
def test_ranges_are_as_many_as_keep_all_workers_busy_and_no_more(shards: int, workers: int, count: int) -> None:
    from flows.runtime import worker_ranges

    ranges = list(worker_ranges.split_into_ranges(range(3, 3 + shards), workers))
    assert len(ranges) == count
    assert [shard for part in ranges for shard in part.shards] == list(range(3, 3 + shards))
    assert {len(part.shards) for part in ranges} <= {shards // count, -(-shards // count)} if count else True


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
        with range_runs.pass_error_on(config.output.uri):
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


@pytest.mark.parametrize("error", ["TYPE_CHECKING", "RecordError", "SystemExit", "annotations", "no such", 3, None])
def test_an_error_file_that_anybody_wrote_makes_no_other_error(tmp_path: Path, error: object) -> None:
    from prefect.states import Crashed

    from flows.runtime import range_runs

    config, run = settings(tmp_path / "in", tmp_path / "out"), range_runs.RangeRun(range_runs.ShardRange([0]), uuid4())
    file = tmp_path / "out" / "restricted" / "errors" / f"range-{run.flow_run}.json"
    file.parent.mkdir(parents=True)
    for document in ({"error": error, "message": "x"}, {"error": error}, [error], "["):
        file.write_text(json.dumps(document) if document != "[" else "[" * 100_000)
        assert str(range_runs.read_error(config, run, Crashed(), [0])) == "shards 0 to 0: crashed in a worker"


@pytest.mark.usefixtures("prefect_home")
def test_a_value_that_does_not_change_is_stalled_and_an_unknown_one_is_not() -> None:
    from flows.runtime.range_runs import StallTimer

    still, stuck = StallTimer(), list[bool]()
    for seen in [None, None, [], [], [10], [10], None, [10], [20], [20]]:
        time.sleep(0.002)
        stuck.append(still.is_stalled(seen, 0.001))
    assert stuck == [False, False, False, True, False, True, False, False, False, True]


@pytest.mark.usefixtures("prefect_home")
def test_a_range_without_heartbeats_is_lost_and_one_without_progress_is_stalled(
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
        artifact = progress_artifact.ProgressArtifact(0, 10, "pictures of these shards")
        with get_client(sync_client=True) as client:
            one = range_runs.RangeRun(range_runs.ShardRange([0]), UUID(flow_run.id))

            def looked(seconds: float, timeout: float) -> str | None:
                until = time.monotonic() + seconds
                while (
                    state := range_runs.stop_if_stalled(client, one, Running(), timeout)
                ) is None and time.monotonic() < until:
                    time.sleep(0.1)
                return state.message if state else None

            monkeypatch.setattr(range_runs, "cancel", lambda client, one: None)
            with artifact.heartbeat():
                assert looked(2, 60) is None  # alive, and in time
                assert looked(5, 1.5) == "no picture was finished in 1.5 s (run.timeout)"
            assert looked(5, 60) == "nothing was heard of its process for 1 s"

    range_of_a_test()


@pytest.mark.usefixtures("prefect_home")
def test_a_range_is_started_once_and_orphaned_ranges_are_cancelled(tmp_path: Path) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    from flows.runtime import range_runs

    @flow(name="shards-of-a-test")
    def shards(release: str, first: int, last: int) -> None: ...

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
        states = [client.read_flow_run(one.flow_run).state for one in (*own, other)]
    assert [state and state.type.value for state in states] == ["CANCELLED", "CANCELLING", "SCHEDULED"]
